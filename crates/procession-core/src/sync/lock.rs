//! The lock word: a mutual exclusion lock that names its owner and outlives it.
//!
//! The algorithm is the three-state futex mutex of Ulrich Drepper, "Futexes Are Tricky" (2011), section 6, with the
//! owner's identity in place of the state "taken". The word:
//!
//! | bits  | meaning |
//! |-------|---------|
//! | 0-30  | pid of the owner, 0 if free |
//! | 31    | contended: somebody may be asleep on the word |
//! | 32-63 | start time of the owner (see [`ProcessId`]) |
//!
//! | word             | state | who changes it, and to what |
//! |------------------|-------|-----------------------------|
//! | 0                | free  | acquire: owner |
//! | owner            | held, nobody sleeps | release: 0 · a waiter: owner + contended |
//! | owner, contended | held, sleepers | release: 0, and one is woken · after the owner's death, a waiter: itself + contended |
//!
//! The futex compares the low half, which holds the pid and the contended bit; a word changes hands only with its pid.
//!
//! A release by another process than the owner is allowed, as with the standard package's `Lock`. A waiter that was
//! woken and dies before it takes the lock loses the wake: the others sleep in slices and find the word free.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::wait::{Looks, Slices, Wait, WaitError, spin};
use crate::{
    kills::point,
    loom::{AtomicU64, Ordering},
    memory::{Atomics, BlockHandle, Shared},
    process::{ProcessId, thread_id},
    sys::futex,
};

const CONTENDED: u64 = 1 << 31;

/// How a lock was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Acquired {
    /// It was free, or became so.
    Held,
    /// Its owner died holding it: what the lock protects may be half-changed.
    Recovered(ProcessId),
}

/// A release of what nobody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("released too many times")]
pub struct NotHeld;

/// A lock in one word of shared memory. All zeros is a free lock.
///
/// Acquiring and releasing an uncontended one makes no system call. It is not reentrant: a process that acquires what
/// it holds waits for another thread, or another process, to release it.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct LockWord(AtomicU64);

impl LockWord {
    /// A free lock.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acquires the lock if it is free. Never blocks. A lock left by a dead process is not free: looking whether its
    /// owner lives is for those who wait.
    #[inline]
    pub fn try_acquire(&self, me: ProcessId) -> bool {
        self.0.compare_exchange(0, me.to_bits(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Acquires the lock, waiting while another holds it; takes it over if that process is dead.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the deadline passed or a signal ended the wait; the lock is then not held. A deadline that has
    /// already passed still finds out whether the owner is dead.
    #[inline]
    pub fn acquire(&self, me: ProcessId, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        if self.try_acquire(me) { Ok(Acquired::Held) } else { self.acquire_contended(me, wait) }
    }

    #[cold]
    fn acquire_contended(&self, me: ProcessId, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        if spin(|| self.0.load(Ordering::Relaxed) == 0 && self.try_acquire(me)) {
            return Ok(Acquired::Held);
        }
        let mine = me.to_bits() | CONTENDED;
        let mut slices = Slices::new();
        loop {
            let word = self.0.load(Ordering::Relaxed);
            let Some(owner) = ProcessId::from_bits(word & !CONTENDED) else {
                // Others may be asleep: who slept, or might have, takes the word with the bit set.
                if self.0.compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Ok(Acquired::Held);
                }
                continue;
            };
            if word & CONTENDED == 0
                && self.0.compare_exchange(word, word | CONTENDED, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            let slept = wait.park(&self.0, (word | CONTENDED) as u32, slices.next());
            // The owner is looked at when a slice ended with the lock in its hands still; also when the time is up, so
            // that a dead owner's lock is found however short the wait.
            if slept != Err(WaitError::Interrupted)
                && self.0.load(Ordering::Relaxed) == word | CONTENDED
                && !owner.is_alive()
                && self.0.compare_exchange(word | CONTENDED, mine, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return Ok(Acquired::Recovered(owner));
            }
            slept?;
        }
    }

    /// Releases the lock, whoever holds it.
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if nobody does; nothing has changed then.
    #[inline]
    pub fn release(&self) -> Result<(), NotHeld> {
        let word = self.0.swap(0, Ordering::Release);
        if word == 0 {
            return Err(NotHeld);
        }
        point("lock: free, nobody woken");
        if word & CONTENDED != 0 {
            futex::wake(&self.0, 1);
        }
        Ok(())
    }

    /// The process that holds the lock, as of now. It may be dead.
    pub fn owner(&self) -> Option<ProcessId> {
        ProcessId::from_bits(self.0.load(Ordering::Relaxed) & !CONTENDED)
    }

    /// Frees the lock if the dead process `owner` holds it, so that nobody has to find out by waiting. Tells whether
    /// it did. For those who learn of the death by other means: the parent, mostly.
    pub fn release_dead(&self, owner: ProcessId) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        if word & !CONTENDED != owner.to_bits() || owner.is_alive() {
            return false;
        }
        let freed = self.0.compare_exchange(word, 0, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if freed {
            futex::wake(&self.0, 1);
        }
        freed
    }

    /// Runs `critical` while holding the lock, for the short critical sections of structures that any process may die in
    /// the midst of: their state has to be right at each moment. Blocks for as long as the lock is held by the living.
    pub fn with<R>(&self, critical: impl FnOnce() -> R) -> R {
        /// Releases also when `critical` panics.
        struct Release<'a>(&'a LockWord);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                // Held since the line below the struct; another process may only have taken it for dead in error.
                let _ = self.0.release();
            }
        }
        let me = ProcessId::current();
        while self.acquire(me, &mut Wait::timeout(Duration::from_secs(60))).is_err() {}
        let _held = Release(self);
        critical()
    }
}

