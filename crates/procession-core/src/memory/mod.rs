//! Segments of shared memory, the small blocks in them, and plain bytes and values.

mod arena;
mod bytes;
mod cell;
mod segment;
mod shared;
mod words;

pub use arena::{Block, BlockHandle};
pub use bytes::Bytes;
pub use cell::Cell;
pub(crate) use segment::HEADER;
pub use segment::{Segment, SegmentId};
pub use shared::{Atomics, Shared};
pub use words::OutOfRange;
