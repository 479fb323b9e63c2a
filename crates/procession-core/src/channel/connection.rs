//! A connection: messages of bytes over a descriptor. The protocol is described in `CONNECTION.md`.
#![allow(unsafe_code)]

use std::{
    io::{self, ErrorKind, IoSlice},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use super::{
    descriptor::{Descriptor, InUse},
    early::{Early, FIRST_PACKET},
    frame::{self, Decoded, Header},
    patience::Patience,
    wait::poll_one,
};
use crate::{
    sync::{Wait, WaitError},
    sys::{
        io::{self as sys, Blocking},
        rights::{self, Take},
    },
};

/// A further packet of a message holds at most this many.
const NEXT_PACKET: usize = 128 * 1024;
/// A packet is not made smaller than this, however small the socket's buffer is.
const LEAST_PACKET: usize = 512;
/// So many pieces of a message go into one system call.
const MOST_PIECES: usize = 8;
/// The most that one system call is asked to move: the kernel's own limit is a page less than 2 GiB.
const MOST_AT_ONCE: usize = 1 << 30;
/// For no more than this is memory asked for on the word of the peer. The system gives pages as they are written.
const FIRST_ROOM: usize = 64 << 20;

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

    /// Begins to send a message, made of parts one after another. Nothing is sent before [`Outgoing::try_finish`] or
    /// [`Outgoing::finish`].
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Closed`], [`ConnectionError::OutOfStep`].
    pub fn sending<'a>(&'a self, parts: &'a [&'a [u8]]) -> Result<Outgoing<'a>, ConnectionError> {
        let in_use = self.enter(&self.sending_broken)?;
        let length = parts.iter().map(|part| part.len()).sum();
        let header = Header::new(length);
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

    /// Begins to receive a message. Nothing is taken before [`Incoming::try_length`] or [`Incoming::length`].
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Closed`], [`ConnectionError::OutOfStep`].
    pub fn receiving(&self) -> Result<Incoming<'_>, ConnectionError> {
        let in_use = self.enter(&self.receiving_broken)?;
        Ok(Incoming {
            connection: self,
            in_use,
            early: Early::take(),
            have: 0,
            header: 0,
            length: None,
            done: 0,
            failed: false,
            gathered: Vec::new(),
            descriptors: None,
            lost: false,
        })
    }

    /// Goes on with a message that was [suspended](Incoming::suspend), of this same connection.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Closed`], [`ConnectionError::OutOfStep`].
    pub fn resume(&self, partial: Partial) -> Result<Incoming<'_>, ConnectionError> {
        let mut incoming = self.receiving()?;
        incoming.early = partial.early;
        incoming.have = partial.have;
        incoming.header = partial.header;
        incoming.length = partial.length;
        incoming.done = partial.gathered.len();
        incoming.gathered = partial.gathered;
        incoming.descriptors = partial.descriptors;
        incoming.lost = partial.lost;
        Ok(incoming)
    }

    /// [`receiving`](Self::receiving), with the descriptors that come along, which are closed otherwise.
    ///
    /// # Errors
    ///
    /// As [`receiving`](Self::receiving).
    pub fn receiving_with(&self) -> Result<Incoming<'_>, ConnectionError> {
        self.receiving().map(|mut incoming| {
            incoming.descriptors = Some(Vec::new());
            incoming
        })
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

/// A message on its way in: first its length, then its body. If it is dropped in between, the connection receives no
/// more: the rest would be taken for the next message.
#[derive(Debug)]
#[must_use = "nothing was received as yet"]
pub struct Incoming<'a> {
    connection: &'a Connection,
    in_use: InUse<'a>,
    early: Early,
    /// Bytes in `early`: the header, and of a packet what came with it.
    have: usize,
    header: usize,
    length: Option<usize>,
    /// Bytes of the body that are in their place.
    done: usize,
    failed: bool,
    /// The body as far as it is here, if nobody has another place for it.
    gathered: Vec<u8>,
    /// What came along, if it is wanted.
    descriptors: Option<Vec<OwnedFd>>,
    /// Whether some that came could not be had.
    lost: bool,
}

