//! A point that a number of threads and processes pass together.
//!
//! One word, of which the futex sleeps on the low half:
//!
//! | bits  | meaning |
//! |-------|---------|
//! | 0-1   | phase: 0 filling, 1 acting, 2 broken |
//! | 2     | the generation before ended badly: it was reset |
//! | 3-31  | generation |
//! | 32-63 | how many have arrived in this generation |
//!
//! | phase   | who changes it, and to what |
//! |---------|-----------------------------|
//! | filling | who arrives: one more · who is interrupted: one less · the last to arrive: acting, or at once the next generation |
//! |         | whose time is up, abort: broken · reset: the next generation, if anybody has arrived |
//! | acting  | the last to arrive, its action done: the next generation; its action failed: broken |
//! |         | abort: broken · reset: the next generation · a waiter, if the acting process is dead: broken |
//! | broken  | reset: the next generation |
//!
//! Each change is one compare-and-swap, and nobody waits for those who were released to have left: the next generation
//! begins at once. Whoever was waiting in generation g learns from the word how g ended if it is now g + 1, and from the history if it is
//! later. The history is a bit for each of the last generations, which says how it ended. It is written by whoever ends the *next*
//! generation, from the word, so all who try write the same. See `PROTOCOL.md`, scenarios B1 to B4.
//!
//! A process that is killed while it waits has arrived. It blocks nobody, and is forgotten with its generation.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    lock::LockWord,
    wait::{Slices, Wait, WaitError},
};
use crate::{
    kills::point,
    loom::{AtomicU32, AtomicU64, Ordering},
    memory::{Atomics, BlockHandle, Shared},
    process::ProcessId,
    sys::futex,
};

const PHASE: u64 = 3;
const FILLING: u64 = 0;
const ACTING: u64 = 1;
const BROKEN: u64 = 2;
const BADLY: u64 = 4;
const GENERATION_AT: u32 = 3;
const GENERATIONS: u32 = 1 << (32 - GENERATION_AT);
const ARRIVAL: u64 = 1 << 32;

/// How many generations the history goes back. Who wakes up later than that takes its generation for broken.
const HISTORY: u32 = if cfg!(loom) { 64 } else { 1024 };

/// Why somebody did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// The barrier is broken, or was reset while waiting, or the time was up (which breaks it).
    #[error("the barrier is broken")]
    Broken,
    /// A signal ended the wait. The barrier is as if the caller had not arrived.
    #[error("interrupted by a signal")]
    Interrupted,
}

#[derive(Debug)]
#[repr(C)]
struct BarrierState {
    word: AtomicU64,
    /// Set before anybody else sees it, then never again.
    parties: AtomicU32,
    _reserved: AtomicU32,
    /// Held by the process that runs the action, from before the phase is "acting" until after. Who waits looks here
    /// whether that process lives.
    actor: LockWord,
    /// Bit g modulo [`HISTORY`]: generation g ended badly.
    history: [AtomicU64; (HISTORY / 64) as usize],
}

// SAFETY: atomics only. Zeros are a barrier without parties, which nobody passes.
unsafe impl Atomics for BarrierState {}

fn generation(word: u64) -> u32 {
    (word as u32) >> GENERATION_AT
}

