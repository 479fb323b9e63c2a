//! Processes that run a function of this program.
//!
//! [`Process::spawn`] starts one, [`Process::builder`] sets it up first, and the [`Child`] that either returns stands for it:
//! it is waited for, signalled, and asked for what the function returned. The protocol between a process and its
//! starter is described in PROTOCOL.md beside this file.

mod builder;
mod child;
mod children;
mod current;
mod fork;
mod settings;
mod streams;
#[cfg(feature = "tokio")]
mod tokio;

pub use builder::{Builder, Process};
pub use child::{Child, JoinError};
pub use children::{ActiveChild, active_children};
pub use current::{CurrentProcess, ParentProcess, cpu_count, current_process, parent_process};
pub use fork::fork;
pub use procession_core::process::Exit;
pub use settings::{Resource, Stdio};

pub(crate) use children::at_exit;
pub(crate) use current::{Current, usual_name};
pub(crate) use settings::{Environment, Settings, Way};
pub(crate) use streams::{Pipes, Streams};
