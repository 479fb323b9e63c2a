//! Setting up a pool.

use std::{any::TypeId, fmt, num::NonZeroUsize, time::Duration};

use rustix::thread::{CpuSet, sched_getaffinity};

use super::{
    Crew, Pool,
    crew::{EncodedArguments, Exiting, Initializer, Recipe},
    error::PoolError,
    worker::{Initialize, Leave, initialize, leave},
};
use crate::{
    Function, Message,
    code::{Code, ForeignCode},
    handover::Reach,
    message::{Encoded, encode},
    process::Settings,
    start::{StartMethod, start_method},
};

/// Sets up a [`Pool`].
///
/// ```
/// use std::time::Duration;
/// use procession::{Pool, TaskError};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let pool = Pool::builder()
///     .workers(2)
///     .initializer(|greeting: String| println!("{greeting} from {}", std::process::id()), ("hello".to_string(),))
///     .max_tasks_per_child(1000)
///     .task_timeout(Duration::from_millis(50))
///     .build()?;
///
/// let stuck = pool.apply(|| std::thread::sleep(Duration::from_secs(600)), ());
/// assert!(matches!(stuck, Err(TaskError::TimedOut { .. })));
/// assert_eq!(pool.apply(|| 1 + 1, ())?, 2);
/// # Ok(())
/// # }
/// ```
#[must_use = "it makes a pool only when told so"]
pub struct PoolBuilder {
    workers: Option<usize>,
    name: String,
    most: Option<u64>,
    limit: Option<Duration>,
    retries: u32,
    memory: Option<u64>,
    cpus: Vec<Vec<usize>>,
    exit: Option<Result<Exiting, ForeignCode>>,
    method: Option<StartMethod>,
    initializer: Option<Result<Initializer, ForeignCode>>,
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("workers", &self.workers)
            .field("name", &self.name)
            .field("max_tasks_per_child", &self.most)
            .field("task_timeout", &self.limit)
            .field("retries", &self.retries)
            .field("max_memory_per_child", &self.memory)
            .field("cpu_ids", &self.cpus)
            .field("start_method", &self.method)
            .finish_non_exhaustive()
    }
}

impl Default for PoolBuilder {
    fn default() -> Self {
        Self {
            workers: None,
            name: String::from("PoolWorker"),
            most: None,
            limit: None,
            retries: 0,
            memory: None,
            cpus: Vec::new(),
            exit: None,
            method: None,
            initializer: None,
        }
    }
}

impl PoolBuilder {
    /// How many worker processes there are to be. As many as this process may use processors, unless this is called.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// What each worker runs before its first task, with these arguments, among which may be queues, locks and all else that can be
    /// sent. They are kept for the workers that are started later on.
    ///
    /// If it panics, the worker ends, and another one is started. After a few that came no further, all tasks fail with
    /// [`TaskError::NoWorkers`](super::TaskError::NoWorkers).
    pub fn initializer<F, Args>(mut self, _function: F, args: Args) -> Self
    where
        F: Function<Args, Output = ()>,
        Args: Message + Send,
    {
        let run: Initialize = initialize::<F, Args>;
        let arguments = move || -> EncodedArguments {
            let mut room = Vec::new();
            let Encoded { bytes, descriptors } = encode(&args, &mut room, Reach::Related)?;
            Ok((bytes.to_vec(), descriptors))
        };
        let code = Code::of(run as *const ());
        self.initializer = Some(code.map(|code| Initializer { code, arguments: Box::new(arguments) }));
        self
    }

    /// After how many tasks (of a map: chunks) a worker is replaced by a new one, as a remedy for what grows in them. At
    /// least one.
    pub fn max_tasks_per_child(mut self, tasks: u64) -> Self {
        self.most = Some(tasks.max(1));
        self
    }

    /// How long a worker may be at a task (of a map: at a chunk). One that takes longer is killed, the task fails with
    /// [`TaskError::TimedOut`](super::TaskError::TimedOut), and no other task is affected. How long a task waits for a
    /// worker does not count.
    pub fn task_timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// How often a task is given to another worker when the one that is at it dies, unless its
    /// [options](super::CallOptions::retries) say otherwise. Zero, unless this is called.
    pub fn retries(mut self, times: u32) -> Self {
        self.retries = times;
        self
    }

