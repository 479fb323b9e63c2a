//! Processes instead of threads: Python's `multiprocessing` for Rust programs.

#![allow(dead_code)] // until all pieces are here

mod address;
mod array;
#[cfg(feature = "tokio")]
mod asynchronous;
mod bootstrap;
mod code;
pub mod connection;
pub mod forkserver;
mod function;
mod handover;
mod init;
mod interrupts;
mod invitation;
mod joinable_queue;
mod launched;
mod listener;
pub mod manager;
mod message;
mod panic;
mod pipe;
pub mod pool;
pub mod process;
mod published;
pub mod queue;
mod shared_memory;
mod simple_queue;
mod start;
pub mod sync;
mod test_support;
mod value;
mod wait;

pub use address::{Address, BadAddress};
pub use array::{Array, ArrayGuard, IndexError, RawArray};
pub use code::ForeignCode;
pub use connection::{Connection, Receiver, RecvError, RecvTimeoutError, SendError, Sender, TryRecvError};
pub use function::Function;
pub use handover::{DescriptorError, Handle};
pub use init::{init, set_executable};
pub use joinable_queue::JoinableQueue;
pub use listener::{AcceptError, AuthenticationError, Client, ConnectError, Listener, ListenerBuilder};
pub use manager::{Manager, ManagerError};
pub use message::{DecodeError, EncodeError, Message, Plain};
pub use panic::{Location, Panic};
pub use pipe::{one_way_pipe, pipe};
pub use pool::{AsyncResult, Pool, PoolBuilder, TaskError};
pub use queue::Queue;
pub use shared_memory::{SharedMemory, SharedMemoryError};
pub use simple_queue::SimpleQueue;
pub use sync::{
    AcquireTimeoutError, Barrier, BoundedSemaphore, BrokenBarrier, Condition, ConditionError, Event, Lock, LockGuard,
    Permit, PlainData, RLock, RLockGuard, Recovered, Semaphore, TryAcquireError,
};
pub use value::{RawValue, Value};
pub use wait::wait;

pub use process::{
    ActiveChild, Child, Exit, JoinError, Process, Stdio, active_children, cpu_count, current_process, parent_process,
};
pub use procession_core::memory::OutOfRange;
/// ```
/// use procession::Process;
///
/// #[procession::main]
/// fn main() {
///     let child = Process::spawn(|a: u32, b: u32| a + b, (1, 2)).unwrap();
///     assert_eq!(child.join().unwrap(), 3);
/// }
/// ```
///
pub use procession_macros::main;
/// ```
/// use procession::Manager;
///
/// pub struct Account(i64);
///
/// #[procession::managed]
/// impl Account {
///     pub fn open() -> Self {
///         Self(0)
///     }
///
///     pub fn pay_in(&mut self, amount: u32) -> i64 {
///         self.0 += i64::from(amount);
///         self.0
///     }
///
///     pub fn balance(&self) -> i64 {
///         self.0
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let manager = Manager::builder().register::<Account>().start()?;
///     let account = AccountProxy::open(&manager)?;
///     account.pay_in(100)?;
///     assert_eq!(account.balance()?, 100);
///     Ok(())
/// }
/// ```
///
pub use procession_macros::managed;
pub use start::{StartError, StartMethod, set_start_method, start_method};
/// For the derives that [`PlainData`] wants.
pub use zerocopy;

/// For the macros only.
#[doc(hidden)]
pub mod __private {
    pub use crate::test_support::before_main;
}

#[cfg(test)]
test_support!();
