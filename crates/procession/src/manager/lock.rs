//! Locks in a manager.

use std::{
    marker::PhantomData,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use procession_core::{
    manager::{Caller, Ended, Failure, Object, protocol::ClientId},
    process::{self, ProcessId},
};

use super::{
    Manager, ManagerError, Refusal, deadline,
    reference::{Reference, limit, proxy},
    wire::{Reader, Writer},
};

/// The server's side of a lock.
#[derive(Debug)]
pub(super) struct Lock {
    /// Whether it belongs to a thread, which may acquire it again.
    reentrant: bool,
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holder: Option<Holder>,
    /// Who held it last, if that died holding it.
    died: Option<Holder>,
}

#[derive(Debug)]
struct Holder {
    client: ClientId,
    thread: u64,
    process: Option<ProcessId>,
    depth: u64,
}

impl Holder {
    fn is(&self, caller: &Caller<'_>) -> bool {
        (self.client, self.thread) == (caller.client(), caller.thread())
    }
}

impl Lock {
    pub(super) fn new(reentrant: bool) -> Self {
        Self { reentrant, state: Mutex::default(), free: Condvar::new() }
    }

    fn acquire(&self, limit: u64, caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let mut reply = Writer::default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = state.holder.as_mut().filter(|holder| self.reentrant && holder.is(caller)) {
            holder.depth += 1;
            return Ok(reply.flag(true).flag(false).number(0).0.clone());
        }
        let mut waiting = caller.waiting(deadline(limit));
        while state.holder.is_some() {
            state = match waiting.wait(&self.free, state) {
                Ok(state) => state,
                Err((_, Ended::Gone)) => return Err(Failure::Gone),
                Err((_, Ended::TimedOut)) => return Ok(reply.flag(false).flag(false).number(0).0.clone()),
            };
        }
        let (client, thread, process) = (caller.client(), caller.thread(), caller.process());
        state.holder = Some(Holder { client, thread, process, depth: 1 });
        let died = state.died.take();
        let pid = died.as_ref().and_then(|holder| holder.process).map_or(0, ProcessId::pid);
        reply.flag(true).flag(died.is_some()).number(pid.into());
        Ok(reply.0)
    }

    fn release(&self, caller: &Caller<'_>) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = state.holder.as_mut().ok_or(Refusal::NotHeld)?;
        if self.reentrant {
            if !holder.is(caller) {
                return Err(Refusal::NotOwner.into());
            }
            holder.depth -= 1;
            if holder.depth > 0 {
                return Ok(());
            }
        }
        state.holder = None;
        drop(state);
        self.free.notify_one();
        Ok(())
    }
}

impl Object for Lock {
    fn type_name(&self) -> &'static str {
        if self.reentrant { "RLock" } else { "Lock" }
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        match method {
            "acquire" => self.acquire(Reader(arguments).number()?, caller),
            "release" => self.release(caller).map(|()| Vec::new()),
            "locked" => {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(vec![u8::from(state.holder.is_some())])
            }
            _ => Err(Failure::NoSuchMethod),
        }
    }

    fn client_gone(&self, client: ClientId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = state.holder.take_if(|holder| holder.client == client) {
            state.died = Some(holder);
            drop(state);
            self.free.notify_one();
        }
    }
}

/// A process that died while it held a lock: what the lock protects may be half changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Died {
    /// The number that it had, if it was on the manager's machine.
    pub pid: Option<u32>,
}

/// A lock that was free in time.
pub(super) struct Acquired {
    pub(super) died: Option<Died>,
}

/// Acquires; `None` if it was not free in time.
pub(super) fn acquire(reference: &Reference, timeout: Option<Duration>) -> Result<Option<Acquired>, ManagerError> {
    let answer = reference.call("acquire", Writer::default().number(limit(timeout)))?;
    let reader = &mut Reader(&answer);
    let (acquired, died, pid) = (reader.flag()?, reader.flag()?, reader.number()?);
    let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0);
    Ok(acquired.then_some(Acquired { died: died.then_some(Died { pid }) }))
}

