//! The workers of a pool, and the thread that attends to them.

use std::{
    any::TypeId,
    cell::Cell,
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::Waker,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use procession_core::{
    pool::{Definition, Engine, Event, Job, Outcome, Reaction, Verdict},
    process::Exit,
    sync::{Wait, WaitError},
};

use super::{
    error::{End, PoolError, SubmitError, TaskError, failure_in},
    task::Run,
    worker::{self, Orders},
};
use crate::{
    code::Code,
    handover::Reach,
    interrupts,
    launched::Launched,
    message::{DecodeError, EncodeError, Message, decode},
    panic::catch,
    process::Settings,
    start::{Launch, StartMethod, launch},
};

/// How long a worker that is told to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// For how long to leave it when a worker can't be started, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// For how long a callback waits before it looks what there is to attend to.
const SLICE: Duration = Duration::from_millis(20);

thread_local! {
    /// Which crew this thread attends to, by its address.
    static ATTENDED: Cell<usize> = const { Cell::new(0) };
}

/// What becomes of a call, and who wants to know.
#[derive(Default)]
struct Interest {
    callback: Option<Box<dyn FnOnce() + Send>>,
    waker: Option<Waker>,
}

/// What a pool is: shared by the [`Pool`](super::Pool), its results and its thread.
pub(super) struct Crew {
    pub(super) engine: Engine,
    /// How long a task may take.
    pub(super) limit: Option<Duration>,
    /// How often a task is given to another worker, unless its options say.
    pub(super) retries: u32,
    /// What workers leave when they end in order.
    exit_type: Option<TypeId>,
    /// The functions that were sent, by the addresses of their `Run`.
    definitions: Mutex<HashMap<usize, Definition>>,
    staff: Mutex<Staff>,
    /// Held by the thread that starts workers.
    filling: Mutex<()>,
    /// Locked by nobody but [`fill`](Self::fill), which only one thread is in: its code is the user's.
    initializer: Mutex<Option<Initializer>>,
    /// By the numbers of jobs.
    interests: Mutex<HashMap<u64, Interest>>,
    attendant: Mutex<Attendant>,
    attendant_ended: Condvar,
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("places", &self.places()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Attendant {
    thread: Option<JoinHandle<()>>,
    ended: bool,
}

/// The workers there are, by their places.
struct Staff {
    workers: BTreeMap<usize, Launched>,
    recipe: Recipe,
    /// What workers run last.
    exit: Option<Code>,
}

/// How workers are made.
pub(super) struct Recipe {
    pub(super) name: String,
    /// How many there were.
    pub(super) started: u64,
    pub(super) settings: Settings,
    pub(super) method: StartMethod,
    pub(super) most: Option<u64>,
    /// With how many bytes of resident memory they end.
    pub(super) memory: Option<u64>,
    /// The CPUs that they may run on, taken in turn.
    pub(super) cpus: Vec<Vec<usize>>,
}

/// What workers run first: the code, and what encodes its arguments for each of them.
pub(super) struct Initializer {
    pub(super) code: Code,
    pub(super) arguments: Box<dyn Fn() -> EncodedArguments + Send>,
}

/// What workers run last: the code, and what it returns.
pub(super) struct Exiting {
    pub(super) code: Code,
    pub(super) returns: TypeId,
}

type BytesAndDescriptors = (Vec<u8>, Vec<OwnedFd>);
pub(super) type EncodedArguments = Result<BytesAndDescriptors, EncodeError>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Starts the workers, and the thread that attends to them.
    pub(super) fn assemble(
        places: usize,
        (limit, retries): (Option<Duration>, u32),
        recipe: Recipe,
        initializer: Option<Initializer>,
        exit: Option<Exiting>,
    ) -> Result<Arc<Self>, PoolError> {
        let engine = Engine::create_with_couriers(places)?;
        if let Some(limit) = limit {
            engine.limit(limit);
        }
        let thread_name = recipe.name.clone();
        let crew = Arc::new(Self {
            engine,
            limit,
            retries,
            definitions: Mutex::default(),
            exit_type: exit.as_ref().map(|exit| exit.returns),
            staff: Mutex::new(Staff { workers: BTreeMap::new(), recipe, exit: exit.map(|exit| exit.code) }),
            filling: Mutex::new(()),
            initializer: Mutex::new(initializer),
            interests: Mutex::default(),
            attendant: Mutex::default(),
            attendant_ended: Condvar::new(),
        });
        let begun = crew.fill().map_err(|(_, error)| error).and_then(|()| {
            let attending = crew.clone();
            let thread = thread::Builder::new().name(thread_name).spawn(move || attending.attend())?;
            lock(&crew.attendant).thread = Some(thread);
            Ok(())
        });
        if let Err(error) = begun {
            crew.terminate();
            return Err(error);
        }
        Ok(crew)
    }

    /// Starts workers until there are as many as there should be. If one can't be started, tells what to do, and why.
    fn fill(&self) -> Result<(), (Reaction, PoolError)> {
        let _filling = lock(&self.filling);
        while lock(&self.staff).workers.len() < self.places() {
            let Some(slot) = self.engine.hire().map_err(|error| (Reaction::Replace, error.into()))? else {
                break;
            };
            if let Err(error) = self.start(slot) {
                let end = End::NotStarted(error.to_string());
                return Err((self.engine.retire(slot, &end.to_bytes()), error));
            }
        }
        Ok(())
    }

    /// Starts the worker of a place, unless the pool is terminated.
    fn start(&self, slot: usize) -> Result<(), PoolError> {
        // The user's code, which may ask for the workers: not while `staff` is locked.
        let initializer = match &*lock(&self.initializer) {
            Some(Initializer { code, arguments }) => Some((*code, arguments()?)),
            None => None,
        };
        let mut staff = lock(&self.staff);
        if self.engine.is_terminated() {
            // Nobody would end this one.
            drop(staff);
            self.engine.retire(slot, &[]);
            return Ok(());
        }
        let launched = staff.start(&self.engine, slot, initializer)?;
        #[cfg(feature = "tracing")]
        let (pid, name) = (launched.pid(), launched.name.clone());
        staff.workers.insert(slot, launched);
        drop(staff);
        #[cfg(feature = "tracing")]
        tracing::debug!(pid, name, "a worker of a pool was started");
        Ok(())
    }

    // The thread.

    fn attend(&self) {
        ATTENDED.set(std::ptr::from_ref(self).addr());
        loop {
            match self.engine.run() {
                Ok(Event::Over) => break,
                Ok(event) => self.answer(event),
                Err(error) => {
                    // Somebody closed the pool's descriptors: nothing would ever be heard of it again.
                    eprintln!("a pool of processes has to be terminated: {error}");
                    self.terminate();
                    break;
                }
            }
        }
        lock(&self.attendant).ended = true;
        self.attendant_ended.notify_all();
    }

    fn answer(&self, event: Event) {
        match event {
            Event::Finished(job) => self.conclude(&job),
            Event::Ended(slot) => self.replace(slot),
            Event::Condemned(slot) => self.kill(slot),
            Event::Over => {}
        }
    }

    /// [`Engine::wait`]. If it is a callback that waits, it keeps the thread from attending to the pool, which is done here
    /// then: as otherwise nobody hears of the end of the very worker that is at the task, or calls the callback that belongs to
    /// its result.
    pub(super) fn wait(
        &self,
        job: &Arc<Job>,
        ready: impl Fn(&Job) -> bool,
        wait: &mut Wait<'_>,
    ) -> Result<(), WaitError> {
        if ATTENDED.get() != std::ptr::from_ref(self).addr() {
            return self.engine.wait(job, ready, wait);
        }
        loop {
            let mut slice = Wait::timeout(wait.remaining(SLICE)?);
            match self.engine.wait(job, &ready, &mut slice) {
                Err(WaitError::TimedOut) => {}
                waited => return waited,
            }
            while let Ok(Some(event)) = self.engine.run_now() {
                if matches!(event, Event::Over) {
                    break;
                }
                self.answer(event);
            }
        }
    }

    /// A worker has ended.
    fn replace(&self, slot: usize) {
        let Some(worker) = lock(&self.staff).workers.remove(&slot) else {
            // The pool is terminated by another thread.
            return;
        };
        let pid = worker.pid();
        let end = End::of(pid, reap(&worker));
        #[cfg(feature = "tracing")]
        if matches!(end, End::Exited(_, 0)) {
            tracing::debug!(pid, "a worker of a pool has ended");
        } else {
            tracing::warn!(pid, ?end, "a worker of a pool is lost");
        }
        let mut reaction = self.engine.retire(slot, &end.to_bytes());
        let mut pause = Duration::ZERO;
        while reaction == Reaction::Replace {
            match self.fill() {
                Ok(()) => break,
                Err((then, error)) => {
                    #[cfg(feature = "tracing")]
                    tracing::warn!(%error, "a worker of a pool can't be started");
                    drop(error);
                    // For want of memory or processes, most likely.
                    reaction = then;
                    pause = (pause + LONGEST_PAUSE / 10).min(LONGEST_PAUSE);
                    thread::sleep(pause);
                }
            }
        }
        #[cfg(feature = "tracing")]
        if reaction == Reaction::GiveUp {
            tracing::error!("a pool gives up: its workers end before they are ready for tasks");
        }
    }

    /// The task of a worker has had its time, or is not wanted any more.
    fn kill(&self, slot: usize) {
        if let Some(worker) = lock(&self.staff).workers.get(&slot) {
            // It fails if it has ended already.
            let _ = worker.sentinel.send_signal(libc::SIGKILL);
        }
    }

    // How many workers there are to be.

    pub(super) fn places(&self) -> usize {
        self.engine.places()
    }

    pub(super) fn grow(&self, more: usize) -> Result<(), PoolError> {
        self.engine.grow(more);
        self.fill().map_err(|(_, error)| error)
    }

    pub(super) fn shrink(&self, fewer: usize) -> Result<(), PoolError> {
        self.engine.shrink(fewer).map_err(|_| PoolError::NoWorkers)
    }

    // Calls.

    /// Names a function to the workers: they are told of each once.
    pub(super) fn define(&self, run: Run) -> Result<Definition, SubmitError> {
        let address = run as *const ();
        let mut definitions = lock(&self.definitions);
        if let Some(known) = definitions.get(&address.addr()) {
            return Ok(*known);
        }
        let code = postcard::to_allocvec(&Code::of(address)?).map_err(EncodeError::from)?;
        let definition = self.engine.define(&code)?;
        definitions.insert(address.addr(), definition);
        Ok(definition)
    }

    /// Has `callback` called by the pool's thread when the job, which was opened with `notify`, is done.
    pub(super) fn call_back(&self, job: u64, callback: Box<dyn FnOnce() + Send>) {
        lock(&self.interests).entry(job).or_default().callback = Some(callback);
    }

    /// Has `waker` woken when a job is done. False if it is.
    pub(super) fn wake_at_end(&self, job: &Job, waker: &Waker) -> bool {
        {
            let waker = waker.clone();
            let former = lock(&self.interests).entry(job.id()).or_default().waker.replace(waker);
            drop(former);
        }
        if self.engine.notify(job) || !job.is_settled() {
            return true;
        }
        self.forget(job.id());
        false
    }

    /// Nobody wants to be woken any more.
    pub(super) fn forget(&self, job: u64) {
        // What is dropped is others' code, which may come here again: not while the lock is held.
        let gone = lock(&self.interests).remove(&job);
        drop(gone);
    }

    /// A job is done that somebody wants to know of.
    fn conclude(&self, job: &Job) {
        let callback = lock(&self.interests).get_mut(&job.id()).and_then(|interest| interest.callback.take());
        if let Some(callback) = callback {
            // Its panic has been printed; the pool goes on.
            let _ = catch(callback);
        }
        self.engine.settle(job);
        let interest = lock(&self.interests).remove(&job.id());
        wake(interest.and_then(|interest| interest.waker));
    }

    // The end.

    /// Ends it all, whatever is under way.
    pub(super) fn terminate(&self) {
        self.engine.terminate();
        let interests = std::mem::take(&mut *lock(&self.interests));
        for Interest { callback, waker } in interests.into_values() {
            drop(callback);
            wake(waker);
        }
        let workers = std::mem::take(&mut lock(&self.staff).workers);
        for worker in workers.values() {
            let _ = worker.sentinel.send_signal(libc::SIGTERM);
        }
        let deadline = Instant::now() + GRACE;
        for worker in workers.into_values() {
            if worker.wait(&mut Wait::until(deadline)).is_err() {
                // It ignores the signal, or does not get to it.
                let _ = worker.sentinel.send_signal(libc::SIGKILL);
            }
            reap(&worker);
        }
        // It may be in a callback.
        self.wait_for_attendant(Some(deadline));
    }

    /// Waits until everything is done and all workers have ended.
    pub(super) fn join(&self) {
        self.engine.close();
        self.wait_for_attendant(None);
    }

    fn wait_for_attendant(&self, deadline: Option<Instant>) {
        let mut attendant = lock(&self.attendant);
        if attendant.thread.as_ref().is_none_or(|thread| thread.thread().id() == thread::current().id()) {
            return;
        }
        while !attendant.ended {
            attendant = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.attendant_ended.wait(attendant).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return,
                Some(left) => {
                    self.attendant_ended.wait_timeout(attendant, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let thread = attendant.thread.take();
        drop(attendant);
        if let Some(thread) = thread {
            // It has nothing left to do.
            let _ = thread.join();
        }
    }

    /// What the workers that have ended so far left.
    pub(super) fn exit_results<R: Message>(&self) -> Vec<Result<R, TaskError>> {
        let known = self.exit_type == Some(TypeId::of::<R>());
        let read = |outcome: Outcome| match outcome.verdict {
            Verdict::Failed => Err(failure_in(outcome.payload())),
            _ if known => Ok(decode(outcome.payload(), Vec::new(), Reach::Related)?),
            _ => Err(DecodeError::Malformed("type").into()),
        };
        self.engine.exits().into_iter().map(|(_, outcome)| read(outcome)).collect()
    }

    /// The process ids of the workers.
    pub(super) fn pids(&self) -> Vec<u32> {
        lock(&self.staff).workers.values().map(Launched::pid).collect()
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        // It is others' code, and if it panics, that has been printed.
        let _ = catch(|| waker.wake());
    }
}

/// How a worker ended that has.
fn reap(launched: &Launched) -> Exit {
    // Without a deadline, and signals don't end it.
    let _ = launched.wait(&mut Wait::forever());
    launched.exit().ok().flatten().unwrap_or(Exit::Unknown)
}

impl Staff {
    /// Starts the worker of a place, and has the engine watch over it.
    fn start(
        &mut self,
        engine: &Engine,
        slot: usize,
        initializer: Option<(Code, BytesAndDescriptors)>,
    ) -> Result<Launched, PoolError> {
        let Recipe { name, started, settings, method, most, memory, cpus } = &mut self.recipe;
        let port = engine.descriptors().into_iter().chain(engine.couriers().into_iter().flatten());
        let mut descriptors = port.map(|fd| fd.try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
        let cpus = if cpus.is_empty() { Vec::new() } else { cpus[slot % cpus.len()].clone() };
        let mut orders = Orders { slot, most: *most, memory: *memory, cpus, exit: self.exit, initializer: None };
        if let Some((code, (bytes, lent))) = initializer {
            orders.initializer = Some((code, bytes));
            descriptors.extend(lent);
        }
        let payload = postcard::to_allocvec(&orders).map_err(EncodeError::from)?;
        *started += 1;
        settings.name = Some(format!("{name}-{started}"));
        let entry = worker::work;
        // A Ctrl-C that comes before the worker is ready for it waits until it is.
        let launched = interrupts::blocked_while(|| {
            launch(Launch { entry, payload: &payload, descriptors, settings, method: *method })
        })?;
        if let Err(error) = engine.watch(slot, launched.sentinel.as_fd()) {
            let _ = launched.sentinel.send_signal(libc::SIGKILL);
            reap(&launched);
            return Err(error.into());
        }
        Ok(launched)
    }
}
