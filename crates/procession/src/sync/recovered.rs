//! Acquiring what somebody else held: the errors, and how the death of a holder is told.

use std::{error::Error, fmt};

use procession_core::{
    process::ProcessId,
    sync::{Acquired, WaitError},
};
use thiserror::Error;

/// What was acquired from a process that died holding it.
///
/// It is acquired nevertheless: the guard is inside. What the lock protects, besides its own value, may be half changed.
///
/// ```
/// use procession::{Lock, Process};
///
/// fn crash(lock: Lock<i32>) {
///     let mut number = lock.acquire().unwrap();
///     *number = 2;
///     std::process::exit(1)
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let lock = Lock::new(1)?;
/// let child = Process::spawn(crash, (lock.clone(),))?;
/// child.wait();
/// let recovered = lock.acquire().unwrap_err();
/// assert_eq!(recovered.owner(), child.pid());
/// assert_eq!(**recovered.get_ref(), 1); // the child did not come to write it back
/// # Ok(())
/// # }
/// ```
#[must_use = "it holds the guard, and dropping it releases the lock"]
pub struct Recovered<G = ()> {
    inner: G,
    owner: ProcessId,
}

impl<G> Recovered<G> {
    pub(crate) fn new(inner: G, owner: ProcessId) -> Self {
        Self { inner, owner }
    }

    /// The guard, for those who go on as if nothing had happened: `acquire().unwrap_or_else(Recovered::into_inner)`.
    pub fn into_inner(self) -> G {
        self.inner
    }

    /// The guard, borrowed.
    pub fn get_ref(&self) -> &G {
        &self.inner
    }

    /// The guard, borrowed to change what is behind it.
    pub fn get_mut(&mut self) -> &mut G {
        &mut self.inner
    }

    /// The number that the dead process had.
    pub fn owner(&self) -> u32 {
        self.owner.pid()
    }
}

impl<G> fmt::Debug for Recovered<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recovered").field("owner", &self.owner()).finish_non_exhaustive()
    }
}

impl<G> fmt::Display for Recovered<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.owner();
        write!(f, "process {owner} died holding it: what it protects may be half changed (it is acquired all the same)")
    }
}

impl<G> Error for Recovered<G> {}

/// Why `try_acquire` has nothing, or not what it would usually have.
///
/// ```
/// use procession::{Lock, TryAcquireError};
///
/// let lock = Lock::new(0)?;
/// let held = lock.acquire().unwrap();
/// let number = match lock.try_acquire() {
///     Ok(guard) => Some(*guard),
///     Err(TryAcquireError::Recovered(recovered)) => Some(*recovered.into_inner()),
///     Err(_) => None,
/// };
/// assert_eq!(number, None);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TryAcquireError<G> {
    /// Somebody else has it.
    #[error("held by somebody else")]
    WouldBlock,
    /// It is acquired, from a process that died.
    #[error(transparent)]
    Recovered(#[from] Recovered<G>),
}

/// Why `acquire_timeout` has nothing, or not what it would usually have.
///
/// ```
/// use std::time::Duration;
/// use procession::{AcquireTimeoutError, Semaphore};
///
/// let semaphore = Semaphore::new(0)?;
/// let acquired = semaphore.acquire_timeout(Duration::from_millis(1));
/// assert!(matches!(acquired, Err(AcquireTimeoutError::TimedOut)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcquireTimeoutError<G> {
    /// The time was up.
    #[error("timed out: held by somebody else")]
    TimedOut,
    /// It is acquired, from a process that died.
    #[error(transparent)]
    Recovered(#[from] Recovered<G>),
}

impl<G> From<WaitError> for TryAcquireError<G> {
    fn from(_: WaitError) -> Self {
        Self::WouldBlock
    }
}

impl<G> From<WaitError> for AcquireTimeoutError<G> {
    fn from(_: WaitError) -> Self {
        Self::TimedOut
    }
}

/// The guard, or the guard in a [`Recovered`], as the core acquired it.
pub(crate) fn acquired<G>(what: &'static str, how: Acquired, guard: G) -> Result<G, Recovered<G>> {
    match how {
        Acquired::Held => Ok(guard),
        Acquired::Recovered(owner) => {
            note(what, owner);
            Err(Recovered::new(guard, owner))
        }
    }
}

/// Has a recovery in the log.
pub(crate) fn note(what: &'static str, owner: ProcessId) {
    #[cfg(feature = "tracing")]
    tracing::warn!(what, process = owner.pid(), "recovered from a process that died holding it");
    #[cfg(not(feature = "tracing"))]
    let _ = (what, owner);
}
