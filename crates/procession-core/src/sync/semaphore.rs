//! A counting semaphore that gets back what the dead held.
//!
//! The word, changed by compare-and-swap only:
//!
//! | bits  | meaning |
//! |-------|---------|
//! | 0-30  | value: how many permits may be had |
//! | 31    | contended: somebody may be asleep on the low half |
//! | 32-63 | moves: counts the changes of the value, so that a stretch without any can be recognized |
//!
//! | value | contended | state | who changes it, and to what |
//! |-------|-----------|-------|-----------------------------|
//! | v > 0 | no  | permits to be had | acquire: v - 1 · release: v + 1 |
//! | 0     | no  | none left | release: 1 · a waiter: contended |
//! | 0     | yes | none left, sleepers | release: 1, not contended, and one is woken |
//! | v > 0 | yes | a waiter took one and there may be more sleepers | acquire: v - 1 · release: v + 1, not contended, and one is woken |
//!
//! A waiter that takes a permit sets the bit, as it can't know whether others sleep; if it leaves some, it
//! wakes the next. So a release wakes one sleeper only, and only if there may be one. A waiter that dies with a wake in its
//! hands delays the others by a slice at most.
//!
//! **Holders.** A small table beside the word logs how many permits each process has: an acquire is logged *before* the
//! permit is taken, and struck *after* it was given back. So the log never shows less than a process holds, whenever it
//! dies. A waiter whose slice ends without a permit looks for dead processes in the log and gives back
//!
//! ```text
//! initial - value - (what the log shows for the living)
//! ```
//!
//! That is what no living process can hold: at most what the dead held, less for a moment if somebody is about to acquire. It
//! is given back in one compare-and-swap, which fails if there was any move since the value was read. See `PROTOCOL.md`,
//! scenarios S1 to S6.
//!
//! Nothing is given back (for ever) once the log can't be relied on: a process released what it had not acquired, which
//! is how a semaphore is used for signalling (S5), or more processes used it than the table has places (S6).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::AtomicUsize,
    time::Duration,
};

use super::{
    lock::{Acquired, LockWord},
    wait::{Looks, Slices, Wait, WaitError, spin},
};
use crate::{
    kills::point,
    loom::{AtomicU32, AtomicU64, Ordering},
    memory::{Atomics, BlockHandle, Shared},
    process::ProcessId,
    sys::futex,
};

const CONTENDED: u64 = 1 << 31;
const VALUE: u64 = CONTENDED - 1;
const MOVE: u64 = 1 << 32;

/// A process released permits that it had not acquired.
const PASSED_ON: u32 = 1;
/// A process found no place in the table.
const OVERFLOWED: u32 = 2;

/// How many processes the log has places for. A place is reused when its process is dead and owes nothing.
const HOLDERS: usize = if cfg!(loom) { 2 } else { 60 };

/// A release beyond the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("released too many times")]
pub struct AtMaximum;

/// The log's line of one process.
#[derive(Debug, Default)]
#[repr(C)]
struct Holder {
    /// Bits of a [`ProcessId`], 0 if the place was never used.
    process: AtomicU64,
    permits: AtomicU64,
}

impl Holder {
    fn log(&self) {
        self.permits.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells whether there was anything to strike.
    fn strike(&self) -> bool {
        self.permits.fetch_update(Ordering::Release, Ordering::Relaxed, |permits| permits.checked_sub(1)).is_ok()
    }
}

#[derive(Debug)]
#[repr(C)]
struct SemaphoreState {
    word: AtomicU64,
    /// Set before anybody else sees it, then never again.
    initial: AtomicU32,
    maximum: AtomicU32,
    flags: AtomicU32,
    /// Held while a place is assigned and while permits are given back.
    table: LockWord,
    holders: [Holder; HOLDERS],
}

// SAFETY: atomics only; zeros are a semaphore without permits.
unsafe impl Atomics for SemaphoreState {}

impl SemaphoreState {
    fn set_up(&self, initial: u32, maximum: u32) {
        self.initial.store(initial, Ordering::Relaxed);
        self.maximum.store(maximum, Ordering::Relaxed);
        self.word.store(u64::from(initial), Ordering::Release);
    }

