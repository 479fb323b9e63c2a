//! Locks, semaphores, conditions, events and barriers between processes.
//!
//! Each of them is a handle to words in shared memory. A handle is cheap to clone, is used by any thread, and is a
//! [`Message`](crate::Message): another process that is sent it, as an argument or within any message, has the same lock.
//!
//! # The death of a holder
//!
//! A process may be killed while it holds a lock. Nobody waits for it then: the next to acquire the lock gets it, and is told
//! so by the type, in the manner of the standard library's poisoned mutexes: `acquire` returns a guard, or [`Recovered`]
//! with the guard in it and the number of the dead process. Who relies on nothing but the value behind the lock
//! may well go on, as a [`Lock`] has its old value then:
//!
//! ```
//! use procession::{Lock, Recovered};
//!
//! let lock = Lock::new(5_u64)?;
//! *lock.acquire().unwrap_or_else(Recovered::into_inner) += 1;
//! # assert_eq!(lock.peek(), 6);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! With the feature `tracing`, each recovery is an event of the level "warn".

mod barrier;
mod condition;
mod event;
mod handed;
mod lock;
mod plain_data;
mod recovered;
mod rlock;
mod semaphore;

pub use barrier::{Barrier, BrokenBarrier};
pub(crate) use condition::Sealed;
pub use condition::{Condition, ConditionError, Guard};
pub use event::Event;
pub(crate) use handed::{Common, Handed};
pub use lock::{Lock, LockGuard};
pub use plain_data::PlainData;
pub use recovered::{AcquireTimeoutError, Recovered, TryAcquireError};
pub(crate) use recovered::{acquired, note};
pub use rlock::{RLock, RLockGuard};
pub use semaphore::{BoundedSemaphore, Permit, Semaphore};

pub use procession_core::sync::{AtMaximum, NotHeld, NotOwner};

#[cfg(test)]
mod tests;