impl BarrierState {
    fn load(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    /// Changes the word if it is still `from`.
    fn change(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// [`change`](Self::change) of the phase or the generation, which all who wait have to know.
    fn announce(&self, from: u64, to: u64) -> bool {
        let changed = self.change(from, to);
        if changed {
            point("barrier: passed, nobody woken");
            futex::wake(&self.word, u32::MAX);
        }
        changed
    }

    /// Ends the generation of `word`: passed, or reset (`badly`).
    fn end(&self, word: u64, badly: bool) -> bool {
        let before = (generation(word) + GENERATIONS - 1) % GENERATIONS % HISTORY;
        let (at, bit) = ((before / 64) as usize, 1 << (before % 64));
        if word & BADLY == 0 {
            self.history[at].fetch_and(!bit, Ordering::Relaxed);
        } else {
            self.history[at].fetch_or(bit, Ordering::Relaxed);
        }
        let next = u64::from((generation(word) + 1) % GENERATIONS) << GENERATION_AT;
        self.announce(word, next | FILLING | if badly { BADLY } else { 0 })
    }

    /// Breaks the barrier in the generation of `word`.
    fn break_in(&self, word: u64) -> bool {
        self.announce(word, (u64::from(word as u32) & !PHASE) | BROKEN)
    }

    /// How generation `mine` ended, seen from `word`; `None` if it has not.
    fn outcome(&self, mine: u32, word: u64) -> Option<Result<(), BarrierError>> {
        let later = (generation(word) + GENERATIONS - mine) % GENERATIONS;
        let badly = match later {
            0 if word & PHASE == BROKEN => true,
            0 => return None,
            1 => word & BADLY != 0,
            _ if later < HISTORY => {
                let at = mine % HISTORY;
                self.history[(at / 64) as usize].load(Ordering::Relaxed) & (1 << (at % 64)) != 0
            }
            _ => true,
        };
        Some(if badly { Err(BarrierError::Broken) } else { Ok(()) })
    }

    /// Arrives, and waits for the others unless it is the last.
    fn arrive(&self, acts: bool, wait: &mut Wait<'_>) -> Result<Arrived, BarrierError> {
        let me = ProcessId::current();
        let parties = self.parties.load(Ordering::Relaxed);
        let mut slices = Slices::new();
        loop {
            let word = self.load();
            let index = (word >> 32) as u32;
            match word & PHASE {
                BROKEN => return Err(BarrierError::Broken),
                FILLING if index.saturating_add(1) < parties => {
                    if self.change(word, word.wrapping_add(ARRIVAL)) {
                        return self.wait_for_others(generation(word), wait).map(|()| Arrived { index, acting: None });
                    }
                }
                FILLING if !acts => {
                    if self.end(word, false) {
                        return Ok(Arrived { index, acting: None });
                    }
                }
                FILLING => {
                    // Whoever else is about to act is soon done, or dead.
                    let acquired = self.actor.acquire(me, &mut wait.endless());
                    acquired.map_err(|_| BarrierError::Interrupted).map(drop)?;
                    let acting = word.wrapping_add(ARRIVAL) | ACTING;
                    if self.change(word, acting) {
                        return Ok(Arrived { index, acting: Some(acting) });
                    }
                    let _ = self.actor.release();
                }
                _ => {
                    // One too many for this generation: it waits for the next, having not arrived as yet. It has no say in
                    // this one, so its time does not run either.
                    let slept = wait.endless().park(&self.word, word as u32, slices.next());
                    slept.map_err(|_| BarrierError::Interrupted)?;
                    self.look_for_dead_actor(word);
                }
            }
        }
    }

    fn wait_for_others(&self, mine: u32, wait: &mut Wait<'_>) -> Result<(), BarrierError> {
        let mut slices = Slices::new();
        loop {
            let word = self.load();
            if let Some(outcome) = self.outcome(mine, word) {
                return outcome;
            }
            // The action takes the time it takes: all have arrived.
            let acting = word & PHASE == ACTING;
            let slept = if acting {
                wait.endless().park(&self.word, word as u32, slices.next())
            } else {
                wait.park(&self.word, word as u32, slices.next())
            };
            match slept {
                Ok(()) => self.look_for_dead_actor(word),
                Err(WaitError::TimedOut) => self.time_out(mine),
                Err(WaitError::Interrupted) => {
                    if self.withdraw(mine) {
                        return Err(BarrierError::Interrupted);
                    }
                }
            }
        }
    }

    /// Breaks generation `mine` if it is filling still.
    fn time_out(&self, mine: u32) {
        let word = self.load();
        if generation(word) == mine && word & PHASE == FILLING && !self.break_in(word) {
            // Somebody arrived just then: that may have been the last.
            self.time_out(mine);
        }
    }

    /// Takes back an arrival. False if the generation is over, and how it ended is to be told.
    fn withdraw(&self, mine: u32) -> bool {
        loop {
            let word = self.load();
            if self.outcome(mine, word).is_some() {
                return false;
            }
            if word & PHASE == ACTING || word < ARRIVAL || self.change(word, word - ARRIVAL) {
                return true;
            }
        }
    }

    /// Breaks the barrier if `word`, in which somebody acts, is still there but that process is not.
    fn look_for_dead_actor(&self, word: u64) {
        if word & PHASE == ACTING && self.load() == word && !self.actor.owner().is_some_and(ProcessId::is_alive) {
            self.break_in(word);
        }
    }

    fn reset(&self) {
        loop {
            let word = self.load();
            if word & PHASE == FILLING && word < ARRIVAL || self.end(word, true) {
                return;
            }
        }
    }

    fn abort(&self) {
        loop {
            let word = self.load();
            if word & PHASE == BROKEN || self.break_in(word) {
                return;
            }
        }
    }
}

/// What [`BarrierState::arrive`] tells: the place in the order of arrival, and the word if the action is to be run.
#[derive(Debug)]
struct Arrived {
    index: u32,
    acting: Option<u64>,
}

/// A barrier between processes: the standard package's `Barrier`.
///
/// ```
/// use procession_core::sync::{Barrier, Wait};
///
/// let barrier = Barrier::create(2)?;
/// std::thread::scope(|scope| {
///     for _ in 0..2 {
///         scope.spawn(|| barrier.wait(false, &mut Wait::forever()).unwrap());
///     }
/// });
/// assert_eq!(barrier.waiting(), 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Barrier(Shared<BarrierState>);

/// What [`Barrier::wait`] returns: the caller has passed, or is to act and let the others pass.
#[derive(Debug)]
#[must_use]
pub enum Passage<'a> {
    /// Passed, as the one that arrived in this place: 0 to parties - 1.
    Passed(u32),
    /// All have arrived, and wait for the caller to act.
    Act(Turn<'a>),
}

/// The turn of the last to arrive, while all others wait. Dropping it breaks the barrier.
#[derive(Debug)]
pub struct Turn<'a> {
    state: &'a BarrierState,
    index: u32,
    word: u64,
}

impl Turn<'_> {
    /// Lets all pass. Returns the place of the caller in the order of arrival.
    ///
    /// # Errors
    ///
    /// [`BarrierError::Broken`] if the barrier was broken or reset meanwhile.
    pub fn finish(self) -> Result<u32, BarrierError> {
        // What is dropped next finds that there is nothing to break.
        if self.state.end(self.word, false) { Ok(self.index) } else { Err(BarrierError::Broken) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.state.break_in(self.word);
        // Acquired in `arrive`; to release it is the turn's, and only its, business.
        let _ = self.state.actor.release();
    }
}

impl Barrier {
    /// A new barrier that `parties` pass together; at least one.
    ///
    /// # Errors
    ///
    /// As [`Block::allocate`](crate::memory::Block::allocate); [`io::ErrorKind::InvalidInput`] without parties.
    pub fn create(parties: u32) -> io::Result<Self> {
        if parties == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a barrier needs at least one party"));
        }
        let state: Shared<BarrierState> = Shared::create()?;
        state.parties.store(parties, Ordering::Relaxed);
        Ok(Self(state))
    }

