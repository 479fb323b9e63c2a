//! Options of calls: when and for how long, how often, and in how large pieces.

use std::{sync::Arc, time::Duration};

use procession_core::{
    pool::{Job, Next, Order, Outcome, Pace, Terms},
    sync::Wait,
};

use super::{
    Call, Crew, Pool,
    error::{SubmitError, TaskError},
    result::AsyncResult,
    stream::{IMap, Pieces},
    submit::{Manner, Size},
    task::{self, Run, result_of},
};
use crate::{Function, Message};

/// How many chunks of a map there are for each worker, unless it is said how large they are to be.
const CHUNKS: usize = 4;
/// How many tasks of a stream may be under way for each worker, and at least, unless it is said.
const WINDOW: usize = 16;
const LEAST_WINDOW: usize = 64;

/// How calls are handed to the workers, and what holds for their tasks: from [`Pool::options`]. They are for one call, or
/// copied for many.
///
/// ```
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let pool = procession::Pool::new(2)?;
///
/// // Ten at a time, and never more than four such chunks under way.
/// let squares = pool.options().chunk_size(10).window(4).imap(|n: u64| n * n, 0..)?;
/// let sum: u64 = squares.take(1000).sum::<Result<u64, _>>()?;
/// assert_eq!(sum, 332_833_500);
///
/// // Before what else waits, for a minute at most, and on another worker should this one die.
/// let urgent = pool.options().priority(1).timeout(Duration::from_secs(60)).retries(1);
/// assert_eq!(urgent.apply(u64::pow, (2, 10))?, 1024);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "these are only options"]
pub struct CallOptions<'a> {
    pool: &'a Pool,
    terms: Terms,
    chunk_size: Option<usize>,
    auto_chunks: bool,
    window: Option<usize>,
}

impl Pool {
    /// Options for calls: how many items make a task and how many tasks may be under way; which tasks come first, how long one
    /// may take, and how often it is tried again.
    pub fn options(&self) -> CallOptions<'_> {
        let terms = Terms { retries: self.crew.retries, ..Terms::default() };
        CallOptions { pool: self, terms, chunk_size: None, auto_chunks: false, window: None }
    }
}

