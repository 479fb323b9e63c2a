//! Noticing the end of the parent: the life pipe. See PROTOCOL.md, "Parent death".
//!
//! Nothing is ever written to it. Its writing end belongs to one process alone, so the reading ends, which the children
//! have, come to their end exactly when that process ends, whatever ended it.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
    time::Duration,
};

use rustix::pipe::{PipeFlags, pipe_with};

use super::fork;
use crate::{sync::Wait, sys::poll};

/// The pipe of this process, made when first asked for. The inode tells whether the numbers still mean it: a program
/// may close descriptors that it doesn't know, and get the numbers again for others.
static READING: AtomicI32 = AtomicI32::new(NONE);
static WRITING: AtomicI32 = AtomicI32::new(NONE);
static INODE: AtomicU64 = AtomicU64::new(0);
const NONE: RawFd = -1;

/// fcntl(2): the signal to send instead of SIGIO. Not in the libc crate; the same on all architectures Rust knows.
const F_SETSIG: libc::c_int = 10;

/// Keeps forks and the making of the pipe apart: a child forked in between would have a writing end that it doesn't know.
///
/// | value | meaning |
/// |---|---|
/// | 0 | neither |
/// | n > 0 | n threads fork |
/// | -1 | a thread makes the pipe |
static FORKING: AtomicI32 = AtomicI32::new(0);

/// Before a fork.
pub(super) fn before_fork() {
    while FORKING.fetch_update(Ordering::Acquire, Ordering::Relaxed, |n| (n >= 0).then_some(n + 1)).is_err() {
        std::thread::yield_now();
    }
}

/// After a fork, in the parent.
pub(super) fn after_fork() {
    // Not below zero: the handlers may have been registered while this fork was under way.
    let _ = FORKING.fetch_update(Ordering::Release, Ordering::Relaxed, |n| (n > 0).then_some(n - 1));
}

/// After a fork, in the child: the pipe is its parent's.
pub(super) fn in_child() {
    FORKING.store(0, Ordering::Relaxed);
    let writing = WRITING.swap(NONE, Ordering::Relaxed);
    if is_ours(writing) {
        // SAFETY: the number means the writing end, which nothing in this process uses.
        unsafe { libc::close(writing) };
    }
    // The reading end stays: it is the sentinel of the parent.
    READING.store(NONE, Ordering::Relaxed);
}

/// Whether the number still means the pipe. Async-signal-safe.
fn is_ours(fd: RawFd) -> bool {
    inode_of(fd) == Some(INODE.load(Ordering::Relaxed))
}

fn inode_of(fd: RawFd) -> Option<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for what the kernel writes; a number that is no descriptor is an error.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it is filled.
    Some(unsafe { stat.assume_init() }.st_ino)
}

/// The reading end of this process's life pipe, to be inherited by its children: it comes to its end when this process
/// ends. It is closed on exec unless handed to [`spawn`](super::spawn()), and made on first use.
///
/// # Errors
///
/// No descriptor is left.
pub fn life_sentinel() -> io::Result<BorrowedFd<'static>> {
    fork::watch();
    while FORKING.compare_exchange(0, -1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        std::thread::yield_now();
    }
    let made = reading_end();
    FORKING.store(0, Ordering::Release);
    // SAFETY: only a program that closes what it doesn't know closes it before the process ends.
    made.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

fn reading_end() -> io::Result<RawFd> {
    let known = READING.load(Ordering::Relaxed);
    if is_ours(known) && is_ours(WRITING.load(Ordering::Relaxed)) {
        return Ok(known);
    }
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    let inode = inode_of(reading.as_raw_fd()).ok_or_else(io::Error::last_os_error)?;
    INODE.store(inode, Ordering::Relaxed);
    WRITING.store(writing.into_raw_fd(), Ordering::Relaxed);
    let reading = reading.into_raw_fd();
    READING.store(reading, Ordering::Relaxed);
    Ok(reading)
}

