//! A structure of atomics in a block of shared memory.
#![allow(unsafe_code)]

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use super::{Block, BlockHandle};

/// A structure that several processes may use at once.
///
/// # Safety
///
/// It is `repr(C)` and consists of atomics only: every bit pattern is a valid value, zeros are a sensible one, and all of
/// it may be changed by others at any time.
pub unsafe trait Atomics: Sync {}

/// An owner of a block that holds a `T`. The address is looked up once, so that using it costs nothing.
///
/// A forked child has the same structure at the same address. Another process attaches to it with the handle and the
/// descriptor ([`AsFd`]).
#[derive(Debug)]
pub struct Shared<T: Atomics> {
    /// Points into `block`, which does not move.
    address: NonNull<T>,
    block: Block,
}

// SAFETY: the pointer is to shared memory that the block keeps mapped, and what is there is `Sync`.
unsafe impl<T: Atomics> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Atomics> Sync for Shared<T> {}

impl<T: Atomics> Shared<T> {
    /// A new one, all zeros.
    ///
    /// # Errors
    ///
    /// As [`Block::allocate`].
    pub fn create() -> io::Result<Self> {
        Ok(Self::over(Block::allocate(size_of::<T>())?))
    }

    /// What to send to another process along with the descriptor.
    pub fn hand_over(&self) -> BlockHandle {
        self.block.hand_over()
    }

    /// The one of another process.
    ///
    /// # Errors
    ///
    /// As [`Block::attach`].
    pub fn attach(handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::over(Block::attach(handle, fd, size_of::<T>())?))
    }

    fn over(block: Block) -> Self {
        // SAFETY: `Atomics` is the promise that `as_shared` asks for.
        let address = NonNull::from(unsafe { block.as_shared::<T>() });
        Self { address, block }
    }
}

impl<T: Atomics> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the block is mapped for as long as `self` lives.
        unsafe { self.address.as_ref() }
    }
}

impl<T: Atomics> AsFd for Shared<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.block.as_fd()
    }
}
