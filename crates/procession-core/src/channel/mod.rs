//! Rings of messages in shared memory, and the queues on them.
//!
//! PROTOCOL.md beside this file tells the scenarios that the comments name.

mod layout;
mod published;
mod ring;
mod sleepers;
mod spill;

pub use ring::{Delivered, Message, PutError, Ring, TakeError};

/// A place where a kill test may have the process killed; nothing otherwise.
#[cfg(not(all(test, not(loom))))]
#[inline]
pub(crate) fn point() {}
#[cfg(all(test, not(loom)))]
pub(crate) use kills::point;

#[cfg(all(test, not(loom)))]
mod kills;
