//! What `imap` and `imap_unordered` return.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    iter::{Fuse, FusedIterator},
    sync::Arc,
    time::Duration,
};

use procession_core::{
    pool::{Definition, Job, Next, Order, Outcome, Pace, Terms, Verdict},
    sync::Wait,
};

use super::{
    Crew,
    error::{SubmitError, TaskError, error_of},
    submit::submit,
    task::{Run, result_of, results_of},
};
use crate::message::Message;

/// The results of a function called for each item of an iterator, while the workers are at it.
///
/// It comes from [`Pool::imap`](super::Pool::imap), which has the results in the order of the items, and
/// [`Pool::imap_unordered`](super::Pool::imap_unordered), which has them as they come.
///
/// Items are taken from the iterator whenever the next result is asked for, and only so many that a bounded number of tasks
/// is under way ([`CallOptions::window`](super::CallOptions::window)): an iterator without an end is fine, and so is one that
/// would not fit into memory. A task that fails is an `Err` in its place, and the others go on. When it is dropped, tasks that
/// were handed to the workers are still done, but nobody hears of them.
#[must_use = "items are taken when results are asked for"]
pub struct IMap<I: Iterator, R> {
    crew: Arc<Crew>,
    job: Arc<Job>,
    items: Fuse<I>,
    feed: Feed,
    /// Why items could not be sent, by the index of their task.
    refused: HashMap<u64, SubmitError>,
    /// Results that are there, from a chunk.
    ready: VecDeque<Result<R, TaskError>>,
    chunk: Vec<I::Item>,
}

/// How items become tasks.
#[derive(Debug)]
struct Feed {
    definition: Definition,
    /// How many items a task has. If one, there is no chunk around it.
    size: usize,
    /// If that follows from how long former ones took.
    pace: Option<Pace>,
    /// How many tasks may be under way.
    window: u64,
    submitted: u64,
    received: u64,
    /// How many items the chunks under way have.
    sizes: HashMap<u64, usize>,
    sealed: bool,
}

impl Feed {
    /// Whether tasks are single items.
    fn is_single(&self) -> bool {
        self.size == 1 && self.pace.is_none()
    }

    /// Whether one more task may be under way.
    fn has_room(&self, job: &Job) -> bool {
        let paced = self.pace.as_ref().is_none_or(|pace| job.under_way() < pace.window());
        paced && self.submitted - self.received < self.window
    }

    /// Whether it is time to make another one, where that follows from former ones.
    fn wants(&self, job: &Job) -> bool {
        self.pace.is_some() && !self.sealed && self.has_room(job)
    }
}

impl<I: Iterator, R> fmt::Debug for IMap<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IMap").field("feed", &self.feed).finish_non_exhaustive()
    }
}

/// In what pieces items are handed over, and what holds for these.
#[derive(Debug)]
pub(super) struct Pieces {
    pub(super) size: usize,
    /// If sizes follow from how long former ones took.
    pub(super) pace: Option<Pace>,
    pub(super) window: u64,
    pub(super) order: Order,
    pub(super) terms: Terms,
}

impl<I: Iterator, R> IMap<I, R> {
    pub(super) fn new(
        crew: &Arc<Crew>,
        run: Run,
        items: I,
        Pieces { size, pace, window, order, terms }: Pieces,
    ) -> Result<Self, SubmitError> {
        crew.check_process()?;
        let definition = crew.define(run)?;
        let job = crew.engine.admit_with(order, false, None, terms).ok_or(SubmitError::Closed)?;
        if pace.is_some() {
            job.paces();
        }
        Ok(Self {
            crew: crew.clone(),
            job,
            items: items.fuse(),
            feed: Feed {
                definition,
                size,
                pace,
                window,
                submitted: 0,
                received: 0,
                sizes: HashMap::new(),
                sealed: false,
            },
            refused: HashMap::new(),
            ready: VecDeque::new(),
            chunk: Vec::new(),
        })
    }
}

