//! A timer that sends a signal to one thread.
#![allow(unsafe_code)]

use std::{ffi::c_int, io, mem::MaybeUninit, ptr, time::Duration};

use crate::process;

/// A timer that, when it has been set and its time has come, sends a signal to the thread that made it. It can be set
/// again and again.
///
/// The signal comes once for each time it was set; one that is on its way when the timer is cleared, or set anew, still
/// comes. A forked child does not have the timer, and there this does nothing.
#[derive(Debug)]
pub struct SignalTimer {
    id: libc::timer_t,
    generation: u32,
}

// SAFETY: the id is a number of the kernel's, which any thread of the process may use; it is no address.
unsafe impl Send for SignalTimer {}
// SAFETY: as above; the kernel serializes what threads do with it.
unsafe impl Sync for SignalTimer {}

impl SignalTimer {
    /// For the calling thread.
    ///
    /// # Errors
    ///
    /// As `timer_create(2)`: if there is no such signal, or no room for another timer.
    pub fn new(signal: c_int) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid value of this type of numbers.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut id = ptr::null_mut();
        // SAFETY: both are places of this function's.
        let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) };
        if made == 0 { Ok(Self { id, generation: process::generation() }) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether this is the process that made it, and not one forked from it.
    pub fn belongs_here(&self) -> bool {
        self.generation == process::generation()
    }

    /// Has the signal come after so long, and not when it would have come before.
    ///
    /// # Errors
    ///
    /// As `timer_settime(2)`, which has none for a timer that exists.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // All zeroes would be "never".
        self.settle(after.max(Duration::from_nanos(1)))
    }

    /// No signal is to come.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn clear(&self) -> io::Result<()> {
        self.settle(Duration::ZERO)
    }

    fn settle(&self, after: Duration) -> io::Result<()> {
        if !self.belongs_here() {
            return Ok(());
        }
        // SAFETY: all zeroes is a valid value of this type of numbers.
        let mut time: libc::itimerspec = unsafe { MaybeUninit::zeroed().assume_init() };
        // What lies beyond the clock never comes.
        time.it_value.tv_sec = after.as_secs().try_into().unwrap_or(libc::time_t::MAX);
        time.it_value.tv_nsec = after.subsec_nanos().into();
        // SAFETY: the timer exists until `self` is dropped, and the time is a place of this function's.
        let set = unsafe { libc::timer_settime(self.id, 0, &raw const time, ptr::null_mut()) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for SignalTimer {
    fn drop(&mut self) {
        // In a forked child the id may be that of a timer of its own.
        if self.belongs_here() {
            // SAFETY: the timer exists, and nobody uses it any more.
            unsafe { libc::timer_delete(self.id) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        sync::atomic::{AtomicI32, Ordering},
        thread,
    };

    use super::*;

    static HEARD_BY: AtomicI32 = AtomicI32::new(0);

    extern "C" fn hear(_signal: c_int) {
        // SAFETY: asks the kernel for a number.
        HEARD_BY.store(unsafe { libc::gettid() }, Ordering::SeqCst);
    }

    fn signal() -> c_int {
        let signal = libc::SIGRTMIN() + 7;
        let handler: extern "C" fn(c_int) = hear;
        // SAFETY: all zeroes is a `sigaction` without flags and with an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler as usize;
        // SAFETY: the handler stores a number, so it may run at any time.
        assert_eq!(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) }, 0);
        signal
    }

    fn heard() -> bool {
        HEARD_BY.swap(0, Ordering::SeqCst) != 0
    }

    #[test]
    fn it_reaches_the_thread_that_made_it() {
        let timer = SignalTimer::new(signal()).unwrap();
        // SAFETY: asks the kernel for a number.
        let me = unsafe { libc::gettid() };
        thread::scope(|scope| {
            // Another one that could take it, if it were for the process.
            scope.spawn(|| thread::sleep(Duration::from_millis(60)));
            for _ in 0..3 {
                timer.set(Duration::from_millis(10)).unwrap();
                while HEARD_BY.load(Ordering::SeqCst) == 0 {
                    thread::sleep(Duration::from_millis(200));
                }
                assert_eq!(HEARD_BY.swap(0, Ordering::SeqCst), me);
            }
        });
        timer.set(Duration::from_millis(30)).unwrap();
        timer.set(Duration::MAX).unwrap();
        thread::sleep(Duration::from_millis(60));
        assert!(!heard(), "the later word counts");
        timer.set(Duration::from_millis(30)).unwrap();
        timer.clear().unwrap();
        thread::sleep(Duration::from_millis(60));
        assert!(!heard());
        timer.set(Duration::ZERO).unwrap();
        while !heard() {
            thread::yield_now();
        }
        assert!(SignalTimer::new(-7).is_err());
    }
}
