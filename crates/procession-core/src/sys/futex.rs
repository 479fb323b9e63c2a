//! The futex calls, for words shared between processes.
//!
//! Never with `FUTEX_PRIVATE_FLAG`: a private futex is keyed by the address within one process, so a wake from another
//! process would be lost without an error.
#![cfg_attr(not(loom), allow(unsafe_code))]

use std::time::Duration;

use crate::loom::{AtomicU32, AtomicU64};

/// How a futex wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slept {
    /// Woken, or the word had another value, or spuriously: look at the word again.
    Woken,
    /// The time is over.
    TimedOut,
    /// A signal handler ran in this thread.
    Interrupted,
}

/// A word that the kernel can sleep on: a 32-bit atomic, or the low half of a 64-bit one.
pub(crate) trait FutexWord {
    /// The address of the 32 bits the kernel compares.
    fn address(&self) -> *const u32;
    /// The present value of these 32 bits.
    #[cfg(loom)]
    fn value(&self) -> u32;
}

impl FutexWord for AtomicU32 {
    fn address(&self) -> *const u32 {
        std::ptr::from_ref(self).cast()
    }
    #[cfg(loom)]
    fn value(&self) -> u32 {
        self.load(crate::loom::Ordering::SeqCst)
    }
}

// What is not modelled uses the standard library's atomics, and has to compile beside the models.
#[cfg(loom)]
impl FutexWord for std::sync::atomic::AtomicU32 {
    fn address(&self) -> *const u32 {
        self.as_ptr()
    }
    fn value(&self) -> u32 {
        self.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("the low half of a 64-bit word is taken to be at its address");

impl FutexWord for AtomicU64 {
    fn address(&self) -> *const u32 {
        // Only the kernel reads through this pointer; no `&AtomicU32` over half of an `AtomicU64` is ever made.
        std::ptr::from_ref(self).cast()
    }
    #[cfg(loom)]
    fn value(&self) -> u32 {
        self.load(crate::loom::Ordering::SeqCst) as u32
    }
}

/// Sleeps while the word is `expected`, at most for `limit` (for ever if `None`).
///
/// See futex(2), `FUTEX_WAIT`: the kernel compares and goes to sleep in one step as seen by `wake`.
#[cfg(not(loom))]
pub(crate) fn wait<W: FutexWord>(word: &W, expected: u32, limit: Option<Duration>) -> Slept {
    let spec = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is borrowed for the call, and `spec` is null or outlives it.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.address(), libc::FUTEX_WAIT, expected, spec) };
    if result == 0 {
        return Slept::Woken;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => Slept::TimedOut,
        Some(libc::EINTR) => Slept::Interrupted,
        // EAGAIN: the word had changed. Whatever else it is, the caller looks at the word again.
        _ => Slept::Woken,
    }
}

/// Wakes at most `count` sleepers; tells how many there were.
#[cfg(not(loom))]
pub(crate) fn wake<W: FutexWord>(word: &W, count: u32) -> usize {
    let count = count.min(i32::MAX as u32);
    // SAFETY: the kernel takes the address as a key and reads nothing through it.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.address(), libc::FUTEX_WAKE, count) };
    usize::try_from(woken).unwrap_or(0)
}

// The model of the kernel's table: who sleeps at which address, in order. A lost wake shows as a deadlock.
#[cfg(loom)]
#[derive(Default)]
struct Sleepers {
    asleep: Vec<(usize, u64)>,
    next: u64,
}

#[cfg(loom)]
::loom::lazy_static! {
    static ref KERNEL: (::loom::sync::Mutex<Sleepers>, ::loom::sync::Condvar) =
        (::loom::sync::Mutex::new(Sleepers::default()), ::loom::sync::Condvar::new());
}

#[cfg(loom)]
pub(crate) fn wait<W: FutexWord>(word: &W, expected: u32, _limit: Option<Duration>) -> Slept {
    let mut sleepers = KERNEL.0.lock().unwrap();
    if word.value() == expected {
        let me = (word.address() as usize, sleepers.next);
        sleepers.next += 1;
        sleepers.asleep.push(me);
        while sleepers.asleep.contains(&me) {
            sleepers = KERNEL.1.wait(sleepers).unwrap();
        }
    }
    Slept::Woken
}

#[cfg(loom)]
pub(crate) fn wake<W: FutexWord>(word: &W, count: u32) -> usize {
    let mut sleepers = KERNEL.0.lock().unwrap();
    let address = word.address() as usize;
    let mut woken = 0;
    sleepers.asleep.retain(|sleeper| {
        let wakes = sleeper.0 == address && woken < count as usize;
        woken += usize::from(wakes);
        !wakes
    });
    KERNEL.1.notify_all();
    woken
}
