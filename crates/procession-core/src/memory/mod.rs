//! Segments of shared memory and the small blocks in them.

mod arena;
mod segment;

pub use arena::{Block, BlockHandle};
pub use segment::{Segment, SegmentId};
