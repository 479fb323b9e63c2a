//! Why a call of a shared object failed.

use std::io;

use procession_core::{
    channel::{ConnectionError, HandshakeError},
    manager::{CallError, protocol::ProtocolError},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{DecodeError, EncodeError, Panic};

/// A manager was not reached, or did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// Nobody listens at the address, or what is there can't be reached: the manager has ended, or was never there.
    #[error("the manager can't be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// The manager has another authkey.
    #[error("the manager has another authkey: {0}")]
    Authkey(#[source] procession_core::channel::AuthenticationError),
    /// The manager's authkey is not known in this process: the proxy came from another machine, where keys don't go.
    /// [`Manager::connect`](super::Manager::connect) before it is received.
    #[error("the authkey of the manager at {0} is not known here: call Manager::connect before receiving its proxies")]
    NoAuthkey(String),
    /// The manager ended during the call, or the connection did. Whether the call was done is not known.
    #[error("the manager is gone: {0}")]
    Gone(#[source] io::Error),
    /// What is at the address is no manager, or one of another version of procession.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// The object is no more: when the call was made, nobody referred to it.
    #[error("the object is no more: nobody had a proxy of it")]
    NoSuchObject,
    /// The object has no such method, or does not expose it.
    #[error("a shared object of type {object} has no method {method}")]
    NoSuchMethod {
        /// The type of the object.
        object: String,
        /// The method.
        method: String,
    },
    /// The type is not registered with the manager.
    #[error("the manager has no type {name}: register it with the builder (it has {known})")]
    NoSuchType {
        /// The type.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// The manager's side takes other arguments: it is of another build.
    #[error("the manager takes other arguments: {0}")]
    BadArguments(String),
    /// What the manager sent can't be read: it is of another build.
    #[error("the manager's reply can't be read")]
    Malformed,
    /// An argument can't be sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A result or an element can't be read: it was stored as another type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The object does not do this now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A method of a type of the program's own panicked. The object stays as the method left it.
    #[error("the call {0}")]
    Panicked(Panic),
    /// The manager failed.
    #[error("the manager failed: {0}")]
    Failed(String),
    /// The manager's process can't be started, or no address had.
    #[error("the manager can't be started: {0}")]
    Start(#[source] io::Error),
}

/// Why a shared object does not do what it was asked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// A lock is to be released that nobody holds.
    #[error("the lock is not held")]
    NotHeld,
    /// A lock is to be released, or a condition to be used, by a thread that does not hold the lock.
    #[error("the lock is not held by this thread")]
    NotOwner,
    /// A bounded semaphore has been released more often than acquired.
    #[error("the semaphore was released more often than acquired")]
    AtMaximum,
    /// `task_done` was called more often than there were tasks.
    #[error("task_done was called more often than there were tasks")]
    TooManyDone,
    /// A place behind the end of a list or an array.
    #[error("there is no place {place} in {length} elements")]
    OutOfRange {
        /// The place.
        place: u64,
        /// How many elements there are.
        length: u64,
    },
    /// The barrier is broken: somebody's time was over, or it was aborted.
    #[error("the barrier is broken")]
    BrokenBarrier,
    /// A barrier needs one party at least.
    #[error("a barrier needs one party at least")]
    NoParties,
}

/// How [`Failure::Raised`](procession_core::manager::Failure::Raised) of a method of the program's own types begins; the
/// panic follows. The other refusals are numbered from zero.
pub(super) const PANIC: u8 = 0xff;

impl From<CallError> for ManagerError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Connect(HandshakeError::Authentication(error)) => Self::Authkey(error),
            CallError::Connect(HandshakeError::Connection(error)) => Self::Unreachable(into_io(error)),
            CallError::Gone(error) => Self::Gone(into_io(error)),
            CallError::OtherServer => Self::Gone(io::Error::other("another one has its address")),
            CallError::Protocol(error) => Self::Protocol(error),
            CallError::NoSuchObject => Self::NoSuchObject,
            CallError::NoSuchMethod { object, method } => Self::NoSuchMethod { object, method },
            CallError::NoSuchType { name, known } => Self::NoSuchType { name, known },
            CallError::BadArguments(text) => Self::BadArguments(text),
            CallError::Failed(text) => Self::Failed(text),
            CallError::Raised(bytes) => match bytes.split_first() {
                Some((&PANIC, panic)) => postcard::from_bytes(panic).map_or(Self::Malformed, Self::Panicked),
                _ => postcard::from_bytes(&bytes).map_or(Self::Malformed, Self::Refused),
            },
            error => Self::Failed(error.to_string()),
        }
    }
}

pub(super) fn into_io(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        ConnectionError::Ended => io::Error::new(io::ErrorKind::UnexpectedEof, error),
        other => io::Error::other(other),
    }
}
