//! A flag to wait for.
//!
//! One word, which the futex sleeps on:
//!
//! | bits | meaning |
//! |------|---------|
//! | 0    | set |
//! | 1    | somebody may be asleep; never together with bit 0 |
//! | 2-31 | how many times it was set |
//!
//! | set | asleep | state | who changes it, and to what |
//! |-----|--------|-------|-----------------------------|
//! | no  | no  | clear | set: set, times + 1 · a waiter: asleep |
//! | no  | yes | clear, waited for | set: set, times + 1, and all are woken |
//! | yes | no  | set | clear: clear |
//!
//! A waiter returns when the flag is set or *was* set since the wait began, which the count tells: a flag that is set and
//! cleared at once wakes everybody who waited. `set` takes no lock and waits for nobody, so a signal handler may call it.
//! A killed waiter leaves at most the bit behind, and the next `set` takes it away with one needless wake.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::wait::{Slices, Wait, WaitError, spin};
use crate::{
    kills::point,
    loom::{AtomicU32, Ordering},
    memory::{Atomics, BlockHandle, Shared},
    sys::futex,
};

const SET: u32 = 1;
const ASLEEP: u32 = 2;
const TIME: u32 = 4;

#[derive(Debug, Default)]
#[repr(C)]
struct EventState(AtomicU32);

// SAFETY: an atomic; zero is a clear flag.
unsafe impl Atomics for EventState {}

impl EventState {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) & SET != 0
    }

    fn set(&self) {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            // Also where it is set already: what was written before becomes visible to those who see the flag.
            let new = if word & SET == 0 { (word & !ASLEEP).wrapping_add(TIME) | SET } else { word };
            match self.0.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        point("event: set, nobody woken");
        if word & ASLEEP != 0 {
            futex::wake(&self.0, u32::MAX);
        }
    }

    fn clear(&self) {
        self.0.fetch_and(!SET, Ordering::AcqRel);
    }

    fn wait(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let began = self.0.load(Ordering::Acquire);
        let over = |word: u32| word & SET != 0 || word / TIME != began / TIME;
        if over(began) || spin(|| over(self.0.load(Ordering::Acquire))) {
            return Ok(());
        }
        let mut slices = Slices::new();
        loop {
            let word = self.0.load(Ordering::Acquire);
            if over(word) {
                return Ok(());
            }
            if word & ASLEEP == 0
                && self.0.compare_exchange(word, word | ASLEEP, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            point("event: marked as slept on, not asleep");
            if let Err(error) = wait.park(&self.0, word | ASLEEP, slices.next()) {
                // It may have been set just then.
                return if over(self.0.load(Ordering::Acquire)) { Ok(()) } else { Err(error) };
            }
        }
    }
}

/// A flag between processes: the standard package's `Event`.
///
/// ```
/// use procession_core::sync::{Event, Wait};
///
/// let event = Event::create()?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| event.wait(&mut Wait::forever()).unwrap());
///     event.set();
/// });
/// assert!(event.is_set());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Event(Shared<EventState>);

impl Event {
    /// A new flag, clear.
    ///
    /// # Errors
    ///
    /// As [`Block::allocate`](crate::memory::Block::allocate).
    pub fn create() -> io::Result<Self> {
        Shared::create().map(Self)
    }

    /// What to send to another process along with the descriptor.
    pub fn hand_over(&self) -> BlockHandle {
        self.0.hand_over()
    }

    /// The flag of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`](crate::memory::Block::attach).
    pub fn attach(handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
        Shared::attach(handle, fd).map(Self)
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.is_set()
    }

    /// Sets it and wakes all who wait. Never blocks.
    pub fn set(&self) {
        self.0.set();
    }

    /// Clears it. Who waits goes on waiting.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Waits until it is set, at once if it is already.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the wait ended without that.
    pub fn wait(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        self.0.wait(wait)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sync::testing::{in_child, kill};

    #[test]
    fn it_is_set_and_cleared() {
        let event = Event::create().unwrap();
        assert!(!event.is_set());
        assert_eq!(event.wait(&mut Wait::timeout(Duration::from_millis(5))), Err(WaitError::TimedOut));
        event.set();
        event.set();
        assert!(event.is_set());
        assert_eq!(event.wait(&mut Wait::timeout(Duration::ZERO)), Ok(()));
        event.clear();
        assert!(!event.is_set());
    }

    #[test]
    fn a_flag_set_and_cleared_at_once_wakes_who_waited() {
        let event = Event::create().unwrap();
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| event.wait(&mut Wait::forever()))).collect();
            while event.0.0.load(Ordering::Relaxed) & ASLEEP == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            event.set();
            event.clear();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), Ok(()));
            }
        });
    }

    #[test]
    fn a_killed_waiter_blocks_nobody() {
        let event = Event::create().unwrap();
        let child = in_child(|| {}, || event.wait(&mut Wait::forever()));
        while event.0.0.load(Ordering::Relaxed) & ASLEEP == 0 {
            std::thread::yield_now();
        }
        kill(child);
        event.set();
        assert_eq!(event.0.0.load(Ordering::Relaxed) & ASLEEP, 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::loom::check;

    #[test]
    fn a_set_wakes_everybody_even_if_cleared_at_once() {
        check(2, || {
            let event = Arc::new(EventState::default());
            // Registered before the flag is set, so the waits have begun.
            let began = event.0.load(Ordering::Relaxed);
            let waiters: Vec<_> = (0..2)
                .map(|_| {
                    let event = event.clone();
                    thread::spawn(move || event.wait(&mut Wait::forever()).unwrap())
                })
                .collect();
            event.set();
            assert_ne!(event.0.load(Ordering::Relaxed), began);
            for waiter in waiters {
                waiter.join().unwrap();
            }
        });
    }

    /// Who sees the flag sees what was written before it was set, also by the second who set it.
    #[test]
    fn a_set_publishes() {
        check(3, || {
            let shared = Arc::new((EventState::default(), AtomicU32::new(0)));
            let setter = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.1.store(1, Ordering::Relaxed);
                    shared.0.set();
                })
            };
            shared.0.wait(&mut Wait::forever()).unwrap();
            assert_eq!(shared.1.load(Ordering::Relaxed), 1);
            setter.join().unwrap();
        });
    }
}
