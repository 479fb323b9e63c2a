//! A value local to a process, which a forked child makes anew.
#![allow(unsafe_code)]

use std::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::generation;

/// A value local to a process, made on first use in each process. It may be a `static`, or belong to something.
///
/// A lock in it may have been held by another thread at the moment of a fork; in the child nobody would ever release it.
/// So the child gets a new value, and the parent's is leaked, not dropped: dropping it could wait for threads that
/// do not exist there.
#[derive(Debug)]
pub struct ForkLocal<T>(AtomicPtr<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: T,
}

impl<T> ForkLocal<T> {
    /// Without a value as yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
}

// Threads share the value, and the last of them drops it.
impl<T: Default + Send + Sync> ForkLocal<T> {
    /// The value of this process.
    pub fn get(&self) -> &T {
        let generation = generation();
        let mut present = self.0.load(Ordering::Acquire);
        loop {
            // SAFETY: the pointer is null or came from `Box::into_raw` below and is not freed before `self` is.
            if let Some(slot) = unsafe { present.as_ref() }
                && slot.generation == generation
            {
                return &slot.value;
            }
            let new = Box::into_raw(Box::new(Slot { generation, value: T::default() }));
            match self.0.compare_exchange(present, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => present = new,
                Err(other) => {
                    // SAFETY: `new` was not published, so this is its only owner.
                    drop(unsafe { Box::from_raw(new) });
                    present = other;
                }
            }
        }
    }
}

impl<T> Drop for ForkLocal<T> {
    fn drop(&mut self) {
        let slot = *self.0.get_mut();
        // SAFETY: as in `get`; nobody else has `self` any more.
        if unsafe { slot.as_ref() }.is_some_and(|slot| slot.generation == generation()) {
            // SAFETY: it came from `Box::into_raw`, and is not in `self` any more after this.
            drop(unsafe { Box::from_raw(slot) });
        }
    }
}

impl<T> Default for ForkLocal<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn all_threads_get_one_value() {
        static VALUE: ForkLocal<AtomicU32> = ForkLocal::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| VALUE.get().fetch_add(1, Ordering::Relaxed));
            }
        });
        assert_eq!(VALUE.get().load(Ordering::Relaxed), 4);
    }

    #[test]
    fn the_value_goes_with_its_owner() {
        let value = std::sync::Arc::new(());
        let owner: ForkLocal<std::sync::Mutex<Option<std::sync::Arc<()>>>> = ForkLocal::new();
        *owner.get().lock().unwrap() = Some(value.clone());
        assert_eq!(std::sync::Arc::strong_count(&value), 2);
        drop(owner);
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_forked_child_gets_a_new_value() {
        static VALUE: ForkLocal<AtomicU32> = ForkLocal::new();
        VALUE.get().store(5, Ordering::Relaxed);
        // SAFETY: the child only touches atomics, allocates (which glibc allows after fork) and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let fresh = VALUE.get().load(Ordering::Relaxed);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(fresh != 0)) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        assert_eq!(VALUE.get().load(Ordering::Relaxed), 5);
    }
}
