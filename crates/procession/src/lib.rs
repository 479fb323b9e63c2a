//! Processes instead of threads: Python's `multiprocessing` for Rust programs.

#![allow(dead_code)] // until all pieces are here

mod code;
mod function;
mod handover;
mod message;
mod panic;

pub use code::ForeignCode;
pub use function::Function;
pub use handover::{DescriptorError, Handle};
pub use message::{DecodeError, EncodeError, Message, Plain};
pub use panic::{Location, Panic};
