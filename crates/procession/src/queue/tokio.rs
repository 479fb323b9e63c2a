//! Waiting for a queue without blocking the thread.

use std::{io, os::fd::OwnedFd, time::Duration};

use procession_core::sync::Wait;
use tokio::{
    io::unix::AsyncFd,
    task::{spawn_blocking, yield_now},
};

use super::{
    GetError, PutError, PutFailure, Queue,
    error::{Ungot, Unput},
};
use crate::{Message, asynchronous};

/// How long a thread that waits for room does so before it looks whether anybody still wants to know.
const SLICE: Duration = Duration::from_millis(100);

impl<T: Message> Queue<T> {
    /// [`get`](Self::get) for asynchronous programs. What is dropped before it is ready has got nothing.
    ///
    /// It waits for the queue's [descriptor](std::os::fd::AsFd).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let queue = procession::Queue::new()?;
    /// let putter = queue.clone();
    /// let getting = tokio::spawn(async move { queue.get_async().await });
    /// putter.put_async(5).await?;
    /// assert_eq!(getting.await??, 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime whose I/O is enabled.
    pub async fn get_async(&self) -> Result<T, GetError> {
        if let Some(got) = self.get_if_there() {
            return got;
        }
        // From now on whoever finds the queue empty has seen to it that the next value makes the descriptor readable anew,
        // which is what the runtime is told of.
        let readable = self.readable().map_err(GetError::Read)?;
        loop {
            if let Some(got) = self.get_if_there() {
                return got;
            }
            let mut guard = readable.readable().await.map_err(GetError::Read)?;
            match self.get_at_once() {
                Ok(value) => return Ok(value),
                Err(Ungot::Failed(error)) => return Err(error),
                // Another one got it. What is put after this look is told again.
                Err(Ungot::Nothing) if self.is_empty() => guard.clear_ready(),
                Err(Ungot::Nothing) => yield_now().await,
            }
        }
    }

    fn get_if_there(&self) -> Option<Result<T, GetError>> {
        match self.get_at_once() {
            Ok(value) => Some(Ok(value)),
            Err(Ungot::Failed(error)) => Some(Err(error)),
            Err(Ungot::Nothing) => None,
        }
    }

    fn readable(&self) -> io::Result<AsyncFd<OwnedFd>> {
        asynchronous::readable(self.queue.pollable().try_clone_to_owned()?)
    }

    /// [`put`](Self::put) for asynchronous programs. What is dropped before it is ready has put nothing.
    ///
    /// Where the queue is full, one of the runtime's threads for blocking calls waits for room.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime, if the queue is full.
    pub async fn put_async(&self, value: T) -> Result<(), PutError<T>> {
        loop {
            let (queue, full) = (self.queue.clone(), self.is_full());
            match self.put_at_once(&value) {
                Ok(()) => return Ok(()),
                Err(Unput::Failed(reason)) => return Err(PutError::new(value, reason)),
                Err(Unput::NoRoom) => {}
            }
            // What is not in the way of values without descriptors is in the way of descriptors.
            let waited = spawn_blocking(move || queue.wait_room(!full, &mut Wait::timeout(SLICE)).is_ok());
            if waited.await.is_err() {
                // The runtime is about to end: nobody will call again.
                let ended = io::Error::other("the runtime is shut down");
                return Err(PutError::new(value, PutFailure::Memory(ended)));
            }
        }
    }
}
