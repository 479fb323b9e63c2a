//! A connection: messages of bytes over a descriptor. The protocol is described in `CONNECTION.md`.

use std::{
    io::{self, ErrorKind},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

mod incoming;
mod outgoing;

pub use incoming::{Incoming, Partial};
pub use outgoing::Outgoing;

use super::{
    descriptor::{Descriptor, InUse},
    patience::Patience,
    wait::poll_one,
};
use crate::{
    sync::{Wait, WaitError},
    sys::{
        io::{self as sys, Blocking},
        rights,
    },
};

/// A further packet of a message holds at most this many.
const NEXT_PACKET: usize = 128 * 1024;
/// The most that one system call is asked to move: the kernel's own limit is a page less than 2 GiB.
const MOST_AT_ONCE: usize = 1 << 30;

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The connection was closed on this side.
    #[error("handle is closed")]
    Closed,
    /// The other side is closed, and all its messages were received.
    #[error("the other end of the connection was closed")]
    Ended,
    /// The other side ended in the middle of a message.
    #[error("got end of file during message")]
    Truncated,
    /// What was received is not a message.
    #[error("bad message length")]
    BadLength,
    /// An earlier call gave up in the middle of a message.
    #[error("an earlier message was interrupted half way, so the connection is out of step: close it")]
    OutOfStep,
    /// Descriptors were to be sent over something else than a Unix socket.
    #[error("descriptors can only be sent over a Unix socket, within one machine")]
    NoDescriptors,
    /// More descriptors were to be sent than can go with a message.
    #[error("a message can have at most {most} descriptors with it", most = rights::MOST)]
    TooManyDescriptors,
    /// Descriptors came with the message that this process had no room for, so they are lost.
    #[error("the descriptors of the message are lost: too many open files")]
    DescriptorsLost,
    /// The wait ended.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The system's error.
    #[error(transparent)]
    Io(io::Error),
}

/// Whether a step may sleep, and how long.
enum How<'a, 'w> {
    Now,
    Wait(&'a mut Wait<'w>),
}

/// What a descriptor is, as far as moving bytes is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Keeps the boundaries of what was sent: a message is one packet or more.
    Packets,
    /// A socket without boundaries.
    Stream,
    /// A pipe, terminal or file.
    File,
}

impl Kind {
    fn of(fd: RawFd) -> Self {
        match sys::socket_type(fd) {
            Ok(libc::SOCK_SEQPACKET) => Self::Packets,
            Ok(_) => Self::Stream,
            Err(_) => Self::File,
        }
    }
}

/// One end of a connection: sends and receives messages of bytes.
///
/// All calls may come from any thread. Messages that fit one packet ([`pipe`](super::pipe)) are atomic: several threads
/// and processes may send over one end. Two senders of larger messages, or of any over a stream, have to take turns, and
/// so have receivers.
///
/// After a fork both processes have the connection, as the kernel's rules are. Dropping it closes the descriptor.
#[derive(Debug)]
pub struct Connection {
    descriptor: Descriptor,
    /// A [`Kind`], found out when the descriptor is given.
    kind: AtomicU8,
    sending_broken: AtomicBool,
    receiving_broken: AtomicBool,
    patience: Patience,
}

impl From<OwnedFd> for Connection {
    fn from(descriptor: OwnedFd) -> Self {
        Self::from_number(descriptor.into_raw_fd())
    }
}

impl Connection {
    /// Over a descriptor given by its number, which is taken over: socket, pipe, or what else can be read and written.
    ///
    /// A number that is not open is found out by the first call.
    pub fn from_number(fd: RawFd) -> Self {
        Self {
            descriptor: Descriptor::new(fd),
            kind: AtomicU8::new(Kind::of(fd) as u8),
            sending_broken: AtomicBool::new(false),
            receiving_broken: AtomicBool::new(false),
            patience: Patience::new(),
        }
    }

    /// The number of the descriptor; `None` if closed.
    pub fn number(&self) -> Option<RawFd> {
        self.descriptor.number()
    }

