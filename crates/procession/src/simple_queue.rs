//! A queue with nothing but the essentials.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
};

use serde::{Deserialize, Serialize};

use crate::{
    Message, Queue,
    queue::{GetError, PutError},
};

/// A queue with nothing but `put`, `get` and `is_empty`, for any number of values.
///
/// It is what the standard package has under this name; a [`Queue`] does no less.
///
/// ```
/// use procession::{Process, SimpleQueue};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let queue = SimpleQueue::new()?;
///     let child = Process::spawn(|queue: SimpleQueue<String>| queue.put("hello".into()).unwrap(), (queue.clone(),))?;
///     assert_eq!(queue.get()?, "hello");
///     child.join()?;
///     assert!(queue.is_empty());
///     Ok(())
/// }
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SimpleQueue<T>(Queue<T>);

impl<T> SimpleQueue<T> {
    /// An empty queue.
    ///
    /// # Errors
    ///
    /// As [`Queue::new`].
    pub fn new() -> io::Result<Self> {
        Queue::new().map(Self)
    }

    /// Whether no value is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Message> SimpleQueue<T> {
    /// Puts a value.
    ///
    /// # Errors
    ///
    /// As [`Queue::put`].
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        self.0.put(value)
    }

    /// Gets the oldest value. Waits for one, for ever if need be.
    ///
    /// # Errors
    ///
    /// As [`Queue::get`].
    pub fn get(&self) -> Result<T, GetError> {
        self.0.get()
    }
}

impl<T> Clone for SimpleQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for SimpleQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimpleQueue").field("empty", &self.is_empty()).finish()
    }
}

/// A descriptor that is readable exactly while the queue is not empty, as that of a [`Queue`].
impl<T> AsFd for SimpleQueue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
