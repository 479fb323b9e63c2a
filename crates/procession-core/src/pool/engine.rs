//! The parent's end of a pool: tasks go into one ring, results come out of another, and who waits for a result reads it.
//!
//! No thread of its own is needed for results. A thread that waits for a job becomes the *reader*: it takes results out
//! of the ring, for its own job and for all others, until its own is done, and then passes the office on to another one
//! that waits (`reader.rs`). Where nobody waits, workers ring a doorbell (`alarm.rs`) for the thread in
//! [`Engine::run`], which also learns of the end of workers. So the result of a single call wakes one thread, the
//! one that wants it.
//!
//! All that is heard of a task comes through the result ring, also its failure by the death of its worker: whoever is the
//! reader hears it, after all that the worker had sent before.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, epoll};

use super::{
    control::{Control, InHand},
    dispatch::Dispatch,
    exits::Exits,
    gate::Gate,
    job::{Job, Order},
    message::{self, Definition, ResultHeader, TaskHeader, TaskId, Verdict},
    orders::Orders,
    retry,
    supervisor::{Reaction, Supervisor},
    terms::Terms,
    worker::{self, Port},
};
use crate::{
    channel::{Along, Ring},
    memory::Filled,
    process,
    sync::Wait,
};

/// How many bytes of tasks may lie in the ring before more had better wait.
pub(super) const BACKLOG: u64 = 8 << 20;
/// Of bytes in blocks, one in so many counts.
pub(super) const LADEN_SHARE: u64 = 2;
/// The doorbell's mark among what is polled; workers have their slot's number plus one.
pub(super) const DOORBELL: u64 = 0;

/// What [`Engine::run`] has to tell the face.
#[derive(Debug)]
pub enum Event {
    /// A job that was opened with `notify`, or for which [`Engine::notify`] was called, is done.
    Finished(Arc<Job>),
    /// The worker of this slot has ended: reap it, and call [`Engine::retire`].
    Ended(usize),
    /// The worker of this slot is condemned, as its task has had its time or was [cancelled](Engine::cancel): kill it. Its
    /// end is told as any other, and the task is [`Verdict::Overdue`] with it, unless its result comes after all.
    Condemned(usize),
    /// The pool was closed, everything is done and all workers have ended; or it was terminated.
    Over,
}

/// The parent's end of a pool.
///
/// All its methods may be called from any thread of the process that made it. In a forked child it is of no use and
/// does no harm: [`belongs_here`](Self::belongs_here) tells.
#[derive(Debug)]
pub struct Engine {
    generation: u32,
    pub(super) tasks: Ring,
    pub(super) results: Ring,
    pub(super) control: Control,
    pub(super) doorbell: Arc<OwnedFd>,
    pub(super) poller: OwnedFd,
    state: Mutex<State>,
    definitions: Mutex<Definitions>,
    /// How many bytes of payload were ever submitted.
    submitted: AtomicU64,
    /// Whether there is nobody to run tasks: `State::hopeless`, for those who don't hold the lock.
    hopeless: AtomicBool,
    /// Closed while tasks may wait in the parent: those that come after them go there, too.
    pub(super) gate: Gate,
}

