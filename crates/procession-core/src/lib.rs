//! The core of procession: processes, locks, queues, pipes and pools over shared memory.
//!
//! This crate deals in bytes, descriptors, processes and shared memory. It knows nothing of serialization and nothing
//! of Python: the faces built on it supply both. The folders bear the names a reader of Python's `multiprocessing`
//! looks for:
//!
//! * [`memory`]: segments of shared memory and the small blocks in them
//! * [`sync`]: locks, semaphores, conditions, events and barriers between processes
//! * [`channel`]: rings of messages and queues on them; connections and pipes
//! * [`process`]: who a process is, starting one, and noticing its end
//! * [`kills`]: names for the places at which tests have processes killed
//! * [`manager`]: a server of objects, and its clients
//!
//! # Blocking
//!
//! Each call that may block takes a [`sync::Wait`], which holds the deadline and says what to do when a signal arrives.
//!
//! # Fork
//!
//! Nothing here starts a thread on its own. What is local to a process is keyed by [`process::generation`] and made anew
//! in a forked child; what is shared stays usable on both sides of a fork.

pub mod channel;
pub mod kills;
pub mod manager;
pub mod memory;
pub mod pool;
pub mod process;
pub mod sync;

mod loom;
mod sys;
