//! A condition in a manager.

use std::{
    collections::{HashSet, VecDeque},
    marker::PhantomData,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use procession_core::manager::{Caller, Ended, Failure, Object, protocol::ClientId};

use super::{
    Manager, ManagerError, Refusal, deadline,
    lock::{Acquired, Died, Held, acquire},
    reference::{limit, proxy},
    wire::{Reader, Writer},
};

/// The server's side of a condition: a lock that belongs to a thread, and those who wait.
#[derive(Debug, Default)]
pub(super) struct Condition {
    state: Mutex<State>,
    /// The lock was released, or somebody was notified.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Client and thread that hold the lock, and how often.
    owner: Option<(ClientId, u64)>,
    depth: u64,
    died: bool,
    /// Who waits, each under a number of its own, in the order in which they came.
    waiters: VecDeque<u64>,
    notified: HashSet<u64>,
    last: u64,
}

impl State {
    fn notify(&mut self, count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.waiters.len());
        let first = self.waiters.drain(..count);
        self.notified.extend(first);
    }
}

impl Condition {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the lock is free, and takes it.
    fn acquire<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        depth: u64,
        deadline: Option<Instant>,
        caller: &Caller<'_>,
    ) -> Result<MutexGuard<'a, State>, (MutexGuard<'a, State>, Ended)> {
        let mut waiting = caller.waiting(deadline);
        while state.owner.is_some() {
            state = waiting.wait(&self.changed, state)?;
        }
        state.owner = Some((caller.client(), caller.thread()));
        state.depth = depth;
        Ok(state)
    }

    /// Whether it was notified in time. The lock is held again in any case.
    fn wait(&self, limit: u64, caller: &Caller<'_>) -> Result<bool, Failure> {
        let mut state = self.owned(caller)?;
        let depth = state.depth;
        state.last += 1;
        let number = state.last;
        state.waiters.push_back(number);
        state.owner = None;
        self.changed.notify_all();
        let mut waiting = caller.waiting(deadline(limit));
        let mut notified = false;
        let mut gone = false;
        while !notified && !gone {
            match waiting.wait(&self.changed, state) {
                Ok(woken) => state = woken,
                Err((woken, ended)) => {
                    state = woken;
                    notified = state.notified.remove(&number);
                    state.waiters.retain(|waiter| *waiter != number);
                    gone = ended == Ended::Gone;
                    break;
                }
            }
            notified = state.notified.remove(&number);
        }
        if !gone {
            match self.acquire(state, depth, None, caller) {
                Ok(_) => return Ok(notified),
                Err((woken, _)) => state = woken,
            }
        }
        if notified {
            // It is of no use to a client that is gone: another one gets it.
            state.notify(1);
            self.changed.notify_all();
        }
        Err(Failure::Gone)
    }

    /// The state, if the thread that calls has the lock.
    fn owned(&self, caller: &Caller<'_>) -> Result<MutexGuard<'_, State>, Failure> {
        let state = self.lock();
        if state.owner == Some((caller.client(), caller.thread())) { Ok(state) } else { Err(Refusal::NotOwner.into()) }
    }
}

