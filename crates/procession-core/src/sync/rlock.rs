//! A lock that its owner may acquire again.
//!
//! A [`LockWord`] with the owner's thread and the depth beside it. All three are in shared memory, so a forked child sees
//! at once that the lock is its parent's.
//!
//! | word  | thread | depth | state | who changes it, and to what |
//! |-------|--------|-------|-------|-----------------------------|
//! | free  | any    | any   | free  | acquire: the word; then, as owner, thread and depth 1 |
//! | owner | 0 or stale | any | just acquired | its thread: thread and depth |
//! | owner | id     | n     | held  | its thread: depth n + 1 or n - 1 · at depth 1: thread 0, then the word |
//!
//! Thread and depth are written by the owner alone, after it got the word and before it lets go. Any other thread reads a
//! thread id that is not its own: no two threads have the same one (see [`thread_id`]), and each clears its own before it
//! releases. A dead owner's id stays behind until whoever recovers the lock overwrites it; no living thread has that one.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{
    lock::{Acquired, LockWord},
    wait::{Looks, Wait, WaitError},
};
use crate::{
    loom::{AtomicU32, AtomicU64, Ordering},
    memory::{Atomics, BlockHandle, Shared},
    process::{ProcessId, thread_id},
};

/// A release by a thread that is not the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("released by a thread that does not own it")]
pub struct NotOwner;

/// The algorithm, over words that may lie anywhere.
#[derive(Debug, Default)]
#[repr(C)]
struct RLockState {
    word: LockWord,
    thread: AtomicU64,
    depth: AtomicU32,
}

// SAFETY: words that are atomics; zeros are a free lock.
unsafe impl Atomics for RLockState {}

impl RLockState {
    #[inline]
    fn is_mine(&self, me: ProcessId) -> bool {
        self.depth_of(me, thread_id(me)) != 0
    }

    /// The depth if a thread, known to live, owns the lock; else 0.
    #[inline]
    fn depth_of(&self, process: ProcessId, thread: u64) -> u32 {
        if self.thread.load(Ordering::Relaxed) == thread && self.word.owner() == Some(process) {
            self.depth.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    #[inline]
    fn own(&self, thread: u64, depth: u32) {
        self.depth.store(depth, Ordering::Relaxed);
        self.thread.store(thread, Ordering::Relaxed);
    }

    #[inline]
    fn try_acquire(&self, me: ProcessId) -> bool {
        let thread = thread_id(me);
        // Looked at first: an attempt on a word that is held costs more.
        let depth = self.depth_of(me, thread);
        if depth != 0 {
            self.depth.store(depth + 1, Ordering::Relaxed);
            return true;
        }
        let acquired = self.word.try_acquire(me);
        if acquired {
            self.own(thread, 1);
        }
        acquired
    }

    fn acquire(&self, me: ProcessId, depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        let acquired = self.word.acquire(me, wait)?;
        self.own(thread_id(me), depth);
        Ok(acquired)
    }

    /// Gives up `levels` of what the caller holds.
    #[inline]
    fn release(&self, me: ProcessId, levels: u32) -> Result<(), NotOwner> {
        let depth = self.depth_of(me, thread_id(me));
        if depth == 0 {
            return Err(NotOwner);
        }
        if depth > levels {
            self.depth.store(depth - levels, Ordering::Relaxed);
            return Ok(());
        }
        self.thread.store(0, Ordering::Relaxed);
        self.word.release().map_err(|_| NotOwner)
    }
}

/// A reentrant lock between processes: the standard package's `RLock`.
///
/// It belongs to the thread that acquired it; a forked child does not own what its parent held. If the owner's process
/// dies, the next to acquire the lock takes it over ([`Acquired::Recovered`]), at depth 1.
///
/// ```
/// use procession_core::sync::{RLock, Wait};
///
/// let lock = RLock::create()?;
/// let _ = lock.acquire(&mut Wait::forever()).unwrap();
/// assert!(lock.try_acquire());
/// assert_eq!(lock.depth(), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct RLock {
    state: Shared<RLockState>,
    looks: Looks,
}

impl RLock {
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

    /// Acquires the lock if it is free or the caller's already. Never blocks, and does not look whether an owner died.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.state.try_acquire(ProcessId::current())
    }

    /// As [`try_acquire`](Self::try_acquire), but looks now and then whether the owner died.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] if another owns it.
    pub fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError> {
        if self.try_acquire() {
            Ok(Acquired::Held)
        } else if self.looks.due() {
            self.state.acquire(ProcessId::current(), 1, &mut Wait::timeout(Duration::ZERO))
        } else {
            Err(WaitError::TimedOut)
        }
    }

