//! A lock that a process holds while it forks.
#![allow(unsafe_code)]

use std::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use crate::sys::futex;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody may be asleep.
const CONTENDED: u32 = 2;

/// A lock between the threads of a process. The handlers of a fork hold it from before the fork until after it, so that the
/// child finds what it protects in order. Nobody may wait for anything else with it held, nor fork.
#[derive(Debug)]
pub(super) struct ForkMutex<T> {
    word: AtomicU32,
    /// Held by a thread that forks.
    forking: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: only the holder of the lock gets at the value.
unsafe impl<T: Send> Sync for ForkMutex<T> {}

impl<T> ForkMutex<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(FREE), forking: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    pub(super) fn lock(&self) -> Guard<'_, T> {
        if self.word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.word.swap(CONTENDED, Ordering::Acquire) != FREE {
                futex::wait(&self.word, CONTENDED, None);
            }
        }
        Guard(self)
    }

    /// Before a fork: holds it until [`after_fork`](Self::after_fork), and has `prepare` see to the value first.
    pub(super) fn before_fork(&self, prepare: impl FnOnce(&mut T)) {
        let mut guard = self.lock();
        prepare(&mut guard);
        self.forking.store(true, Ordering::Relaxed);
        std::mem::forget(guard);
    }

    /// After a fork, in both processes. In the child nobody sleeps: waking is of no use there, and no harm.
    pub(super) fn after_fork(&self) {
        // The handlers may have been registered while this fork was under way.
        if self.forking.swap(false, Ordering::Relaxed) {
            self.release();
        }
    }

    fn release(&self) {
        if self.word.swap(FREE, Ordering::Release) == CONTENDED {
            futex::wake(&self.word, 1);
        }
    }
}

/// The lock, held.
pub(super) struct Guard<'a, T>(&'a ForkMutex<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and this borrow is the only one of the guard.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_has_it() {
        let mutex = ForkMutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        *mutex.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*mutex.lock(), 40_000);
    }
}
