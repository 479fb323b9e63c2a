//! Who a thread is.

use super::ProcessId;

/// A number for the calling thread, of the process that the caller knows to be its own, that no other living thread has, of
/// this process or another. Never zero.
///
/// Made of the address of the thread's control block, which the C library has in a register, and of the process's identity:
/// cheaper than asking the kernel, and than a thread-local variable of a loaded module. A forked child's thread has
/// another one than the parent's thread it is a copy of.
#[cfg(not(loom))]
#[allow(unsafe_code)]
#[inline]
pub fn thread_id(process: ProcessId) -> u64 {
    // SAFETY: has no requirements.
    let thread = unsafe { libc::pthread_self() };
    // An odd factor spreads the identity over all bits; the result is zero with a probability of 1 in 2^64.
    thread as u64 ^ process.to_bits().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// In a model all threads are one to the kernel: they are told apart by numbers of their own.
#[cfg(loom)]
pub fn thread_id(process: ProcessId) -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    ::loom::thread_local! {
        static MINE: u64 = NEXT.fetch_add(1, Ordering::Relaxed) + ProcessId::current().to_bits();
    }
    let _ = process;
    MINE.with(|id| *id)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own() {
        let id = || thread_id(ProcessId::current());
        let mine = id();
        assert_eq!(mine, id());
        assert_ne!(mine, std::thread::spawn(id).join().unwrap());
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_forked_childs_thread_is_another() {
        let mine = thread_id(ProcessId::current());
        // SAFETY: the child compares and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(thread_id(ProcessId::current()) == mine)) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
    }
}