/// What a [`Lock`] is in shared memory.
#[derive(Debug, Default)]
#[repr(C)]
struct LockState {
    word: LockWord,
    /// [`thread_id`] of the holder, 0 if free. Only for those who ask whose it is: it is set after the word, and cleared
    /// before.
    thread: AtomicU64,
}

// SAFETY: words that are atomics; zeros are a free lock.
unsafe impl Atomics for LockState {}

/// A mutual exclusion lock between processes and threads: the standard package's `Lock`.
///
/// Not reentrant. Whoever holds it, any process or thread may release it. If the holder's process dies, the next to acquire
/// it takes it over ([`Acquired::Recovered`]).
///
/// ```
/// use procession_core::sync::{Acquired, Lock, Wait};
///
/// let lock = Lock::create()?;
/// assert_eq!(lock.acquire(&mut Wait::forever()), Ok(Acquired::Held));
/// assert!(lock.is_mine());
/// lock.release().unwrap();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Lock {
    state: Shared<LockState>,
    looks: Looks,
}

impl Lock {
    /// A new lock, free.
    ///
    /// # Errors
    ///
    /// As [`Block::allocate`](crate::memory::Block::allocate).
    pub fn create() -> io::Result<Self> {
        Ok(Self { state: Shared::create()?, looks: Looks::default() })
    }

    /// What to send to another process along with the descriptor.
    pub fn hand_over(&self) -> BlockHandle {
        self.state.hand_over()
    }