    /// Closes it. A call that another thread has under way is not ended by that.
    ///
    /// # Errors
    ///
    /// That of close(2); the connection is closed nevertheless. None if it was closed already.
    pub fn close(&self) -> io::Result<()> {
        self.descriptor.close()
    }

    /// Ends it for both sides, if it is a socket: what waits on it in whatever process comes to the end. It is still open.
    pub fn hang_up(&self) {
        if let Ok(in_use) = self.in_use() {
            sys::shutdown(in_use.number());
        }
    }

    /// Gives the descriptor away: the connection is closed for this object, but not for the system.
    pub fn detach(&self) -> Option<RawFd> {
        self.descriptor.detach()
    }

    /// Goes on with another descriptor; the present one is not closed.
    pub fn replace_number(&self, fd: RawFd) {
        self.kind.store(Kind::of(fd) as u8, Ordering::Relaxed);
        self.sending_broken.store(false, Ordering::Relaxed);
        self.receiving_broken.store(false, Ordering::Relaxed);
        self.descriptor.replace(fd);
    }

    /// Whether it keeps the boundaries of packets: it is an end of a [`pipe`](super::pipe), then, as no other connection does.
    pub fn keeps_packets(&self) -> bool {
        self.kind() == Kind::Packets
    }

    /// Sends a message: blocks while the other side doesn't make room for it.
    ///
    /// ```
    /// use procession_core::{channel, sync::Wait};
    ///
    /// let (ours, theirs) = channel::pipe()?;
    /// ours.send(b"hello", &mut Wait::forever())?;
    /// assert_eq!(theirs.receive(&mut Wait::forever())?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Outgoing::finish`].
    pub fn send(&self, body: &[u8], wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
        self.sending(&[body])?.finish(wait)
    }

    /// Sends a message with descriptors.
    ///
    /// ```
    /// use procession_core::{channel, sync::Wait};
    /// use std::{io::Read, os::fd::AsFd};
    ///
    /// let (ours, theirs) = channel::pipe()?;
    /// let (mut reader, writer) = std::io::pipe()?;
    /// ours.send_with(b"write here", &[writer.as_fd()], &mut Wait::forever())?;
    /// let (body, descriptors) = theirs.receive_with(&mut Wait::forever())?;
    /// assert_eq!((body.as_slice(), descriptors.len()), (b"write here".as_slice(), 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`sending_with`](Self::sending_with) and [`Outgoing::finish`].
    pub fn send_with(
        &self,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        wait: &mut Wait<'_>,
    ) -> Result<(), ConnectionError> {
        self.sending_with(&[body], descriptors)?.finish(wait)
    }

    /// Receives a message: blocks until there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Incoming::length`] and [`Incoming::finish`].
    pub fn receive(&self, wait: &mut Wait<'_>) -> Result<Vec<u8>, ConnectionError> {
        self.receive_at_most(usize::MAX, wait)
    }

    /// Receives a message of at most `limit` bytes, for peers that are not trusted with more.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive); [`ConnectionError::BadLength`] for a longer one, of which nothing more is taken.
    pub fn receive_at_most(&self, limit: usize, wait: &mut Wait<'_>) -> Result<Vec<u8>, ConnectionError> {
        let mut incoming = self.receiving()?;
        if incoming.length(wait)? > limit {
            return Err(ConnectionError::BadLength);
        }
        incoming.body(wait)
    }

    /// Receives a message and the descriptors that come with it, closed on exec.
    ///
    /// # Errors
    ///
    /// Those of [`Incoming::length`] and [`Incoming::finish`]; [`ConnectionError::DescriptorsLost`].
    pub fn receive_with(&self, wait: &mut Wait<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), ConnectionError> {
        let mut incoming = self.receiving_with()?;
        let body = incoming.body(wait)?;
        Ok((body, incoming.take_descriptors()))
    }

