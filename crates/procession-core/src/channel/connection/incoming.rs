//! A message on its way in.
#![allow(unsafe_code)]

use std::{mem::MaybeUninit, os::fd::OwnedFd, sync::atomic::Ordering};

use super::{
    super::{
        descriptor::InUse,
        early::{Early, FIRST_PACKET},
        frame::{self, Decoded},
    },
    Connection, ConnectionError, How, Kind, MOST_AT_ONCE, NEXT_PACKET, Towards,
};
use crate::{
    sync::Wait,
    sys::rights::{self, Take},
};

/// For no more than this is memory asked for on the word of the peer. The system gives pages as they are written.
pub(super) const FIRST_ROOM: usize = 64 << 20;

impl Connection {
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
            apart: false,
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
        incoming.apart = partial.apart;
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
    apart: bool,
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

    /// Whether the message was sent as one that has its buffers apart, once its length is known.
    pub fn is_apart(&self) -> bool {
        self.apart
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
            apart: self.apart,
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
            match frame::decode(unsafe { self.early.filled(self.have) }, connection.kind() == Kind::Packets) {
                Some(Decoded::Complete { header, length, apart }) if self.have - header <= length => {
                    self.header = header;
                    self.apart = apart;
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
    apart: bool,
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
