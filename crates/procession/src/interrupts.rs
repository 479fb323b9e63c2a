//! Holding back Ctrl-C (SIGINT) while a process is not ready for it.
#![allow(unsafe_code)]

use std::ptr;

/// Calls `act` while this thread does not get SIGINT: what it starts begins with the signal blocked.
pub(crate) fn blocked_while<R>(act: impl FnOnce() -> R) -> R {
    let before = block(true);
    let result = act();
    block(before);
    result
}

/// Whether this thread blocks SIGINT.
pub(crate) fn are_blocked() -> bool {
    change(libc::SIG_BLOCK, ptr::null())
}

/// Blocks SIGINT in this thread, or no longer. Tells whether it was blocked before.
pub(crate) fn block(block: bool) -> bool {
    // SAFETY: all zeros is an empty set.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of this function's own.
    unsafe { libc::sigaddset(&raw mut signals, libc::SIGINT) };
    change(if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK }, &raw const signals)
}

/// `signals` is null, or points to a set.
fn change(how: libc::c_int, signals: *const libc::sigset_t) -> bool {
    // SAFETY: all zeros is an empty set.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the one is null or a set, the other a set of this function's own.
    unsafe { libc::pthread_sigmask(how, signals, &raw mut before) };
    // SAFETY: as above.
    unsafe { libc::sigismember(&raw const before, libc::SIGINT) == 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_is_put_back() {
        assert!(!are_blocked());
        blocked_while(|| {
            assert!(are_blocked());
            blocked_while(|| ());
            assert!(are_blocked());
        });
        assert!(!are_blocked());
    }
}
