//! Shared memory with a name, that any program can attach to.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use procession_core::{
    memory::{Named, OutOfRange},
    process::ProcessId,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::{
    handover::{Claimed, Lent},
    sync::{Common, PlainData},
};

/// A block of memory with a name: the standard package's `SharedMemory`. A Python process attaches to it by the name, and
/// this one to a Python process', with either package.
///
/// Dropping it, in whichever process, leaves the memory and its name, until somebody [unlinks](Self::unlink) it.
/// Memory that only processes of one program use needs no name: for that there are [`Array`](crate::Array) and
/// [`Value`](crate::Value), of which nothing can be left behind.
///
/// Nobody is kept from shortening the file behind the name. To access what is no longer there ends a process with `SIGBUS`,
/// here as everywhere; neither package does it.
///
/// ```
/// use procession::SharedMemory;
///
/// let memory = SharedMemory::create(1000)?;
/// memory.write(10, b"hello")?;
///
/// let same = SharedMemory::open(memory.name())?; // in any process
/// let mut bytes = [0; 5];
/// same.read(10, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
///
/// memory.unlink()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SharedMemory(Common<Opened>);

#[derive(Debug)]
struct Opened {
    memory: Named,
    /// The process that is to unlink it when it drops it; 0 for none.
    unlinks: AtomicU64,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if *self.unlinks.get_mut() == ProcessId::current().to_bits() {
            // It may have been unlinked by others.
            let _ = self.memory.unlink();
        }
    }
}

/// Why there is no shared memory.
///
/// ```
/// use procession::{SharedMemory, SharedMemoryError};
///
/// let memory = SharedMemory::create(1)?.unlink_on_drop();
/// assert!(matches!(SharedMemory::create_named(memory.name(), 1), Err(SharedMemoryError::Exists(_))));
/// assert!(matches!(SharedMemory::open("no such name"), Err(SharedMemoryError::Missing(_))));
/// # Ok::<(), SharedMemoryError>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SharedMemoryError {
    /// There is some of that name already: the standard package's `FileExistsError`.
    #[error("there is shared memory with the name {0:?} already")]
    Exists(String),
    /// There is none of that name: the standard package's `FileNotFoundError`.
    #[error("there is no shared memory with the name {0:?}")]
    Missing(String),
    /// Shared memory has one byte at least.
    #[error("shared memory has at least one byte")]
    Empty,
    /// The name is empty, or a path.
    #[error("{0:?} can't be the name of shared memory, which is that of a file")]
    Name(String),
    /// Anything else: no memory, no descriptor, no permission.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl SharedMemoryError {
    fn of(name: &str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists(name.to_owned()),
            io::ErrorKind::NotFound => Self::Missing(name.to_owned()),
            io::ErrorKind::InvalidData => Self::Empty,
            io::ErrorKind::InvalidInput => Self::Name(name.to_owned()),
            _ => Self::Io(error),
        }
    }
}

impl SharedMemory {
    /// Makes shared memory of so many bytes, all zero, under a new name.
    ///
    /// # Errors
    ///
    /// [`SharedMemoryError`]. Memory is secured, so that its lack is an error here and not the end of whoever writes to it.
    pub fn create(size: usize) -> Result<Self, SharedMemoryError> {
        Self::make(None, size)
    }

    /// Makes shared memory under a name.
    ///
    /// # Errors
    ///
    /// [`SharedMemoryError`].
    pub fn create_named(name: &str, size: usize) -> Result<Self, SharedMemoryError> {
        Self::make(Some(name), size)
    }

    fn make(name: Option<&str>, size: usize) -> Result<Self, SharedMemoryError> {
        if size == 0 {
            return Err(SharedMemoryError::Empty);
        }
        let made = Named::create(name, size).map_err(|error| SharedMemoryError::of(name.unwrap_or_default(), error));
        made.map(Self::over)
    }

    /// Attaches to what some process made under this name.
    ///
    /// # Errors
    ///
    /// [`SharedMemoryError`].
    pub fn open(name: &str) -> Result<Self, SharedMemoryError> {
        Named::open(name).map(Self::over).map_err(|error| SharedMemoryError::of(name, error))
    }

    fn over(memory: Named) -> Self {
        Self(Common::new(Opened { memory, unlinks: AtomicU64::new(0) }))
    }

    /// The name to attach by.
    pub fn name(&self) -> &str {
        self.0.memory.name()
    }

    /// How many bytes there are.
    pub fn size(&self) -> usize {
        self.0.memory.len()
    }

    /// Copies bytes at `offset` out. Others may write them meanwhile; then of each aligned word of 8 bytes either what was there or
    /// what they wrote is read.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        self.0.memory.read(offset, bytes)
    }

    /// Copies bytes to `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is written then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.0.memory.write(offset, bytes)
    }

    /// A value at `offset`, which need not be aligned.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`].
    ///
    /// ```
    /// let memory = procession::SharedMemory::create(100)?;
    /// memory.set(3, &[1_i32, -2])?;
    /// assert_eq!(memory.get::<i32>(7)?, -2);
    /// memory.unlink()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get<T: PlainData>(&self, offset: usize) -> Result<T, OutOfRange> {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Puts a value, or a slice of them, to `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`].
    pub fn set<T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized>(
        &self,
        offset: usize,
        value: &T,
    ) -> Result<(), OutOfRange> {
        self.write(offset, value.as_bytes())
    }

    /// The bytes in shared memory, aligned to a page; valid while this handle or a clone of it lives. For those who know
    /// what they do: any process may write there at any time.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.memory.as_ptr().as_ptr()
    }

    /// Takes the name away. The memory stays with those who have it, and goes with the last of them.
    ///
    /// # Errors
    ///
    /// [`SharedMemoryError::Missing`] if the name is gone, or is that of other memory by now.
    pub fn unlink(&self) -> Result<(), SharedMemoryError> {
        self.0.memory.unlink().map_err(|error| SharedMemoryError::of(self.name(), error))
    }

    /// Has the name taken away when this process drops the last clone of this handle. (Not if it is killed.)
    ///
    /// ```
    /// let memory = procession::SharedMemory::create(8)?.unlink_on_drop();
    /// let name = memory.name().to_owned();
    /// drop(memory);
    /// assert!(procession::SharedMemory::open(&name).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn unlink_on_drop(self) -> Self {
        self.0.unlinks.store(ProcessId::current().to_bits(), Ordering::Relaxed);
        self
    }

    /// Lets go of the memory in this process, unless there are clones of this handle. The same as dropping it.
    pub fn close(self) {}
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("name", &self.name()).field("size", &self.size()).finish()
    }
}

/// By its descriptor, so that it arrives even if its name was taken away meanwhile.
impl Serialize for SharedMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.name(), Lent::own(self.as_fd())).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (name, Claimed(fd)): (String, _) = Deserialize::deserialize(deserializer)?;
        Named::attach(name, fd).map(Self::over).map_err(de::Error::custom)
    }
}
