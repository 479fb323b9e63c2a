//! Setting up a pool.

use std::{fmt, num::NonZeroUsize, time::Duration};

use super::{
    Crew, Pool,
    crew::{EncodedArguments, Initializer, Recipe},
    error::PoolError,
    worker::{Initialize, initialize},
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
        };
        let initializer = self.initializer.transpose()?;
        Ok(Pool { crew: Crew::assemble(workers, self.limit, recipe, initializer)? })
    }
}