    /// Waits until something can be received, the end included. False if the time is over.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Closed`], [`ConnectionError::Wait`] if interrupted, [`ConnectionError::Io`].
    pub fn poll(&self, wait: &mut Wait<'_>) -> Result<bool, ConnectionError> {
        let in_use = self.descriptor.get().ok_or(ConnectionError::Closed)?;
        match poll_one(in_use.number(), libc::POLLIN, wait) {
            Ok(()) => Ok(true),
            Err(ConnectionError::Wait(WaitError::TimedOut)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The descriptor, which stays open meanwhile.
    pub(super) fn in_use(&self) -> Result<InUse<'_>, ConnectionError> {
        self.descriptor.get().ok_or(ConnectionError::Closed)
    }

    fn enter(&self, broken: &AtomicBool) -> Result<InUse<'_>, ConnectionError> {
        let in_use = self.descriptor.get().ok_or(ConnectionError::Closed)?;
        if broken.load(Ordering::Relaxed) { Err(ConnectionError::OutOfStep) } else { Ok(in_use) }
    }

    fn kind(&self) -> Kind {
        const PACKETS: u8 = Kind::Packets as u8;
        const STREAM: u8 = Kind::Stream as u8;
        match self.kind.load(Ordering::Relaxed) {
            PACKETS => Kind::Packets,
            STREAM => Kind::Stream,
            _ => Kind::File,
        }
    }

    /// One call that may move bytes: `None` if it would have to wait and may not.
    ///
    /// Before a message has begun, the call itself sleeps, which saves a system call. In the middle of one it is polled in
    /// slices: a signal that interrupts such a call after it has moved something is not told, and would wait with us.
    fn attempt(
        &self,
        fd: RawFd,
        towards: Towards,
        begun: bool,
        how: &mut How<'_, '_>,
        mut call: impl FnMut(Blocking) -> io::Result<usize>,
    ) -> Result<Option<usize>, ConnectionError> {
        let mut looks = None;
        let mut made = 0;
        let mut slept = false;
        let mut blocking = Blocking::No;
        loop {
            let error = match call(blocking) {
                Ok(moved) => {
                    if looks.is_some_and(|looks| looks > 0) {
                        self.patience.end(made, slept);
                    }
                    return Ok(Some(moved));
                }
                Err(error) => error,
            };
            match (error.kind(), &mut *how) {
                (ErrorKind::Interrupted, How::Wait(wait)) => wait.signalled()?,
                (ErrorKind::Interrupted, How::Now) => {}
                (ErrorKind::WouldBlock, How::Now) => return Ok(None),
                (ErrorKind::WouldBlock, How::Wait(_))
                    if towards == Towards::Us && made < *looks.get_or_insert_with(|| self.patience.get()) =>
                {
                    made += 1;
                    std::hint::spin_loop();
                }
                (ErrorKind::WouldBlock, How::Wait(wait)) => {
                    slept = true;
                    // A descriptor that somebody made non-blocking does not even sleep when asked to: it is polled.
                    if !begun && blocking == Blocking::No && wait.deadline().is_none() {
                        blocking = Blocking::Yes;
                        continue;
                    }
                    poll_one(fd, towards.event(), wait)?;
                    // Not every file can be asked not to block, so they aren't: there is something now.
                    blocking = if self.kind() == Kind::File { Blocking::Yes } else { Blocking::No };
                }
                _ => return Err(ConnectionError::Io(error)),
            }
        }
    }

    /// Takes what is there, at most the buffer's length (a packet may turn out to be longer).
    fn take(
        &self,
        fd: RawFd,
        begun: bool,
        how: &mut How<'_, '_>,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<Option<usize>, ConnectionError> {
        self.attempt(fd, Towards::Us, begun, how, |blocking| match self.kind() {
            Kind::Packets => sys::receive_packet(fd, buffer, blocking),
            Kind::Stream => sys::receive(fd, buffer, blocking),
            Kind::File => sys::read(fd, buffer, blocking),
        })
    }
}

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Towards {
    Us,
    Them,
}

impl Towards {
    fn event(self) -> i16 {
        match self {
            Self::Us => libc::POLLIN,
            Self::Them => libc::POLLOUT,
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "connection_tests.rs"]
mod tests;
