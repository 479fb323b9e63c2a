//! A lock that its owner may acquire again.

use std::{fmt, io, marker::PhantomData, time::Duration};

use procession_core::{
    process::ProcessId,
    sync::{self, Acquired, ConditionError, NotOwner, Wait, Waited},
};
use serde::{Deserialize, Serialize};

use super::{
    AcquireTimeoutError, Common, Guard, Handed, Recovered, TryAcquireError, acquired, condition::Sealed, note,
};

/// A reentrant lock between processes. It belongs to the thread that acquired it, which may acquire it again, and
/// only that thread releases it.
///
/// It has no value: two guards of one thread could not both change it. What is to be protected by it stands beside it.
///
/// ```
/// use procession::RLock;
///
/// let lock = RLock::new()?;
/// let outer = lock.acquire().unwrap();
/// let inner = lock.acquire().unwrap();
/// assert_eq!(lock.depth(), 2);
/// drop(inner);
/// assert!(lock.is_mine());
/// drop(outer);
/// assert!(!lock.is_mine());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct RLock(Common<Handed<sync::RLock>>);

impl RLock {
    /// A free lock.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Common::new(Handed(sync::RLock::create()?))))
    }

    /// Acquires the lock, at once if the calling thread has it already. Waits while another has it.
    ///
    /// # Errors
    ///
    /// [`Recovered`], with the guard in it, if a process died that held it, however often it had acquired it.
    pub fn acquire(&self) -> Result<RLockGuard<'_>, Recovered<RLockGuard<'_>>> {
        loop {
            // Without an end and a say in signals, it only ends with the lock.
            if let Ok(how) = self.0.acquire(&mut Wait::forever()) {
                return acquired("recursive lock", how, self.guard());
            }
        }
    }

    /// Acquires the lock if that needs no waiting.
    ///
    /// # Errors
    ///
    /// [`TryAcquireError::WouldBlock`] if another has it (perhaps a dead process, which not every call looks for);
    /// [`TryAcquireError::Recovered`] with the guard in it.
    pub fn try_acquire(&self) -> Result<RLockGuard<'_>, TryAcquireError<RLockGuard<'_>>> {
        let how = self.0.try_acquire_or_recover()?;
        Ok(acquired("recursive lock", how, self.guard())?)
    }

    /// Acquires the lock. Waits so long at most.
    ///
    /// # Errors
    ///
    /// [`AcquireTimeoutError::TimedOut`], or [`AcquireTimeoutError::Recovered`] with the guard in it.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<RLockGuard<'_>, AcquireTimeoutError<RLockGuard<'_>>> {
        let how = self.0.acquire(&mut Wait::timeout(timeout))?;
        Ok(acquired("recursive lock", how, self.guard())?)
    }

    /// Gives up one level that was [left acquired](RLockGuard::leave_acquired).
    ///
    /// # Errors
    ///
    /// [`NotOwner`] if the calling thread does not own the lock.
    pub fn release(&self) -> Result<(), NotOwner> {
        self.0.release()
    }

    /// Whether the calling thread owns it.
    pub fn is_mine(&self) -> bool {
        self.0.is_mine()
    }

    /// How many times its owner has acquired it, as of now; 0 if it is free.
    pub fn depth(&self) -> u32 {
        self.0.depth()
    }

    /// Whether somebody holds the lock, as of now.
    #[doc(alias = "locked")]
    pub fn is_locked(&self) -> bool {
        self.0.owner().is_some()
    }

    /// The number of the process that holds the lock, as of now. It may be dead.
    pub fn owner(&self) -> Option<u32> {
        self.0.owner().map(ProcessId::pid)
    }

    fn guard(&self) -> RLockGuard<'_> {
        RLockGuard { lock: self, not_send: PhantomData }
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RLock").field("owner", &self.owner()).field("depth", &self.depth()).finish()
    }
}

/// One level of an [`RLock`] that is held; dropping it gives that up.
///
/// ```
/// let lock = procession::RLock::new()?;
/// lock.acquire().unwrap().leave_acquired();
/// assert!(lock.is_mine());
/// lock.release()?;
/// assert!(lock.release().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it releases the lock"]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    not_send: PhantomData<*const ()>,
}

impl RLockGuard<'_> {
    /// Leaves this level acquired, to be [released](RLock::release) by the same thread later.
    pub fn leave_acquired(self) {
        std::mem::forget(self);
    }
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        // Not held by a forked child, which has a copy of the guard, nor if it was released otherwise.
        let _ = self.lock.0.release();
    }
}

impl Guard for RLockGuard<'_> {}

impl Sealed for RLockGuard<'_> {
    fn wait(&mut self, condition: &sync::Condition, wait: &mut Wait<'_>) -> Result<Waited, ConditionError> {
        let waited = condition.wait(&**self.lock.0, wait)?;
        if let Acquired::Recovered(owner) = waited.lock {
            note("recursive lock", owner);
        }
        Ok(waited)
    }

    fn notify(&self, condition: &sync::Condition, count: usize) -> Result<usize, ConditionError> {
        condition.notify(&**self.lock.0, count)
    }
}
