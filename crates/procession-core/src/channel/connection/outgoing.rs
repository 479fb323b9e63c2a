//! A message on its way out.

use std::{io::IoSlice, os::fd::BorrowedFd, sync::atomic::Ordering};

use super::{
    super::{descriptor::InUse, early::FIRST_PACKET, frame::Header},
    Connection, ConnectionError, How, Kind, MOST_AT_ONCE, NEXT_PACKET, Towards,
};
use crate::{
    sync::Wait,
    sys::{io as sys, rights},
};

/// A packet is not made smaller than this, however small the socket's buffer is.
const LEAST_PACKET: usize = 512;
/// So many pieces of a message go into one system call.
const MOST_PIECES: usize = 8;

impl Connection {
    /// Begins to send a message, made of parts one after another. Nothing is sent before [`Outgoing::try_finish`] or
    /// [`Outgoing::finish`].
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Closed`], [`ConnectionError::OutOfStep`].
    pub fn sending<'a>(&'a self, parts: &'a [&'a [u8]]) -> Result<Outgoing<'a>, ConnectionError> {
        let in_use = self.enter(&self.sending_broken)?;
        let length = parts.iter().map(|part| part.len()).sum();
        let header = Header::new(length, false);
        let left = header.as_bytes().len() + length;
        Ok(Outgoing {
            connection: self,
            in_use,
            header,
            parts,
            descriptors: &[],
            sent: 0,
            left,
            largest: NEXT_PACKET,
            failed: false,
        })
    }

    /// [`sending`](Self::sending), of a message that has its buffers apart: its receiver is told so
    /// ([`Incoming::is_apart`](super::Incoming::is_apart)). Only over packets ([`pipe`](super::super::pipe)), whose other end
    /// is known to understand it.
    ///
    /// # Errors
    ///
    /// As [`sending`](Self::sending).
    ///
    /// # Panics
    ///
    /// If [`keeps_packets`](Self::keeps_packets) is false.
    pub fn sending_apart<'a>(&'a self, parts: &'a [&'a [u8]]) -> Result<Outgoing<'a>, ConnectionError> {
        assert!(self.keeps_packets(), "the other end may be of another package");
        let mut outgoing = self.sending(parts)?;
        let length = parts.iter().map(|part| part.len()).sum();
        outgoing.header = Header::new(length, true);
        outgoing.left = outgoing.header.as_bytes().len() + length;
        Ok(outgoing)
    }

    /// [`sending`](Self::sending), with descriptors that go along: the receiver gets copies of them. The caller keeps
    /// its own.
    ///
    /// # Errors
    ///
    /// As [`sending`](Self::sending), [`ConnectionError::NoDescriptors`] if this is not a Unix socket and
    /// [`ConnectionError::TooManyDescriptors`].
    pub fn sending_with<'a>(
        &'a self,
        parts: &'a [&'a [u8]],
        descriptors: &'a [BorrowedFd<'a>],
    ) -> Result<Outgoing<'a>, ConnectionError> {
        let mut outgoing = self.sending(parts)?;
        if descriptors.len() > rights::MOST {
            return Err(ConnectionError::TooManyDescriptors);
        }
        if !descriptors.is_empty() && !rights::can_carry(outgoing.in_use.number()) {
            return Err(ConnectionError::NoDescriptors);
        }
        outgoing.descriptors = descriptors;
        Ok(outgoing)
    }
}

/// A message on its way out. If it is dropped with only a part sent, the connection sends no more: its receiver would
/// take the next message for the rest of this one.
#[derive(Debug)]
#[must_use = "nothing was sent as yet"]
pub struct Outgoing<'a> {
    connection: &'a Connection,
    in_use: InUse<'a>,
    header: Header,
    parts: &'a [&'a [u8]],
    /// What goes along with the first byte.
    descriptors: &'a [BorrowedFd<'a>],
    /// Bytes, the header's included, that the kernel has taken, and that it has not.
    sent: usize,
    left: usize,
    /// The largest packet that the socket takes.
    largest: usize,
    failed: bool,
}

impl Outgoing<'_> {
    /// Sends as much as goes without waiting. True if that was all of it.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Io`], with `EPIPE` if nobody can receive it any more.
    pub fn try_finish(&mut self) -> Result<bool, ConnectionError> {
        self.run(&mut How::Now)
    }

    /// Sends what is left; blocks while the other side doesn't make room.
    ///
    /// # Errors
    ///
    /// As [`try_finish`](Self::try_finish), and [`ConnectionError::Wait`].
    pub fn finish(&mut self, wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
        self.run(&mut How::Wait(wait)).map(|finished| debug_assert!(finished))
    }

    fn run(&mut self, how: &mut How<'_, '_>) -> Result<bool, ConnectionError> {
        let (fd, connection) = (self.in_use.number(), self.connection);
        while self.left > 0 {
            let most = match connection.kind() {
                Kind::Packets if self.sent == 0 => self.largest.min(FIRST_PACKET),
                Kind::Packets => self.largest,
                Kind::Stream | Kind::File => MOST_AT_ONCE,
            };
            let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
            let count = self.gather(most, &mut pieces);
            let pieces = &pieces[..count];
            let call = |blocking| match connection.kind() {
                Kind::File => sys::write(fd, pieces, blocking),
                _ if self.sent == 0 && !self.descriptors.is_empty() => {
                    rights::send(fd, pieces, self.descriptors, blocking)
                }
                Kind::Packets | Kind::Stream => sys::send(fd, pieces, blocking),
            };
            match connection.attempt(fd, Towards::Them, self.sent > 0, how, call) {
                Ok(Some(moved)) => {
                    self.sent += moved;
                    self.left -= moved;
                }
                Ok(None) => return Ok(false),
                // The socket's buffer is smaller than this packet: smaller ones have to do.
                Err(ConnectionError::Io(error))
                    if error.raw_os_error() == Some(libc::EMSGSIZE) && most > LEAST_PACKET =>
                {
                    self.largest = most / 2;
                }
                Err(error) => {
                    self.failed = matches!(error, ConnectionError::Io(_));
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// What comes next, at most so many bytes of it; returns the number of pieces.
    fn gather<'b>(&'b self, most: usize, pieces: &mut [IoSlice<'b>; MOST_PIECES]) -> usize {
        let (mut skip, mut room, mut count) = (self.sent, most, 0);
        for part in std::iter::once(self.header.as_bytes()).chain(self.parts.iter().copied()) {
            let rest = &part[skip.min(part.len())..];
            skip = skip.saturating_sub(part.len());
            let taken = &rest[..rest.len().min(room)];
            if taken.is_empty() {
                continue;
            }
            pieces[count] = IoSlice::new(taken);
            room -= taken.len();
            count += 1;
            if count == MOST_PIECES || room == 0 {
                break;
            }
        }
        count
    }
}

impl Drop for Outgoing<'_> {
    fn drop(&mut self) {
        let part = self.sent > 0 && self.left > 0;
        // After an error of the system the next call gets its own error, which says more.
        if part && !self.failed {
            self.connection.sending_broken.store(true, Ordering::Relaxed);
        }
    }
}