/// What a pool is doing, as of a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How many results workers have sent.
    pub done: u64,
    /// How many tasks wait for a worker.
    pub queued: u64,
    /// How many workers are at a task.
    pub at_work: usize,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) dispatch: Dispatch,
    supervisor: Supervisor,
    /// How many workers there should be.
    pub(super) places: usize,
    /// The tasks that wait in the parent.
    pub(super) orders: Orders,
    pub(super) phase: Phase,
    /// Whether a thread takes results out of the ring.
    pub(super) reading: bool,
    /// The jobs of the threads that wait while another one reads.
    pub(super) followers: VecDeque<Arc<Job>>,
    /// Jobs the face is to be told of.
    pub(super) finished: VecDeque<Arc<Job>>,
    /// Slots whose workers have ended.
    pub(super) ended: VecDeque<usize>,
    /// Slots that have a worker.
    pub(super) hired: BTreeSet<usize>,
    /// Why tasks can't be run, if no worker is left and none can be had.
    hopeless: Option<Vec<u8>>,
    /// Workers that are to be killed.
    pub(super) to_kill: VecDeque<usize>,
    /// How many words to stop are still to be sent.
    pub(super) stops_due: usize,
    /// The same for workers that are not needed any more, while the others go on.
    pub(super) leaving: u64,
    /// How long a worker may be at a task of a job that says nothing of it.
    limit: Option<Duration>,
    /// Until when the thread in `run` sleeps, if it sleeps and not for ever.
    pub(super) next_look: Option<Instant>,
    /// The slots of workers that are going to be killed as their task has had its time, and what becomes of it.
    pub(super) condemned: BTreeMap<usize, Verdict>,
    /// Tasks that are to be given to workers again, by job and index.
    pub(super) again: VecDeque<(Arc<Job>, u64)>,
    /// How many results the workers sent that have ended.
    done_before: u64,
    /// The last words of workers.
    pub(super) exits: Exits,
}

/// | phase | means | followed by |
/// |-------|-------|-------------|
/// | `Open` | tasks are taken in | `Closed` by `close`, `Terminated` |
/// | `Closed` | what is under way is done | `Stopping` when all jobs are done, `Terminated` |
/// | `Stopping` | workers are told to stop | over when all have ended, `Terminated` |
/// | `Terminated` | over | |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    Closed,
    Stopping,
    Terminated,
}

#[derive(Debug, Default)]
struct Definitions {
    last: u32,
    end: u64,
}

impl State {
    pub(super) fn resize(&mut self, places: usize) {
        self.places = places;
        self.supervisor.resize(places);
    }
}

impl Engine {
    /// The parent's end of a pool of `places` workers.
    ///
    /// # Errors
    ///
    /// If descriptors or memory are lacking.
    pub fn create(places: usize) -> io::Result<Self> {
        Self::new(places, Ring::create)
    }

    /// [`create`](Self::create), with tasks and results that may have descriptors with them. See
    /// [`submit_with`](Self::submit_with) and [`Worker::finish_with`](super::Worker::finish_with).
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_with_couriers(places: usize) -> io::Result<Self> {
        Self::new(places, Ring::create_with_courier)
    }

