//! Pools of worker processes that calls are handed to.
//!
//! [`Pool`] is what there is to know first. Tasks and results travel through shared memory; how the processes of a pool
//! work together is described in `procession-core`, `pool/PROTOCOL.md`.
//!
//! With the feature `tracing`, the start and the end of each worker is an event: of the level "debug" where all is as it
//! should be, "warn" for a worker that is lost, or can't be started, "error" for a pool that gives up.

use std::{fmt, sync::Arc, time::Duration};

mod builder;
mod crew;
mod error;
mod maps;
mod options;
mod result;
mod stream;
mod submit;
mod task;
mod worker;

pub use builder::PoolBuilder;
pub use error::{GetError, PoolError, SubmitError, TaskError};
pub use options::CallOptions;
pub use result::AsyncResult;
pub use stream::{IMap, TimedOut};

use crew::Crew;
use result::Call;

use crate::{Function, Message};

/// Worker processes that calls are handed to.
///
/// A function is any `fn`, or a closure that captures nothing (see [`Function`]); arguments are a tuple, and like the
/// results anything that can be sent ([`Message`]): queues, locks and open files, too.
///
/// A worker that dies takes its task with it, which fails with a [`TaskError`] that says how the worker ended, and no
/// other: it is replaced, and the pool goes on. A panic fails its task, with its message and location, and the worker
/// goes on. A task may start processes and pools of its own: they end with the worker, however that happens.
///
/// Dropping a pool [terminates](Self::terminate) it. To have everything done first, [`join`](Self::join) it. It may be
/// used by any number of threads. In a process that was forked from the one that made it (by other means than this
/// crate), it is of no use, and of no harm.
///
/// ```
/// use procession::Pool;
///
/// fn fibonacci(n: u32) -> u64 {
///     if n < 2 { n.into() } else { fibonacci(n - 1) + fibonacci(n - 2) }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let pool = Pool::new(2)?;
///
/// assert_eq!(pool.apply(fibonacci, (20,))?, 6765);
/// assert_eq!(pool.map(fibonacci, 0..10)?, [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]);
///
/// let later = pool.apply_async(fibonacci, (25,))?;
/// for number in pool.imap(fibonacci, 0..)?.take(5) {
///     println!("{}", number?);
/// }
/// assert_eq!(later.get()?, 75_025);
/// # Ok(())
/// # }
/// ```
pub struct Pool {
    crew: Arc<Crew>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("workers", &self.crew.places()).finish_non_exhaustive()
    }
}

/// What a pool is doing, as of a moment: from [`Pool::statistics`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// How many workers there are to be.
    pub workers: usize,
    /// The process ids of those there are.
    pub pids: Vec<u32>,
    /// How many tasks workers have done, well or not. A chunk of a map is one.
    pub tasks_done: u64,
    /// How many tasks wait for a worker.
    pub queued: u64,
    /// How many workers are at a task.
    pub at_work: usize,
}

impl Pool {
    /// A pool of so many workers, which are started at once, and a thread that attends to them.
    ///
    /// # Errors
    ///
    /// [`PoolError`], most of all if [`init`](crate::init()) was not called.
    pub fn new(workers: usize) -> Result<Self, PoolError> {
        Self::builder().workers(workers).build()
    }

    /// Sets up a pool before it is made.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Calls a function in a worker, and waits for what it returns.
    ///
    /// # Errors
    ///
    /// [`TaskError`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let text = pool.apply(|name: String, n: u8| format!("{name} {n}"), ("number".to_string(), 5))?;
    /// assert_eq!(text, "number 5");
    ///
    /// let error = pool.apply(|| -> u8 { panic!("no number") }, ()).unwrap_err();
    /// assert!(error.to_string().ends_with("no number"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply<F, Args>(&self, function: F, args: Args) -> Result<F::Output, TaskError>
    where
        F: Function<Args, Output: Message>,
        Args: Message,
    {
        self.options().apply(function, args)
    }

    /// Has a worker call a function, and returns at once. What it returns is to be had from the [`AsyncResult`].
    ///
    /// # Errors
    ///
    /// [`SubmitError`]. What goes wrong in the worker, the result tells.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let sums: Vec<_> =
    ///     (0..100).map(|n| pool.apply_async(|a: u32, b: u32| a + b, (n, n))).collect::<Result<_, _>>()?;
    /// for (n, sum) in sums.into_iter().enumerate() {
    ///     assert_eq!(sum.get()? as usize, 2 * n);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_async<F, Args>(&self, function: F, args: Args) -> Result<AsyncResult<F::Output>, SubmitError>
    where
        F: Function<Args, Output: Message>,
        Args: Message,
    {
        self.options().apply_async(function, args)
    }

