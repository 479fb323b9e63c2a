//! A job: the tasks of one call, and what has come back of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64},
    },
};

use super::{
    message::{Arrived, ResultHeader, Verdict},
    retry::{Kept, Message},
    terms::Terms,
};
use crate::{
    loom::{AtomicU32, Ordering},
    memory::{Claimed, Travelling},
    sys::futex,
};

/// What came back of a task.
#[derive(Debug)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// How many workers have died of it, where that is counted: of tasks that have [retries](Terms::retries), and of
    /// those that are lost.
    pub deaths: u32,
    /// Header and payload, as they came out of the ring.
    message: Arrived,
}

impl Outcome {
    pub(super) fn new(verdict: Verdict, message: Arrived) -> Self {
        Self { verdict, deaths: u32::from(verdict == Verdict::Lost), message }
    }

    /// The face's bytes.
    pub fn payload(&self) -> &[u8] {
        ResultHeader::split(&self.message.bytes).1
    }

    /// How long each item took, in nanoseconds; zero if that was not measured.
    fn pace(&self) -> u32 {
        ResultHeader::pace(&self.message.bytes)
    }

    /// The descriptors that came with them.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.message.descriptors)
    }

    /// The blocks that came with them.
    pub fn take_blocks(&mut self) -> Vec<Claimed> {
        std::mem::take(&mut self.message.blocks)
    }

    /// The memory that was sent with them: see [`Travelling::with_arrived`].
    pub fn take_arrays(&mut self) -> Vec<Travelling> {
        std::mem::take(&mut self.message.arrays)
    }
}

/// In which order a job's outcomes are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By index; the first failure to arrive stands for the whole job.
    Collected,
    /// By index, failures in their places.
    Sequence,
    /// As they arrive.
    Arrival,
}

/// What [`Job::next`] finds.
#[derive(Debug)]
pub enum Next {
    /// The outcome of the task with this index.
    Outcome(u64, Outcome),
    /// It is still to come.
    Pending,
    /// There are no more.
    End,
}

/// The tasks of one call (one for a single function call, a chunk each for a map, any number for a stream).
///
/// Its outcomes are added by whoever reads the result ring, and taken out by whoever made the call.
#[derive(Debug)]
pub struct Job {
    id: u64,
    order: Order,
    terms: Terms,
    /// Whether the face wants to be told when it is done. Set under the engine's lock.
    notify: AtomicBool,
    done: AtomicBool,
    /// Whether it is done because nobody wants it any more.
    cancelled: AtomicBool,
    /// Whether the face has done what it had to when the job was done.
    settled: AtomicBool,
    /// All tasks that were made have a lower index. What a worker writes into the ring may be anything, and memory is
    /// made for what is said to be missing.
    made: AtomicU64,
    /// What those who wait for this job sleep on; changes when there is something to look at.
    word: AtomicU32,
    sleepers: AtomicU32,
    /// Whether somebody waits for each outcome, whichever it is: [`paces`](Self::paces).
    paced: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How long an item took of late, in nanoseconds; zero if that is not known.
    pace: u32,
    received: Received,
    total: Option<u64>,
    /// The index of the next outcome to hand out, for those handed out by index.
    next: u64,
    /// By index, from `next` on: gaps are still to come.
    by_index: VecDeque<Option<Outcome>>,
    /// As they came.
    by_arrival: VecDeque<(u64, Outcome)>,
    failure: Option<(u64, Outcome)>,
    /// The tasks without an outcome, if they may be retried.
    kept: Kept,
    /// What was lent to the tasks without an outcome, by their indices.
    lent: BTreeMap<u64, Vec<Travelling>>,
    abandoned: bool,
}

/// Which tasks have been heard of: all below `floor`, and a few above.
#[derive(Debug, Default)]
struct Received {
    floor: u64,
    above: BTreeSet<u64>,
}

impl Received {
    /// Tells whether it was new.
    fn insert(&mut self, index: u64) -> bool {
        if index < self.floor {
            return false;
        }
        if index > self.floor {
            return self.above.insert(index);
        }
        self.floor += 1;
        while self.above.first() == Some(&self.floor) {
            self.above.pop_first();
            self.floor += 1;
        }
        true
    }