    fn new(places: usize, ring: fn(&str) -> io::Result<Ring>) -> io::Result<Self> {
        // Slots cost nothing until they are used: there are enough for a pool that is made larger later on.
        let slots = (2 * places).max(1024);
        let doorbell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poller, &doorbell, epoll::EventData::new_u64(DOORBELL), epoll::EventFlags::IN)?;
        Ok(Self {
            generation: process::generation(),
            tasks: ring("procession-tasks")?,
            results: ring("procession-results")?,
            control: Control::create(slots)?,
            doorbell: Arc::new(doorbell),
            poller,
            state: Mutex::new(State {
                dispatch: Dispatch::default(),
                supervisor: Supervisor::new(places),
                places,
                orders: Orders::default(),
                phase: Phase::Open,
                reading: false,
                followers: VecDeque::new(),
                finished: VecDeque::new(),
                ended: VecDeque::new(),
                hired: BTreeSet::new(),
                hopeless: None,
                stops_due: 0,
                leaving: 0,
                limit: None,
                next_look: None,
                condemned: BTreeMap::new(),
                to_kill: VecDeque::new(),
                again: VecDeque::new(),
                done_before: 0,
                exits: Exits::default(),
            }),
            definitions: Mutex::default(),
            submitted: AtomicU64::new(0),
            hopeless: AtomicBool::new(false),
            gate: Gate::new(),
        })
    }

    /// Whether this is the process that made it, and not one forked from it.
    pub fn belongs_here(&self) -> bool {
        self.generation == process::generation()
    }

    /// What a worker needs to have.
    pub fn port(&self) -> Port {
        Port::new(self.tasks.clone(), self.results.clone(), self.control.clone(), self.doorbell.clone())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Workers.

    /// An empty slot, for a worker that is about to be started. `None` if no more workers are needed, as the pool is
    /// being shut down.
    ///
    /// # Errors
    ///
    /// If all slots have workers, or memory is lacking.
    pub fn hire(&self) -> io::Result<Option<usize>> {
        let mut state = self.state();
        if matches!(state.phase, Phase::Stopping | Phase::Terminated) {
            return Ok(None);
        }
        let slot = (0..self.control.slots()).find(|slot| !state.hired.contains(slot));
        let slot = slot.ok_or_else(|| io::Error::other("the pool has as many workers as it can hold"))?;
        self.control.prepare(slot)?;
        state.hired.insert(slot);
        // No result may come that has it done: what is in the ring may be words to stop, and others may be long at work.
        self.feed_after(&mut state, 0);
        Ok(Some(slot))
    }

    /// Has [`run`](Self::run) tell when the worker of a slot has ended: when `sentinel` becomes readable.
    ///
    /// # Errors
    ///
    /// As `epoll_ctl(2)`.
    pub fn watch(&self, slot: usize, sentinel: BorrowedFd<'_>) -> io::Result<()> {
        // Once only: a sentinel stays readable, and the face may close it whenever it likes.
        let once = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        Ok(epoll::add(&self.poller, sentinel, epoll::EventData::new_u64(slot as u64 + 1), once)?)
    }

    /// The worker of a slot has ended, or could not be started. The task it had in hand, if any, is given to another
    /// worker if it has [retries](Terms::retries) left, and else lost, and `payload` is what its outcome will hold. Tells
    /// what to do next.
    pub fn retire(&self, slot: usize, payload: &[u8]) -> Reaction {
        let remains = self.control.remains(slot);
        if let Some(dead) = remains.process {
            self.tasks.release_dead(dead);
            self.results.release_dead(dead);
        }
        // The count is read before the slot is: see PROTOCOL.md, "a worker dies about to take a task".
        let takes = self.tasks.get_count();
        let in_hand = self.control.in_hand(slot, takes);
        let mut state = self.state();
        let sentence = state.condemned.remove(&slot);
        if let Some(InHand { id, condemned }) = in_hand {
            let verdict = sentence.filter(|_| condemned).unwrap_or(Verdict::Lost);
            drop(state);
            self.announce(ResultHeader { id, verdict }, payload);
            // Perhaps nobody waits for it, and it is to be tried again.
            self.poll_all();
            state = self.state();
        }
        if state.hired.remove(&slot) {
            state.done_before += self.control.served_by(slot);
        }
        // Not before: as long as it is hired, the dead one may be condemned, and who is hired next is not to be killed for it.
        state.to_kill.retain(|other| *other != slot);
        if matches!(state.phase, Phase::Stopping | Phase::Terminated) {
            // It may have been killed with a word to stop in its hands that was meant for another.
            if state.phase == Phase::Stopping && !state.hired.is_empty() {
                state.stops_due += 1;
                self.send_stops(&mut state);
                if state.stops_due > 0 {
                    // The thread in `run` may sleep, not knowing that it is to try again.
                    self.ring_doorbell();
                }
            }
            return Reaction::Shrink;
        }
        if state.hired.len() >= state.places {
            return Reaction::Shrink;
        }
        let others_ready = state.hired.iter().any(|&slot| self.control.remains(slot).ready);
        let reaction = state.supervisor.ended(remains.ready, others_ready);
        if reaction == Reaction::GiveUp {
            state.hopeless = Some(payload.to_vec());
            drop(state);
            // Whoever does not see this has put its task before the ring is emptied: see `submitted`.
            self.hopeless.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            self.give_up_queued();
        }
        reaction
    }

    /// Ends the tasks that are in the ring, as there is nobody to take them.
    fn give_up_queued(&self) {
        let Some(payload) = self.state().hopeless.clone() else {
            return;
        };
        // A deadline that has passed: only what is there is taken, as no worker is.
        while let Ok((message, _)) = self.tasks.take_with(&mut Wait::timeout(Duration::ZERO), message::copy) {
            if let Some(task) = TaskHeader::from_bytes(&message).filter(|task| task.id.job != 0) {
                self.control.note_taken(task.position);
                self.announce(ResultHeader { id: task.id, verdict: Verdict::Unserved }, &payload);
            }
        }
        let mut drawer = self.empty_drawer(&mut self.state());
        while let Some((_, task)) = drawer.pop() {
            self.announce(ResultHeader { id: task.header().id, verdict: Verdict::Unserved }, &payload);
        }
    }

    /// From now on no worker may be at a task for longer than `limit`, or a millisecond, if that is longer, unless the
    /// [terms](Terms::limit) of its job say otherwise. For jobs that are opened later on.
    pub fn limit(&self, limit: Duration) {
        self.state().limit = Some(limit);
    }

    /// How many places have a worker, or one that is just starting.
    pub fn workers(&self) -> usize {
        self.state().hired.len()
    }

    /// What the pool is doing.
    pub fn statistics(&self) -> Statistics {
        let state = self.state();
        let mut statistics =
            Statistics { done: state.done_before, queued: self.tasks.len() + state.orders.drawer.len(), at_work: 0 };
        for &slot in &state.hired {
            statistics.done += self.control.served_by(slot);
            statistics.at_work += usize::from(self.control.at_work(slot).is_some());
        }
        statistics
    }

    /// The task that the worker of a slot is at, as of now.
    pub fn at_work(&self, slot: usize) -> Option<TaskId> {
        (slot < self.control.slots()).then(|| self.control.at_work(slot)).flatten()
    }

    // Tasks.

    /// Stores the bytes of a function, to be named in tasks.
    ///
    /// # Errors
    ///
    /// If memory is lacking or the table is full.
    pub fn define(&self, bytes: &[u8]) -> io::Result<Definition> {
        let mut definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        let definition = self.control.define(definitions.last + 1, definitions.end, bytes)?;
        definitions.last += 1;
        definitions.end += bytes.len() as u64;
        Ok(definition)
    }

    /// A new job. With `notify`, [`run`](Self::run) tells when it is done.
    pub fn open(&self, order: Order, notify: bool) -> Arc<Job> {
        self.open_with(order, notify, Terms::default())
    }

    /// [`open`](Self::open), with terms for all tasks of the job.
    pub fn open_with(&self, order: Order, notify: bool, terms: Terms) -> Arc<Job> {
        self.open_in(&mut self.state(), order, notify, terms)
    }

    /// As [`open`](Self::open), unless the pool has been closed or terminated. A job that is opened so is done before
    /// the workers are told to stop, whatever other threads do meanwhile. If its number of tasks is known already, it
    /// need not be [sealed](Self::seal).
    pub fn admit(&self, order: Order, notify: bool, total: Option<u64>) -> Option<Arc<Job>> {
        self.admit_with(order, notify, total, Terms::default())
    }

    /// [`admit`](Self::admit), with terms for all tasks of the job.
    pub fn admit_with(&self, order: Order, notify: bool, total: Option<u64>, terms: Terms) -> Option<Arc<Job>> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return None;
        }
        let job = self.open_in(&mut state, order, notify, terms);
        if let Some(total) = total {
            let change = state.dispatch.seal(job.id(), total);
            self.effect(&mut state, change);
        }
        Some(job)
    }

    fn open_in(&self, state: &mut State, order: Order, notify: bool, terms: Terms) -> Arc<Job> {
        let job = state.dispatch.open(order, notify, terms.or_limit(state.limit));
        if let Some(limit) = job.terms().limit
            && state.next_look.is_none_or(|next| next.saturating_duration_since(Instant::now()) > limit)
        {
            // The thread in `run` would sleep through it.
            self.ring_doorbell();
        }
        if notify {
            if job.is_done() {
                job.settle();
            } else if !state.reading {
                self.arm(state);
            }
        }
        job
    }

    /// Has [`run`](Self::run) tell of the end of a job that was opened without `notify`. Nobody who waits for the job
    /// waits for the face to have been told. False if the job is done already: there is nothing to tell then.
    pub fn notify(&self, job: &Job) -> bool {
        let mut state = self.state();
        let due = state.dispatch.notify(job);
        if due && !state.reading {
            self.arm(&state);
        }
        due
    }

    /// Gives a task to the workers. Does not block, but for other threads doing the same.
    ///
    /// # Errors
    ///
    /// If memory is lacking; the task is then not given to anybody.
    pub fn submit(
        &self,
        job: &Job,
        index: u64,
        definition: Definition,
        mode: u32,
        payload: &[&[u8]],
    ) -> io::Result<()> {
        self.submit_with(job, index, definition, mode, payload, &[])
    }

    /// [`submit`](Self::submit), with descriptors that go along: the worker gets copies of them. Blocks while as many
    /// tasks with descriptors are in the ring as the system allows (a few hundred).
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit); if there are more than 253 descriptors, or the pool has
    /// [no couriers](Self::create_with_couriers); [`io::ErrorKind::BrokenPipe`] if the pool is terminated meanwhile.
    pub fn submit_with(
        &self,
        job: &Job,
        index: u64,
        definition: Definition,
        mode: u32,
        payload: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.submit_laden(job, index, definition, mode, payload, descriptors, Vec::new())
    }

    /// Copies what is part of a task of this job into a block that can go along with it; see [`Ring::fill`]. `None` also if the
    /// task may be retried: what is in a block dies with the worker.
    pub fn fill(&self, job: &Job, parts: &[&[u8]], patience: Duration) -> Option<Filled> {
        if job.terms().retries > 0 { None } else { self.tasks.fill(parts, patience) }
    }

    /// [`submit_with`](Self::submit_with), with blocks that go along as well: the worker has them.
    ///
    /// # Errors
    ///
    /// As [`submit_with`](Self::submit_with), and [`io::ErrorKind::InvalidInput`] for blocks with a task that may be retried.
    ///
    /// # Panics
    ///
    /// If the blocks are not of [`fill`](Self::fill), or more than [`Along::MOST_BLOCKS`].
    #[allow(clippy::too_many_arguments)] // what a task is made of
    pub fn submit_laden(
        &self,
        job: &Job,
        index: u64,
        definition: Definition,
        mode: u32,
        payload: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        blocks: Vec<Filled>,
    ) -> io::Result<()> {
        if !blocks.is_empty() && job.terms().retries > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a task that may be retried can't have blocks"));
        }
        // Blocks have a bound of their own, and are used again, so more of them may wait than of other bytes.
        let laden = blocks.iter().map(Filled::len).sum::<u64>() / LADEN_SHARE;
        let length = payload.iter().map(|part| part.len() as u64).sum::<u64>() + laden;
        job.make(index);
        let position = self.submitted.fetch_add(length, Ordering::Relaxed) + length;
        let id = TaskId { job: job.id(), index };
        let mut header = TaskHeader { id, definition, mode, position, ..TaskHeader::STOP };
        let terms = job.terms();
        terms.mark(&mut header);
        if terms.retries > 0 {
            job.keep(index, retry::Message::copy_of(header, payload, descriptors)?);
        }
        let put = self.put_task(job, header, payload, descriptors, blocks, || {
            // Where workers are, or the last of them is mourned, room will be made.
            if self.is_terminated() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        });
        if put.is_err() && terms.retries > 0 {
            job.forget(index);
        }
        put
    }

    /// Puts a task where its turn is.
    pub(super) fn put_task(
        &self,
        job: &Job,
        header: TaskHeader,
        payload: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        blocks: Vec<Filled>,
        full: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        if job.terms().priority != 0 || self.is_ordered() {
            return self.put_in_order(job, header, payload, descriptors, blocks);
        }
        let along = Along { descriptors, blocks: &blocks };
        message::put_with(&self.tasks, &header.to_bytes(), payload, along, full)?;
        self.look_again(job);
        Ok(())
    }

    pub(super) fn submitted_bytes(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// Whether so much is still to be taken by workers that more had better wait, for the memory it would need.
    pub fn is_full(&self) -> bool {
        self.submitted.load(Ordering::Relaxed).saturating_sub(self.control.taken()) > BACKLOG
    }

    /// Waits until it is not [full](Self::is_full), or for a short while.
    pub fn wait_for_room(&self) {
        self.wait_for_room_for(0);
    }

    /// Waits until it is not [full for a priority](Self::is_full_for), or for a short while.
    pub fn wait_for_room_for(&self, priority: i32) {
        // Nobody is asked to wake this thread: with such a backlog, the workers are busy until it looks again.
        for pause in [1, 2, 4, 8, 16] {
            if !self.is_full_for(priority) {
                return;
            }
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    /// To be called when tasks were submitted: if no worker can be had, they are given up.
    pub fn submitted(&self) {
        // Pairs with the fence in `retire`.
        fence(Ordering::SeqCst);
        if self.hopeless.load(Ordering::SeqCst) {
            self.give_up_queued();
        }
    }

    /// A part of a job that never becomes a task: the face has the reason, and finds [`Verdict::Refused`] in its place.
    pub fn refuse(&self, job: &Job, index: u64) {
        job.make(index);
        self.announce(ResultHeader { id: TaskId { job: job.id(), index }, verdict: Verdict::Refused }, &[]);
    }

    /// A job has `total` parts, and no more will come.
    pub fn seal(&self, job: &Job, total: u64) {
        let mut state = self.state();
        let change = state.dispatch.seal(job.id(), total);
        self.effect(&mut state, change);
    }

    /// As [`seal`](Self::seal), for a job that a thread may be waiting for already.
    pub fn end(&self, job: &Job, total: u64) {
        self.announce(ResultHeader { id: TaskId { job: job.id(), index: total }, verdict: Verdict::End }, &[]);
    }

    /// Puts something into the result ring, for whoever is the reader.
    fn announce(&self, header: ResultHeader, payload: &[u8]) {
        if message::put(&self.results, &header.to_bytes(), &[payload]).is_err() {
            // No memory: then it is heard at once, however it may be ordered among what stands in the ring, and
            // whoever sleeps finds out at the end of its slice.
            let mut message = header.to_bytes().to_vec();
            message.extend_from_slice(payload);
            self.hear(&mut self.state(), message.into());
        } else if self.control.alarm().is_due(|| self.results.put_count(), false) {
            self.ring_doorbell();
        }
    }

    /// Whether the pool was terminated.
    pub fn is_terminated(&self) -> bool {
        self.state().phase == Phase::Terminated
    }

    /// The descriptors a process has to be handed to be a worker.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 4] {
        [self.tasks.as_fd(), self.results.as_fd(), self.control.as_fd(), self.doorbell.as_fd()]
    }

    /// What it has to be handed besides, if tasks and results may have descriptors with them.
    pub fn couriers(&self) -> Option<[BorrowedFd<'_>; 4]> {
        worker::couriers(&self.tasks, &self.results)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "engine_tests.rs"]
mod tests;

#[cfg(all(test, not(loom)))]
#[path = "terms_tests.rs"]
mod terms_tests;
