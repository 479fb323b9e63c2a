//! A condition variable: waiting, with a lock given up, for others to say that something changed.
//!
//! Each waiter has a slot of its own: the process it is of, and a word that it sleeps on. Whoever notifies picks the slots
//! that have waited longest, and wakes just those. Nobody ever waits for a waiter to answer.
//!
//! | word, bits | meaning |
//! |------------|---------|
//! | 0-1        | 0 free, 1 waiting, 2 notified |
//! | 2-63       | waiting: the ticket of the waiter · notified: the next ticket at that moment |
//!
//! | word     | state | who changes it, and to what |
//! |----------|-------|-----------------------------|
//! | free     | no one's | a waiter, holding the lock: its process, then waiting |
//! | waiting  | asleep, or about to be | notify: notified · its waiter, when the time is up: free · notify, if its process is dead: free |
//! | notified | woken, or about to look | its waiter: free · another waiter, if its process is dead: free |
//!
//! Each change is one compare-and-swap, so a waiter whose time is up has either been notified (and says so) or can't be any
//! more: no notification goes to somebody who does not take it. A wake that finds nobody asleep is the occasion to look whether the
//! waiter's process is alive; if not, the notification goes to the next one. A process that dies after it was woken
//! leaves a notified slot, which any waiter that was there at the time takes over when its slice ends. See `PROTOCOL.md`,
//! scenarios C1 to C5.
//!
//! Waiters beyond the number of slots share one word, and are woken all together by a notification that finds fewer waiters in
//! slots than it is for (C6).
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    lock::{Acquired, Lock, NotHeld},
    rlock::RLock,
    wait::{Slices, Wait, WaitError},
};
use crate::{
    kills::point,
    loom::{AtomicU32, AtomicU64, Ordering},
    memory::{Atomics, BlockHandle, Shared},
    process::ProcessId,
    sys::futex,
};

const STATE: u64 = 3;
const FREE: u64 = 0;
const WAITING: u64 = 1;
const NOTIFIED: u64 = 2;
const TICKET: u64 = 4;

/// One waiter without a slot.
const ONE_MORE: u64 = 1 << 32;

/// How many waiters have a slot.
const SLOTS: usize = if cfg!(loom) { 2 } else { 124 };

#[derive(Debug, Default)]
#[repr(C)]
struct Slot {
    /// Bits of a [`ProcessId`]; of no meaning while the slot is free.
    process: AtomicU64,
    word: AtomicU64,
}

impl Slot {
    fn is_of_the_dead(&self) -> bool {
        ProcessId::from_bits(self.process.load(Ordering::Relaxed)).is_some_and(|process| !process.is_alive())
    }