    fn count(&self) -> u64 {
        self.floor + self.above.len() as u64
    }
}

impl Job {
    pub(super) fn new(id: u64, order: Order, notify: bool, terms: Terms) -> Self {
        Self {
            id,
            order,
            terms,
            notify: AtomicBool::new(notify),
            done: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            settled: AtomicBool::new(!notify),
            made: AtomicU64::new(0),
            word: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            paced: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number in the pool, from one on.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What holds for each of its tasks.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Whether the face is told of its end.
    pub fn notifies(&self) -> bool {
        self.notify.load(Ordering::Acquire)
    }

    pub(super) fn notify(&self) {
        self.notify.store(true, Ordering::Release);
    }

    /// Whether all its outcomes are in.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Whether it was [cancelled](super::Engine::cancel).
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether it is done and, if the face is told of that, the face has called [`Engine::settle`](super::Engine::settle).
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) && self.is_done()
    }

    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }

    /// Whether so many outcomes are there that it is worth while to begin with them: a good part of those that are
    /// still to come, or all.
    pub fn has_batch(&self) -> bool {
        if self.is_done() {
            return true;
        }
        let state = self.state();
        let remaining = state.total.map_or(0, |total| total.saturating_sub(state.received.count()));
        matches!(state.by_index.front(), Some(Some(_))) && state.by_index.len() as u64 > (remaining / 8).min(255)
    }

    /// How many outcomes are still to come, as far as is known.
    pub(super) fn remaining(&self) -> u64 {
        let state = self.state();
        state.total.map_or(1, |total| total.saturating_sub(state.received.count()))
    }

    /// Takes the next outcome out. Never blocks.
    ///
    /// For a collected job in which a task has failed, that failure is handed out once all the others are in.
    pub fn next(&self) -> Next {
        let mut state = self.state();
        if state.failure.is_some() {
            return match state.failure.take_if(|_| self.is_done()) {
                Some((index, outcome)) => {
                    state.next = state.total.unwrap_or(u64::MAX);
                    Next::Outcome(index, outcome)
                }
                None => Next::Pending,
            };
        }
        if self.order == Order::Arrival {
            if let Some((index, outcome)) = state.by_arrival.pop_front() {
                state.next += 1;
                return Next::Outcome(index, outcome);
            }
        } else if let Some(Some(_)) = state.by_index.front() {
            let index = state.next;
            if let Some(outcome) = state.by_index.pop_front().flatten() {
                state.next += 1;
                return Next::Outcome(index, outcome);
            }
        }
        if state.total.is_some_and(|total| state.next >= total) { Next::End } else { Next::Pending }
    }

    /// Whether [`next`](Self::next) has something to say.
    pub fn has_next(&self) -> bool {
        let state = self.state();
        if state.failure.is_some() {
            return self.is_done();
        }
        let here = match self.order {
            Order::Arrival => !state.by_arrival.is_empty(),
            Order::Collected | Order::Sequence => matches!(state.by_index.front(), Some(Some(_))),
        };
        here || state.total.is_some_and(|total| state.next >= total)
    }

    /// How many outcomes were taken out.
    pub fn taken(&self) -> u64 {
        self.state().next
    }

    /// Those who wait for it are to look at it after each outcome, as tasks are made by the [pace](Self::pace) of former
    /// ones.
    pub fn paces(&self) {
        self.paced.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_paced(&self) -> bool {
        self.paced.load(Ordering::Relaxed)
    }

    /// How long an item took of late, in nanoseconds, where workers measured it.
    pub fn pace(&self) -> Option<u32> {
        let pace = self.state().pace;
        (pace != 0).then_some(pace)
    }

    /// How many tasks were made whose outcomes are still to come.
    pub fn under_way(&self) -> u64 {
        let made = self.made.load(Ordering::Relaxed);
        made.saturating_sub(self.state().received.count())
    }

    /// Nobody will ask for its outcomes: what is there is dropped, and what comes is.
    pub fn abandon(&self) {
        let mut state = self.state();
        state.abandoned = true;
        let dropped =
            (std::mem::take(&mut state.by_index), std::mem::take(&mut state.by_arrival), state.failure.take());
        drop(state);
        drop(dropped);
    }

    /// A task is about to be made.
    pub(super) fn make(&self, index: u64) {
        self.made.fetch_max(index.saturating_add(1), Ordering::Relaxed);
    }

    /// Keeps a task that may be retried, before anything can have come of it.
    pub(super) fn keep(&self, index: u64, message: Message) {
        self.state().kept.insert(index, message);
    }

    /// It was not submitted after all.
    pub(super) fn forget(&self, index: u64) {
        self.state().kept.remove(index);
    }

    /// Keeps what a task about to be submitted is lent, until it has an outcome.
    pub fn lend(&self, index: u64, lent: Vec<Travelling>) {
        if lent.is_empty() {
            return;
        }
        let mut state = self.state();
        // Of one that was given up nothing will be heard.
        if !self.is_done() {
            state.lent.insert(index, lent);
        }
    }

    /// The task was not submitted after all.
    pub fn take_back(&self, index: u64) {
        let lent = self.state().lent.remove(&index);
        drop(lent);
    }

    /// A task that is to be given to another worker.
    pub(super) fn kept(&self, index: u64) -> Option<Arc<Message>> {
        self.state().kept.message(index)
    }

    /// A task was lost with its worker. Tells whether it is to be given to another one; never if it has an outcome already.
    pub(super) fn lose(&self, index: u64) -> bool {
        self.terms.retries > 0 && self.state().kept.lose(index, self.terms.retries)
    }

    /// Adds an outcome; one that was heard of already is dropped, and so is one of a task that was never made. Tells
    /// whether it was new.
    pub(super) fn deliver(&self, index: u64, mut outcome: Outcome) -> bool {
        // What leads from the making of a task to its outcome passes through the locks of the rings.
        if index >= self.made.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state();
        if !state.received.insert(index) {
            return false;
        }
        outcome.deaths += state.kept.remove(index);
        let lent = state.lent.remove(&index);
        let pace = outcome.pace();
        if pace != 0 {
            // One slow task is no reason to take all that follow for slow.
            state.pace = if state.pace == 0 { pace } else { state.pace / 2 + pace / 2 }.max(1);
        }
        if state.abandoned || state.failure.is_some() {
            // Nobody will ask for it.
        } else if self.order == Order::Arrival {
            state.by_arrival.push_back((index, outcome));
        } else if self.order == Order::Collected && outcome.verdict != Verdict::Done {
            state.failure = Some((index, outcome));
            state.by_index = VecDeque::new();
        } else {
            // An index below `next` was handed out, so it was received: `insert` has refused it.
            let place = (index - state.next) as usize;
            if state.by_index.len() <= place {
                if state.by_index.capacity() == 0 {
                    // Calls have one outcome, and there are many of them.
                    state.by_index.reserve_exact(place + 1);
                }
                state.by_index.resize_with(place + 1, || None);
            }
            state.by_index[place] = Some(outcome);
        }
        self.look_whether_done(&state);
        drop(state);
        drop(lent);
        true
    }

    /// Says how many tasks it has.
    pub(super) fn seal(&self, total: u64) {
        let mut state = self.state();
        state.total = Some(total);
        self.look_whether_done(&state);
    }

    fn look_whether_done(&self, state: &State) {
        if state.total.is_some_and(|total| state.received.count() >= total) {
            self.done.store(true, Ordering::Release);
        }
    }

    /// The pool is terminated: what is still to come is given up.
    pub(super) fn give_up(&self) {
        let mut state = self.state();
        if state.failure.is_none() {
            self.end_early(&mut state, Verdict::Terminated);
        } else {
            // The failure is the last that is handed out, though it may not be known as yet how many tasks there were to be.
            state.total.get_or_insert(u64::MAX);
            state.kept.clear();
            state.lent.clear();
            self.done.store(true, Ordering::Release);
        }
    }

    /// Nobody wants what is still to come.
    pub(super) fn cancel(&self) {
        let mut state = self.state();
        if !self.is_done() {
            state.failure = None;
            self.cancelled.store(true, Ordering::SeqCst);
            self.end_early(&mut state, Verdict::Cancelled);
        }
    }

    /// What is there is kept where it is handed out one by one; the verdict comes in the place of all the rest.
    fn end_early(&self, state: &mut State, verdict: Verdict) {
        if self.is_done() {
            return;
        }
        if !state.abandoned {
            let outcome = || Outcome::new(verdict, Vec::new().into());
            let missing = match self.order {
                Order::Arrival => {
                    state.by_arrival.push_back((u64::MAX, outcome()));
                    state.next + state.by_arrival.len() as u64
                }
                Order::Collected => {
                    state.failure = Some((u64::MAX, outcome()));
                    state.by_index = VecDeque::new();
                    state.next + 1
                }
                Order::Sequence => {
                    let here = state.by_index.iter().take_while(|outcome| outcome.is_some()).count();
                    state.by_index.truncate(here);
                    state.by_index.push_back(Some(outcome()));
                    state.next + state.by_index.len() as u64
                }
            };
            state.total = Some(missing);
        }
        state.kept.clear();
        state.lent.clear();
        self.done.store(true, Ordering::Release);
    }

    /// The word to sleep on, and its present value: to be read before looking at the job.
    pub(super) fn word(&self) -> (&AtomicU32, u32) {
        (&self.word, self.word.load(Ordering::Acquire))
    }

    /// Runs `sleep`, during which [`wake`](Self::wake) is not to be spared.
    pub(super) fn asleep<R>(&self, sleep: impl FnOnce() -> R) -> R {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let result = sleep();
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Has those who wait for this job look at it again.
    pub(super) fn wake(&self) {
        self.word.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake(&self.word, u32::MAX);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::{super::message::TaskId, *};

    /// With a hundred tasks.
    fn job(id: u64, order: Order) -> Job {
        let job = Job::new(id, order, false, Terms::default());
        job.make(99);
        job
    }

    fn outcome(verdict: Verdict, payload: u8) -> Outcome {
        let mut message = vec![0; ResultHeader::LENGTH];
        message.push(payload);
        Outcome::new(verdict, message.into())
    }

    fn taken(job: &Job) -> Option<(u64, Verdict, u8)> {
        match job.next() {
            Next::Outcome(index, outcome) => Some((index, outcome.verdict, outcome.payload()[0])),
            Next::Pending | Next::End => None,
        }
    }

    #[test]
    fn a_sequence_is_handed_out_by_index() {
        let job = job(1, Order::Sequence);
        assert!(job.deliver(1, outcome(Verdict::Failed, 11)));
        assert!(!job.has_next());
        assert!(matches!(job.next(), Next::Pending));
        assert!(job.deliver(0, outcome(Verdict::Done, 10)));
        assert_eq!(taken(&job), Some((0, Verdict::Done, 10)));
        assert_eq!(taken(&job), Some((1, Verdict::Failed, 11)));
        assert!(matches!(job.next(), Next::Pending));
        assert!(!job.is_done());
        job.seal(2);
        assert!(job.is_done());
        assert!(job.has_next());
        assert!(matches!(job.next(), Next::End));
    }

    #[test]
    fn an_outcome_counts_once() {
        for order in [Order::Collected, Order::Sequence, Order::Arrival] {
            let job = job(1, order);
            assert!(job.deliver(0, outcome(Verdict::Done, 1)));
            assert!(!job.deliver(0, outcome(Verdict::Lost, 2)));
            assert_eq!(taken(&job), Some((0, Verdict::Done, 1)));
            assert!(!job.deliver(0, outcome(Verdict::Lost, 3)));
            assert!(matches!(job.next(), Next::Pending));
        }
    }

    #[test]
    fn outcomes_of_tasks_that_were_never_made_are_ignored() {
        for order in [Order::Collected, Order::Sequence, Order::Arrival] {
            let job = job(1, order);
            for index in [100, 1 << 40, u64::MAX] {
                assert!(!job.deliver(index, outcome(Verdict::Done, 1)));
            }
            assert!(matches!(job.next(), Next::Pending));
        }
    }

    #[test]
    fn the_first_failure_stands_for_a_collected_job_when_all_are_in() {
        let job = job(1, Order::Collected);
        job.seal(3);
        job.deliver(0, outcome(Verdict::Done, 0));
        job.deliver(2, outcome(Verdict::Failed, 2));
        assert!(matches!(job.next(), Next::Pending));
        assert_eq!(job.remaining(), 1);
        job.deliver(1, outcome(Verdict::Failed, 1));
        assert!(job.is_done());
        assert_eq!(taken(&job), Some((2, Verdict::Failed, 2)));
        assert!(matches!(job.next(), Next::End));
    }

    #[test]
    fn what_is_abandoned_keeps_nothing_and_still_ends() {
        let job = job(1, Order::Sequence);
        job.deliver(0, outcome(Verdict::Done, 0));
        job.abandon();
        job.deliver(1, outcome(Verdict::Done, 1));
        assert!(matches!(job.next(), Next::Pending));
        job.seal(2);
        assert!(job.is_done());
    }

    #[test]
    fn giving_up_ends_each_kind_with_the_reason() {
        for order in [Order::Collected, Order::Sequence, Order::Arrival] {
            let job = job(1, order);
            job.deliver(0, outcome(Verdict::Done, 0));
            job.deliver(2, outcome(Verdict::Done, 2));
            job.give_up();
            assert!(job.is_done());
            let mut verdicts = Vec::new();
            while let Next::Outcome(_, outcome) = job.next() {
                verdicts.push(outcome.verdict);
            }
            assert_eq!(verdicts.pop(), Some(Verdict::Terminated));
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Done));
            assert!(matches!(job.next(), Next::End));
        }
    }

    #[test]
    fn giving_up_a_job_that_failed_before_all_its_tasks_were_known_ends_it_with_the_failure() {
        let job = job(1, Order::Collected);
        job.deliver(0, outcome(Verdict::Done, 0));
        job.deliver(1, outcome(Verdict::Failed, 1));
        assert!(matches!(job.next(), Next::Pending));
        job.give_up();
        assert_eq!(taken(&job), Some((1, Verdict::Failed, 1)));
        assert!(job.has_next());
        assert!(matches!(job.next(), Next::End));
    }

    #[test]
    fn an_empty_job_is_done_when_sealed() {
        let job = job(1, Order::Collected);
        job.seal(0);
        assert!(job.is_done());
        assert!(matches!(job.next(), Next::End));
    }

    proptest! {
        #[test]
        fn whatever_the_order_each_comes_out_once(arrivals in Just((0..40u64).collect::<Vec<_>>()).prop_shuffle()) {
            let sequence = job(1, Order::Sequence);
            let arrival = job(2, Order::Arrival);
            let (mut by_index, mut as_arrived) = (Vec::new(), Vec::new());
            for &index in &arrivals {
                sequence.deliver(index, outcome(Verdict::Done, index as u8));
                arrival.deliver(index, outcome(Verdict::Done, index as u8));
                by_index.extend(std::iter::from_fn(|| taken(&sequence)).map(|it| it.0));
                as_arrived.extend(std::iter::from_fn(|| taken(&arrival)).map(|it| it.0));
            }
            prop_assert_eq!(by_index, (0..40).collect::<Vec<_>>());
            prop_assert_eq!(as_arrived, arrivals);
            sequence.seal(40);
            prop_assert!(sequence.is_done());
        }
    }

    #[test]
    fn the_pace_follows_what_was_measured() {
        let job = job(1, Order::Arrival);
        let paced = |pace| {
            let header = ResultHeader { id: TaskId { job: 1, index: 0 }, verdict: Verdict::Done };
            Outcome::new(Verdict::Done, header.to_bytes_paced(pace).to_vec().into())
        };
        assert!(job.deliver(0, outcome(Verdict::Done, 1)));
        assert_eq!(job.pace(), None);
        assert!(job.deliver(1, paced(1000)));
        assert_eq!(job.pace(), Some(1000));
        assert!(job.deliver(2, paced(3000)));
        assert!(job.deliver(3, outcome(Verdict::Done, 1)));
        assert_eq!(job.pace(), Some(2000));
        assert_eq!(job.under_way(), 96);
    }
}
