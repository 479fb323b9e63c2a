//! Killing a process at a chosen place, for tests: the code of this folder calls [`point`] wherever being killed might
//! matter, and a test's child goes through them one after another.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI64, Ordering};

/// How many points are passed before the process is killed; negative: it is not.
static LEFT: AtomicI64 = AtomicI64::new(-1);

/// A place where the process may be killed.
pub(crate) fn point() {
    if LEFT.load(Ordering::Relaxed) >= 0 && LEFT.fetch_sub(1, Ordering::Relaxed) == 0 {
        // SAFETY: sends a signal to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
}

/// Runs `call` in forked children, the first killed at the first point it passes, the second at the second and so on,
/// until one lives to the end. `check` is called after each, with the number of the point, and whether it was killed.
pub(crate) fn at_every_point(mut call: impl FnMut(), mut check: impl FnMut(i64, bool)) {
    for number in 0.. {
        // SAFETY: the child uses shared memory and the allocator (which glibc allows after a fork), and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            LEFT.store(number, Ordering::Relaxed);
            call();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        assert!(pid > 0, "fork failed");
        let mut status = 0;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
        assert!(killed || status == 0, "the child failed: {status:#x}");
        check(number, killed);
        if !killed {
            return;
        }
    }
}
