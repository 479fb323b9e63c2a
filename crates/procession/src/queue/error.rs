//! Why a value was not put into a queue, or none was got out of it.

use std::{fmt, io};

use procession_core::channel;
use thiserror::Error;

use crate::{DecodeError, EncodeError};

/// What kept a value from being put.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PutFailure {
    /// It can't be turned into a message.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Its descriptors can't be sent along; more than 253, for example.
    #[error("the descriptors of the value can't be sent: {0}")]
    Descriptors(#[source] io::Error),
    /// There is no memory for it.
    #[error("no memory for the value: {0}")]
    Memory(#[source] io::Error),
    /// Another process wrote to the shared memory of the queue what can't be there.
    #[error("the shared memory of the queue is damaged")]
    Damaged,
}

/// A value was not put. It is [given back](Self::into_inner).
#[derive(Error)]
#[error("{reason}")]
pub struct PutError<T> {
    value: T,
    #[source]
    reason: PutFailure,
}

impl<T> PutError<T> {
    pub(super) fn new(value: T, reason: PutFailure) -> Self {
        Self { value, reason }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// Why it was not put.
    pub fn reason(&self) -> &PutFailure {
        &self.reason
    }
}

impl<T> fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

/// A value was not put without waiting. It is [given back](Self::into_inner).
#[derive(Error)]
#[non_exhaustive]
pub enum TryPutError<T> {
    /// The queue is full.
    #[error("the queue is full")]
    Full(T),
    /// It can't be put at all.
    #[error(transparent)]
    Failed(#[from] PutError<T>),
}

impl<T> TryPutError<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Failed(PutError { value, .. }) => value,
        }
    }

    /// Whether there was just no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

impl<T> fmt::Debug for TryPutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("Full(..)"),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// A value was not put in time. It is [given back](Self::into_inner).
#[derive(Error)]
#[non_exhaustive]
pub enum PutTimeoutError<T> {
    /// The queue was full all the time.
    #[error("timed out: the queue is full")]
    TimedOut(T),
    /// It can't be put at all.
    #[error(transparent)]
    Failed(#[from] PutError<T>),
}

impl<T> PutTimeoutError<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        match self {
            Self::TimedOut(value) | Self::Failed(PutError { value, .. }) => value,
        }
    }

    /// Whether there was just no room.
    pub fn is_timed_out(&self) -> bool {
        matches!(self, Self::TimedOut(_))
    }
}

impl<T> fmt::Debug for PutTimeoutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut(_) => f.write_str("TimedOut(..)"),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// Not all values were put. Those that were taken from the iterator and not put are [given back](Self::into_inner).
#[derive(Error)]
#[error("{reason}")]
pub struct PutManyError<T> {
    values: Vec<T>,
    #[source]
    reason: PutFailure,
}

impl<T> PutManyError<T> {
    pub(super) fn new(values: Vec<T>, reason: PutFailure) -> Self {
        Self { values, reason }
    }

    /// The values that were taken from the iterator and not put, the one that failed first, in order.
    pub fn into_inner(self) -> Vec<T> {
        self.values
    }

    /// Why the first of them was not put.
    pub fn reason(&self) -> &PutFailure {
        &self.reason
    }
}

impl<T> fmt::Debug for PutManyError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.values.len();
        f.debug_struct("PutManyError").field("reason", &self.reason).field("left", &left).finish_non_exhaustive()
    }
}

/// No value was got.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GetError {
    /// A message was taken out that can't be turned into a value.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The message can't be had: no memory, or too many open files. It is still in the queue.
    #[error("the message can't be read: {0}")]
    Read(#[source] io::Error),
    /// Another process wrote to the shared memory of the queue what can't be there.
    #[error("the shared memory of the queue is damaged")]
    Damaged,
}

/// No value was got without waiting.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TryGetError {
    /// The queue is empty.
    #[error("the queue is empty")]
    Empty,
    /// There was a message, but no value.
    #[error(transparent)]
    Failed(#[from] GetError),
}

impl TryGetError {
    /// Whether there was just nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// No value was got in time.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GetTimeoutError {
    /// The queue was empty all the time.
    #[error("timed out: the queue is empty")]
    TimedOut,
    /// There was a message, but no value.
    #[error(transparent)]
    Failed(#[from] GetError),
}

impl GetTimeoutError {
    /// Whether there was just nothing.
    pub fn is_timed_out(&self) -> bool {
        matches!(self, Self::TimedOut)
    }
}

/// Several messages were taken out, and at least one of them is no value. The values are
/// [handed out](Self::into_values) nevertheless.
#[derive(Error)]
#[error("{reason}")]
pub struct GetManyError<T> {
    values: Vec<T>,
    #[source]
    reason: GetError,
}

impl<T> GetManyError<T> {
    pub(super) fn new(values: Vec<T>, reason: GetError) -> Self {
        Self { values, reason }
    }

    /// The values that were got.
    pub fn into_values(self) -> Vec<T> {
        self.values
    }

    /// What is wrong with the first message that is none.
    pub fn reason(&self) -> &GetError {
        &self.reason
    }
}

impl<T> fmt::Debug for GetManyError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = self.values.len();
        f.debug_struct("GetManyError").field("reason", &self.reason).field("got", &got).finish_non_exhaustive()
    }
}

/// What kept a value from being put, or that the wait for room ended.
pub(super) enum Unput {
    NoRoom,
    Failed(PutFailure),
}

impl From<channel::PutError> for Unput {
    fn from(error: channel::PutError) -> Self {
        match error {
            channel::PutError::Full | channel::PutError::Busy | channel::PutError::Wait(_) => Self::NoRoom,
            channel::PutError::Memory(error) => Self::Failed(PutFailure::Memory(error)),
            channel::PutError::Descriptors(error) => Self::Failed(PutFailure::Descriptors(error)),
            channel::PutError::Damaged => Self::Failed(PutFailure::Damaged),
        }
    }
}

impl From<EncodeError> for Unput {
    fn from(error: EncodeError) -> Self {
        Self::Failed(error.into())
    }
}

/// What kept a value from being got, or that the wait for one ended.
pub(super) enum Ungot {
    Nothing,
    Failed(GetError),
}

impl From<channel::TakeError> for Ungot {
    fn from(error: channel::TakeError) -> Self {
        match error {
            channel::TakeError::Empty | channel::TakeError::Busy | channel::TakeError::Wait(_) => Self::Nothing,
            channel::TakeError::Read(error) => Self::Failed(GetError::Read(error)),
            channel::TakeError::Damaged => Self::Failed(GetError::Damaged),
        }
    }
}

impl From<DecodeError> for Ungot {
    fn from(error: DecodeError) -> Self {
        Self::Failed(error.into())
    }
}
