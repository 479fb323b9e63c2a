//! What `imap` and `imap_unordered` return.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    iter::{Fuse, FusedIterator},
    sync::Arc,
    time::Duration,
};

use procession_core::{
    pool::{Definition, Job, Next, Order, Outcome, Verdict},
    sync::Wait,
};

use super::{
    Crew,
    error::{SubmitError, TaskError, error_of},
    submit::submit,
    task::{Run, result_of, results_of},
};
use crate::{
    handover::Reach,
    message::{Message, encode},
    room,
};

/// The results of a function called for each item of an iterator, while the workers are at it.
///
/// It comes from [`Pool::imap`](super::Pool::imap), which has the results in the order of the items, and
/// [`Pool::imap_unordered`](super::Pool::imap_unordered), which has them as they come.
///
/// Items are taken from the iterator whenever the next result is asked for, and only so many that a bounded number of tasks
/// is under way ([`MapOptions::window`](super::MapOptions::window)): an iterator without an end is fine, and so is one that
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
    /// How many tasks may be under way.
    window: u64,
    submitted: u64,
    received: u64,
    /// How many items the last one had.
    last: usize,
    sealed: bool,
}

impl<I: Iterator, R> fmt::Debug for IMap<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IMap").field("feed", &self.feed).finish_non_exhaustive()
    }
}

impl<I: Iterator, R> IMap<I, R> {
    pub(super) fn new(
        crew: &Arc<Crew>,
        run: Run,
        items: I,
        size: usize,
        window: u64,
        order: Order,
    ) -> Result<Self, SubmitError> {
        crew.check_process()?;
        let definition = crew.define(run)?;
        let job = crew.engine.admit(order, false, None).ok_or(SubmitError::Closed)?;
        Ok(Self {
            crew: crew.clone(),
            job,
            items: items.fuse(),
            feed: Feed { definition, size, window, submitted: 0, received: 0, last: 0, sealed: false },
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
                Next::Pending => self.crew.wait(&self.job, Job::has_next, wait).map_err(|_| TimedOut)?,
            }
        }
    }

    /// Hands items to the workers, as many as may be under way. When half as many are and a result is there, that one
    /// is not to wait for what may be a slow iterator.
    fn fill(&mut self) {
        while !self.feed.sealed {
            let under_way = self.feed.submitted - self.feed.received;
            if under_way >= self.feed.window || (under_way > 0 && self.crew.engine.is_full()) {
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
        let Feed { definition, size, submitted: index, .. } = self.feed;
        self.chunk.clear();
        self.chunk.extend(self.items.by_ref().take(size));
        if self.chunk.is_empty() {
            self.feed.sealed = true;
            self.crew.engine.seal(&self.job, index);
            return;
        }
        self.feed.last = self.chunk.len();
        let submitted = room::with(|room| {
            let reach = Reach::Related;
            if size > 1 {
                return submit(&self.crew, &self.job, index, definition, &encode(&self.chunk, room, reach)?);
            }
            // A single item is the arguments of a call, and not a chunk.
            match self.chunk.pop() {
                Some(item) => submit(&self.crew, &self.job, index, definition, &encode(&(item,), room, reach)?),
                None => Ok(()),
            }
        });
        self.feed.submitted += 1;
        if let Err(error) = submitted {
            self.refused.insert(index, error);
            self.crew.engine.refuse(&self.job, index);
        }
    }

    fn receive(&mut self, index: u64, mut outcome: Outcome) {
        self.feed.received += 1;
        // Only the last one can be short. The end of a terminated pool has no index: the largest number.
        let items = if index.checked_add(1) == Some(self.feed.submitted) { self.feed.last } else { self.feed.size };
        if let Some(refused) = self.refused.remove(&index) {
            let text = refused.to_string();
            self.ready.push_back(Err(refused.into()));
            self.ready.extend((1..items).map(|_| Err(TaskError::Chunk(text.clone()))));
        } else if outcome.verdict == Verdict::Terminated {
            self.ready.push_back(Err(TaskError::Terminated));
        } else if self.feed.size == 1 {
            self.ready.push_back(result_of(&mut outcome));
        } else {
            match results_of(&mut outcome) {
                Ok(results) => self.ready.extend(results),
                // For each item of the chunk.
                Err(first) => {
                    let others = (1..items).map(|_| Err(error_of(&outcome).unwrap_or_else(|| chunk_of(&first))));
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