    fn value(&self) -> u32 {
        (self.word.load(Ordering::Relaxed) & VALUE) as u32
    }

    /// Takes a permit if there is one; `contended` is set in the word along with it. Tells how many are left.
    #[inline]
    fn take(&self, contended: u64) -> Option<u64> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & VALUE != 0 {
            let taken = (word.wrapping_add(MOVE) - 1) | contended;
            // Releases the log too: who sees the word without this permit sees the permit in the log.
            match self.word.compare_exchange_weak(word, taken, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(taken & VALUE),
                Err(now) => word = now,
            }
        }
        None
    }

    #[inline]
    fn take_logged(&self, me: ProcessId, hint: &AtomicUsize, contended: u64) -> Option<u64> {
        if self.value() == 0 {
            return None;
        }
        let holder = self.holder(me, hint);
        if let Some(holder) = holder {
            holder.log();
            point("semaphore: logged, no permit taken");
        }
        let left = self.take(contended);
        point("semaphore: a permit taken, nobody told");
        if let (None, Some(holder)) = (left, holder) {
            holder.strike();
        }
        left
    }

    fn acquire(&self, me: ProcessId, hint: &AtomicUsize, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        if self.take_logged(me, hint, 0).is_some() {
            return Ok(Acquired::Held);
        }
        if spin(|| self.value() != 0 && self.take_logged(me, hint, 0).is_some()) {
            return Ok(Acquired::Held);
        }
        let mut slices = Slices::new();
        let mut recovered = None;
        loop {
            if let Some(left) = self.take_logged(me, hint, CONTENDED) {
                if left != 0 {
                    futex::wake(&self.word, 1);
                }
                return Ok(recovered.map_or(Acquired::Held, Acquired::Recovered));
            }
            let word = self.word.load(Ordering::Relaxed);
            if word & VALUE != 0 {
                continue;
            }
            if word & CONTENDED == 0
                && self.word.compare_exchange(word, word | CONTENDED, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            point("semaphore: marked as contended, not asleep");
            let slept = wait.park(&self.word, CONTENDED as u32, slices.next());
            // Also when the time is up: the dead are found however short the wait.
            if slept != Err(WaitError::Interrupted)
                && self.value() == 0
                && let Some(dead) = self.recover(me)
            {
                recovered = Some(dead);
                continue;
            }
            slept?;
        }
    }

    #[inline]
    fn release(&self, me: ProcessId, hint: &AtomicUsize) -> Result<(), AtMaximum> {
        let maximum = u64::from(self.maximum.load(Ordering::Relaxed));
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & VALUE >= maximum {
                return Err(AtMaximum);
            }
            let released = (word.wrapping_add(MOVE) + 1) & !CONTENDED;
            match self.word.compare_exchange_weak(word, released, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        point("semaphore: a permit given back, nobody woken");
        if word & CONTENDED != 0 {
            futex::wake(&self.word, 1);
        }
        point("semaphore: a permit given back, still in the log");
        if self.flags.load(Ordering::Relaxed) == 0 && !self.place(me, hint).is_some_and(Holder::strike) {
            self.flags.fetch_or(PASSED_ON, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The line of a process that has one. `hint` is where it was found before; a forked child finds its parent there, and
    /// looks for itself.
    #[inline]
    fn place(&self, me: ProcessId, hint: &AtomicUsize) -> Option<&Holder> {
        match self.holders.get(hint.load(Ordering::Relaxed)) {
            Some(holder) if holder.process.load(Ordering::Relaxed) == me.to_bits() => Some(holder),
            _ => self.find(me, hint),
        }
    }

    #[cold]
    fn find(&self, me: ProcessId, hint: &AtomicUsize) -> Option<&Holder> {
        let at = self.holders.iter().position(|holder| holder.process.load(Ordering::Relaxed) == me.to_bits())?;
        hint.store(at, Ordering::Relaxed);
        self.holders.get(at)
    }

    /// The line to log an acquire in, assigned to the process at its first one; `None` if there is no log any more, or for
    /// a semaphore that began without permits, of which nothing is ever given back.
    #[inline]
    fn holder(&self, me: ProcessId, hint: &AtomicUsize) -> Option<&Holder> {
        if self.flags.load(Ordering::Relaxed) != 0 || self.initial.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.place(me, hint).or_else(|| self.assign(me, hint))
    }

    #[cold]
    fn assign(&self, me: ProcessId, hint: &AtomicUsize) -> Option<&Holder> {
        self.table.with(|| {
            // Another thread of this process may have been faster.
            if let Some(holder) = self.find(me, hint) {
                return Some(holder);
            }
            // While all permits are there, nobody has one: what the lines of the dead say is left over (S2, S3).
            let none_out = self.value() >= self.initial.load(Ordering::Relaxed);
            let free = |holder: &&Holder| {
                let process = ProcessId::from_bits(holder.process.load(Ordering::Relaxed));
                (none_out || holder.permits.load(Ordering::Relaxed) == 0)
                    && process.is_none_or(|process| !process.is_alive())
            };
            if let Some(holder) = self.holders.iter().find(free) {
                holder.permits.store(0, Ordering::Relaxed);
                holder.process.store(me.to_bits(), Ordering::Release);
            } else {
                self.flags.fetch_or(OVERFLOWED, Ordering::Relaxed);
            }
            self.find(me, hint)
        })
    }

    /// Gives back what dead processes held, and names one of them; `None` if there was nothing.
    #[cold]
    fn recover(&self, me: ProcessId) -> Option<ProcessId> {
        let indebted = |holder: &&Holder| holder.permits.load(Ordering::Relaxed) != 0;
        let is_dead = |holder: &Holder| {
            let process = ProcessId::from_bits(holder.process.load(Ordering::Relaxed));
            process.filter(|process| !process.is_alive())
        };
        if self.flags.load(Ordering::Relaxed) != 0
            || !self.holders.iter().filter(indebted).any(|h| is_dead(h).is_some())
        {
            return None;
        }
        // Somebody else is at it, or assigns a place: the next slice will do.
        let _ = self.table.acquire(me, &mut Wait::timeout(Duration::ZERO)).ok()?;
        let dead: Vec<_> = self.holders.iter().filter(indebted).filter_map(|h| Some((h, is_dead(h)?))).collect();
        let given_back = self.give_back(&dead.iter().map(|(holder, _)| *holder).collect::<Vec<_>>());
        // Dying here leaves the dead with lines that say too much. That does no harm: what is given back is
        // reckoned from the others' lines.
        let mut to_strike = given_back;
        for (holder, _) in &dead {
            while to_strike != 0 && holder.strike() {
                to_strike -= 1;
            }
        }
        let _ = self.table.release();
        dead.first().filter(|_| given_back != 0).map(|(_, process)| *process)
    }

    /// Adds to the value what neither the living nor the value account for. Tells how much that was.
    fn give_back(&self, dead: &[&Holder]) -> u64 {
        let initial = u64::from(self.initial.load(Ordering::Relaxed));
        loop {
            let word = self.word.load(Ordering::Acquire);
            let is_dead = |holder: &Holder| dead.iter().any(|one| std::ptr::eq(*one, holder));
            // Acquire: a line that was struck shows that the word has moved.
            let permits = |holder: &Holder| holder.permits.load(Ordering::Acquire);
            let (of_dead, of_living): (Vec<&Holder>, Vec<&Holder>) = self.holders.iter().partition(|h| is_dead(h));
            let living = of_living.into_iter().map(permits).fold(0, u64::saturating_add);
            let owed = of_dead.into_iter().map(permits).fold(0, u64::saturating_add);
            let out = initial.saturating_sub(word & VALUE).saturating_sub(living).min(owed);
            if out == 0 || self.flags.load(Ordering::Relaxed) != 0 {
                return 0;
            }
            let more = (word.wrapping_add(MOVE) + out) & !CONTENDED;
            if self.word.compare_exchange(word, more, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                if word & CONTENDED != 0 {
                    // Whoever is woken and leaves some wakes the next.
                    futex::wake(&self.word, 1);
                }
                return out;
            }
        }
    }
}

/// A semaphore between processes: the standard package's `Semaphore`, and with a maximum its `BoundedSemaphore`.
///
/// Any process or thread may release it, whoever acquired. As long as each process releases only what it acquired
/// itself, the permits of a dead process are given back ([`Acquired::Recovered`]). The first release by a process
/// that had not acquired makes it a means of signalling: then the dead keep what they took.
///
/// ```
/// use procession_core::sync::{Semaphore, Wait};
///
/// let semaphore = Semaphore::create(2, Semaphore::MAXIMUM)?;
/// assert!(semaphore.try_acquire() && semaphore.try_acquire());
/// assert!(!semaphore.try_acquire());
/// semaphore.release().unwrap();
/// assert_eq!(semaphore.value(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Semaphore {
    state: Shared<SemaphoreState>,
    /// Where this process' line in the log was found.
    hint: AtomicUsize,
    looks: Looks,
}

impl Semaphore {
    /// The largest value.
    pub const MAXIMUM: u32 = VALUE as u32;

    /// A new semaphore with `initial` permits, to be released up to `maximum`. Both are at most [`MAXIMUM`](Self::MAXIMUM).
    ///
    /// # Errors
    ///
    /// As [`Block::allocate`](crate::memory::Block::allocate); [`io::ErrorKind::InvalidInput`] if `initial` is more than
    /// `maximum`, or `maximum` more than [`MAXIMUM`](Self::MAXIMUM).
    pub fn create(initial: u32, maximum: u32) -> io::Result<Self> {
        if initial > maximum || maximum > Self::MAXIMUM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the value of a semaphore is out of range"));
        }
        let state: Shared<SemaphoreState> = Shared::create()?;
        state.set_up(initial, maximum);
        Ok(Self::over(state))
    }

    /// What to send to another process along with the descriptor.
    pub fn hand_over(&self) -> BlockHandle {
        self.state.hand_over()
    }

    /// The semaphore of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`](crate::memory::Block::attach).
    pub fn attach(handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::over(Shared::attach(handle, fd)?))
    }

    fn over(state: Shared<SemaphoreState>) -> Self {
        Self { state, hint: AtomicUsize::new(0), looks: Looks::default() }
    }

    /// Acquires a permit if there is one. Never blocks, and does not look whether holders died.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.state.take_logged(ProcessId::current(), &self.hint, 0).is_some()
    }

    /// As [`try_acquire`](Self::try_acquire), but looks now and then whether holders died.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] if there is no permit.
    pub fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError> {
        if self.try_acquire() {
            Ok(Acquired::Held)
        } else if self.looks.due() {
            self.acquire(&mut Wait::timeout(Duration::ZERO))
        } else {
            Err(WaitError::TimedOut)
        }
    }

    /// Acquires a permit, waiting for one.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the wait ended without one.
    pub fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        self.state.acquire(ProcessId::current(), &self.hint, wait)
    }

    /// Releases a permit, acquired by the caller or not.
    ///
    /// # Errors
    ///
    /// [`AtMaximum`] if the value is the maximum.
    #[inline]
    pub fn release(&self) -> Result<(), AtMaximum> {
        self.state.release(ProcessId::current(), &self.hint)
    }

    /// How many permits may be had, as of now.
    pub fn value(&self) -> u32 {
        self.state.value()
    }

    /// The value it is not released beyond.
    pub fn maximum(&self) -> u32 {
        self.state.maximum.load(Ordering::Relaxed)
    }

    /// How many permits this process acquired and has not released, as far as that is known: 0 where there is no log.
    pub fn held(&self) -> u64 {
        let place = self.state.place(ProcessId::current(), &self.hint);
        place.map_or(0, |holder| holder.permits.load(Ordering::Relaxed))
    }
}

impl AsFd for Semaphore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