/// While this exists, the process is killed when the other one ends. Made by [`follow`].
#[derive(Debug)]
pub struct Following(#[expect(dead_code, reason = "dropping it ends the following")] OwnedFd);

/// Ties the end of this process to that of the process whose life sentinel is given: the kernel kills this one (SIGKILL)
/// when the other ends, and at once if it has ended already.
///
/// The tie is not inherited: a child forked by this process does not follow.
///
/// # Errors
///
/// `/proc` is not mounted, or no descriptor is left.
///
/// # Examples
///
/// In a child that was forked, with the sentinel that its parent took beforehand:
///
/// ```no_run
/// # fn child(parent: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
/// let _following = procession_core::process::follow(parent)?;
/// loop {
///     // Ends with the parent, whatever ended that.
///     std::thread::park();
/// }
/// # }
/// ```
pub fn follow(sentinel: BorrowedFd<'_>) -> io::Result<Following> {
    // What is set below belongs to the open file, and all children share the one behind `sentinel`. Opened again, the
    // pipe is a file of this process's own.
    let path = format!("/proc/self/fd/{}", sentinel.as_raw_fd());
    let own = rustix::fs::open(
        path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let pid = libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)?;
    set(&own, F_SETSIG, libc::SIGKILL)?;
    set(&own, libc::F_SETOWN, pid)?;
    set(&own, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)?;
    // It may have ended before the kernel knew what to do then.
    if poll::readable(own.as_fd(), &mut Wait::timeout(Duration::ZERO)).is_ok() {
        // SAFETY: signals only this process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    Ok(Following(own))
}

fn set(file: &OwnedFd, what: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these commands take an integer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), what, value) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Exit, Sentinel};

    /// Forks; the child calls `life` and exits with what it returns.
    fn forked(life: impl FnOnce() -> i32) -> Sentinel {
        // SAFETY: the child calls only what these tests call, none of which needs another thread.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "cannot fork");
        if pid == 0 {
            let code = life();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        Sentinel::open(pid as u32).unwrap()
    }

    fn exit_of(child: &Sentinel) -> Exit {
        child.wait(&mut Wait::forever()).unwrap();
        child.exit().unwrap().unwrap()
    }

    fn sleep_for_ever() -> i32 {
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    /// A pipe on which a grandchild tells that it is there, and by its end that it no longer is.
    fn wait_for_byte(fd: BorrowedFd<'_>) -> usize {
        poll::readable(fd, &mut Wait::timeout(Duration::from_secs(30))).unwrap();
        rustix::io::read(fd, &mut [0; 1]).unwrap()
    }

    #[test]
    fn a_child_that_follows_is_killed_with_its_parent() {
        let (reading, writing) = std::io::pipe().unwrap();
        let writing_number = writing.as_raw_fd();
        let parent = forked(|| {
            let sentinel = life_sentinel().unwrap();
            let child = forked(|| {
                let _following = follow(sentinel).unwrap();
                rustix::io::write(&writing, b"1").unwrap();
                sleep_for_ever()
            });
            std::mem::forget(child);
            // A third process, forked without a word, must not keep the pipe open.
            std::mem::forget(forked(|| {
                // SAFETY: closes its copy of the descriptor, which it does not use.
                unsafe { libc::close(writing_number) };
                std::thread::sleep(Duration::from_secs(1));
                0
            }));
            sleep_for_ever()
        });
        drop(writing);
        assert_eq!(wait_for_byte(reading.as_fd()), 1);
        parent.send_signal(libc::SIGKILL).unwrap();
        assert_eq!(exit_of(&parent), Exit::Signal(libc::SIGKILL));
        // Closed by the death of the follower.
        assert_eq!(wait_for_byte(reading.as_fd()), 0);
    }

    #[test]
    fn following_a_process_that_has_ended_kills_at_once() {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(writing);
        let child = forked(|| {
            let following = follow(reading.as_fd());
            i32::from(following.is_err())
        });
        assert_eq!(exit_of(&child), Exit::Signal(libc::SIGKILL));
    }

    #[test]
    fn what_no_longer_follows_goes_on() {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (ready, go) = std::io::pipe().unwrap();
        let child = forked(|| {
            drop(follow(reading.as_fd()).unwrap());
            rustix::io::write(&go, b"1").unwrap();
            std::thread::sleep(Duration::from_millis(200));
            9
        });
        assert_eq!(wait_for_byte(ready.as_fd()), 1);
        drop(writing);
        assert_eq!(exit_of(&child), Exit::Code(9));
    }

    #[test]
    fn each_process_has_a_pipe_of_its_own() {
        let ours = life_sentinel().unwrap().as_raw_fd();
        let child = forked(|| {
            let own = life_sentinel().unwrap().as_raw_fd();
            // The parent's stays open beside it, and is not at its end.
            let different = own != ours && inode_of(own) != inode_of(ours);
            i32::from(!different)
        });
        assert_eq!(exit_of(&child), Exit::Code(0));
        assert_eq!(life_sentinel().unwrap().as_raw_fd(), ours);
    }

    #[test]
    fn a_pipe_whose_descriptors_were_closed_is_made_anew() {
        let child = forked(|| {
            let first = life_sentinel().unwrap().as_raw_fd();
            let inode = inode_of(first);
            for fd in [first, WRITING.load(Ordering::Relaxed)] {
                // SAFETY: closes what a program that closes everything would close.
                unsafe { libc::close(fd) };
            }
            // Others now have the numbers.
            let _others = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
            let second = life_sentinel().unwrap().as_raw_fd();
            i32::from(second == first || inode_of(second) == inode)
        });
        assert_eq!(exit_of(&child), Exit::Code(0));
    }
}