    /// What to send to another process along with the descriptor.
    pub fn hand_over(&self) -> BlockHandle {
        self.0.hand_over()
    }

    /// The barrier of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`](crate::memory::Block::attach).
    pub fn attach(handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
        Shared::attach(handle, fd).map(Self)
    }

    /// Arrives and waits for the others. If `acts`, the last to arrive does not pass yet, but is given the turn to act.
    ///
    /// # Errors
    ///
    /// [`BarrierError`]. If the time is up, the barrier is broken for all.
    pub fn wait(&self, acts: bool, wait: &mut Wait<'_>) -> Result<Passage<'_>, BarrierError> {
        let Arrived { index, acting } = self.0.arrive(acts, wait)?;
        Ok(acting.map_or(Passage::Passed(index), |word| Passage::Act(Turn { state: &self.0, index, word })))
    }

    /// Makes the barrier as new. Who waits gets [`BarrierError::Broken`].
    pub fn reset(&self) {
        self.0.reset();
    }

    /// Breaks the barrier until it is reset.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// How many pass together.
    pub fn parties(&self) -> u32 {
        self.0.parties.load(Ordering::Relaxed)
    }

    /// How many have arrived and wait for the others, as of now.
    pub fn waiting(&self) -> u32 {
        (self.0.load() >> 32) as u32
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.0.load() & PHASE == BROKEN
    }
}

impl AsFd for Barrier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
