//! Who a process is, starting one, and noticing its end.
//!
//! The protocols (parent death, the hand-over to the fork server) are described in PROTOCOL.md beside this file.

mod fork;
mod fork_local;
mod forkserver;
mod handover;
mod identity;
mod life;
mod parcel;
mod resident;
mod sentinel;
mod spawn;
mod thread;
mod unshared;

pub use fork::{Forked, fork, forks, generation, threads};
pub use fork_local::ForkLocal;
pub use forkserver::{Answer, ForkServer, request};
pub use handover::{MOST_DESCRIPTORS, Received, message_sockets, receive, send};
pub use identity::ProcessId;
pub use life::{Following, follow, life_sentinel};
pub use parcel::{Contents, Parcel, receive_parcel, send_parcel};
pub use resident::resident;
pub use sentinel::{Exit, Sentinel, wait_readable};
pub use spawn::spawn;
pub use thread::thread_id;
pub use unshared::Unshared;

pub use crate::sys::timer::SignalTimer;
