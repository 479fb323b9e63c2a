//! A lock that owns its data.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    thread,
    time::Duration,
};

use procession_core::{
    memory::Cell,
    sync::{self, Acquired, ConditionError, NotHeld, Wait, Waited},
};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    AcquireTimeoutError, Common, Guard, Handed, PlainData, Recovered, TryAcquireError, acquired, condition::Sealed,
};

/// A lock between processes, and the value that it protects: a `Mutex<T>` for more than one process. `Lock<()>`, which is
/// `Lock`, is a bare lock.
///
/// It is not reentrant: a thread that acquires what it holds waits for itself.
///
/// # What is guaranteed
///
/// The guard has a copy of the value. If that was changed, it is written back when the guard is dropped, all of it in one
/// step as seen by others: a process that is killed while it holds the lock, even in the midst of writing back, leaves the
/// value of before. So does a thread that panics. The next to acquire the lock is told of a death by [`Recovered`].
/// There is no reference into shared memory anywhere.
///
/// Copying makes a `Lock` right for values of up to some kilobytes. For more there is [`Array`](crate::Array).
///
/// # Examples
///
/// ```
/// use procession::{Lock, Process};
///
/// fn count(lock: Lock<u64>) {
///     for _ in 0..1000 {
///         *lock.acquire().unwrap() += 1;
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let lock = Lock::new(0)?;
///     let counting = [Process::spawn(count, (lock.clone(),))?, Process::spawn(count, (lock.clone(),))?];
///     for process in counting {
///         process.join()?;
///     }
///     assert_eq!(*lock.acquire().unwrap(), 2000);
///     Ok(())
/// }
/// ```
#[derive(Serialize)]
#[serde(transparent, bound = "")]
pub struct Lock<T = ()> {
    state: Common<State>,
    value: PhantomData<fn(T) -> T>,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    lock: Handed<sync::Lock>,
    cell: Handed<Cell>,
}

impl<'de, T: PlainData> Deserialize<'de> for Lock<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let state = Common::<State>::deserialize(deserializer)?;
        if state.cell.len() != size_of::<T>() {
            return Err(de::Error::custom("the lock is of another type"));
        }
        Ok(Self { state, value: PhantomData })
    }
}

impl<T> Clone for Lock<T> {
    /// Another handle to the same lock.
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), value: PhantomData }
    }
}

impl<T: PlainData> Lock<T> {
    /// A free lock with a value.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn new(value: T) -> io::Result<Self> {
        let cell = Cell::allocate(size_of::<T>())?;
        cell.store(value.as_bytes());
        let state = State { lock: Handed(sync::Lock::create()?), cell: Handed(cell) };
        Ok(Self { state: Common::new(state), value: PhantomData })
    }

    /// Acquires the lock. Waits while another holds it.
    ///
    /// # Errors
    ///
    /// [`Recovered`], with the guard in it, if a process died that held it.
    ///
    /// ```
    /// let lock = procession::Lock::new([0_u8; 100])?;
    /// let mut bytes = lock.acquire().unwrap();
    /// bytes[7] = 1;
    /// drop(bytes);
    /// assert_eq!(lock.acquire().unwrap()[7], 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn acquire(&self) -> Result<LockGuard<'_, T>, Recovered<LockGuard<'_, T>>> {
        loop {
            // Without an end and a say in signals, it only ends with the lock.
            if let Ok(how) = self.state.lock.acquire(&mut Wait::forever()) {
                return acquired("lock", how, self.guard());
            }
        }
    }

    /// Acquires the lock if that needs no waiting.
    ///
    /// # Errors
    ///
    /// [`TryAcquireError::WouldBlock`] if another holds it. That may be a dead process for some milliseconds: it is not looked at by each
    /// call. [`TryAcquireError::Recovered`] with the guard in it.
    pub fn try_acquire(&self) -> Result<LockGuard<'_, T>, TryAcquireError<LockGuard<'_, T>>> {
        let how = self.state.lock.try_acquire_or_recover()?;
        Ok(acquired("lock", how, self.guard())?)
    }

    /// Acquires the lock. Waits so long at most.
    ///
    /// # Errors
    ///
    /// [`AcquireTimeoutError::TimedOut`], or [`AcquireTimeoutError::Recovered`] with the guard in it.
    pub fn acquire_timeout(
        &self,
        timeout: Duration,
    ) -> Result<LockGuard<'_, T>, AcquireTimeoutError<LockGuard<'_, T>>> {
        let how = self.state.lock.acquire(&mut Wait::timeout(timeout))?;
        Ok(acquired("lock", how, self.guard())?)
    }

    /// Releases the lock, whoever holds it: as with the standard package's `Lock`, one process may release what another
    /// acquired (and left acquired, by [`LockGuard::leave_acquired`]).
    ///
    /// A guard of which the lock was released writes nothing back, and does not release it again.
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if nobody does.
    ///
    /// ```
    /// let lock = procession::Lock::new(())?;
    /// lock.acquire().unwrap().leave_acquired();
    /// assert!(lock.is_locked());
    /// lock.release()?; // here, or in another process
    /// assert!(lock.release().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn release(&self) -> Result<(), NotHeld> {
        self.state.lock.release()
    }

    /// A copy of the value as it was written back last, whoever holds the lock. It is always a whole value.
    pub fn peek(&self) -> T {
        let mut value = T::new_zeroed();
        self.state.cell.load(value.as_mut_bytes());
        value
    }

    /// Whether somebody holds the lock, as of now.
    #[doc(alias = "locked")]
    pub fn is_locked(&self) -> bool {
        self.state.lock.owner().is_some()
    }

    /// The number of the process that holds the lock, as of now. It may be dead.
    pub fn owner(&self) -> Option<u32> {
        self.state.lock.owner().map(procession_core::process::ProcessId::pid)
    }

    /// For a lock that was just acquired.
    fn guard(&self) -> LockGuard<'_, T> {
        LockGuard {
            value: self.peek(),
            lock: self,
            changed: false,
            panicking: thread::panicking(),
            not_send: PhantomData,
        }
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("owner", &self.owner()).field("value", &self.peek()).finish()
    }
}

