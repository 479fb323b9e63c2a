//! Segments of shared memory, the small blocks in them, plain bytes and values, and memory with a name.

mod arena;
mod blocks;
mod bytes;
mod cell;
mod named;
mod segment;
mod shared;
mod travelling;
mod words;

pub use arena::{Block, BlockHandle};
#[cfg(all(test, not(loom)))]
pub(crate) use blocks::{BLOCKS as MOST_BLOCKS, LONGEST as LONGEST_BLOCK};
pub(crate) use blocks::{Blocks, Layout as BlocksLayout, Reference as BlockReference, TABLE as BLOCK_TABLE};
pub use blocks::{Claimed, Filled, HeldBlock};
pub use bytes::Bytes;
pub use cell::Cell;
pub use named::Named;
pub(crate) use segment::HEADER;
pub use segment::{Segment, SegmentId};
pub use shared::{Atomics, Shared};
pub use travelling::{Travelling, Unsent, Way, Whereabouts, sweep};
pub use words::OutOfRange;
