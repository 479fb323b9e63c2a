//! Waiting: how long, and what a signal does to it.

use std::time::{Duration, Instant};

use crate::sys::futex::{self, FutexWord, Slept};

/// Why a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
    /// A signal arrived, and the [`Wait`] said that it ends the wait.
    #[error("interrupted by a signal")]
    Interrupted,
}

/// How long a call may block, and what happens when a signal arrives meanwhile.
///
/// Everything that blocks in this crate does it through its method `park`, so deadlines and signals are seen to in
/// one place.
pub struct Wait<'a> {
    deadline: Option<Instant>,
    on_signal: Option<&'a mut dyn FnMut() -> bool>,
}

/// A wait never sleeps longer than this in one go, so that a wake that died with its waker is made good.
const LONGEST_SLICE: Duration = Duration::from_millis(500);

impl std::fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wait").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<'a> Wait<'a> {
    /// Without an end.
    pub fn forever() -> Self {
        Self { deadline: None, on_signal: None }
    }

    /// Until a moment.
    pub fn until(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), on_signal: None }
    }

    /// From now for a time; for ever if the end of it can't be represented.
    pub fn timeout(limit: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(limit), on_signal: None }
    }

    /// Has `on_signal` called whenever a signal may have arrived (at times without one). If it returns false, the wait
    /// ends with [`WaitError::Interrupted`], having changed nothing; otherwise it goes on, to the same deadline.
    #[must_use]
    pub fn on_signal(mut self, on_signal: &'a mut dyn FnMut() -> bool) -> Self {
        self.on_signal = Some(on_signal);
        self
    }

    /// A wait without an end that treats signals as this one does.
    pub fn endless(&mut self) -> Wait<'_> {
        // The closure is borrowed anew, for a shorter time.
        let on_signal = self.on_signal.as_mut().map(|on_signal| &mut **on_signal as &mut dyn FnMut() -> bool);
        Wait { deadline: None, on_signal }
    }

    /// A wait that ends at `moment` if not before, and treats signals as this one does.
    pub(crate) fn no_later_than(&mut self, moment: Instant) -> Wait<'_> {
        let deadline = Some(self.deadline.map_or(moment, |deadline| deadline.min(moment)));
        Wait { deadline, ..self.endless() }
    }

    /// The moment it ends, if it does.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The time left, at most `slice`.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] if there is none.
    pub fn remaining(&self, slice: Duration) -> Result<Duration, WaitError> {
        let Some(deadline) = self.deadline else {
            return Ok(slice);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(WaitError::TimedOut) } else { Ok(left.min(slice)) }
    }

    /// To be called when a system call was interrupted, and at the end of each slice.
    ///
    /// # Errors
    ///
    /// [`WaitError::Interrupted`] if the signal ends the wait.
    pub fn signalled(&mut self) -> Result<(), WaitError> {
        let goes_on = self.on_signal.as_mut().is_none_or(|on_signal| on_signal());
        if goes_on { Ok(()) } else { Err(WaitError::Interrupted) }
    }

    /// Sleeps while the futex word is `expected`, for a slice at most. Returns to have the word looked at again: it was
    /// changed, or the slice is over, or nothing happened at all.
    pub(crate) fn park<W: FutexWord>(&mut self, word: &W, expected: u32, slice: Duration) -> Result<(), WaitError> {
        let limit = self.remaining(slice.min(LONGEST_SLICE))?;
        match futex::wait(word, expected, Some(limit)) {
            Slept::Woken => Ok(()),
            Slept::TimedOut | Slept::Interrupted => self.signalled(),
        }
    }
}

/// Slices that grow from a short to a long one: the first look at the owner of a lock comes soon, and a long wait
/// costs next to nothing.
#[derive(Debug)]
pub(crate) struct Slices(Duration);

impl Slices {
    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(20))
    }

    pub(crate) fn next(&mut self) -> Duration {
        let slice = self.0;
        self.0 = (slice * 2).min(LONGEST_SLICE);
        slice
    }
}

/// When somebody who tries without waiting looks whether the holder died: at the first failure, then now and then. A
/// look costs as much as hundreds of tries.
#[derive(Debug, Default)]
pub(crate) struct Looks(std::sync::atomic::AtomicU64);

impl Looks {
    const EVERY_MS: u64 = 20;

    /// Whether a look is due. If so, the next one is due in [`EVERY_MS`](Self::EVERY_MS).
    pub(crate) fn due(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        // Counted from one interval after the start of the clock, so that zero means "never looked".
        let now = now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000 + Self::EVERY_MS;
        let due = now.saturating_sub(self.0.load(Relaxed)) >= Self::EVERY_MS;
        if due {
            self.0.store(now, Relaxed);
        }
        due
    }
}

/// Looks at `done` a bounded number of times before the caller goes to sleep. Not on a single core, where whoever would
/// make it true can't run meanwhile.
///
/// How often depends on what came of it before in this process: a hand-over between two processes that both run takes less
/// than a microsecond, but where more want to run than there are cores, spinning only keeps the other from it.
pub(crate) fn spin(mut done: impl FnMut() -> bool) -> bool {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    const FEWEST: u32 = 4;
    /// Every so often the limit is tried, or a process that learned not to spin would never learn better.
    const PROBE_EVERY: u32 = 64;
    static ROUNDS: AtomicU32 = AtomicU32::new(FEWEST);
    static SPINS: AtomicU32 = AtomicU32::new(0);

    let limit = spin_limit();
    let usual = ROUNDS.load(Relaxed).min(limit);
    let probes = SPINS.fetch_add(1, Relaxed).is_multiple_of(PROBE_EVERY);
    for round in 0..if probes { limit } else { usual } {
        if done() {
            ROUNDS.store(usual.max(round * 2 + FEWEST).min(limit), Relaxed);
            return true;
        }
        for _ in 0..=(round % 8) {
            crate::loom::hint::spin_loop();
        }
    }
    ROUNDS.store((usual / 2).max(FEWEST), Relaxed);
    false
}

/// Whether this process has one core only: looking again and again then keeps from running whoever is waited for.
pub(crate) fn one_core() -> bool {
    spin_limit() == 0
}

#[cfg(loom)]
fn spin_limit() -> u32 {
    0
}

#[cfg(not(loom))]
fn spin_limit() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    const UNKNOWN: u32 = u32::MAX;
    static LIMIT: AtomicU32 = AtomicU32::new(UNKNOWN);
    match LIMIT.load(Ordering::Relaxed) {
        UNKNOWN => {
            // Affinity and cgroup quota are looked at by the standard library.
            let limit = if std::thread::available_parallelism().map_or(1, usize::from) > 1 { 200 } else { 0 };
            LIMIT.store(limit, Ordering::Relaxed);
            limit
        }
        limit => limit,
    }
}
