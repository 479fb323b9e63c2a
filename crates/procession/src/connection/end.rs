//! An end of a connection, whatever the types of its messages.
#![allow(unsafe_code)]

use std::{
    any::Any,
    io::{self, ErrorKind},
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicUsize, Ordering},
};

use procession_core::{
    channel::{self, ConnectionError, Incoming, Partial},
    sync::{Wait, WaitError},
};
use rustix::net::{AddressFamily, sockopt};

use super::{
    error::{RecvError, SendError},
    turn::{Taken, Turn, Until},
};
use crate::{
    EncodeError, Message,
    handover::Reach,
    message::{Encoded, decode, encode},
    room,
};

/// An end of a connection.
///
/// Several threads may use it: those that send take turns, and so do those that receive. A receiver whose time is over in the
/// middle of a message leaves what it has for the next one.
#[derive(Debug)]
pub(crate) struct End {
    core: channel::Connection,
    reach: Reach,
    limit: AtomicUsize,
    pub(super) sending: Turn<()>,
    /// What has come of the next message.
    pub(super) receiving: Turn<Option<Partial>>,
    #[cfg(feature = "tokio")]
    pub(super) registered: super::tokio::Registered,
}

/// The right to receive.
pub(super) type ReceivingTurn<'a> = Taken<'a, Option<Partial>>;

impl End {
    pub(crate) fn new(core: channel::Connection) -> Self {
        let reach = reach_of(core.number().map(|number| {
            // SAFETY: the connection has it, and outlives the call.
            unsafe { BorrowedFd::borrow_raw(number) }
        }));
        Self {
            core,
            reach,
            limit: AtomicUsize::new(usize::MAX),
            sending: Turn::new(()),
            receiving: Turn::new(None),
            #[cfg(feature = "tokio")]
            registered: super::tokio::Registered::default(),
        }
    }

    pub(super) fn core(&self) -> &channel::Connection {
        &self.core
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The value as it is to be sent; its bytes are written to `room` if they have to be.
    pub(super) fn encode<'a, T: Message>(
        &self,
        value: &'a T,
        room: &'a mut Vec<u8>,
    ) -> Result<Encoded<'a>, EncodeError> {
        encode(value, room, self.reach)
    }

    pub(super) fn send<T: Message>(&self, value: &T) -> Result<(), SendError> {
        room::with(|room| {
            let Encoded { bytes, descriptors } = self.encode(value, room)?;
            let _turn = self.sending.take(Until::Forever);
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            Ok(self.core.sending_with(&[bytes], &descriptors)?.finish(&mut Wait::forever())?)
        })
    }

    /// `None` if the time was over.
    pub(super) fn receive<T: Message>(&self, until: Until) -> Result<Option<T>, RecvError> {
        let Some(turn) = self.receiving.take(until) else {
            return Ok(None);
        };
        Ok(self.receive_in(turn, until)?.break_value())
    }

    /// The turn is given back before the value is decoded, whose `Deserialize` may do anything. It is returned if the
    /// time was over.
    pub(super) fn receive_in<'a, T: Message>(
        &self,
        mut turn: ReceivingTurn<'a>,
        until: Until,
    ) -> Result<ControlFlow<T, ReceivingTurn<'a>>, RecvError> {
        let mut incoming = match turn.take() {
            Some(partial) => self.core.resume(partial)?,
            None => self.core.receiving_with()?,
        };
        let Some(length) = in_time(&mut incoming, until, Incoming::try_length, Incoming::length)? else {
            *turn = incoming.suspend();
            return Ok(ControlFlow::Continue(turn));
        };
        let limit = self.limit();
        if length > limit {
            return Err(RecvError::TooLong { length, limit });
        }
        if incoming.whole().is_some() {
            drop(turn);
            let descriptors = incoming.take_descriptors();
            let bytes = incoming.whole().unwrap_or_default();
            return Ok(ControlFlow::Break(decode(bytes, descriptors, self.reach)?));
        }
        let Some(bytes) = in_time(&mut incoming, until, Incoming::try_body, Incoming::body)? else {
            *turn = incoming.suspend();
            return Ok(ControlFlow::Continue(turn));
        };
        drop(turn);
        let descriptors = incoming.take_descriptors();
        drop(incoming);
        Ok(ControlFlow::Break(decode_large(bytes, descriptors, self.reach)?))
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let number = self.core.number().expect("it is open until it is dropped");
        // SAFETY: nobody closes the core's connection, or takes its descriptor, before it is dropped.
        unsafe { BorrowedFd::borrow_raw(number) }
    }
}

/// Receives the length of a message, or its body. `None` if the time was over.
fn in_time<'a, T>(
    incoming: &mut Incoming<'a>,
    until: Until,
    now: fn(&mut Incoming<'a>) -> Result<Option<T>, ConnectionError>,
    later: fn(&mut Incoming<'a>, &mut Wait<'_>) -> Result<T, ConnectionError>,
) -> Result<Option<T>, ConnectionError> {
    let mut told = false;
    loop {
        let result = match until {
            Until::Now => now(incoming),
            Until::Forever => later(incoming, &mut Wait::forever()).map(Some),
            Until::Moment(moment) => later(incoming, &mut Wait::until(moment)).map(Some),
        };
        match result {
            Err(ConnectionError::Wait(WaitError::TimedOut)) => return Ok(None),
            // Told once, if the other side closed with a message of ours unread. What it sent before is still to be had.
            Err(ConnectionError::Io(error)) if error.kind() == ErrorKind::ConnectionReset && !told => told = true,
            other => return other,
        }
    }
}

/// How far messages over a descriptor go. `None` and what can't be asked is taken for far away.
fn reach_of(fd: Option<BorrowedFd<'_>>) -> Reach {
    let Some(fd) = fd else { return Reach::Remote };
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::UNIX) => {
            // Descriptors and keys of this user are for nobody else.
            let same = sockopt::socket_peercred(fd).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
            if same { Reach::Related } else { Reach::Remote }
        }
        Ok(_) => Reach::Remote,
        // A pipe, or a file: on this machine.
        Err(_) => Reach::Related,
    }
}

/// A value out of a body that was received where it stays: bytes are not copied again.
fn decode_large<T: Message>(bytes: Vec<u8>, descriptors: Vec<OwnedFd>, reach: Reach) -> Result<T, crate::DecodeError> {
    let mut bytes = Some(bytes);
    if let Some(wanted) = (&mut bytes as &mut dyn Any).downcast_mut::<Option<T>>() {
        return wanted.take().ok_or_else(|| io::Error::from(ErrorKind::NotFound).into());
    }
    decode(bytes.as_deref().unwrap_or_default(), descriptors, reach)
}
