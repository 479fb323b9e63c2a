//! Counters of permits.

use std::{fmt, io, time::Duration};

use procession_core::{
    process::ProcessId,
    sync::{self, AtMaximum, Wait},
};
use serde::{Deserialize, Serialize};

use super::{AcquireTimeoutError, Common, Handed, Recovered, TryAcquireError, acquired};

/// A semaphore between processes: so many may have a permit at once.
///
/// A permit is released when the [`Permit`] is dropped. For those who signal to others, permits are
/// [forgotten](Permit::forget), and [released](Self::release) by whom they were not acquired by.
///
/// If a process is killed, its permits come back, as long as every process has released only what it acquired itself. Otherwise a
/// permit stands for a message, and none is made up for the dead.
///
/// ```
/// use procession::Semaphore;
///
/// let semaphore = Semaphore::new(2)?;
/// let one = semaphore.acquire().unwrap();
/// let two = semaphore.acquire().unwrap();
/// assert!(semaphore.try_acquire().is_err());
/// drop(one);
/// assert_eq!(semaphore.value(), 1);
///
/// two.forget();
/// semaphore.release()?;
/// assert_eq!(semaphore.value(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct Semaphore(Common<Handed<sync::Semaphore>>);

impl Semaphore {
    /// The largest value.
    pub const MAXIMUM: u32 = sync::Semaphore::MAXIMUM;

    /// A semaphore with so many permits. It may be released beyond that.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for more than [`MAXIMUM`](Self::MAXIMUM); memory or descriptors are lacking.
    pub fn new(value: u32) -> io::Result<Self> {
        Self::with_maximum(value, Self::MAXIMUM)
    }

    fn with_maximum(value: u32, maximum: u32) -> io::Result<Self> {
        Ok(Self(Common::new(Handed(sync::Semaphore::create(value, maximum)?))))
    }

    /// Acquires a permit. Waits for one.
    ///
    /// # Errors
    ///
    /// [`Recovered`], with the permit in it, if it was one of a process that died.
    pub fn acquire(&self) -> Result<Permit<'_>, Recovered<Permit<'_>>> {
        loop {
            // Without an end and a say in signals, it only ends with a permit.
            if let Ok(how) = self.0.acquire(&mut Wait::forever()) {
                return acquired("semaphore", how, self.permit());
            }
        }
    }

    /// Acquires a permit if there is one.
    ///
    /// # Errors
    ///
    /// [`TryAcquireError::WouldBlock`] if there is none (not each call looks for permits of the dead);
    /// [`TryAcquireError::Recovered`] with the permit in it.
    pub fn try_acquire(&self) -> Result<Permit<'_>, TryAcquireError<Permit<'_>>> {
        let how = self.0.try_acquire_or_recover()?;
        Ok(acquired("semaphore", how, self.permit())?)
    }

    /// Acquires a permit. Waits so long at most.
    ///
    /// # Errors
    ///
    /// [`AcquireTimeoutError::TimedOut`], or [`AcquireTimeoutError::Recovered`] with the permit in it.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit<'_>, AcquireTimeoutError<Permit<'_>>> {
        let how = self.0.acquire(&mut Wait::timeout(timeout))?;
        Ok(acquired("semaphore", how, self.permit())?)
    }

    /// Releases a permit, whoever acquired it, or one more.
    ///
    /// # Errors
    ///
    /// [`AtMaximum`] at the largest value; for a [`BoundedSemaphore`], at its first value.
    pub fn release(&self) -> Result<(), AtMaximum> {
        self.0.release()
    }

    /// How many permits may be had, as of now.
    pub fn value(&self) -> u32 {
        self.0.value()
    }

    fn permit(&self) -> Permit<'_> {
        Permit { semaphore: self, owner: ProcessId::current() }
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("value", &self.value()).finish()
    }
}

/// A [`Semaphore`] that can't be released above its first value: releasing what was not acquired is an error.
///
/// ```
/// use procession::BoundedSemaphore;
///
/// let semaphore = BoundedSemaphore::new(1)?;
/// assert!(semaphore.release().is_err());
/// semaphore.acquire().unwrap().forget();
/// assert!(semaphore.release().is_ok());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct BoundedSemaphore(Semaphore);

impl BoundedSemaphore {
    /// A semaphore with so many permits, which are the most it ever has.
    ///
    /// # Errors
    ///
    /// As [`Semaphore::new`].
    pub fn new(value: u32) -> io::Result<Self> {
        Semaphore::with_maximum(value, value).map(Self)
    }

    /// As [`Semaphore::acquire`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn acquire(&self) -> Result<Permit<'_>, Recovered<Permit<'_>>> {
        self.0.acquire()
    }

    /// As [`Semaphore::try_acquire`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_acquire(&self) -> Result<Permit<'_>, TryAcquireError<Permit<'_>>> {
        self.0.try_acquire()
    }

    /// As [`Semaphore::acquire_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit<'_>, AcquireTimeoutError<Permit<'_>>> {
        self.0.acquire_timeout(timeout)
    }

    /// Releases a permit, whoever acquired it.
    ///
    /// # Errors
    ///
    /// [`AtMaximum`] if all permits are there.
    pub fn release(&self) -> Result<(), AtMaximum> {
        self.0.release()
    }

    /// How many permits may be had, as of now.
    pub fn value(&self) -> u32 {
        self.0.value()
    }

    /// How many there are in all.
    pub fn maximum(&self) -> u32 {
        self.0.0.maximum()
    }
}

impl fmt::Debug for BoundedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, maximum) = (self.value(), self.maximum());
        f.debug_struct("BoundedSemaphore").field("value", &value).field("maximum", &maximum).finish()
    }
}

/// A permit of a semaphore; dropping it releases it. It may be sent to another thread.
///
/// ```
/// let semaphore = procession::Semaphore::new(1)?;
/// let permit = semaphore.acquire().unwrap();
/// std::thread::scope(|scope| {
///     scope.spawn(|| drop(permit));
/// });
/// assert_eq!(semaphore.value(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping it releases the permit"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    owner: ProcessId,
}

impl Permit<'_> {
    /// Keeps the permit acquired. Somebody, here or in another process, [releases](Semaphore::release) it or not.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // A forked child has a copy of this, but not the permit.
        if self.owner == ProcessId::current() {
            // At the maximum others have released too often; there is nobody to tell here.
            let _ = self.semaphore.release();
        }
    }
}
