//! Processes instead of threads: Python's `multiprocessing` for Rust programs.

#![allow(dead_code)] // until all pieces are here

mod array;
mod code;
mod function;
mod handover;
mod message;
mod panic;
mod shared_memory;
pub mod sync;
mod value;

pub use array::{Array, ArrayGuard, IndexError, RawArray};
pub use code::ForeignCode;
pub use function::Function;
pub use handover::{DescriptorError, Handle};
pub use message::{DecodeError, EncodeError, Message, Plain};
pub use panic::{Location, Panic};
pub use shared_memory::{SharedMemory, SharedMemoryError};
pub use sync::{
    AcquireTimeoutError, Barrier, BoundedSemaphore, BrokenBarrier, Condition, ConditionError, Event, Lock, LockGuard,
    Permit, PlainData, RLock, RLockGuard, Recovered, Semaphore, TryAcquireError,
};
pub use value::{RawValue, Value};

pub use procession_core::memory::OutOfRange;
/// For the derives that [`PlainData`] wants.
pub use zerocopy;
