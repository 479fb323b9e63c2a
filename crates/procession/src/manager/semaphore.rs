//! Semaphores in a manager.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use procession_core::manager::{Caller, Ended, Failure, Object, protocol::ClientId};

use super::{
    Manager, ManagerError, Refusal, deadline,
    lock::Held,
    reference::{limit, proxy},
    wire::{Reader, Writer},
};

/// The server's side of a semaphore.
#[derive(Debug)]
pub(super) struct Semaphore {
    /// The largest value, if there is one.
    most: Option<u64>,
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug)]
struct State {
    value: u64,
    /// How many permits each client has.
    taken: HashMap<ClientId, u64>,
    /// Somebody has released what it had not acquired: permits are messages from one to another, and what a dead process
    /// has acquired is not its own to give back.
    signalling: bool,
}

impl Semaphore {
    pub(super) fn new(bounded: bool, arguments: &[u8]) -> Result<Self, Failure> {
        let value = Reader(arguments).number()?;
        let state = State { value, taken: HashMap::new(), signalling: false };
        Ok(Self { most: bounded.then_some(value), state: Mutex::new(state), free: Condvar::new() })
    }

    /// Whether there was a permit in time.
    fn acquire(&self, limit: u64, caller: &Caller<'_>) -> Result<bool, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = caller.waiting(deadline(limit));
        while state.value == 0 {
            state = match waiting.wait(&self.free, state) {
                Ok(state) => state,
                Err((_, Ended::Gone)) => return Err(Failure::Gone),
                Err((_, Ended::TimedOut)) => return Ok(false),
            };
        }
        state.value -= 1;
        *state.taken.entry(caller.client()).or_default() += 1;
        Ok(true)
    }

    fn release(&self, count: u64, caller: &Caller<'_>) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = state.value.checked_add(count).filter(|value| self.most.is_none_or(|most| *value <= most));
        state.value = value.ok_or(Refusal::AtMaximum)?;
        let taken = state.taken.entry(caller.client()).or_default();
        let foreign = *taken < count;
        *taken = taken.saturating_sub(count);
        if *taken == 0 {
            state.taken.remove(&caller.client());
        }
        state.signalling |= foreign;
        drop(state);
        for _ in 0..count {
            self.free.notify_one();
        }
        Ok(())
    }
}

impl Object for Semaphore {
    fn type_name(&self) -> &'static str {
        if self.most.is_some() { "BoundedSemaphore" } else { "Semaphore" }
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let arguments = &mut Reader(arguments);
        let mut reply = Writer::default();
        match method {
            "acquire" => {
                reply.flag(self.acquire(arguments.number()?, caller)?);
            }
            "release" => {
                let count = if arguments.0.is_empty() { 1 } else { arguments.number()? };
                self.release(count, caller)?;
            }
            "get_value" => {
                reply.number(self.state.lock().unwrap_or_else(PoisonError::into_inner).value);
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }

    fn client_gone(&self, client: ClientId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = state.taken.remove(&client).unwrap_or_default();
        if taken > 0 && !state.signalling {
            state.value += taken;
            drop(state);
            self.free.notify_all();
        }
    }
}

/// A permit of a semaphore in a manager: given back when this is dropped.
#[derive(Debug)]
#[must_use = "the permit is given back when this is dropped"]
pub struct Permit<'a>(Held<'a>);

impl Permit<'_> {
    /// Gives the permit back. So does dropping this, but that can't tell of an error.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn release(self) -> Result<(), ManagerError> {
        self.0.release()
    }

    /// Keeps the permit: somebody else gives one back, with `release` of the semaphore.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

proxy! {
    /// A semaphore in a manager: so many permits for the threads of all processes that have a proxy of it.
    ///
    /// Related processes of one machine have [`Semaphore`](crate::Semaphore), which is many times as fast. Permits of a
    /// process that dies are given back, as long as every process releases only what it acquired: where one process signals
    /// to another by releasing what that acquires, a permit would be a signal that nobody sent.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let semaphore = manager.semaphore(2)?;
    ///     let _one = semaphore.acquire()?;
    ///     let two = semaphore.acquire()?;
    ///     assert!(semaphore.try_acquire()?.is_none());
    ///     two.release()?;
    ///     assert_eq!(semaphore.get_value()?, 1);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    SemaphoreProxy
}

proxy! {
    /// A [`SemaphoreProxy`] that can't have more permits than it was made with: to release one too many is an error,
    /// [`Refusal::AtMaximum`].
    BoundedSemaphoreProxy
}

impl Manager {
    /// Makes a semaphore with so many permits.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn semaphore(&self, value: u64) -> Result<SemaphoreProxy, ManagerError> {
        self.make("Semaphore", Writer::default().number(value)).map(SemaphoreProxy::new)
    }

    /// Makes a semaphore that never has more permits.
    ///
    /// ```
    /// # use procession::manager::{Manager, ManagerError, Refusal};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # procession::init();
    /// # let manager = Manager::new()?;
    /// let semaphore = manager.bounded_semaphore(1)?;
    /// assert!(matches!(semaphore.release(), Err(ManagerError::Refused(Refusal::AtMaximum))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn bounded_semaphore(&self, value: u64) -> Result<BoundedSemaphoreProxy, ManagerError> {
        self.make("BoundedSemaphore", Writer::default().number(value)).map(BoundedSemaphoreProxy::new)
    }
}

macro_rules! semaphore {
    ($name:ident) => {
        #[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
        impl $name {
            fn ask(&self, timeout: Option<Duration>) -> Result<Option<Permit<'_>>, ManagerError> {
                let acquired = self.reference.ask_flag("acquire", Writer::default().number(limit(timeout)))?;
                Ok(acquired.then(|| Permit(Held::new(&self.reference))))
            }

            /// Acquires a permit; blocks while there is none.
            pub fn acquire(&self) -> Result<Permit<'_>, ManagerError> {
                // Without a limit it is never told that there was none.
                self.ask(None)?.ok_or(ManagerError::Malformed)
            }

            /// Acquires a permit if there is one now.
            pub fn try_acquire(&self) -> Result<Option<Permit<'_>>, ManagerError> {
                self.ask(Some(Duration::ZERO))
            }

            /// Acquires a permit; blocks while there is none, but not longer.
            pub fn acquire_timeout(&self, timeout: Duration) -> Result<Option<Permit<'_>>, ManagerError> {
                self.ask(Some(timeout))
            }

            /// Releases one permit, acquired or not.
            pub fn release(&self) -> Result<(), ManagerError> {
                self.release_many(1)
            }

            /// Releases so many permits.
            pub fn release_many(&self, count: u64) -> Result<(), ManagerError> {
                self.reference.tell("release", Writer::default().number(count))
            }

            /// How many permits there are now.
            pub fn get_value(&self) -> Result<u64, ManagerError> {
                self.reference.ask_number("get_value", &Writer::default())
            }
        }
    };
}

semaphore!(SemaphoreProxy);
semaphore!(BoundedSemaphoreProxy);