    /// As [`apply_async`](Self::apply_async), with callbacks: when the call is done, `callback` is called with what it
    /// returned, or `error_callback` with why it did not. The thread that attends to the pool does it, so they should not
    /// block (waiting for results of the pool is fine); a panic in them is printed, and the pool goes on. Only if the pool is terminated first, neither is called.
    ///
    /// The result is there for others once the callback has returned.
    ///
    /// # Errors
    ///
    /// As [`apply_async`](Self::apply_async); no callback is called then.
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let (sender, receiver) = mpsc::channel();
    /// let errors = sender.clone();
    /// let _result = pool.apply_async_with(
    ///     |n: u32| n * 2,
    ///     (21,),
    ///     move |n| sender.send(Ok(*n)).unwrap(),
    ///     move |error| errors.send(Err(error.to_string())).unwrap(),
    /// )?;
    /// assert_eq!(receiver.recv()?, Ok(42));
    /// # Ok(())
    /// # }
    /// ```
    pub fn apply_async_with<F, Args>(
        &self,
        function: F,
        args: Args,
        callback: impl FnOnce(&F::Output) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> Result<AsyncResult<F::Output>, SubmitError>
    where
        F: Function<Args, Output: Message + Send>,
        Args: Message,
    {
        self.options().apply_async_with(function, args, callback, error_callback)
    }

    /// Takes no more tasks. Those that were handed over are still done, and then the workers end.
    pub fn close(&self) {
        if self.crew.engine.belongs_here() {
            self.crew.engine.close();
        }
    }

    /// Ends the workers, whatever they are at: they are sent SIGTERM, and SIGKILL if they have not ended five seconds later.
    /// What is still to come is [`TaskError::Terminated`].
    pub fn terminate(&self) {
        if self.crew.engine.belongs_here() {
            self.crew.terminate();
        }
    }

    /// [Closes](Self::close) the pool, if that was not done, and waits until everything that was handed over is done and
    /// the workers have ended.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let results = pool.map_async(|n: u32| n + 1, 0..1000)?;
    /// pool.join();
    /// assert!(results.ready());
    /// assert!(pool.apply(|| (), ()).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn join(&self) {
        if self.crew.engine.belongs_here() {
            self.crew.join();
        }
    }

    /// Starts so many more workers.
    ///
    /// # Errors
    ///
    /// [`PoolError`] if one can't be started; the pool tries again whenever a worker has ended.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// pool.grow(2)?;
    /// assert_eq!(pool.statistics().workers, 3);
    /// pool.shrink(1)?;
    /// assert_eq!(pool.statistics().workers, 2);
    /// assert!(pool.shrink(2).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn grow(&self, workers: usize) -> Result<(), PoolError> {
        if self.crew.engine.belongs_here() { self.crew.grow(workers) } else { Err(PoolError::Forked) }
    }

    /// Has so many workers end, those that are at a task after it. Does not wait for them.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoWorkers`] if none would be left: nothing changes then.
    pub fn shrink(&self, workers: usize) -> Result<(), PoolError> {
        if self.crew.engine.belongs_here() { self.crew.shrink(workers) } else { Err(PoolError::Forked) }
    }

    /// What the workers that have ended in order so far have left, each once: what their
    /// [`worker_exit`](PoolBuilder::worker_exit) returned, or why it did not. `R` is the type that it returns; of any other,
    /// each is [`TaskError::Decode`]. After [`join`](Self::join) there is one for each worker that was not killed.
    pub fn exit_results<R: Message>(&self) -> Vec<Result<R, TaskError>> {
        if self.crew.engine.belongs_here() { self.crew.exit_results() } else { Vec::new() }
    }

    /// What the pool is doing.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// pool.apply(|| (), ())?;
    /// let statistics = pool.statistics();
    /// assert_eq!((statistics.workers, statistics.pids.len()), (2, 2));
    /// assert_eq!(statistics.queued, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn statistics(&self) -> Statistics {
        let workers = self.crew.places();
        if !self.crew.engine.belongs_here() {
            return Statistics { workers, pids: Vec::new(), tasks_done: 0, queued: 0, at_work: 0 };
        }
        let engine = self.crew.engine.statistics();
        Statistics {
            workers,
            pids: self.crew.pids(),
            tasks_done: engine.done,
            queued: engine.queued,
            at_work: engine.at_work,
        }
    }

    /// How long a task may take, if that is limited.
    pub fn task_timeout(&self) -> Option<Duration> {
        self.crew.limit
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // In a forked child nothing happens: what the attending thread had of it there is never dropped.
        self.terminate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_and_results_go_from_thread_to_thread() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send>() {}
        shared::<Pool>();
        shared::<AsyncResult<String>>();
        shared::<TaskError>();
        sent::<IMap<std::ops::Range<u8>, String>>();
    }
}
