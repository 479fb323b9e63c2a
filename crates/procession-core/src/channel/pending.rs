//! A client in the middle of its handshake, which is served without waiting for it.

use std::{
    io::{self, ErrorKind, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use super::{
    AcceptError, Address, Connection, ConnectionError, Handshake, HandshakeError, LONGEST_MESSAGE, Step,
    frame::{self, Decoded, Header},
    layout::as_uninit,
};
use crate::{
    sync::WaitError,
    sys::io::{self as sys, Blocking},
};

/// A client in the middle of its handshake.
#[derive(Debug)]
pub(super) struct Pending {
    socket: OwnedFd,
    peer: Option<Address>,
    handshake: Handshake,
    since: Instant,
    deadline: Instant,
    /// What has come of the next message, its header included. Never a byte more is read: it would be the caller's.
    input: [u8; frame::LONGEST + LONGEST_MESSAGE],
    have: usize,
    /// What is to go out, and how much of it has.
    output: Vec<u8>,
    sent: usize,
    result: Option<Result<(), HandshakeError>>,
}

impl Pending {
    pub(super) fn new(socket: OwnedFd, peer: Option<Address>, handshake: Handshake, patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            socket,
            peer,
            handshake,
            since: now,
            // A century is as good as for ever.
            deadline: now.checked_add(patience).unwrap_or(now + Duration::from_secs(100 * 365 * 86400)),
            input: [0; frame::LONGEST + LONGEST_MESSAGE],
            have: 0,
            output: Vec::new(),
            sent: 0,
            result: None,
        }
    }

    /// When it connected.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to poll for before the client can be served further.
    pub(super) fn awaited(&self) -> libc::pollfd {
        let events = if self.sent < self.output.len() { libc::POLLOUT } else { libc::POLLIN };
        libc::pollfd { fd: self.socket.as_raw_fd(), events, revents: 0 }
    }

    /// Serves the client as far as it goes without waiting. True if its handshake has come to its end, good or bad.
    pub(super) fn is_over(&mut self) -> bool {
        self.result = match self.advance() {
            Ok(true) => Some(Ok(())),
            Ok(false) if self.deadline <= Instant::now() => {
                Some(Err(ConnectionError::Wait(WaitError::TimedOut).into()))
            }
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        };
        self.result.is_some()
    }

    /// The end, after [`is_over`](Self::is_over). A client that is not let in is disconnected.
    pub(super) fn result(self) -> Result<(Connection, Option<Address>), AcceptError> {
        match self.result {
            Some(Ok(())) => Ok((self.socket.into(), self.peer)),
            Some(Err(error)) => Err(AcceptError::Client { peer: self.peer, error }),
            None => Err(WaitError::TimedOut.into()),
        }
    }

    /// The end of a client that has taken too long, and is disconnected.
    pub(super) fn given_up<T>(self) -> Result<T, AcceptError> {
        let error = ConnectionError::Wait(WaitError::TimedOut).into();
        Err(AcceptError::Client { peer: self.peer, error })
    }

    fn advance(&mut self) -> Result<bool, HandshakeError> {
        loop {
            if !self.send()? {
                return Ok(false);
            }
            match self.handshake.step() {
                Step::Send(message) => {
                    self.output = [Header::new(message.len(), false).as_bytes(), &message].concat();
                    self.sent = 0;
                }
                Step::Receive => match self.receive()? {
                    Some(header) => {
                        self.handshake.received(&self.input[header..self.have]);
                        self.have = 0;
                    }
                    None => return Ok(false),
                },
                Step::End(result) => {
                    sys::acknowledge(self.socket.as_raw_fd());
                    return Ok(result.map(|()| true)?);
                }
            }
        }
    }

    /// True if nothing is left to send.
    fn send(&mut self) -> Result<bool, ConnectionError> {
        while self.sent < self.output.len() {
            let left = IoSlice::new(&self.output[self.sent..]);
            match unless_blocked(sys::send(self.socket.as_raw_fd(), &[left], Blocking::No))? {
                Some(moved) => self.sent += moved,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The length of the header, if the message is there to its end.
    fn receive(&mut self) -> Result<Option<usize>, ConnectionError> {
        loop {
            let wanted = match frame::decode(&self.input[..self.have], false) {
                Some(Decoded::Incomplete(wanted)) => wanted,
                Some(Decoded::Complete { header, length, .. }) if length <= LONGEST_MESSAGE => {
                    if self.have == header + length {
                        return Ok(Some(header));
                    }
                    header + length
                }
                _ => return Err(ConnectionError::BadLength),
            };
            let room = as_uninit(&mut self.input[self.have..wanted]);
            match unless_blocked(sys::receive(self.socket.as_raw_fd(), room, Blocking::No))? {
                Some(0) if self.have == 0 => return Err(ConnectionError::Ended),
                Some(0) => return Err(ConnectionError::Truncated),
                Some(moved) => self.have += moved,
                None => return Ok(None),
            }
        }
    }
}

/// `None` if the call would have to wait. Calls that never sleep are not interrupted.
fn unless_blocked(result: io::Result<usize>) -> Result<Option<usize>, ConnectionError> {
    match result {
        Ok(moved) => Ok(Some(moved)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(ConnectionError::Io(error)),
    }
}
