//! Small blocks of shared memory: where locks, semaphores and events live.
//!
//! Blocks are cut from segments of [`ARENA`] bytes, in multiples of a cache line. Whether another process knows a
//! block can't be told in general (it may have been inherited by a fork), so a block is used again only if
//! nobody else can know it: no fork happened since it was allocated, and it was never handed over. Otherwise its place is
//! left alone, and goes when the kernel frees the segment: when the last process that has a block in it is gone or has dropped them all.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::segment::{HEADER, Segment, SegmentId};
use crate::process::{self, ForkLocal};

/// The size of the segments that blocks are cut from.
const ARENA: usize = 64 * 1024;
/// Blocks begin at multiples of this: a cache line, so that two locks never share one.
const LINE: usize = 64;

/// A block of shared memory, aligned to a cache line and zeroed when it was allocated.
///
/// Dropping it gives it back if no other process can know it.
#[derive(Debug)]
pub struct Block {
    segment: Segment,
    offset: usize,
    size: usize,
    /// [`process::forks`] when it was allocated; `None` if it came from another process.
    forks: Option<u32>,
    handed_over: AtomicBool,
}

/// What names a block to a process that gets the segment's descriptor along with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHandle {
    segment: SegmentId,
    offset: u64,
}

impl BlockHandle {
    /// How long the encoded form is.
    pub const LENGTH: usize = 24;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..16].copy_from_slice(&self.segment.to_bytes());
        bytes[16..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// From [`to_bytes`](Self::to_bytes); `None` if the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (segment, offset) = bytes.split_first_chunk()?;
        let offset = u64::from_le_bytes(offset.try_into().ok()?);
        Some(Self { segment: SegmentId::from_bytes(*segment), offset })
    }
}

/// The arena of this process: the segment blocks are being cut from, and blocks that may be used again.
#[derive(Default)]
struct Arena {
    present: Option<(Segment, usize)>,
    free: Vec<(Segment, usize, usize)>,
}

static ARENA_OF_PROCESS: ForkLocal<Mutex<Arena>> = ForkLocal::new();

impl Block {
    /// Allocates `size` bytes, zeroed; at most about 64 KiB.
    ///
    /// # Errors
    ///
    /// If memory or descriptors are lacking, or `size` is too large.
    pub fn allocate(size: usize) -> io::Result<Self> {
        let size = size.max(1).next_multiple_of(LINE);
        if size > ARENA - HEADER {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the block is larger than a segment for blocks"));
        }
        let forks = process::forks();
        let mut arena = ARENA_OF_PROCESS.get().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = arena.free.iter().position(|free| free.2 == size) {
            let (segment, offset, size) = arena.free.swap_remove(at);
            let block = Self::new(segment, offset, size, Some(forks));
            block.zero();
            return Ok(block);
        }
        let (segment, offset) = match arena.present.take() {
            Some((segment, end)) if end + size <= segment.len() => (segment, end),
            _ => (Segment::create("procession-sync", ARENA, ARENA as u64)?, HEADER),
        };
        segment.secure(offset as u64, size as u64)?;
        arena.present = Some((segment.clone(), offset + size));
        Ok(Self::new(segment, offset, size, Some(forks)))
    }