impl Object for Condition {
    fn type_name(&self) -> &'static str {
        "Condition"
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = &mut Reader(arguments);
        let mut reply = Writer::default();
        match method {
            "acquire" => {
                let mut state = self.lock();
                if state.owner == Some((caller.client(), caller.thread())) {
                    state.depth += 1;
                    reply.flag(true).flag(false);
                } else {
                    match self.acquire(state, 1, deadline(arguments.number()?), caller) {
                        Ok(mut state) => reply.flag(true).flag(std::mem::take(&mut state.died)),
                        Err((_, Ended::TimedOut)) => reply.flag(false).flag(false),
                        Err((_, Ended::Gone)) => return Err(Failure::Gone),
                    };
                }
                reply.number(0);
            }
            "release" => {
                let mut state = self.owned(caller)?;
                state.depth -= 1;
                if state.depth == 0 {
                    state.owner = None;
                    self.changed.notify_all();
                }
            }
            "wait" => {
                reply.flag(self.wait(arguments.number()?, caller)?);
            }
            "notify" => {
                self.owned(caller)?.notify(arguments.number()?);
                self.changed.notify_all();
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }

    fn client_gone(&self, client: ClientId) {
        let mut state = self.lock();
        if state.owner.take_if(|(owner, _)| *owner == client).is_some() {
            state.died = true;
            self.changed.notify_all();
        }
    }
}

proxy! {
    /// A condition in a manager: a lock, and a way to wait until another process has changed what it protects.
    ///
    /// Related processes of one machine have [`Condition`](crate::Condition), which is many times as fast.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let (changed, items) = (manager.condition()?, manager.list::<u32>([])?);
    ///     std::thread::scope(|scope| {
    ///         scope.spawn(|| {
    ///             let guard = changed.acquire().unwrap();
    ///             items.push(5).unwrap();
    ///             guard.notify(1).unwrap();
    ///         });
    ///         let guard = changed.acquire()?;
    ///         while items.is_empty()? {
    ///             guard.wait()?;
    ///         }
    ///         assert_eq!(items.pop()?, Some(5));
    ///         Ok(())
    ///     })
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended. A process that dies while it holds the
    /// lock, or waits, is in nobody's way.
    ConditionProxy
}

impl Manager {
    /// Makes a condition, with a lock of its own.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn condition(&self) -> Result<ConditionProxy, ManagerError> {
        self.make("Condition", &Writer::default()).map(ConditionProxy::new)
    }
}

/// A [`ConditionProxy`] whose lock is held; released when this is dropped, by the thread that acquired it.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct ConditionProxyGuard<'a> {
    condition: &'a ConditionProxy,
    held: Held<'a>,
    died: Option<Died>,
    belongs: PhantomData<*const ()>,
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl ConditionProxy {
    fn guard(&self, timeout: Option<Duration>) -> Result<Option<ConditionProxyGuard<'_>>, ManagerError> {
        let acquired = acquire(&self.reference, timeout)?;
        Ok(acquired.map(|Acquired { died }| ConditionProxyGuard {
            condition: self,
            held: Held::new(&self.reference),
            died,
            belongs: PhantomData,
        }))
    }

    /// Acquires the lock; blocks while another has it. The thread that has it may acquire it again.
    pub fn acquire(&self) -> Result<ConditionProxyGuard<'_>, ManagerError> {
        // Without a limit it is never told that it was not free.
        self.guard(None)?.ok_or(ManagerError::Malformed)
    }

    /// Acquires the lock if it is free now.
    pub fn try_acquire(&self) -> Result<Option<ConditionProxyGuard<'_>>, ManagerError> {
        self.guard(Some(Duration::ZERO))
    }

    /// Acquires the lock; blocks while another has it, but not longer.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Option<ConditionProxyGuard<'_>>, ManagerError> {
        self.guard(Some(timeout))
    }
}

impl ConditionProxyGuard<'_> {
    /// Who died while holding the lock before, if somebody did.
    pub fn died(&self) -> Option<Died> {
        self.died
    }

    /// Releases the lock, and blocks until notified; then it has the lock again.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`]. So with the others.
    pub fn wait(&self) -> Result<(), ManagerError> {
        self.ask(None).map(drop)
    }

    /// As [`wait`](Self::wait), but not longer; whether it was notified.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, ManagerError> {
        self.ask(Some(timeout))
    }

    fn ask(&self, timeout: Option<Duration>) -> Result<bool, ManagerError> {
        self.condition.reference.ask_flag("wait", Writer::default().number(limit(timeout)))
    }

    /// Wakes so many of those who wait, who came first.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn notify(&self, count: usize) -> Result<(), ManagerError> {
        self.condition.reference.tell("notify", Writer::default().number(count as u64))
    }

    /// Wakes all who wait.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn notify_all(&self) -> Result<(), ManagerError> {
        self.notify(usize::MAX)
    }

    /// Releases the lock. So does dropping this, but that can't tell of an error.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn release(self) -> Result<(), ManagerError> {
        self.held.release()
    }
}
