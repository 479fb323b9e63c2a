//! A queue that can be waited for until all that was put has been dealt with.

use std::{
    fmt, io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use procession_core::sync::Wait;
use serde::{Deserialize, Serialize};

use crate::{Queue, queue::TooManyDone};

/// A [`Queue`] that knows whether its values have been dealt with: whoever got one says so by
/// [`task_done`](Self::task_done), and [`join`](Self::join) waits until that was said of all.
///
/// ```
/// use procession::{JoinableQueue, Process};
///
/// fn work(tasks: JoinableQueue<u32>) {
///     for _ in 0..10 {
///         let _task = tasks.get().unwrap();
///         tasks.task_done().unwrap();
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let tasks = JoinableQueue::new()?;
///     tasks.put_many(0..10)?;
///     let worker = Process::spawn(work, (tasks.clone(),))?;
///     tasks.join();
///     assert_eq!(tasks.unfinished(), 0);
///     worker.join()?;
///     Ok(())
/// }
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct JoinableQueue<T>(Queue<T>);

impl<T> JoinableQueue<T> {
    /// As [`Queue::new`].
    ///
    /// # Errors
    ///
    /// As [`Queue::new`].
    #[doc(alias = "unbounded")]
    pub fn new() -> io::Result<Self> {
        Queue::new().map(Self::joined)
    }

    /// As [`Queue::bounded`].
    ///
    /// # Errors
    ///
    /// As [`Queue::bounded`].
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        Queue::bounded(capacity).map(Self::joined)
    }

    fn joined(queue: Queue<T>) -> Self {
        queue.core().keep_holders();
        Self(queue)
    }

    /// Says that a value which was got has been dealt with.
    ///
    /// # Errors
    ///
    /// [`TooManyDone`] if that was said of all values that were put already.
    pub fn task_done(&self) -> Result<(), TooManyDone> {
        self.0.core().task_done()
    }

    /// How many values were put of which [`task_done`](Self::task_done) was not said yet.
    pub fn unfinished(&self) -> usize {
        self.0.core().unfinished() as usize
    }

    /// Waits until all values that were put have been dealt with.
    ///
    /// A value that a process got and had not dealt with when it was killed, or failed, is not waited for. Returns how many those
    /// were. One that ended in order may have handed it on to another, which is to say when it is dealt with.
    pub fn join(&self) -> u64 {
        let mut lost = 0;
        // Without an end and a say in signals, it only ends with the work.
        while self.0.core().join(&mut Wait::forever(), |found| lost += found.messages).is_err() {}
        lost
    }

    /// As [`join`](Self::join), but so long at most. Tells whether all have been dealt with.
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        self.0.core().join(&mut Wait::timeout(timeout), |_| {}).is_ok()
    }
}

impl<T> Deref for JoinableQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.0
    }
}

/// As that of a [`Queue`].
impl<T> AsFd for JoinableQueue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinableQueue").field("len", &self.len()).field("unfinished", &self.unfinished()).finish()
    }
}