    /// With how many bytes of memory a worker is replaced by a new one: of resident memory, as `ps` shows it, of which shared
    /// memory is a part. It is looked at after each task (of a map: chunk).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::builder().workers(1).max_memory_per_child(100 << 20).build()?;
    /// let grow = |length: usize| {
    ///     std::mem::forget(vec![1_u8; length]);
    ///     std::process::id()
    /// };
    /// let first = pool.apply(grow, (200 << 20,))?;
    /// assert_ne!(pool.apply(grow, (0,))?, first);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_memory_per_child(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Which CPUs workers run on: each list is that of one worker. If there are fewer lists than workers, they are used in
    /// turn; a worker that takes the place of another one has its list.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// match procession::Pool::builder().workers(2).cpu_ids([[0]]).build() {
    ///     Ok(pool) => assert_eq!(pool.apply(procession::cpu_count, ())?, 1),
    ///     // This process may be bound to others itself.
    ///     Err(error) => assert!(matches!(error, procession::pool::PoolError::Cpu(Some(0)))),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn cpu_ids<Cpus: IntoIterator<Item = usize>>(mut self, lists: impl IntoIterator<Item = Cpus>) -> Self {
        self.cpus = lists.into_iter().map(|cpus| cpus.into_iter().collect()).collect();
        self
    }

    /// What each worker runs last, when it ends in order: as the pool is [joined](Pool::join) or
    /// [shrunk](Pool::shrink), or after [so many tasks](Self::max_tasks_per_child) or with
    /// [so much memory](Self::max_memory_per_child). Not when it is killed or the pool is terminated. What it returns is
    /// to be had from [`Pool::exit_results`].
    ///
    /// What an initializer, tasks and this function share goes into a `static` or a `thread_local!`: all of them run in the
    /// worker's main thread.
    ///
    /// ```
    /// use std::cell::RefCell;
    ///
    /// thread_local! {
    ///     static SEEN: RefCell<Vec<u32>> = RefCell::default();
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::builder()
    ///     .workers(2)
    ///     .initializer(|| SEEN.with_borrow_mut(|seen| seen.reserve(100)), ())
    ///     .worker_exit(|| SEEN.take())
    ///     .build()?;
    /// pool.map(|n: u32| SEEN.with_borrow_mut(|seen| seen.push(n)), 0..100)?;
    /// pool.join();
    /// let mut all: Vec<u32> = pool.exit_results::<Vec<u32>>().into_iter().flat_map(Result::unwrap).collect();
    /// all.sort_unstable();
    /// assert!(all.into_iter().eq(0..100));
    /// # Ok(())
    /// # }
    /// ```
    pub fn worker_exit<F>(mut self, _function: F) -> Self
    where
        F: Function<(), Output: Message>,
    {
        let run: Leave = leave::<F>;
        self.exit = Some(Code::of(run as *const ()).map(|code| Exiting { code, returns: TypeId::of::<F::Output>() }));
        self
    }

    /// How workers are started, if not as [`start_method`](crate::start_method()) says.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = Some(method);
        self
    }

    /// What workers are called, with a number behind it: `PoolWorker` unless this is called.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Starts the workers, and a thread that replaces those that end, sees to timeouts and calls callbacks.
    ///
    /// # Errors
    ///
    /// [`PoolError`]; no worker is left then.
    pub fn build(self) -> Result<Pool, PoolError> {
        let workers = match self.workers {
            Some(workers) => NonZeroUsize::new(workers).ok_or(PoolError::NoWorkers)?.get(),
            None => crate::cpu_count(),
        };
        let recipe = Recipe {
            name: self.name,
            started: 0,
            settings: Settings { daemon: true, nests: true, ..Settings::default() },
            method: self.method.unwrap_or_else(start_method),
            most: self.most,
            memory: self.memory,
            cpus: usable(self.cpus)?,
        };
        let exit = self.exit.transpose()?;
        let initializer = self.initializer.transpose()?;
        Ok(Pool { crew: Crew::assemble(workers, (self.limit, self.retries), recipe, initializer, exit)? })
    }
}

/// Those lists, if workers can be bound to them.
fn usable(lists: Vec<Vec<usize>>) -> Result<Vec<Vec<usize>>, PoolError> {
    if lists.is_empty() {
        return Ok(lists);
    }
    let mine = sched_getaffinity(None).map_err(std::io::Error::from)?;
    for cpus in &lists {
        if cpus.is_empty() {
            return Err(PoolError::Cpu(None));
        }
        if let Some(cpu) = cpus.iter().find(|cpu| **cpu >= CpuSet::MAX_CPU || !mine.is_set(**cpu)) {
            return Err(PoolError::Cpu(Some(*cpu)));
        }
    }
    Ok(lists)
}
