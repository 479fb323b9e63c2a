//! Plain bytes in shared memory.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use super::{
    Block, BlockHandle, OutOfRange,
    words::{self, WORD},
};
use crate::loom::AtomicU64;

/// Up to this size they are cut from a segment of the arena; what is larger gets a segment of its own.
const LARGEST_BLOCK: usize = 8 * 1024;

/// Bytes in shared memory, which are copied in and out.
///
/// No reference to them exists anywhere, so other processes may write them at any time. Each copy is of whole words (see
/// [`read`](Self::read)); who wants more of a copy to belong together uses a lock, or a [`Cell`](super::Cell).
///
/// ```
/// use procession_core::memory::Bytes;
///
/// let bytes = Bytes::allocate(100)?;
/// bytes.write(96, b"last")?;
/// let mut read = [0; 5];
/// bytes.read(95, &mut read)?;
/// assert_eq!(&read, b"\0last");
/// assert!(bytes.write(97, b"last").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Bytes {
    /// Points into `block`, which does not move.
    words: NonNull<AtomicU64>,
    length: usize,
    block: Block,
}

// SAFETY: the pointer is to atomics in shared memory that the block keeps mapped.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// So many bytes, all zero. Memory for them is secured.
    ///
    /// # Errors
    ///
    /// If memory or descriptors are lacking.
    pub fn allocate(length: usize) -> io::Result<Self> {
        let block = if length > LARGEST_BLOCK { Block::alone(length) } else { Block::allocate(length) };
        Ok(Self::over(block?, length))
    }

    /// What to send to another process, along with the length and the descriptor ([`AsFd`]).
    pub fn hand_over(&self) -> BlockHandle {
        self.block.hand_over()
    }

    /// The bytes of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`]: the handle, the descriptor and the length do not belong together.
    pub fn attach(handle: BlockHandle, fd: OwnedFd, length: usize) -> io::Result<Self> {
        Ok(Self::over(Block::attach(handle, fd, length)?, length))
    }

    fn over(block: Block, length: usize) -> Self {
        // SAFETY: an atomic, and more of them up to the end of the block, which is of whole lines.
        let words = NonNull::from(unsafe { block.as_shared::<AtomicU64>() });
        Self { words, length, block }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies `bytes.len()` bytes at `offset` out. Each aligned word of 8 bytes is what somebody wrote there at some time;
    /// two words need not be of the same time.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they do not lie within.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        OutOfRange::check(offset, bytes.len(), self.length)?;
        words::copy_out(self.words(), offset, bytes);
        Ok(())
    }

    /// Copies bytes to `offset`. An aligned word of 8 bytes, or a part of one, changes in one step.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they do not fit; nothing is written then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        OutOfRange::check(offset, bytes.len(), self.length)?;
        words::copy_in(self.words(), offset, bytes);
        Ok(())
    }

    /// The words that the bytes are in, the last perhaps in part.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words lie in the block, which is zeroed memory to begin with, mapped as long as `self` lives,
        // and touched by atomics only.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.length.div_ceil(WORD)) }
    }

    /// Where they are, aligned to 64 bytes. Valid while `self` lives. Other processes may write there at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.words.cast()
    }
}

impl AsFd for Bytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.block.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn attached(bytes: &Bytes, length: usize) -> io::Result<Bytes> {
        Bytes::attach(bytes.hand_over(), bytes.as_fd().try_clone_to_owned()?, length)
    }

    #[test]
    fn small_and_large_are_shared_with_who_gets_the_handle() {
        for length in [0, 1, 100, LARGEST_BLOCK, LARGEST_BLOCK + 1, 3_000_000] {
            let bytes = Bytes::allocate(length).unwrap();
            assert_eq!((bytes.len(), bytes.as_ptr().as_ptr() as usize % 64), (length, 0));
            let other = attached(&bytes, length).unwrap();
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            bytes.write(0, &content).unwrap();
            let mut read = vec![0; length];
            other.read(0, &mut read).unwrap();
            assert_eq!(read, content);
            assert!(other.read(1, &mut read).is_err() || length == 0);
        }
    }

    #[test]
    fn a_length_beyond_the_segment_is_refused() {
        for length in [8, LARGEST_BLOCK + 1] {
            let bytes = Bytes::allocate(length).unwrap();
            assert!(attached(&bytes, length).is_ok());
            assert!(attached(&bytes, 1 << 20).is_err());
            assert!(attached(&bytes, usize::MAX).is_err());
        }
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        let bytes = Bytes::allocate(10).unwrap();
        assert_eq!(bytes.write(8, b"long"), Err(OutOfRange { offset: 8, length: 4, size: 10 }));
        assert_eq!(bytes.words()[1].load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn more_than_there_can_be_is_an_error() {
        assert!(Bytes::allocate(usize::MAX).is_err());
        assert!(Bytes::allocate(1 << 62).is_err());
    }
}
