//! What `apply_async` and `map_async` return.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use procession_core::{
    pool::{Job, Next, Outcome},
    sync::Wait,
};

use super::{
    Crew,
    error::{GetError, SubmitError, TaskError},
};

/// The result of a call that workers are at, to be waited for; or, in asynchronous code, to be awaited.
///
/// It comes from [`Pool::apply_async`](super::Pool::apply_async) and [`Pool::map_async`](super::Pool::map_async). The call
/// is not [cancelled](Self::cancel) by dropping this; its result is thrown away then. If the pool is dropped first, the result is
/// [`TaskError::Terminated`], unless it was there.
///
/// Any executor can await it; none is needed otherwise.
///
/// ```
/// use std::time::Duration;
/// use procession::{Pool, pool::GetError};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let pool = Pool::new(2)?;
/// let (quick, slow) = (
///     pool.apply_async(u64::pow, (3, 4))?,
///     pool.apply_async(|| std::thread::sleep(Duration::from_secs(600)), ())?,
/// );
/// assert_eq!(quick.get()?, 81);
/// match slow.get_timeout(Duration::from_millis(10)) {
///     Err(GetError::TimedOut(slow)) => assert!(!slow.ready()),
///     other => unreachable!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
pub struct AsyncResult<R>(Arc<Call<R>>);

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult").field("ready", &self.0.job.is_settled()).finish_non_exhaustive()
    }
}

/// Adds the value of an outcome to those that came before it.
type Add<R> = fn(&mut Outcome, &Job, &mut Option<R>) -> Result<(), TaskError>;

pub(super) struct Call<R> {
    crew: Arc<Crew>,
    job: Arc<Job>,
    add: Add<R>,
    content: Mutex<Content<R>>,
}

/// What has been made of a call's outcomes.
struct Content<R> {
    /// From those that are there.
    value: Option<R>,
    /// The first one.
    error: Option<TaskError>,
    complete: bool,
}

impl<R> Call<R> {
    /// A call of a job. `value` is what comes of no outcomes at all.
    pub(super) fn new(crew: Arc<Crew>, job: Arc<Job>, value: Option<R>, add: Add<R>) -> Arc<Self> {
        Arc::new(Self { crew, job, add, content: Mutex::new(Content { value, error: None, complete: false }) })
    }

    fn content(&self) -> MutexGuard<'_, Content<R>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what can be made of the outcomes that are there.
    fn load(&self, content: &mut Content<R>) {
        while !content.complete {
            match self.job.next() {
                Next::Pending => return,
                Next::End => content.complete = true,
                Next::Outcome(_, mut outcome) => {
                    if let Err(error) = (self.add)(&mut outcome, &self.job, &mut content.value) {
                        content.error.get_or_insert(error);
                    }
                }
            }
        }
    }

    fn take(&self) -> Result<R, TaskError> {
        let mut content = self.content();
        self.load(&mut content);
        match (content.error.take(), content.value.take()) {
            (Some(error), _) => Err(error),
            (None, Some(value)) => Ok(value),
            // It was taken before, by a future that was polled again.
            (None, None) => Err(TaskError::Taken),
        }
    }

    /// Shows the result to whoever asked to be called back.
    fn show(&self, callback: impl FnOnce(&R), error_callback: impl FnOnce(&TaskError)) {
        let mut content = self.content();
        self.load(&mut content);
        match (&content.error, &content.value) {
            (Some(error), _) => error_callback(error),
            (None, Some(value)) => callback(value),
            (None, None) => {}
        }
    }

    /// Has one of these called by the crew's thread when the call, whose job was opened with `notify`, is done.
    pub(super) fn call_back(
        self: &Arc<Self>,
        callback: impl FnOnce(&R) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) where
        R: Send + 'static,
    {
        let call = self.clone();
        self.crew.call_back(self.job.id(), Box::new(move || call.show(callback, error_callback)));
    }

    fn belongs_here(&self) -> bool {
        self.crew.engine.belongs_here()
    }
}

