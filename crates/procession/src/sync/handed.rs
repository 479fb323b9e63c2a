//! How a block of shared memory gets to another process: its handle and the descriptor of its segment.

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use procession_core::{
    memory::{BlockHandle, Bytes, Cell},
    sync,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::handover::{Claimed, Lent};

/// Something of the core that lies in a block.
pub(crate) trait InBlock: AsFd + Sized {
    /// What its type doesn't say: the number of bytes, for some.
    type Extent: Serialize + for<'de> Deserialize<'de>;
    fn extent(&self) -> Self::Extent;
    fn hand_over(&self) -> BlockHandle;
    fn attach(extent: Self::Extent, handle: BlockHandle, fd: OwnedFd) -> io::Result<Self>;
}

macro_rules! in_block {
    ($($name:ty)*) => {
        $(impl InBlock for $name {
            type Extent = ();
            fn extent(&self) {}
            fn hand_over(&self) -> BlockHandle {
                self.hand_over()
            }
            fn attach((): (), handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
                Self::attach(handle, fd)
            }
        })*
    };
}

in_block!(sync::Lock sync::RLock sync::Semaphore sync::Condition sync::Event sync::Barrier);

macro_rules! with_length {
    ($($name:ty)*) => {
        $(impl InBlock for $name {
            type Extent = usize;
            fn extent(&self) -> usize {
                self.len()
            }
            fn hand_over(&self) -> BlockHandle {
                self.hand_over()
            }
            fn attach(length: usize, handle: BlockHandle, fd: OwnedFd) -> io::Result<Self> {
                Self::attach(handle, fd, length)
            }
        })*
    };
}

with_length!(Bytes Cell);

/// Such a thing as a part of a message. Several of one segment have one descriptor there.
#[derive(Debug)]
pub(crate) struct Handed<T>(pub(crate) T);

impl<T> Deref for Handed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: InBlock> Serialize for Handed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let handle = self.0.hand_over().to_bytes();
        let mut segment = [0; 16];
        segment.copy_from_slice(&handle[..16]);
        let descriptor = Lent::shared(self.0.as_fd(), u128::from_le_bytes(segment));
        (descriptor, handle, self.0.extent()).serialize(serializer)
    }
}

impl<'de, T: InBlock> Deserialize<'de> for Handed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Claimed(fd), handle, extent): (_, [u8; BlockHandle::LENGTH], _) = Deserialize::deserialize(deserializer)?;
        let handle =
            BlockHandle::from_bytes(&handle).ok_or_else(|| de::Error::custom("malformed handle of a block"))?;
        T::attach(extent, handle, fd).map(Self).map_err(de::Error::custom)
    }
}

/// What all clones of a handle in this process have in common.
#[derive(Debug)]
pub(crate) struct Common<T>(Arc<T>);

impl<T> Common<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self(Arc::new(inner))
    }
}

impl<T> Clone for Common<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Common<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Serialize> Serialize for Common<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Common<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}
