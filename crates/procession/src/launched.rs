//! A process that was started, whatever it is for: how it ends, and what comes back from it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use procession_core::{
    channel,
    process::{Answer, Exit, Parcel, Sentinel, receive_parcel},
    sync::{Wait, WaitError},
};
use rustix::io::Errno;

use crate::{forkserver::Server, process::Pipes};

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) name: String,
    /// Tells the end of the process. How it ended, only [`exit`](Self::exit) knows in every case.
    pub(crate) sentinel: Sentinel,
    pub(crate) pipes: Pipes,
    /// Who has to be asked how it ended, if it is no child of this process.
    server: Option<Arc<Server>>,
    pub(crate) socket: OwnedFd,
    heard: Mutex<Heard>,
}

/// What has come back.
#[derive(Debug, Default)]
struct Heard {
    outcome: Option<Parcel>,
    /// From the fork server.
    exit: Option<Exit>,
    /// The child ended without having read its invitation.
    unread: bool,
    /// There will be no more.
    closed: bool,
    taken: bool,
}

/// What a process that has ended left behind.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It told this.
    Told(Parcel),
    /// Nothing.
    Nothing,
    /// What it told was given out before.
    Taken,
    /// Nothing, as it never asked what it was to do.
    NeverBegan,
}

impl Launched {
    /// A process that is behind `socket`. Its end is known to the kernel if it is a child of this one, else to its `server`.
    pub(crate) fn new(
        name: String,
        sentinel: Sentinel,
        socket: OwnedFd,
        server: Option<Arc<Server>>,
        pipes: Pipes,
    ) -> Self {
        Self { name, sentinel, pipes, server, socket, heard: Mutex::default() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.sentinel.pid()
    }

    /// Waits until the process has ended. Does not reap it.
    pub(crate) fn wait(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        self.sentinel.wait(wait)
    }

    /// Whether the process has ended. Reaps it.
    pub(crate) fn has_ended(&self) -> bool {
        match &self.server {
            None => !matches!(self.exit(), Ok(None)),
            // It is reaped by the server.
            Some(_) => self.sentinel.has_ended(),
        }
    }

    /// How the process ended; `None` while it runs. Reaps it.
    pub(crate) fn exit(&self) -> io::Result<Option<Exit>> {
        let Some(server) = &self.server else { return self.sentinel.exit() };
        if !self.sentinel.has_ended() {
            return Ok(None);
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        while heard.exit.is_none() {
            self.listen(&mut heard)?;
            if heard.exit.is_none() {
                // Its own end may take a moment to get to the server. That has ended as well, if nothing but its socket is readable.
                let both = [self.socket.as_raw_fd(), server.control().as_raw_fd()];
                let readable = channel::wait(&both, &mut Wait::forever()).map_err(io::Error::other)?;
                if !readable.contains(&0) {
                    heard.exit = Some(Exit::Unknown);
                }
            }
        }
        Ok(heard.exit)
    }

    /// Whether it is known how the process, which has ended, did so: its own end may take a moment to get to the fork
    /// server. Its socket becomes readable then, or that of the server if this has ended as well.
    #[cfg(feature = "tokio")]
    pub(crate) fn knows_its_end(&self) -> io::Result<bool> {
        let Some(server) = &self.server else { return Ok(true) };
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.listen(&mut heard)?;
        let gone =
            || procession_core::process::wait_readable(server.control(), &mut Wait::timeout(Duration::ZERO)).is_ok();
        Ok(heard.exit.is_some() || gone())
    }

    /// Readable when the fork server that has to be asked has ended, if there is one.
    #[cfg(feature = "tokio")]
    pub(crate) fn server_control(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.server.as_ref().map(|server| server.control())
    }

    /// What the process, which has ended, told. It is given out once.
    pub(crate) fn outcome(&self) -> io::Result<Outcome> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.listen(&mut heard)?;
        Ok(match heard.outcome.take() {
            Some(parcel) => {
                heard.taken = true;
                Outcome::Told(parcel)
            }
            None if heard.taken => Outcome::Taken,
            None if heard.unread => Outcome::NeverBegan,
            None => Outcome::Nothing,
        })
    }

    /// Takes in what has been told of a process that has ended.
    fn listen(&self, heard: &mut Heard) -> io::Result<()> {
        if heard.closed {
            return Ok(());
        }
        // The kernel says so once, to whoever asks first.
        heard.unread |= matches!(rustix::net::sockopt::socket_error(&self.socket), Ok(Err(Errno::CONNRESET)));
        // A process that is left of a child's own fork may hold the socket open: there may be no end of it.
        while let Ok(parcel) = receive_parcel(self.socket.as_fd(), &mut Wait::timeout(Duration::ZERO)) {
            match parcel?.map(Answer::from_parcel) {
                Some(Ok(Answer::Ended(exit))) => heard.exit = Some(exit),
                Some(Ok(_)) => {}
                Some(Err(parcel)) => heard.outcome = Some(parcel),
                None => {
                    heard.closed = true;
                    if self.server.is_some() {
                        // It ended without having told.
                        heard.exit.get_or_insert(Exit::Unknown);
                    }
                    break;
                }
            }
        }
        Ok(())
    }
}