impl<R> Drop for Call<R> {
    fn drop(&mut self) {
        // In a forked child there is nobody to deliver, and locks may have been held at the fork, for ever.
        if self.belongs_here() {
            self.job.abandon();
            if self.job.notifies() {
                self.crew.forget(self.job.id());
            }
        }
    }
}

impl<R> AsyncResult<R> {
    pub(super) fn new(call: Arc<Call<R>>) -> Self {
        Self(call)
    }

    /// Waits for the result.
    ///
    /// # Errors
    ///
    /// [`TaskError`] if there is none. For a map, the first failure to arrive, once all tasks are done.
    pub fn get(self) -> Result<R, TaskError> {
        let call = &self.0;
        if !call.belongs_here() {
            return Err(SubmitError::Forked.into());
        }
        // The chunks of a map are read while later ones are worked on.
        let ready = |job: &Job| if job.notifies() { job.is_settled() } else { job.has_batch() };
        while !call.job.is_settled() {
            // Neither a deadline nor a signal ends it.
            let _ = call.crew.wait(&call.job, ready, &mut Wait::forever());
            call.load(&mut call.content());
        }
        call.take()
    }

    /// Waits for the result at most so long.
    ///
    /// # Errors
    ///
    /// [`GetError::TimedOut`], with the handle, if it has not come by then. [`GetError::Failed`] as [`get`](Self::get).
    pub fn get_timeout(self, timeout: Duration) -> Result<R, GetError<R>> {
        if self.wait_timeout(timeout) { self.get().map_err(GetError::Failed) } else { Err(GetError::TimedOut(self)) }
    }

    /// Waits until the call is done, whatever comes of it.
    pub fn wait(&self) {
        self.wait_with(&mut Wait::forever());
    }

    /// Waits until the call is done, at most so long. Tells whether it is.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.ready() || self.wait_with(&mut Wait::timeout(timeout))
    }

    fn wait_with(&self, wait: &mut Wait<'_>) -> bool {
        // In a forked child, all that will ever be known is.
        !self.0.belongs_here() || self.0.crew.wait(&self.0.job, Job::is_settled, wait).is_ok()
    }

    /// Nobody wants the result any more: tasks of the call that wait are never begun, and workers that are at one are killed
    /// and replaced. The result is [`TaskError::Cancelled`] then, of which callbacks are told. Other calls are not
    /// affected. False if the call is done already.
    ///
    /// ```
    /// use std::{thread::sleep, time::Duration};
    /// use procession::TaskError;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let stuck = pool.apply_async(|| sleep(Duration::from_secs(600)), ())?;
    /// let waits = pool.apply_async(|| 1, ())?;
    /// assert!(stuck.cancel());
    /// assert!(matches!(stuck.get(), Err(TaskError::Cancelled)));
    /// assert_eq!(waits.get()?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&self) -> bool {
        self.0.belongs_here() && self.0.crew.engine.cancel(&self.0.job)
    }

    /// Whether the call was cancelled: so its result is [`TaskError::Cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.0.job.is_cancelled()
    }

    /// Whether the call is done. Does not block.
    pub fn ready(&self) -> bool {
        if !self.0.job.is_settled() && self.0.belongs_here() {
            self.0.crew.engine.poll();
        }
        self.0.job.is_settled() || !self.0.belongs_here()
    }

    /// Whether the call has a result, and not an error; `None` if it is not done. Does not block, but for reading the
    /// result.
    pub fn successful(&self) -> Option<bool> {
        if !self.ready() {
            return None;
        }
        if !self.0.belongs_here() {
            return Some(false);
        }
        let mut content = self.0.content();
        self.0.load(&mut content);
        Some(content.error.is_none())
    }
}

impl<R> Future for AsyncResult<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let call = &self.0;
        if !call.belongs_here() {
            return Poll::Ready(Err(SubmitError::Forked.into()));
        }
        if self.ready() || !call.crew.wake_at_end(&call.job, context.waker()) {
            return Poll::Ready(call.take());
        }
        Poll::Pending
    }
}
