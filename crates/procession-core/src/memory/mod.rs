//! Segments of shared memory, the small blocks in them, plain bytes and values, and memory with a name.

mod arena;
mod bytes;
mod cell;
mod named;
mod segment;
mod shared;
mod travelling;
mod words;

pub use arena::{Block, BlockHandle};
pub use bytes::Bytes;
pub use cell::Cell;
pub use named::Named;
pub(crate) use segment::HEADER;
pub use segment::{Segment, SegmentId};
pub use shared::{Atomics, Shared};
pub use travelling::{Travelling, Whereabouts, sweep};
pub use words::OutOfRange;
