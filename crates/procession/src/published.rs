//! Process-wide values that are read without a lock.
#![allow(unsafe_code)]

use std::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

/// A process-wide value that is seldom set. What was set before is never freed, so that whoever reads it may keep it.
///
/// There is no lock that a forked child could find locked for good. The child has the value of its parent.
#[derive(Debug)]
pub(crate) struct Published<T>(AtomicPtr<T>);

impl<T: Send + Sync + 'static> Published<T> {
    /// Without a value.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// The value that was set last.
    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: null, or from `Box::into_raw` below and never freed.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Replaces the value.
    pub(crate) fn set(&self, value: T) -> &'static T {
        let value = Box::leak(Box::new(value));
        self.0.store(value, Ordering::Release);
        value
    }

    /// The value; the first to ask makes it.
    pub(crate) fn get_or_set(&self, make: impl FnOnce() -> T) -> &'static T {
        if let Some(value) = self.get() {
            return value;
        }
        let new = Box::into_raw(Box::new(make()));
        match self.0.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just made, and never freed from now on.
            Ok(_) => unsafe { &*new },
            Err(other) => {
                // SAFETY: it was not published: nobody else knows it.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: somebody else's, as in `get`.
                unsafe { &*other }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_kept_until_another_is_set() {
        static VALUE: Published<u32> = Published::new();
        assert_eq!(VALUE.get(), None);
        assert_eq!((VALUE.get_or_set(|| 1), VALUE.get_or_set(|| 2)), (&1, &1));
        let before = VALUE.get().unwrap();
        VALUE.set(3);
        assert_eq!((before, VALUE.get().unwrap()), (&1, &3));
    }
}
