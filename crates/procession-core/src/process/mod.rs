//! Who a process is, starting one, and noticing its end.

mod fork;
mod fork_local;
mod identity;

pub use fork::{forks, generation};
pub use fork_local::ForkLocal;
pub use identity::ProcessId;