    /// Notifies one waiter. False if there is nobody: the time was up, or the process is dead.
    fn notify(&self, word: u64, now: u64) -> bool {
        let notified = now | NOTIFIED;
        if self.word.compare_exchange(word, notified, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        point("condition: notified, nobody woken");
        // Nobody asleep there: between two slices, or dead. If another took it over meanwhile, it was of use.
        futex::wake(&self.word, 1) != 0 || !self.is_of_the_dead() || !self.free(notified)
    }

    /// Frees the slot if its word is `word`. Tells whether it was.
    fn free(&self, word: u64) -> bool {
        self.word.compare_exchange(word, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[derive(Debug)]
#[repr(C)]
struct ConditionState {
    /// The ticket of the next waiter. Changed with the lock held.
    next: AtomicU64,
    /// Slots beyond this number were never used, or not for long. Changed with the lock held.
    used: AtomicU32,
    _reserved: AtomicU32,
    /// Low half: how many times the crowd was woken, which it sleeps on. High half: how many wait without a slot.
    crowd: AtomicU64,
    slots: [Slot; SLOTS],
}

// SAFETY: atomics only; zeros are a condition that nobody waits for.
unsafe impl Atomics for ConditionState {}

/// What a waiter waits at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A slot and the word that was put there.
    Slot(usize, u64),
    /// Among those without one, after so many calls.
    Crowd(u32),
}

impl ConditionState {
    /// Takes a place. The caller holds the lock.
    fn enter(&self, me: ProcessId) -> Place {
        let ticket = self.next.load(Ordering::Relaxed);
        self.next.store(ticket.wrapping_add(TICKET), Ordering::Relaxed);
        let word = (ticket & !STATE) | WAITING;
        let Some(at) = self.free_slot() else {
            return Place::Crowd(self.crowd.fetch_add(ONE_MORE, Ordering::Relaxed) as u32);
        };
        if at >= self.used() {
            self.used.store(at as u32 + 1, Ordering::Relaxed);
        }
        self.slots[at].process.store(me.to_bits(), Ordering::Relaxed);
        self.slots[at].word.store(word, Ordering::Release);
        point("condition: a place taken, the lock still held");
        Place::Slot(at, word)
    }

    fn used(&self) -> usize {
        (self.used.load(Ordering::Relaxed) as usize).min(SLOTS)
    }

    fn free_slot(&self) -> Option<usize> {
        let is_free = |slot: &Slot| slot.word.load(Ordering::Acquire) & STATE == FREE;
        self.slots.iter().position(is_free).or_else(|| {
            // Those of the dead that nobody had reason to look at. A notification in one of them is old by now.
            self.slots.iter().position(Slot::is_of_the_dead)
        })
    }

    /// Sleeps until notified, and leaves the place. The caller does not hold the lock.
    fn sleep(&self, place: Place, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        match place {
            Place::Slot(at, word) => self.sleep_in_slot(&self.slots[at], word, wait),
            Place::Crowd(calls) => self.sleep_in_crowd(calls, wait),
        }
    }

    fn sleep_in_slot(&self, slot: &Slot, mine: u64, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let mut slices = Slices::new();
        loop {
            let word = slot.word.load(Ordering::Acquire);
            if word != mine {
                slot.free(word);
                return Ok(());
            }
            let slept = wait.park(&slot.word, mine as u32, slices.next());
            if slept != Err(WaitError::Interrupted) && slot.word.load(Ordering::Relaxed) == mine && self.inherit(mine) {
                if !slot.free(mine) {
                    // Notified itself at the same moment: one of the two is for somebody else.
                    self.pass_on(slot);
                }
                return Ok(());
            }
            match slept {
                Err(error) if slot.free(mine) => return Err(error),
                // Notified at the same moment, but the caller will not see it.
                Err(WaitError::Interrupted) => {
                    self.pass_on(slot);
                    return slept;
                }
                _ => {}
            }
        }
    }

    /// Leaves a slot that was notified, and notifies another waiter instead.
    fn pass_on(&self, slot: &Slot) {
        slot.free(slot.word.load(Ordering::Acquire));
        self.notify(1);
    }

    /// Leaves a place without having slept.
    fn leave(&self, place: Place) {
        match place {
            Place::Slot(at, word) => drop(self.slots[at].free(word)),
            Place::Crowd(calls) => drop(self.leave_crowd(calls)),
        }
    }

    /// Takes over the notification of a process that died before it could act on it. Only one that was meant for
    /// somebody waiting when the caller did already.
    fn inherit(&self, mine: u64) -> bool {
        self.slots[..self.used()].iter().any(|slot| {
            let word = slot.word.load(Ordering::Acquire);
            word & STATE == NOTIFIED && word & !STATE > mine & !STATE && slot.is_of_the_dead() && slot.free(word)
        })
    }

    fn sleep_in_crowd(&self, calls: u32, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let mut slices = Slices::new();
        while self.crowd.load(Ordering::Acquire) as u32 == calls {
            if let Err(error) = wait.park(&self.crowd, calls, slices.next())
                && self.leave_crowd(calls)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Counts one less, unless the crowd was woken meanwhile.
    fn leave_crowd(&self, calls: u32) -> bool {
        let left = |crowd: u64| (crowd as u32 == calls).then(|| crowd.checked_sub(ONE_MORE)).flatten();
        self.crowd.fetch_update(Ordering::AcqRel, Ordering::Acquire, left).is_ok()
    }

    /// Notifies up to `count` waiters, those who have waited longest. The caller holds the lock (or makes up for a
    /// notification that went to a waiter twice). Tells how many it found.
    fn notify(&self, count: usize) -> usize {
        let now = self.next.load(Ordering::Relaxed) & !STATE;
        let mut notified = 0;
        if count == 1 {
            // The usual case needs no list.
            while notified == 0 {
                let Some((word, at)) = self.waiting().min() else { break };
                notified += usize::from(self.slots[at].notify(word, now));
            }
        } else {
            let mut waiting: Vec<_> = self.waiting().collect();
            waiting.sort_unstable();
            for (word, at) in waiting {
                if notified == count {
                    break;
                }
                notified += usize::from(self.slots[at].notify(word, now));
            }
        }
        let crowd = self.crowd.load(Ordering::Relaxed);
        if notified < count && crowd >= ONE_MORE {
            // The count starts anew with the next call.
            let called = |crowd: u64| Some(u64::from((crowd as u32).wrapping_add(1)));
            let crowd =
                self.crowd.fetch_update(Ordering::AcqRel, Ordering::Relaxed, called).unwrap_or_else(|crowd| crowd);
            notified += (crowd / ONE_MORE) as usize;
            futex::wake(&self.crowd, u32::MAX);
        }
        notified
    }

    /// The words of those who wait, with the places of their slots.
    fn waiting(&self) -> impl Iterator<Item = (u64, usize)> {
        let words = self.slots[..self.used()].iter().enumerate();
        words.map(|(at, slot)| (slot.word.load(Ordering::Relaxed), at)).filter(|(word, _)| word & STATE == WAITING)
    }

    fn count(&self) -> usize {
        self.waiting().count() + (self.crowd.load(Ordering::Relaxed) / ONE_MORE) as usize
    }
}

/// A lock that a wait can give up and get back.
pub trait Monitor: Sync {
    /// Whether the calling thread holds it.
    fn is_mine(&self) -> bool;
    /// Gives it up altogether; tells how deep it was held.
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if the calling thread does not hold it.
    fn give_up(&self) -> Result<u32, NotHeld>;
    /// Gets it back, as deep as it was.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the wait ended without the lock.
    fn get_back(&self, depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError>;
}

impl Monitor for Lock {
    fn is_mine(&self) -> bool {
        self.is_mine()
    }

    fn give_up(&self) -> Result<u32, NotHeld> {
        self.release().map(|()| 1)
    }

    fn get_back(&self, _depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        self.acquire(wait)
    }
}

impl Monitor for RLock {
    fn is_mine(&self) -> bool {
        self.is_mine()
    }

    fn give_up(&self) -> Result<u32, NotHeld> {
        self.release_all().map_err(|_| NotHeld)
    }

    fn get_back(&self, depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        self.acquire_to(depth, wait)
    }
}

/// How a wait for a condition ended, with the lock held again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// `Ok` if notified.
    pub outcome: Result<(), WaitError>,
    /// How the lock was got back.
    pub lock: Acquired,
}

/// Why there was no wait, or why it ended without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// The calling thread does not hold the lock.
    #[error("the lock of the condition is not held by the calling thread")]
    NotHeld,
    /// A signal ended the wait for the lock itself, which is not held now.
    #[error(transparent)]
    LockNotRegained(#[from] WaitError),
}

/// A condition variable between processes: the standard package's `Condition`, without the lock, which is passed to each call.
/// All calls on one condition must be with the same lock.
#[derive(Debug)]
pub struct Condition(Shared<ConditionState>);

impl Condition {
    /// A new condition.
    ///
    /// # Errors
    ///
    /// As [`Block::allocate`](crate::memory::Block::allocate).
    pub fn create() -> io::Result<Self> {
        Shared::create().map(Self)
    }

    /// What to send to another process along with the descriptor.
    pub fn hand_over(&self) -> BlockHandle {
        self.0.hand_over()
    }

    /// The condition of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`](crate::memory::Block::attach).
    pub fn attach(handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
        Shared::attach(handle, fd).map(Self)
    }

    /// Gives up the lock, waits to be notified, and gets the lock back, however long that takes. A signal that ends the
    /// wait still lets it wait for the lock; one more ends that too.
    ///
    /// # Errors
    ///
    /// [`ConditionError`].
    pub fn wait(&self, lock: &impl Monitor, wait: &mut Wait<'_>) -> Result<Waited, ConditionError> {
        if !lock.is_mine() {
            return Err(ConditionError::NotHeld);
        }
        let place = self.0.enter(ProcessId::current());
        let Ok(depth) = lock.give_up() else {
            self.0.leave(place);
            return Err(ConditionError::NotHeld);
        };
        point("condition: the lock given up, not asleep");
        let outcome = self.0.sleep(place, wait);
        point("condition: woken, without the lock");
        let lock = lock.get_back(depth, &mut wait.endless())?;
        Ok(Waited { outcome, lock })
    }

    /// Wakes up to `count` waiters and tells how many. Never blocks.
    ///
    /// # Errors
    ///
    /// [`ConditionError::NotHeld`] if the calling thread does not hold the lock.
    pub fn notify(&self, lock: &impl Monitor, count: usize) -> Result<usize, ConditionError> {
        if lock.is_mine() { Ok(self.0.notify(count)) } else { Err(ConditionError::NotHeld) }
    }

    /// How many wait, as of now. Some of them may be dead.
    pub fn waiters(&self) -> usize {
        self.0.count()
    }
}

impl AsFd for Condition {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
