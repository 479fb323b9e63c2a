//! The entrants, one crate in each file.

pub mod command;
pub mod crossmist;
pub mod iceoryx;
pub mod ipc_channel;
pub mod packets;
pub mod procession;
pub mod procspawn;
pub mod sockets;

/// How many workers the pools have.
pub const WORKERS: usize = 2;