impl<I, R> IMap<I, R>
where
    I: Iterator<Item: Message>,
    R: Message,
{
    /// The next result, if it comes within so long. Taking items from the iterator is not limited.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] if it has not come by then; it may be asked for again.
    ///
    /// ```
    /// use std::{thread::sleep, time::Duration};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let mut naps = pool.imap(|ms: u64| sleep(Duration::from_millis(ms)), [0, 60_000])?;
    /// assert!(naps.next_timeout(Duration::from_secs(30))?.unwrap().is_ok());
    /// assert!(naps.next_timeout(Duration::from_millis(10)).is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Result<R, TaskError>>, TimedOut> {
        self.next_within(&mut Wait::timeout(timeout))
    }

    /// Nobody wants what is still to come: tasks that wait are never begun, and workers that are at one are killed and
    /// replaced. What has come already is still given out, then [`TaskError::Cancelled`], and no more. Other calls are not
    /// affected. False if everything is done already.
    ///
    /// ```
    /// use std::{thread::sleep, time::Duration};
    /// use procession::TaskError;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let pool = procession::Pool::new(1)?;
    /// let mut naps = pool.imap(|ms: u64| sleep(Duration::from_millis(ms)), [0, 600_000, 600_000])?;
    /// assert!(naps.next().unwrap().is_ok());
    /// assert!(naps.cancel());
    /// assert!(matches!(naps.next(), Some(Err(TaskError::Cancelled))));
    /// assert!(naps.next().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&mut self) -> bool {
        if !self.crew.engine.belongs_here() {
            return false;
        }
        self.feed.sealed = true;
        self.crew.engine.cancel(&self.job)
    }

    fn next_within(&mut self, wait: &mut Wait<'_>) -> Result<Option<Result<R, TaskError>>, TimedOut> {
        if !self.crew.engine.belongs_here() {
            return Ok(None);
        }
        loop {
            if let Some(result) = self.ready.pop_front() {
                return Ok(Some(result));
            }
            self.fill();
            match self.job.next() {
                Next::Outcome(index, outcome) => self.receive(index, outcome),
                Next::End => return Ok(None),
                Next::Pending => {
                    let priority = self.job.terms().priority;
                    let wants = |job: &Job| self.feed.wants(job) && !self.crew.engine.is_full_for(priority);
                    let ready = |job: &Job| job.has_next() || wants(job);
                    self.crew.wait(&self.job, ready, wait).map_err(|_| TimedOut)?;
                }
            }
        }
    }

    /// Hands items to the workers, as many as may be under way. When half as many are and a result is there, that one
    /// is not to wait for what may be a slow iterator.
    fn fill(&mut self) {
        while !self.feed.sealed {
            let under_way = self.feed.submitted - self.feed.received;
            if !self.feed.has_room(&self.job)
                || (under_way > 0 && self.crew.engine.is_full_for(self.job.terms().priority))
            {
                return;
            }
            if under_way * 2 >= self.feed.window {
                self.crew.engine.poll();
                if self.job.has_next() {
                    return;
                }
            }
            self.feed_one();
        }
    }

    fn feed_one(&mut self) {
        let left = self.items.size_hint().1.map(|left| left as u64);
        let size = match &mut self.feed.pace {
            Some(pace) => pace.next(self.job.pace(), left),
            None => self.feed.size,
        };
        let Feed { definition, submitted: index, .. } = self.feed;
        self.chunk.clear();
        self.chunk.extend(self.items.by_ref().take(size));
        if self.chunk.is_empty() {
            self.feed.sealed = true;
            self.crew.engine.seal(&self.job, index);
            return;
        }
        let single = self.feed.is_single();
        if !single {
            self.feed.sizes.insert(index, self.chunk.len());
        }
        let submitted = if single {
            // A single item is the arguments of a call, and not a chunk.
            self.chunk.pop().map_or(Ok(()), |item| submit(&self.crew, &self.job, index, definition, &(item,)))
        } else {
            submit(&self.crew, &self.job, index, definition, &self.chunk)
        };
        self.feed.submitted += 1;
        if let Err(error) = submitted {
            self.refused.insert(index, error);
            self.crew.engine.refuse(&self.job, index);
        }
    }

    fn receive(&mut self, index: u64, mut outcome: Outcome) {
        self.feed.received += 1;
        let items = self.feed.sizes.remove(&index).unwrap_or(1);
        if let Some(refused) = self.refused.remove(&index) {
            let text = refused.to_string();
            self.ready.push_back(Err(refused.into()));
            self.ready.extend((1..items).map(|_| Err(TaskError::Chunk(text.clone()))));
        } else if matches!(outcome.verdict, Verdict::Terminated | Verdict::Cancelled) {
            // In the place of all that were still to come.
            self.ready.extend(error_of(&outcome, &self.job).map(Err));
        } else if self.feed.is_single() {
            self.ready.push_back(result_of(&mut outcome, &self.job));
        } else {
            match results_of(&mut outcome, &self.job) {
                Ok(results) => self.ready.extend(results),
                // For each item of the chunk.
                Err(first) => {
                    let others =
                        (1..items).map(|_| Err(error_of(&outcome, &self.job).unwrap_or_else(|| chunk_of(&first))));
                    let others: Vec<_> = others.collect();
                    self.ready.push_back(Err(first));
                    self.ready.extend(others);
                }
            }
        }
    }
}

/// What is told of the other items of a chunk that could not be read.
fn chunk_of(first: &TaskError) -> TaskError {
    TaskError::Chunk(first.to_string())
}

impl<I, R> Iterator for IMap<I, R>
where
    I: Iterator<Item: Message>,
    R: Message,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Neither a deadline nor a signal ends it.
        self.next_within(&mut Wait::forever()).unwrap_or(None)
    }
}

impl<I, R> FusedIterator for IMap<I, R>
where
    I: Iterator<Item: Message>,
    R: Message,
{
}

impl<I: Iterator, R> Drop for IMap<I, R> {
    fn drop(&mut self) {
        // In a forked child, locks may have been held at the fork, for ever.
        if self.crew.engine.belongs_here() {
            self.job.abandon();
            if !self.feed.sealed {
                self.crew.engine.seal(&self.job, self.feed.submitted);
            }
        }
    }
}

/// A result has not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the result has not come in time")]
pub struct TimedOut;
