//! Locks, semaphores, conditions, events and barriers between processes.
//!
//! All of them are words in shared memory. What is not contended makes no system call; who must wait sleeps on a futex, in
//! slices, and looks in between whether the process it waits for still lives.

mod barrier;
mod condition;
mod event;
#[cfg(all(test, not(loom)))]
mod kill_tests;
mod lock;
mod rlock;
mod semaphore;
#[cfg(all(test, not(loom)))]
pub(crate) mod testing;
mod wait;

pub use barrier::{Barrier, BarrierError, Passage, Turn};
pub use condition::{Condition, ConditionError, Monitor, Waited};
pub use event::Event;
pub use lock::{Acquired, Lock, LockWord, NotHeld};
pub use rlock::{NotOwner, RLock};
pub use semaphore::{AtMaximum, Semaphore};
pub(crate) use wait::{Slices, one_core, spin};
pub use wait::{Wait, WaitError};
