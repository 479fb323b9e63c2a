//! Waiting, with a lock given up, for others to say that something changed.

use std::{
    io,
    time::{Duration, Instant},
};

use procession_core::sync::{self, Acquired, NotHeld, Wait, Waited};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Common, Handed, Recovered};

/// What a guard does for a condition.
pub trait Sealed {
    /// Gives the lock up, waits, and gets it back.
    fn wait(&mut self, condition: &sync::Condition, wait: &mut Wait<'_>) -> Result<Waited, sync::ConditionError>;
    /// Notifies so many.
    fn notify(&self, condition: &sync::Condition, count: usize) -> Result<usize, sync::ConditionError>;
}

/// The guard of a [`Lock`](crate::Lock), an [`RLock`](crate::RLock) or an [`Array`](crate::Array): what a
/// [`Condition`] is used with.
///
/// ```
/// use procession::{Condition, sync::Guard};
///
/// fn announce<G: Guard>(condition: &Condition, guard: G) {
///     condition.notify_all(&guard).expect("a lock that is held");
/// }
///
/// let condition = Condition::new()?;
/// announce(&condition, procession::Lock::new(5)?.acquire().unwrap());
/// announce(&condition, procession::RLock::new()?.acquire().unwrap());
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Guard: Sealed {}

/// A condition variable between processes.
///
/// It is used together with the guard of a lock, of the same one in all calls. Who is waited for may die: notifications go
/// to the living only.
///
/// ```
/// use procession::{Condition, Lock, Process};
///
/// fn produce(items: Lock<u64>, changed: Condition) {
///     let mut items = items.acquire().unwrap();
///     *items += 1;
///     changed.notify(&items, 1).unwrap();
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (items, changed) = (Lock::new(0_u64)?, Condition::new()?);
///     let producer = Process::spawn(produce, (items.clone(), changed.clone()))?;
///     let mut guard = items.acquire().unwrap();
///     changed.wait_for(&mut guard, |items| **items != 0)?;
///     *guard -= 1;
///     drop(guard);
///     producer.join()?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Condition(Common<Handed<sync::Condition>>);

/// Why a wait for a [`Condition`] did not end as usual.
///
/// ```
/// use std::time::Duration;
/// use procession::{Condition, ConditionError, Lock};
///
/// let (lock, condition) = (Lock::new(0)?, Condition::new()?);
/// let mut guard = lock.acquire().unwrap();
/// let ready = match condition.wait_for_timeout(&mut guard, Duration::from_millis(1), |items| **items != 0) {
///     Ok(ready) => ready,
///     Err(ConditionError::Recovered(recovered)) => recovered.into_inner(), // somebody died, the lock is held again
///     Err(error) => return Err(error.into()),
/// };
/// assert!(!ready);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConditionError<R = ()> {
    /// The lock is not held by the calling thread: another process released it in spite of the guard.
    #[error("the lock of the guard was released by somebody else")]
    NotHeld,
    /// The lock was got back from a process that died holding it. What the call would have returned is inside.
    #[error(transparent)]
    Recovered(#[from] Recovered<R>),
}

impl Condition {
    /// A condition that nobody waits for.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Common::new(Handed(sync::Condition::create()?))))
    }

    /// Gives up the lock (an `RLock` altogether), waits to be notified, and gets the lock back.
    ///
    /// The change of a [`Lock`](crate::Lock)'s value is written back before, and the guard has the new value afterwards.
    ///
    /// # Errors
    ///
    /// [`ConditionError`]: but for `NotHeld`, the lock is held again.
    pub fn wait<G: Guard>(&self, guard: &mut G) -> Result<(), ConditionError> {
        let waited = self.wait_by(guard, &mut Wait::forever())?;
        told(waited, ())
    }

    /// As [`wait`](Self::wait), but waits so long at most to be notified. Tells whether it was. (To get the lock back may
    /// take any time.)
    ///
    /// # Errors
    ///
    /// [`ConditionError`]: but for `NotHeld`, the lock is held again.
    pub fn wait_timeout<G: Guard>(&self, guard: &mut G, timeout: Duration) -> Result<bool, ConditionError<bool>> {
        let waited = self.wait_by(guard, &mut Wait::timeout(timeout)).map_err(|_| ConditionError::NotHeld)?;
        told(waited, waited.outcome.is_ok())
    }

    /// Waits until `predicate` is true, which is looked at with the lock held: at once, and after each notification.
    ///
    /// # Errors
    ///
    /// [`ConditionError`]. A recovery of the lock ends the wait at once, whether or not the predicate is true then.
    pub fn wait_for<G: Guard>(
        &self,
        guard: &mut G,
        mut predicate: impl FnMut(&mut G) -> bool,
    ) -> Result<(), ConditionError> {
        while !predicate(guard) {
            self.wait(guard)?;
        }
        Ok(())
    }

    /// As [`wait_for`](Self::wait_for), but so long at most. Tells what the predicate was at last.
    ///
    /// # Errors
    ///
    /// [`ConditionError`]. A recovery of the lock ends the wait at once, with what the predicate is then.
    pub fn wait_for_timeout<G: Guard>(
        &self,
        guard: &mut G,
        timeout: Duration,
        mut predicate: impl FnMut(&mut G) -> bool,
    ) -> Result<bool, ConditionError<bool>> {
        let end = Instant::now().checked_add(timeout);
        loop {
            if predicate(guard) {
                return Ok(true);
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(false);
            }
            let mut wait = end.map_or_else(Wait::forever, Wait::until);
            let waited = self.wait_by(guard, &mut wait).map_err(|_| ConditionError::NotHeld)?;
            if let Acquired::Recovered(owner) = waited.lock {
                return Err(Recovered::new(predicate(guard), owner).into());
            }
        }
    }

    fn wait_by<G: Guard>(&self, guard: &mut G, wait: &mut Wait<'_>) -> Result<Waited, ConditionError> {
        // That the lock was not regained comes from signals only, which have no say here.
        guard.wait(&self.0, wait).map_err(|_| ConditionError::NotHeld)
    }

    /// Wakes up to `count` of those who wait, who have waited longest, and tells how many. They go on once the guard is
    /// dropped and they got the lock. Never blocks.
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if the lock of the guard was released by somebody else.
    pub fn notify<G: Guard>(&self, guard: &G, count: usize) -> Result<usize, NotHeld> {
        guard.notify(&self.0, count).map_err(|_| NotHeld)
    }

    /// Wakes all who wait, and tells how many.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify).
    pub fn notify_all<G: Guard>(&self, guard: &G) -> Result<usize, NotHeld> {
        self.notify(guard, usize::MAX)
    }

    /// How many wait, as of now. Some of them may be dead.
    pub fn waiters(&self) -> usize {
        self.0.waiters()
    }
}

/// What to return, or that in a `Recovered`.
fn told<R>(waited: Waited, result: R) -> Result<R, ConditionError<R>> {
    match waited.lock {
        Acquired::Held => Ok(result),
        Acquired::Recovered(owner) => Err(Recovered::new(result, owner).into()),
    }
}