    /// Acquires the lock, waiting while another owns it.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the wait ended without the lock.
    pub fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        if self.try_acquire() { Ok(Acquired::Held) } else { self.state.acquire(ProcessId::current(), 1, wait) }
    }

    /// Gives up one level; the lock is free after the last one.
    ///
    /// # Errors
    ///
    /// [`NotOwner`] if the calling thread does not own it; nothing has changed then.
    #[inline]
    pub fn release(&self) -> Result<(), NotOwner> {
        self.state.release(ProcessId::current(), 1)
    }

    /// Gives up all levels at once and tells how many there were, for [`acquire_to`](Self::acquire_to).
    ///
    /// # Errors
    ///
    /// [`NotOwner`] if the calling thread does not own it.
    pub fn release_all(&self) -> Result<u32, NotOwner> {
        let me = ProcessId::current();
        let depth = self.state.depth_of(me, thread_id(me));
        self.state.release(me, u32::MAX).map(|()| depth)
    }

    /// Acquires the lock and gets back to the depth that [`release_all`](Self::release_all) told.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the wait ended without the lock.
    pub fn acquire_to(&self, depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        self.state.acquire(ProcessId::current(), depth, wait)
    }

    /// The process that owns the lock, as of now. It may be dead.
    pub fn owner(&self) -> Option<ProcessId> {
        self.state.word.owner()
    }

    /// Whether the calling thread owns it.
    pub fn is_mine(&self) -> bool {
        self.state.is_mine(ProcessId::current())
    }

    /// How many times its owner acquired it, as of now; 0 if it is free.
    pub fn depth(&self) -> u32 {
        if self.owner().is_some() { self.state.depth.load(Ordering::Relaxed) } else { 0 }
    }
}

impl AsFd for RLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_owner_acquires_it_again() {
        let lock = RLock::create().unwrap();
        assert_eq!(lock.acquire(&mut Wait::forever()), Ok(Acquired::Held));
        assert_eq!(lock.acquire(&mut Wait::forever()), Ok(Acquired::Held));
        assert_eq!((lock.depth(), lock.is_mine()), (2, true));
        lock.release().unwrap();
        assert!(lock.is_mine());
        lock.release().unwrap();
        assert_eq!((lock.depth(), lock.is_mine(), lock.owner()), (0, false, None));
        assert_eq!(lock.release(), Err(NotOwner));
    }

    #[test]
    fn another_thread_neither_acquires_nor_releases_it() {
        let lock = RLock::create().unwrap();
        assert!(lock.try_acquire());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!lock.try_acquire());
                assert_eq!(lock.release(), Err(NotOwner));
                assert_eq!(lock.acquire(&mut Wait::timeout(Duration::from_millis(5))), Err(WaitError::TimedOut));
            });
        });
        assert_eq!(lock.depth(), 1);
    }

    #[test]
    fn a_forked_child_does_not_own_its_parents() {
        let lock = RLock::create().unwrap();
        assert!(lock.try_acquire());
        // SAFETY: the child only uses atomics, system calls and the allocator, and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let owns = lock.is_mine() || lock.try_acquire() || lock.release().is_ok();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(owns)) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        assert!(lock.is_mine());
    }

    #[test]
    fn all_levels_are_given_up_and_taken_back() {
        let lock = RLock::create().unwrap();
        for _ in 0..3 {
            assert!(lock.try_acquire());
        }
        assert_eq!(lock.release_all(), Ok(3));
        assert_eq!(lock.owner(), None);
        assert_eq!(lock.release_all(), Err(NotOwner));
        assert_eq!(lock.acquire_to(3, &mut Wait::forever()), Ok(Acquired::Held));
        assert_eq!(lock.depth(), 3);
    }

    #[test]
    fn a_dead_owners_lock_is_recovered_at_depth_one() {
        let lock = RLock::create().unwrap();
        // SAFETY: the child acquires and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let _ = (lock.try_acquire(), lock.try_acquire());
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        let Ok(Acquired::Recovered(dead)) = lock.acquire(&mut Wait::timeout(Duration::from_secs(30))) else {
            panic!("not recovered");
        };
        assert_eq!(dead.pid(), pid.cast_unsigned());
        assert_eq!((lock.depth(), lock.is_mine()), (1, true));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;
    use crate::loom::check;

    #[test]
    fn nested_sections_do_not_overlap() {
        check(3, || {
            let shared = Arc::new((RLockState::default(), UnsafeCell::new(0)));
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let (lock, me) = (&shared.0, ProcessId::current());
                        if !lock.try_acquire(me) {
                            let _ = lock.acquire(me, 1, &mut Wait::forever()).unwrap();
                        }
                        assert!(lock.try_acquire(me));
                        // SAFETY: the lock is held; loom reports an overlap.
                        shared.1.with_mut(|value| unsafe { *value += 1 });
                        lock.release(me, 1).unwrap();
                        assert!(lock.is_mine(me));
                        lock.release(me, 1).unwrap();
                        assert!(!lock.is_mine(me));
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}