proxy! {
    /// A lock in a manager, which one thread of all processes that have a proxy of it holds at a time.
    ///
    /// Related processes of one machine have [`Lock`](crate::Lock), which is many times as fast. This one can be had from
    /// anywhere. If a process dies while holding it, the next one gets it, and is told by [`LockProxyGuard::died`].
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let lock = manager.lock()?;
    ///     let guard = lock.acquire()?;
    ///     assert!(lock.try_acquire()?.is_none());
    ///     guard.release()?;
    ///     assert!(lock.try_acquire()?.is_some());
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    LockProxy
}

proxy! {
    /// A lock in a manager that belongs to a thread, which may acquire it again and has to release it as often.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let lock = manager.rlock()?;
    ///     let outer = lock.acquire()?;
    ///     let inner = lock.acquire()?;
    ///     drop((inner, outer));
    ///     assert!(!lock.is_locked()?);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Otherwise as [`LockProxy`].
    RLockProxy
}

impl Manager {
    /// Makes a lock.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn lock(&self) -> Result<LockProxy, ManagerError> {
        self.make("Lock", &Writer::default()).map(LockProxy::new)
    }

    /// Makes a lock that its owner may acquire again.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn rlock(&self) -> Result<RLockProxy, ManagerError> {
        self.make("RLock", &Writer::default()).map(RLockProxy::new)
    }
}

/// What is released when it is dropped, unless it was released before, or the process is a forked child.
#[derive(Debug)]
pub(super) struct Held<'a> {
    reference: &'a Reference,
    generation: u32,
}

impl<'a> Held<'a> {
    pub(super) fn new(reference: &'a Reference) -> Self {
        Self { reference, generation: process::generation() }
    }

    pub(super) fn release(self) -> Result<(), ManagerError> {
        let reference = self.reference;
        std::mem::forget(self);
        reference.tell("release", &Writer::default())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.generation == process::generation() {
            // Without the manager there is no lock.
            let _ = self.reference.tell("release", &Writer::default());
        }
    }
}

macro_rules! lock {
    ($name:ident, $guard:ident, $(#[$attribute:meta])* $marker:ty) => {
        $(#[$attribute])*
        #[derive(Debug)]
        #[must_use = "the lock is released when this is dropped"]
        pub struct $guard<'a> {
            held: Held<'a>,
            died: Option<Died>,
            belongs: PhantomData<$marker>,
        }

        impl $guard<'_> {
            /// The process that died while it held the lock before, if one did.
            pub fn died(&self) -> Option<Died> {
                self.died
            }

            /// Releases the lock. So does dropping this, but that can't tell of an error.
            ///
            /// # Errors
            ///
            /// As every call; and another thread or process may have released it.
            pub fn release(self) -> Result<(), ManagerError> {
                self.held.release()
            }
        }

        #[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
        impl $name {
            fn guard(&self, acquired: Option<Acquired>) -> Option<$guard<'_>> {
                let Acquired { died } = acquired?;
                Some($guard { held: Held::new(&self.reference), died, belongs: PhantomData })
            }

            /// Acquires it; blocks while another has it.
            pub fn acquire(&self) -> Result<$guard<'_>, ManagerError> {
                // Without a limit it is never told that it was not free.
                self.guard(acquire(&self.reference, None)?).ok_or(ManagerError::Malformed)
            }

            /// Acquires it if it is free now.
            pub fn try_acquire(&self) -> Result<Option<$guard<'_>>, ManagerError> {
                self.acquire_timeout(Duration::ZERO)
            }

            /// Acquires it; blocks while another has it, but not longer.
            pub fn acquire_timeout(&self, timeout: Duration) -> Result<Option<$guard<'_>>, ManagerError> {
                acquire(&self.reference, Some(timeout)).map(|acquired| self.guard(acquired))
            }

            /// Releases it without a guard: one that was forgotten, or is in another process.
            pub fn release(&self) -> Result<(), ManagerError> {
                self.reference.tell("release", &Writer::default())
            }

            /// Whether somebody holds it.
            #[doc(alias = "locked")]
            pub fn is_locked(&self) -> Result<bool, ManagerError> {
                self.reference.ask_flag("locked", &Writer::default())
            }
        }
    };
}

lock!(
    LockProxy,
    LockProxyGuard,
    /// A [`LockProxy`] that is held; released when this is dropped. Any thread may do that.
    ()
);
lock!(
    RLockProxy,
    RLockProxyGuard,
    /// An [`RLockProxy`] that is held; released when this is dropped, by the thread that acquired it.
    *const ()
);