impl CallOptions<'_> {
    /// How many items make a task, at least one. Four tasks for each worker unless this is called; for `imap` and `imap_unordered` it is one unless this is called.
    pub fn chunk_size(mut self, items: usize) -> Self {
        self.chunk_size = Some(items.max(1));
        self
    }

    /// Has the sizes of chunks follow from the time that former ones took: so that a task takes some milliseconds, beside which it
    /// costs nothing to hand it over, and yet all workers are done at about the same time. For `map`, `starmap`, `imap` and
    /// `imap_unordered`; a `map_async`, which does not wait for former chunks, has the usual ones.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(2)?;
    /// let sum: u64 = pool.options().auto_chunks().imap(|n: u64| n % 7, 0..50_000)?.sum::<Result<_, _>>()?;
    /// assert_eq!(sum, (0..50_000).map(|n| n % 7).sum());
    /// # Ok(())
    /// # }
    /// ```
    pub fn auto_chunks(mut self) -> Self {
        self.auto_chunks = true;
        self
    }

    /// For `imap` and `imap_unordered`: how many tasks may be under way, that is taken from the iterator and not given out.
    /// At least one; 16 for each worker, but no less than 64, unless this is called.
    pub fn window(mut self, tasks: usize) -> Self {
        self.window = Some(tasks.max(1));
        self
    }

    /// How long a worker may be at a task (of a map: at a chunk, which is a single item unless
    /// [`chunk_size`](Self::chunk_size) says otherwise). One that takes longer is killed, and the task fails with
    /// [`TaskError::TimedOut`]; no other task is affected. How long a task waits for a worker does not count. As the pool's
    /// [`task_timeout`](super::PoolBuilder::task_timeout) says unless this is called.
    ///
    /// ```
    /// use std::{thread::sleep, time::Duration};
    /// use procession::TaskError;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let brief = pool.options().timeout(Duration::from_millis(50));
    /// let stuck = brief.apply(|| sleep(Duration::from_secs(600)), ());
    /// assert!(matches!(stuck, Err(TaskError::TimedOut { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.terms.limit = Some(limit);
        self
    }

    /// How often a task is given to another worker when the one that is at it dies. What a task panics with is an answer, and
    /// so is a [timeout](Self::timeout): these are not tried again. As the pool's [`retries`](super::PoolBuilder::retries)
    /// say unless this is called; zero if nobody does.
    ///
    /// A task that is tried again may have been at work before for any length of time, up to its very end.
    ///
    /// ```
    /// use procession::{Lock, TaskError};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let count = Lock::new(0)?;
    /// let moody = |count: Lock<u32>| {
    ///     let mut count = count.acquire().unwrap();
    ///     *count += 1;
    ///     if *count < 3 {
    ///         drop(count);
    ///         std::process::abort();
    ///     }
    ///     *count
    /// };
    /// assert_eq!(pool.options().retries(2).apply(moody, (count,))?, 3);
    ///
    /// let hopeless = pool.options().retries(2).apply(|| std::process::abort(), ()).map(|()| ());
    /// assert!(matches!(hopeless, Err(TaskError::WorkerLost { attempts: 3, .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn retries(mut self, times: u32) -> Self {
        self.terms.retries = times;
        self
    }

    /// As long as they wait for a worker, tasks come before those of smaller numbers, and after those of larger ones. Zero unless
    /// this is called.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let background = pool.options().priority(-1).map_async(|n: u64| n + 1, 0..1000)?;
    /// assert_eq!(pool.apply(|n: u64| n * 2, (21,))?, 42);
    /// assert_eq!(background.get()?[999], 1000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn priority(mut self, priority: i32) -> Self {
        self.terms.priority = priority;
        self
    }

    /// [`Pool::apply`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn apply<F, Args>(self, _function: F, args: Args) -> Result<F::Output, TaskError>
    where
        F: Function<Args, Output: Message>,
        Args: Message,
    {
        let crew = self.crew();
        let job = crew.call(task::call::<F, Args>, &args, false, self.terms, |_| {})?;
        loop {
            match job.next() {
                Next::Outcome(_, mut outcome) => return result_of(&mut outcome, &job),
                Next::End => return Err(TaskError::Taken),
                // Neither a deadline nor a signal ends it.
                Next::Pending => drop(crew.wait(&job, Job::has_next, &mut Wait::forever())),
            }
        }
    }

    /// [`Pool::apply_async`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn apply_async<F, Args>(self, _function: F, args: Args) -> Result<AsyncResult<F::Output>, SubmitError>
    where
        F: Function<Args, Output: Message>,
        Args: Message,
    {
        let crew = self.crew();
        let job = crew.call(task::call::<F, Args>, &args, false, self.terms, |_| {})?;
        Ok(AsyncResult::new(Call::new(Arc::clone(crew), job, None, set_value)))
    }

    /// [`Pool::apply_async_with`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn apply_async_with<F, Args>(
        self,
        _function: F,
        args: Args,
        callback: impl FnOnce(&F::Output) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> Result<AsyncResult<F::Output>, SubmitError>
    where
        F: Function<Args, Output: Message + Send>,
        Args: Message,
    {
        let mut call = None;
        self.crew().call(task::call::<F, Args>, &args, true, self.terms, |job| {
            let made = Call::new(Arc::clone(self.crew()), job.clone(), None, set_value);
            made.call_back(callback, error_callback);
            call = Some(made);
        })?;
        // It is made before anything can go wrong that is not an error.
        call.map(AsyncResult::new).ok_or(SubmitError::Closed)
    }

    fn crew(&self) -> &Arc<Crew> {
        &self.pool.crew
    }

    /// [`Pool::map`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map<F, I>(self, _function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.run(task::map_chunk::<F, I::Item>, items)
    }

    /// [`Pool::map_async`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map_async<F, I>(self, _function: F, items: I) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.begin(task::map_chunk::<F, I::Item>, items)
    }

    /// [`Pool::map_async_with`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map_async_with<F, I>(
        self,
        _function: F,
        items: I,
        callback: impl FnOnce(&Vec<F::Output>) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message + Send>,
    {
        let mut call = None;
        self.feed(task::map_chunk::<F, I::Item>, items, Manner::Notify, |job| {
            let made = Call::new(self.crew().clone(), job.clone(), Some(Vec::new()), add_chunk);
            made.call_back(callback, error_callback);
            call = Some(made);
        })?;
        // It is made before anything can go wrong that is not an error.
        call.map(AsyncResult::new).ok_or(SubmitError::Closed)
    }

    /// [`Pool::starmap`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn starmap<F, I>(self, _function: F, items: I) -> Result<Vec<F::Output>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<I::Item, Output: Message>,
    {
        self.run(task::starmap_chunk::<F, I::Item>, items)
    }

    /// [`Pool::starmap_async`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn starmap_async<F, I>(self, _function: F, items: I) -> Result<AsyncResult<Vec<F::Output>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<I::Item, Output: Message>,
    {
        self.begin(task::starmap_chunk::<F, I::Item>, items)
    }

    /// [`Pool::imap`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn imap<F, I>(self, _function: F, items: I) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.stream::<F, I>(items, Order::Sequence)
    }

    /// [`Pool::imap_unordered`] with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn imap_unordered<F, I>(self, _function: F, items: I) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        self.stream::<F, I>(items, Order::Arrival)
    }

    fn stream<F, I>(self, items: I, order: Order) -> Result<IMap<I::IntoIter, F::Output>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        F: Function<(I::Item,), Output: Message>,
    {
        let pace = (self.auto_chunks && self.chunk_size.is_none()).then(|| Pace::new(self.crew().places()));
        let size = self.chunk_size.unwrap_or(1);
        let run =
            if size == 1 && pace.is_none() { task::call::<F, (I::Item,)> } else { task::stream_chunk::<F, I::Item> };
        let window = self.window.map_or_else(
            // Tasks of many items each: those that wait to be given out take memory, too.
            || pace.as_ref().map_or((self.crew().places() * WINDOW).max(LEAST_WINDOW) as u64, |pace| 2 * pace.window()),
            |window| window as u64,
        );
        IMap::new(self.crew(), run, items.into_iter(), Pieces { size, pace, window, order, terms: self.terms })
    }

    fn run<I, R>(self, run: Run, items: I) -> Result<Vec<R>, TaskError>
    where
        I: IntoIterator<Item: Message>,
        R: Message,
    {
        let job = self.feed(run, items, Manner::Wait, |_| {})?;
        AsyncResult::new(Call::new(self.crew().clone(), job, Some(Vec::new()), add_chunk)).get()
    }

    fn begin<I, R>(self, run: Run, items: I) -> Result<AsyncResult<Vec<R>>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
        R: Message,
    {
        let job = self.feed(run, items, Manner::GoOn, |_| {})?;
        Ok(AsyncResult::new(Call::new(self.crew().clone(), job, Some(Vec::new()), add_chunk)))
    }

    /// Hands all items to the workers.
    fn feed<I>(
        self,
        run: Run,
        items: I,
        manner: Manner,
        opened: impl FnOnce(&Arc<Job>),
    ) -> Result<Arc<Job>, SubmitError>
    where
        I: IntoIterator<Item: Message>,
    {
        let items = items.into_iter();
        let crew = self.crew();
        // Where each task has a time of its own, a chunk would have to share it.
        let usual = self.chunk_size.or(self.terms.limit.map(|_| 1));
        let size = |count: usize| {
            if self.auto_chunks && self.chunk_size.is_none() && manner == Manner::Wait {
                return Size::Paced(Pace::new(crew.places()));
            }
            Size::Fixed(usual.unwrap_or_else(|| count.div_ceil(crew.places() * CHUNKS)))
        };
        match items.size_hint() {
            (least, Some(most)) if least == most => {
                crew.call_chunks(run, items, size(least), manner, self.terms, opened)
            }
            _ => {
                let items: Vec<_> = items.collect();
                let size = size(items.len());
                crew.call_chunks(run, items.into_iter(), size, manner, self.terms, opened)
            }
        }
    }
}

fn set_value<R: Message>(outcome: &mut Outcome, job: &Job, value: &mut Option<R>) -> Result<(), TaskError> {
    *value = Some(result_of(outcome, job)?);
    Ok(())
}

fn add_chunk<R: Message>(outcome: &mut Outcome, job: &Job, all: &mut Option<Vec<R>>) -> Result<(), TaskError> {
    let mut chunk: Vec<R> = result_of(outcome, job)?;
    match all {
        Some(all) if !all.is_empty() => all.append(&mut chunk),
        _ => *all = Some(chunk),
    }
    Ok(())
}