    /// A block in a segment of its own, of any size, zeroed. The segment goes with it.
    pub(super) fn alone(size: usize) -> io::Result<Self> {
        // As many as the kernel can map, less what rounding up may add.
        if size > isize::MAX as usize / 2 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no segment can be so large"));
        }
        let size = size.max(1).next_multiple_of(LINE);
        let segment = Segment::create("procession-data", HEADER + size, 0)?;
        segment.secure(0, segment.len() as u64)?;
        Ok(Self::new(segment, HEADER, size, None))
    }

    fn new(segment: Segment, offset: usize, size: usize, forks: Option<u32>) -> Self {
        Self { segment, offset, size, forks, handed_over: AtomicBool::new(false) }
    }

    /// A block of another process, from its handle and the descriptor of its segment.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] if handle and descriptor do not belong together or the block lies outside.
    pub fn attach(handle: BlockHandle, fd: OwnedFd, size: usize) -> io::Result<Self> {
        let segment = Segment::attach(fd)?;
        let size = size.max(1).checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        let offset = usize::try_from(handle.offset).unwrap_or(usize::MAX);
        if segment.id() != handle.segment
            || !offset.is_multiple_of(LINE)
            || offset < HEADER
            || segment.address(offset, size).is_none()
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the handle is not of a block in this segment"));
        }
        Ok(Self::new(segment, offset, size, None))
    }

    /// What to send to another process, along with the descriptor ([`AsFd`]). From now on the block is known to
    /// others, and its memory is not used again by this process.
    pub fn hand_over(&self) -> BlockHandle {
        self.handed_over.store(true, Ordering::Relaxed);
        BlockHandle { segment: self.segment.id(), offset: self.offset as u64 }
    }

    /// The block as a structure in shared memory.
    ///
    /// `T` stands for words that several processes use at once, so it may consist of atomics only.
    ///
    /// # Safety
    ///
    /// `T` consists of atomics (any bits are a valid value, all is interiorly mutable), and every process that has
    /// the block takes it for the same `T`.
    ///
    /// # Panics
    ///
    /// If `T` does not fit the block.
    pub unsafe fn as_shared<T: Sync>(&self) -> &T {
        assert!(size_of::<T>() <= self.size && align_of::<T>() <= LINE, "the structure does not fit the block");
        let address = self.segment.address(self.offset, self.size).expect("checked when the block was made");
        // SAFETY: it lies in the mapping, which lives as long as `self`, is aligned to a line, and the caller vouches
        // for the type.
        unsafe { address.cast().as_ref() }
    }

    fn zero(&self) {
        for at in (self.offset..self.offset + self.size).step_by(8) {
            let address = self.segment.address(at, 8).expect("checked when the block was made");
            // SAFETY: eight bytes in the mapping, aligned; only this process knows the block.
            unsafe { address.cast::<AtomicU64>().as_ref() }.store(0, Ordering::Relaxed);
        }
    }
}

impl AsFd for Block {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.forks != Some(process::forks()) || *self.handed_over.get_mut() {
            return;
        }
        let mut arena = ARENA_OF_PROCESS.get().lock().unwrap_or_else(PoisonError::into_inner);
        arena.free.push((self.segment.clone(), self.offset, self.size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(block: &Block) -> &AtomicU64 {
        // SAFETY: one atomic.
        unsafe { block.as_shared() }
    }

    #[test]
    fn blocks_are_zeroed_and_apart() {
        let (one, two) = (Block::allocate(8).unwrap(), Block::allocate(8).unwrap());
        assert_eq!(word(&one).swap(1, Ordering::Relaxed), 0);
        assert_eq!(word(&two).load(Ordering::Relaxed), 0);
        assert!(Block::allocate(ARENA).is_err());
    }

    #[test]
    fn a_block_of_ones_own_is_used_again_and_zeroed() {
        // A size no other test uses, as they share the arena.
        let size = 10 * LINE;
        let block = Block::allocate(size).unwrap();
        word(&block).store(5, Ordering::Relaxed);
        let place = (block.segment.id(), block.offset);
        drop(block);
        let again = Block::allocate(size).unwrap();
        // Another test may have forked meanwhile; then the place is left alone.
        if again.forks == Some(process::forks()) && (again.segment.id(), again.offset) == place {
            assert_eq!(word(&again).load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_block_handed_over_is_not_used_again() {
        let size = 12 * LINE;
        let block = Block::allocate(size).unwrap();
        word(&block).store(7, Ordering::Relaxed);
        let handle = BlockHandle::from_bytes(&block.hand_over().to_bytes()).unwrap();
        let fd = block.as_fd().try_clone_to_owned().unwrap();
        let place = (block.segment.id(), block.offset);
        let other = Block::attach(handle, fd, size).unwrap();
        drop(block);
        assert_eq!(word(&other).load(Ordering::Relaxed), 7);
        let next = Block::allocate(size).unwrap();
        assert_ne!((next.segment.id(), next.offset), place);
    }

    #[test]
    fn handles_are_checked() {
        let block = Block::allocate(8).unwrap();
        let handle = block.hand_over();
        let attach = |handle| Block::attach(handle, block.as_fd().try_clone_to_owned().unwrap(), 8);
        assert!(attach(handle).is_ok());
        assert!(attach(BlockHandle { offset: handle.offset + 8, ..handle }).is_err());
        assert!(attach(BlockHandle { offset: 0, ..handle }).is_err());
        assert!(attach(BlockHandle { offset: ARENA as u64, ..handle }).is_err());
        let other = SegmentId::from_bytes([1; 16]);
        assert!(attach(BlockHandle { segment: other, ..handle }).is_err());
        assert_eq!(BlockHandle::from_bytes(&[0; 3]), None);
    }
}
