//! The standard streams of a process that is started.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{Stdio, Way};
use crate::invitation::Place;

/// The standard streams of a child to be: what it is given, and the other ends of pipes.
#[derive(Debug)]
pub(crate) struct Streams<'a> {
    pub(crate) places: [Place; 3],
    pub(crate) childs: Vec<Lent<'a>>,
    pub(crate) pipes: Pipes,
}

/// The starter's ends of the standard streams that are pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
}

#[derive(Debug)]
pub(crate) enum Lent<'a> {
    Given(BorrowedFd<'a>),
    Made(OwnedFd),
}

impl AsFd for Lent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Given(fd) => *fd,
            Self::Made(fd) => fd.as_fd(),
        }
    }
}

impl<'a> Streams<'a> {
    /// As the settings say. A process that is `copied` from the fork server has that one's unless something is said.
    pub(crate) fn prepare(stdio: &'a [Option<Stdio>; 3], copied: bool) -> io::Result<Self> {
        let mut streams = Self { places: [Place::Inherited; 3], childs: Vec::new(), pipes: Pipes::default() };
        for (number, stream) in stdio.iter().enumerate() {
            streams.places[number] = match stream.as_ref().map(|Stdio(way)| way) {
                // What the user types is for the main process. The fork server has none of it, either.
                None if number == 0 && !copied => Place::Null,
                None | Some(Way::Inherit) => Place::Inherited,
                Some(Way::Null) => Place::Null,
                Some(Way::Given(fd)) => streams.give(Lent::Given(fd.as_fd())),
                Some(Way::Piped) => {
                    let (reader, writer) = io::pipe()?;
                    if number == 0 {
                        streams.pipes.stdin = Some(writer);
                        streams.give(Lent::Made(reader.into()))
                    } else {
                        let end = if number == 1 { &mut streams.pipes.stdout } else { &mut streams.pipes.stderr };
                        *end = Some(reader);
                        streams.give(Lent::Made(writer.into()))
                    }
                }
            };
        }
        Ok(streams)
    }

    fn give(&mut self, fd: Lent<'a>) -> Place {
        self.childs.push(fd);
        Place::Given
    }
}