    /// The lock of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`](crate::memory::Block::attach).
    pub fn attach(handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { state: Shared::attach(handle, fd)?, looks: Looks::default() })
    }

    /// Acquires the lock if it is free. Never blocks, and does not look whether a holder died.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        let me = ProcessId::current();
        let acquired = self.state.word.try_acquire(me);
        if acquired {
            self.state.thread.store(thread_id(me), Ordering::Relaxed);
        }
        acquired
    }

    /// Acquires the lock if it is free or its holder is found to be dead. Never blocks. Looks at the holder at the first
    /// failure and then at most every few milliseconds.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] if it is held.
    pub fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError> {
        if self.try_acquire() {
            Ok(Acquired::Held)
        } else if self.looks.due() {
            self.acquire(&mut Wait::timeout(Duration::ZERO))
        } else {
            Err(WaitError::TimedOut)
        }
    }

    /// Acquires the lock, waiting while another holds it.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the wait ended without the lock.
    #[inline]
    pub fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        let me = ProcessId::current();
        let acquired = self.state.word.acquire(me, wait)?;
        self.state.thread.store(thread_id(me), Ordering::Relaxed);
        Ok(acquired)
    }

    /// Releases the lock, whoever holds it.
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if nobody does.
    #[inline]
    pub fn release(&self) -> Result<(), NotHeld> {
        if self.state.word.owner().is_none() {
            return Err(NotHeld);
        }
        self.state.thread.store(0, Ordering::Relaxed);
        self.state.word.release()
    }

    /// The process that holds the lock, as of now. It may be dead.
    pub fn owner(&self) -> Option<ProcessId> {
        self.state.word.owner()
    }

    /// Whether the calling thread acquired it.
    pub fn is_mine(&self) -> bool {
        let me = ProcessId::current();
        self.owner() == Some(me) && self.state.thread.load(Ordering::Relaxed) == thread_id(me)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU64 as Plain, Ordering::Relaxed};

    use super::*;

    fn me() -> ProcessId {
        ProcessId::current()
    }

    fn dead_process() -> ProcessId {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of_pid(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        id
    }

    #[test]
    fn a_free_lock_is_acquired_once() {
        let lock = LockWord::new();
        assert_eq!(lock.acquire(me(), &mut Wait::forever()), Ok(Acquired::Held));
        assert_eq!(lock.owner(), Some(me()));
        assert!(!lock.try_acquire(me()));
        assert_eq!(lock.acquire(me(), &mut Wait::timeout(Duration::from_millis(1))), Err(WaitError::TimedOut));
        assert_eq!(lock.release(), Ok(()));
        assert_eq!(lock.release(), Err(NotHeld));
        assert_eq!(lock.owner(), None);
    }

    #[test]
    fn the_lock_of_a_dead_process_is_taken_over() {
        let lock = LockWord::new();
        let dead = dead_process();
        assert!(lock.try_acquire(dead));
        let got = lock.acquire(me(), &mut Wait::timeout(Duration::from_secs(30)));
        assert_eq!(got, Ok(Acquired::Recovered(dead)));
        assert_eq!(lock.owner(), Some(me()));
        assert_eq!(lock.release(), Ok(()));
    }

    #[test]
    fn a_dead_process_is_found_however_short_the_wait() {
        let lock = LockWord::new();
        let dead = dead_process();
        assert!(lock.try_acquire(dead));
        assert_eq!(lock.acquire(me(), &mut Wait::timeout(Duration::ZERO)), Ok(Acquired::Recovered(dead)));
    }

    #[test]
    fn a_sweep_frees_only_what_the_dead_held() {
        let lock = LockWord::new();
        let dead = dead_process();
        assert!(!lock.release_dead(dead));
        assert!(lock.try_acquire(me()));
        assert!(!lock.release_dead(dead));
        assert!(!lock.release_dead(me()));
        lock.release().unwrap();
        assert!(lock.try_acquire(dead));
        assert!(lock.release_dead(dead));
        assert!(lock.try_acquire(me()));
    }

    #[test]
    fn a_signal_may_end_the_wait() {
        let lock = LockWord::new();
        assert!(lock.try_acquire(me()));
        let mut calls = 0;
        let mut on_signal = || {
            calls += 1;
            calls < 3
        };
        assert_eq!(lock.acquire(me(), &mut Wait::forever().on_signal(&mut on_signal)), Err(WaitError::Interrupted));
        assert_eq!(calls, 3);
    }

    #[test]
    fn threads_exclude_each_other() {
        let (lock, counter) = (LockWord::new(), Plain::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        lock.with(|| counter.store(counter.load(Relaxed) + 1, Relaxed));
                    }
                });
            }
        });
        assert_eq!(counter.into_inner(), 20_000);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;
    use crate::loom::check;

    /// Two threads, each of a process of its own as far as the lock can tell.
    #[test]
    #[allow(unsafe_code)]
    fn no_overlap_and_no_lost_wake() {
        check(3, || {
            let shared = Arc::new((LockWord::new(), UnsafeCell::new(0)));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let me = ProcessId::current();
                        let _ = shared.0.acquire(me, &mut Wait::forever()).unwrap();
                        // SAFETY: the lock is held; loom reports an overlap.
                        shared.1.with_mut(|value| unsafe { *value += 1 });
                        shared.0.release().unwrap();
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(shared.0.owner(), None);
        });
    }
}
