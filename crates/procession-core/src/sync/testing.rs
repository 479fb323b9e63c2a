//! Processes to kill, for tests.
#![allow(unsafe_code)]

use std::{
    io::{Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Runs `act` in a forked child; returns when that is done, while the child goes on with `then` and after that waits to be
/// killed. In the child only atomics, system calls and the allocator may be used, as other threads may have held locks.
pub(crate) fn in_child<A, B>(act: impl FnOnce() -> A, then: impl FnOnce() -> B) -> libc::pid_t {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: the child keeps to what is said above and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = catch_unwind(AssertUnwindSafe(|| {
            act();
            writer.write_all(b"x").unwrap();
            then();
        }));
        if done.is_err() {
            // SAFETY: ends the child, which the parent notices by the pipe.
            unsafe { libc::_exit(1) };
        }
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    drop(writer);
    reader.read_exact(&mut [0]).expect("the child failed");
    pid
}

/// Kills a child and reaps it.
pub(crate) fn kill(pid: libc::pid_t) {
    // SAFETY: a child of this test.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
}