/// A lock that is held, and a copy of its value; dropping it writes the value back, if that was changed, and releases the
/// lock.
///
/// It stays in its thread: the lock knows who holds it.
///
/// ```
/// let lock = procession::Lock::new([1, 2])?;
/// let mut numbers = lock.acquire().unwrap();
/// numbers[0] = 10;
/// assert_eq!(lock.peek(), [1, 2]);
/// numbers.commit();
/// assert_eq!(lock.peek(), [10, 2]);
/// numbers[1] = 20;
/// numbers.discard();
/// assert_eq!(lock.peek(), [10, 2]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "dropping it releases the lock"]
pub struct LockGuard<'a, T: PlainData = ()> {
    lock: &'a Lock<T>,
    value: T,
    changed: bool,
    /// Whether it was made by a thread that panics, in a `drop`. Then the panic says nothing about the value.
    panicking: bool,
    not_send: PhantomData<*const ()>,
}

impl<T: PlainData> LockGuard<'_, T> {
    /// Writes the value back now, if it was changed, and goes on holding the lock. From here on a death or a panic leaves this value.
    pub fn commit(&mut self) {
        // If somebody else released the lock, the value is somebody else's.
        if std::mem::take(&mut self.changed) && self.lock.state.lock.is_mine() {
            self.lock.state.cell.store(self.value.as_bytes());
        }
    }

    /// Writes the value back, if it was changed, and leaves the lock acquired, to be [released](Lock::release) by
    /// whoever is to do it. While nobody has, it belongs to this process: if that ends, the lock is recovered.
    pub fn leave_acquired(mut self) {
        self.commit();
        std::mem::forget(self);
    }

    /// The copy of the value; changes of it are not written back.
    pub(crate) fn into_value(mut self) -> T {
        self.changed = false;
        std::mem::replace(&mut self.value, T::new_zeroed())
    }

    /// Forgets the changes, and releases the lock with the value of before.
    pub fn discard(mut self) {
        self.changed = false;
    }
}

impl<T: PlainData> Drop for LockGuard<'_, T> {
    fn drop(&mut self) {
        // A forked child, which has a copy of the guard, does not hold the lock.
        if !self.lock.state.lock.is_mine() {
            return;
        }
        if thread::panicking() == self.panicking {
            self.commit();
        }
        // Held, as was just seen; if somebody else released it at this moment, there is nothing left to do.
        let _ = self.lock.state.lock.release();
    }
}

impl<T: PlainData> Deref for LockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PlainData> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        &mut self.value
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: PlainData + fmt::Display> fmt::Display for LockGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: PlainData> Guard for LockGuard<'_, T> {}

impl<T: PlainData> Sealed for LockGuard<'_, T> {
    fn wait(&mut self, condition: &sync::Condition, wait: &mut Wait<'_>) -> Result<Waited, ConditionError> {
        self.commit();
        let waited = condition.wait(&*self.lock.state.lock, wait)?;
        self.value = self.lock.peek();
        if let Acquired::Recovered(owner) = waited.lock {
            super::note("lock", owner);
        }
        Ok(waited)
    }

    fn notify(&self, condition: &sync::Condition, count: usize) -> Result<usize, ConditionError> {
        condition.notify(&*self.lock.state.lock, count)
    }
}
