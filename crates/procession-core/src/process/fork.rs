//! Noticing forks.
//!
//! The handlers registered once by `pthread_atfork` do little more than store numbers (that of the child runs between
//! `fork` and whatever the child does, where only async-signal-safe things may happen). Whatever is local to a process compares
//! [`generation`] with the one it was made in, and is made anew where they differ.
#![allow(unsafe_code)]

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use super::{identity, life, unshared};

static GENERATION: AtomicU32 = AtomicU32::new(0);
static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCHING: AtomicBool = AtomicBool::new(false);

/// Run in the parent, before the fork and after it: what another thread makes in between is told from what is made later.
fn around() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn before() {
    around();
    life::before_fork();
}

extern "C" fn in_parent() {
    life::after_fork();
    around();
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    identity::forget();
    life::in_child();
    unshared::in_child();
}

/// Registers the handler, the first time it is called.
pub(super) fn watch() {
    if !WATCHING.load(Ordering::Relaxed) && !WATCHING.swap(true, Ordering::Relaxed) {
        // SAFETY: the handlers only touch atomics and call fstat and close, which is allowed at any moment of a fork.
        // A failure (no memory) leaves forks unnoticed, as they would be without the handler.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    }
}

/// How many forks lie between the first process that used this crate and this one.
///
/// A value taken before a fork differs from one taken in the child: what is keyed by it is known to be the parent's.
pub fn generation() -> u32 {
    watch();
    GENERATION.load(Ordering::Relaxed)
}

/// A number that grows with each fork of this process.
///
/// A block of memory that was allocated at the present count is known to no other process by inheritance.
pub fn forks() -> u32 {
    watch();
    FORKS.load(Ordering::Relaxed)
}

/// Which of the two a process is after [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that forked; the other has this pid. It has to reap it.
    Parent(u32),
    /// The copy, with a copy of everything but the other threads.
    Child,
}

/// fork(2).
///
/// # Safety
///
/// If the process has more than one thread, the child may only do what a signal handler may: what the other threads were at is
/// left half done there, and their locks are never released. And whatever it does, it must not undo what is the parent's,
/// which is what running the parent's destructors would do: it ends by `_exit`.
///
/// # Errors
///
/// There is no room for another process.
pub unsafe fn fork() -> io::Result<Forked> {
    watch();
    // SAFETY: the caller's promise.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as u32)),
    }
}

/// How many threads the process has, the caller included.
///
/// # Errors
///
/// `/proc` is not mounted.
pub fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}
