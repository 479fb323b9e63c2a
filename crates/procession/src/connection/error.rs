//! What can go wrong with a connection.

use std::io;

use procession_core::channel::ConnectionError;
use thiserror::Error;

use crate::{DecodeError, EncodeError};

/// A value was not sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody has the other end any more.
    #[error("the other end of the connection was closed")]
    Disconnected,
    /// It can't be turned into a message; nothing was sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The value has descriptors, and this is a pipe of the system's, which carries none; nothing was sent.
    #[error("descriptors can only be sent over a Unix socket, which this connection isn't")]
    NoDescriptors,
    /// The value has more descriptors than can go with a message; nothing was sent.
    #[error("the value has more descriptors than the 253 that can go with a message")]
    TooManyDescriptors,
    /// An earlier call gave up in the middle of a message, which only futures do that are dropped.
    #[error("an earlier message was sent in part, so the connection is out of step: close it")]
    OutOfStep,
    /// The system's error.
    #[error("can't send: {0}")]
    Io(#[source] io::Error),
}

/// No value was received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The other end is closed, or its process has ended, and all that it sent was received.
    #[error("the other end of the connection was closed")]
    Disconnected,
    /// The other end was closed, or its process was killed, in the middle of a message.
    #[error("the other end of the connection was closed in the middle of a message")]
    Truncated,
    /// A message was received that holds no value of the wanted type. The next one can be received.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message is longer than [`message_limit`](crate::Connection::message_limit) allows. None of it is taken, so the
    /// connection is good for nothing afterwards.
    #[error("a message of {length} bytes is announced, and {limit} are allowed")]
    TooLong {
        /// As many bytes as it has, if it is true.
        length: usize,
        /// As many as are allowed.
        limit: usize,
    },
    /// What was received is no message, so the connection is good for nothing afterwards.
    #[error("what was received is no message")]
    Malformed,
    /// Descriptors came with the message, and this process has too many open files to take them. The message is lost.
    #[error("the descriptors of a message are lost: too many open files")]
    DescriptorsLost,
    /// An earlier error leaves no way to find the next message.
    #[error("the connection is out of step: close it")]
    OutOfStep,
    /// The system's error.
    #[error("can't receive: {0}")]
    Io(#[source] io::Error),
}

/// No value was received without waiting.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// There is none as yet.
    #[error("there is no message")]
    Empty,
    /// There will be none.
    #[error(transparent)]
    Failed(#[from] RecvError),
}

/// No value was received in time.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// The time is over.
    #[error("no message came in time")]
    TimedOut,
    /// There will be none.
    #[error(transparent)]
    Failed(#[from] RecvError),
}

impl From<ConnectionError> for SendError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Io(error) if is_disconnection(&error) => Self::Disconnected,
            ConnectionError::Io(error) => Self::Io(error),
            ConnectionError::OutOfStep => Self::OutOfStep,
            ConnectionError::NoDescriptors => Self::NoDescriptors,
            ConnectionError::TooManyDescriptors => Self::TooManyDescriptors,
            other => Self::Io(io::Error::other(other)),
        }
    }
}

impl From<ConnectionError> for RecvError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Ended => Self::Disconnected,
            ConnectionError::Truncated => Self::Truncated,
            ConnectionError::BadLength => Self::Malformed,
            ConnectionError::OutOfStep => Self::OutOfStep,
            ConnectionError::DescriptorsLost => Self::DescriptorsLost,
            ConnectionError::Io(error) if is_disconnection(&error) => Self::Disconnected,
            ConnectionError::Io(error) => Self::Io(error),
            other => Self::Io(io::Error::other(other)),
        }
    }
}

fn is_disconnection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
