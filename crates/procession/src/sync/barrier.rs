//! A point that a number of processes pass together.

use std::{fmt, io, time::Duration};

use procession_core::sync::{self, Passage, Wait};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Common, Handed};

/// A barrier between processes: each waits until all have come.
///
/// ```
/// use procession::{Barrier, Process};
///
/// fn arrive(barrier: Barrier) -> u32 {
///     barrier.wait().unwrap()
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let barrier = Barrier::new(2)?;
///     let other = Process::spawn(arrive, (barrier.clone(),))?;
///     let mine = barrier.wait_with(|| println!("all are here"))?;
///     assert_eq!(mine + other.join()?, 1); // one came first, one second
///     Ok(())
/// }
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct Barrier(Common<Handed<sync::Barrier>>);

/// The barrier is broken, or was reset while waiting, or the time was up (which breaks it).
///
/// ```
/// use std::time::Duration;
/// use procession::{Barrier, BrokenBarrier};
///
/// let barrier = Barrier::new(2)?;
/// assert_eq!(barrier.wait_timeout(Duration::from_millis(1)), Err(BrokenBarrier));
/// assert_eq!(barrier.wait(), Err(BrokenBarrier)); // until it is reset
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the barrier is broken: a wait timed out, an action failed, or it was aborted or reset")]
pub struct BrokenBarrier;

impl Barrier {
    /// A barrier that so many pass together.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for 0; memory or descriptors are lacking.
    pub fn new(parties: u32) -> io::Result<Self> {
        Ok(Self(Common::new(Handed(sync::Barrier::create(parties)?))))
    }

    /// Waits for the others. Returns the place in the order of arrival: 0 to parties - 1.
    ///
    /// # Errors
    ///
    /// [`BrokenBarrier`].
    pub fn wait(&self) -> Result<u32, BrokenBarrier> {
        self.pass(&mut Wait::forever(), None::<fn()>)
    }

    /// As [`wait`](Self::wait), but so long at most; if the time is up, the barrier is broken for all.
    ///
    /// # Errors
    ///
    /// [`BrokenBarrier`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<u32, BrokenBarrier> {
        self.pass(&mut Wait::timeout(timeout), None::<fn()>)
    }

    /// As [`wait`](Self::wait), but if the caller is the last to arrive, it calls `action` before all pass.
    ///
    /// If the action panics, or its process dies, the barrier is broken.
    ///
    /// # Errors
    ///
    /// [`BrokenBarrier`].
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<u32, BrokenBarrier> {
        self.pass(&mut Wait::forever(), Some(action))
    }

    /// As [`wait_with`](Self::wait_with), but waits so long at most for the others; then the barrier is broken for all.
    ///
    /// # Errors
    ///
    /// [`BrokenBarrier`].
    pub fn wait_timeout_with(&self, timeout: Duration, action: impl FnOnce()) -> Result<u32, BrokenBarrier> {
        self.pass(&mut Wait::timeout(timeout), Some(action))
    }

    fn pass(&self, wait: &mut Wait<'_>, action: Option<impl FnOnce()>) -> Result<u32, BrokenBarrier> {
        match self.0.wait(action.is_some(), wait).map_err(|_| BrokenBarrier)? {
            Passage::Passed(place) => Ok(place),
            Passage::Act(turn) => {
                if let Some(action) = action {
                    // A panic drops the turn, which breaks the barrier.
                    action();
                }
                turn.finish().map_err(|_| BrokenBarrier)
            }
        }
    }

    /// Makes the barrier as new. Who waits gets [`BrokenBarrier`].
    pub fn reset(&self) {
        self.0.reset();
    }

    /// Breaks the barrier until it is reset.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// How many pass together.
    pub fn parties(&self) -> u32 {
        self.0.parties()
    }

    /// How many have arrived and wait for the others, as of now.
    pub fn waiting(&self) -> u32 {
        self.0.waiting()
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.0.is_broken()
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parties, waiting) = (self.parties(), self.waiting());
        let mut debug = f.debug_struct("Barrier");
        debug.field("parties", &parties).field("waiting", &waiting).field("broken", &self.is_broken()).finish()
    }
}