impl Incoming<'_> {
    /// The descriptors that came with the message, once its length is known; none if
    /// [`receiving_with`](Connection::receiving_with) did not ask for them.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.descriptors.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The length of the next message, if there is one already.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Ended`], [`ConnectionError::Truncated`], [`ConnectionError::BadLength`] or
    /// [`ConnectionError::Io`].
    pub fn try_length(&mut self) -> Result<Option<usize>, ConnectionError> {
        self.head(&mut How::Now)
    }

    /// The length of the next message; blocks until it is known.
    ///
    /// # Errors
    ///
    /// As [`try_length`](Self::try_length), and [`ConnectionError::Wait`].
    pub fn length(&mut self, wait: &mut Wait<'_>) -> Result<usize, ConnectionError> {
        let length = self.head(&mut How::Wait(wait))?;
        Ok(length.unwrap_or_default())
    }

    /// Fills `body`, which has exactly the length of the message, with as much as is there. True if that was all.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Truncated`], [`ConnectionError::BadLength`] or [`ConnectionError::Io`].
    ///
    /// # Panics
    ///
    /// If the length is not known yet, or is another.
    pub fn try_finish(&mut self, body: &mut [MaybeUninit<u8>]) -> Result<bool, ConnectionError> {
        self.fill_whole(body, &mut How::Now)
    }

    /// Fills `body` to its end; blocks until all is there.
    ///
    /// # Errors
    ///
    /// As [`try_finish`](Self::try_finish), and [`ConnectionError::Wait`].
    ///
    /// # Panics
    ///
    /// If the length is not known yet, or is another.
    pub fn finish(&mut self, body: &mut [MaybeUninit<u8>], wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
        self.fill_whole(body, &mut How::Wait(wait)).map(|finished| debug_assert!(finished))
    }

    /// The whole body; blocks until all is there. Memory is taken as the bytes arrive, not as they are announced.
    ///
    /// # Errors
    ///
    /// As [`length`](Self::length) and [`finish`](Self::finish); [`ConnectionError::BadLength`] if there is no memory for it.
    ///
    /// # Panics
    ///
    /// If a part of it was received by [`try_finish`](Self::try_finish).
    pub fn body(&mut self, wait: &mut Wait<'_>) -> Result<Vec<u8>, ConnectionError> {
        self.gather(&mut How::Wait(wait))?;
        Ok(std::mem::take(&mut self.gathered))
    }

    /// The whole body, if it is there already. A part of it is kept for the next call.
    ///
    /// # Errors
    ///
    /// As [`try_length`](Self::try_length) and [`try_finish`](Self::try_finish); [`ConnectionError::BadLength`] if there is
    /// no memory for it.
    ///
    /// # Panics
    ///
    /// As [`body`](Self::body).
    pub fn try_body(&mut self) -> Result<Option<Vec<u8>>, ConnectionError> {
        let all = self.gather(&mut How::Now)?;
        Ok(all.then(|| std::mem::take(&mut self.gathered)))
    }

    /// Stops in the middle of the message, to go on with it later ([`Connection::resume`]). Whoever receives from the
    /// connection meanwhile gets the rest of it.
    ///
    /// `None` if nothing has come as yet, so that nothing is lost. A message of which a part lies elsewhere
    /// ([`try_finish`](Self::try_finish)) can't be gone on with.
    pub fn suspend(mut self) -> Option<Partial> {
        if self.have == 0 || self.done != self.gathered.len() {
            return None;
        }
        let partial = Partial {
            early: std::mem::take(&mut self.early),
            have: self.have,
            header: self.header,
            length: self.length,
            gathered: std::mem::take(&mut self.gathered),
            descriptors: self.descriptors.take(),
            lost: self.lost,
        };
        // Nothing is left here that could be lost.
        (self.have, self.length) = (0, None);
        Some(partial)
    }

    fn gather(&mut self, how: &mut How<'_, '_>) -> Result<bool, ConnectionError> {
        let Some(length) = self.head(how)? else { return Ok(false) };
        assert_eq!(self.done, self.gathered.len(), "a part of the message is somewhere else");
        // A length for which there is no memory is an error, not an abort, and one now, not when all else is there.
        let reserve = |body: &mut Vec<u8>, room| body.try_reserve_exact(room).map_err(|_| ConnectionError::BadLength);
        if length > FIRST_ROOM && self.done == 0 {
            let mut all = Vec::new();
            reserve(&mut all, length)?;
            // The compiler may leave out memory that nobody uses.
            std::hint::black_box(all);
        }
        while self.done < length {
            let room = length.min((2 * self.done).max(FIRST_ROOM)) - self.done;
            reserve(&mut self.gathered, room)?;
            let mut body = std::mem::take(&mut self.gathered);
            let filled = self.fill(body.len(), &mut body.spare_capacity_mut()[..room], how);
            // SAFETY: `fill` counts in `done` what it has put in its place.
            unsafe { body.set_len(self.done) };
            self.gathered = body;
            if !filled? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The body, if its length is known and all of it came with the header, as it does in a packet.
    pub fn whole(&mut self) -> Option<&[u8]> {
        let (header, have) = (self.header, self.have);
        if self.length? != have - header {
            return None;
        }
        // SAFETY: `have` counts what was received.
        Some(&unsafe { self.early.filled(have) }[header..])
    }

    fn head(&mut self, how: &mut How<'_, '_>) -> Result<Option<usize>, ConnectionError> {
        let (fd, connection) = (self.in_use.number(), self.connection);
        loop {
            if let Some(length) = self.length {
                return if self.lost { Err(ConnectionError::DescriptorsLost) } else { Ok(Some(length)) };
            }
            let wanted = match connection.kind() {
                Kind::Packets => FIRST_PACKET,
                // Never a byte more than the header: it could be the next message's, and of the next receiver.
                Kind::Stream | Kind::File if self.have < 4 => 4,
                Kind::Stream | Kind::File => frame::LONGEST,
            };
            let space = &mut self.early.space()[self.have..wanted];
            let what = if connection.kind() == Kind::Packets { Take::Packet } else { Take::Stream };
            let taken = match &mut self.descriptors {
                Some(descriptors) if connection.kind() != Kind::File => {
                    connection.attempt(fd, Towards::Us, self.have > 0, how, |blocking| {
                        let received = rights::receive(fd, space, descriptors, what, blocking)?;
                        self.lost |= received.lost;
                        Ok(received.length)
                    })
                }
                _ => connection.take(fd, self.have > 0, how, space),
            };
            match taken {
                Ok(Some(0)) if self.have == 0 => return self.fail(ConnectionError::Ended),
                Ok(Some(0)) => return self.fail(ConnectionError::Truncated),
                Ok(Some(moved)) if moved > wanted - self.have => return self.fail(ConnectionError::BadLength),
                Ok(Some(moved)) => self.have += moved,
                Ok(None) => return Ok(None),
                Err(error @ ConnectionError::Io(_)) => return self.fail(error),
                Err(error) => return Err(error),
            }
            // SAFETY: `have` counts what was received.
            match frame::decode(unsafe { self.early.filled(self.have) }) {
                Some(Decoded::Complete { header, length }) if self.have - header <= length => {
                    self.header = header;
                    self.length = Some(length);
                }
                // A packet has its header whole.
                Some(Decoded::Incomplete(_)) if connection.kind() != Kind::Packets => {}
                _ => return self.fail(ConnectionError::BadLength),
            }
        }
    }

    fn fill_whole(&mut self, body: &mut [MaybeUninit<u8>], how: &mut How<'_, '_>) -> Result<bool, ConnectionError> {
        assert_eq!(Some(body.len()), self.length, "the body has another length than was announced");
        self.fill(0, body, how)
    }

    /// Fills `room`, which begins at `start` in the body, where all before it is in its place. If that isn't the end of
    /// the body, what is left at the end may be too small for the next packet.
    fn fill(
        &mut self,
        start: usize,
        room: &mut [MaybeUninit<u8>],
        how: &mut How<'_, '_>,
    ) -> Result<bool, ConnectionError> {
        if self.done == 0 && self.have > self.header {
            self.done = self.have - self.header;
            room[..self.done].copy_from_slice(&self.early.space()[self.header..self.have]);
        }
        let fd = self.in_use.number();
        let least = if self.length == Some(start + room.len()) { 1 } else { NEXT_PACKET };
        loop {
            let left = &mut room[self.done - start..];
            if left.len() < least {
                return Ok(true);
            }
            let most = left.len().min(MOST_AT_ONCE);
            match self.connection.take(fd, true, how, &mut left[..most]) {
                Ok(Some(0)) => return self.fail(ConnectionError::Truncated),
                // A packet longer than what is missing is no part of this message.
                Ok(Some(moved)) if moved > most => return self.fail(ConnectionError::BadLength),
                Ok(Some(moved)) => self.done += moved,
                Ok(None) => return Ok(false),
                Err(error @ ConnectionError::Io(_)) => return self.fail(error),
                Err(error) => return Err(error),
            }
        }
    }

    fn fail<T>(&mut self, error: ConnectionError) -> Result<T, ConnectionError> {
        // After its end or an error of the system the next call gets its own error, which says more.
        self.failed = !matches!(error, ConnectionError::BadLength);
        Err(error)
    }
}

/// A message of which a part was received: see [`Incoming::suspend`].
#[derive(Debug)]
pub struct Partial {
    early: Early,
    have: usize,
    header: usize,
    length: Option<usize>,
    gathered: Vec<u8>,
    descriptors: Option<Vec<OwnedFd>>,
    lost: bool,
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        let begun = self.have > 0;
        // Of a message that was taken whole, nothing is left to come.
        let whole = self.length.is_some_and(|length| self.done == length || self.have - self.header == length);
        if begun && !whole && !self.failed {
            self.connection.receiving_broken.store(true, Ordering::Relaxed);
        }
        self.early.give_back();
    }
}

#[cfg(all(test, not(loom)))]
#[path = "connection_tests.rs"]
mod tests;
