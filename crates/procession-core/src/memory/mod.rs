//! Segments of shared memory and the small blocks in them.

mod arena;
mod segment;
mod shared;

pub use arena::{Block, BlockHandle};
pub(crate) use segment::HEADER;
pub use segment::{Segment, SegmentId};
pub use shared::{Atomics, Shared};
