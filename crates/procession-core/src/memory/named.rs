//! Shared memory with a name: a file in the directory that the C library's `shm_open` uses.
//!
//! It is what the standard package's `SharedMemory` is, so that a process of any program can attach to it by the name. Nothing
//! is kept in it besides what its users write. In contrast to a [`Segment`](super::Segment) it stays until somebody takes
//! its name away, and it is not sealed: who cuts it short makes others' accesses fail with `SIGBUS`.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    ptr::NonNull,
};

use rustix::{
    fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags},
    mm::{MapFlags, ProtFlags},
};

use super::{
    OutOfRange,
    segment::random,
    words::{self, WORD},
};
use crate::{loom::AtomicU64, sys::available::ensure_available};

const DIRECTORY: &str = "/dev/shm";
/// What generated names begin with; with the slash before it and eight digits behind, they have the 14 characters that all systems allow.
const PREFIX: &str = "psm_";

/// A named file in memory, mapped. Dropping it leaves the file and its name.
///
/// ```
/// use procession_core::memory::Named;
///
/// let here = Named::create(None, 100)?;
/// let there = Named::open(here.name())?;
/// here.write(50, b"shared")?;
/// let mut bytes = [0; 6];
/// there.read(50, &mut bytes)?;
/// assert_eq!(&bytes, b"shared");
/// here.unlink()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Named {
    name: String,
    fd: OwnedFd,
    base: NonNull<AtomicU64>,
    size: usize,
}

// SAFETY: the pointer is to atomics in shared memory, mapped as long as the value lives.
unsafe impl Send for Named {}
// SAFETY: as above.
unsafe impl Sync for Named {}

impl Drop for Named {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of which nothing is lent beyond `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size) };
        debug_assert!(unmapped.is_ok());
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// The file of a name; one slash or more in front of it are of no meaning, as for `shm_open`.
fn path_of(name: &str) -> io::Result<PathBuf> {
    let bare = name.trim_start_matches('/');
    if bare.is_empty() || bare.contains(['/', '\0']) || bare == "." || bare == ".." {
        return Err(invalid("the name of shared memory is that of a file, not a path"));
    }
    Ok(Path::new(DIRECTORY).join(bare))
}

fn open(path: &Path, more: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?)
}

impl Named {
    /// Makes shared memory of `size` bytes, all zero, under a name that nobody has yet; without one, under a new random name.
    /// Memory for it is secured.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`]; [`io::ErrorKind::InvalidInput`] if `size` is 0 or the name is a path;
    /// [`io::ErrorKind::FileTooLarge`]; [`io::ErrorKind::OutOfMemory`] if there is not so much; else as open(2) and
    /// fallocate(2).
    pub fn create(name: Option<&str>, size: usize) -> io::Result<Self> {
        if size == 0 {
            return Err(invalid("shared memory has at least one byte"));
        }
        if isize::try_from(size).is_err() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        ensure_available(size as u64)?;
        let (name, fd) = match name {
            Some(name) => (name.to_owned(), open(&path_of(name)?, OFlags::CREATE | OFlags::EXCL)?),
            None => Self::create_under_new_name()?,
        };
        let sized = rustix::fs::ftruncate(&fd, size as u64).and_then(|()| {
            rustix::io::retry_on_intr(|| rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size as u64))
        });
        let made = sized.map_err(io::Error::from).and_then(|()| Self::map(name.clone(), fd));
        if made.is_err() {
            // Nobody shall find what is of no use.
            std::fs::remove_file(path_of(&name)?)?;
        }
        made
    }

    fn create_under_new_name() -> io::Result<(String, OwnedFd)> {
        loop {
            let mut bytes = [0; 4];
            random(&mut bytes)?;
            let name = format!("{PREFIX}{:08x}", u32::from_ne_bytes(bytes));
            match open(&path_of(&name)?, OFlags::CREATE | OFlags::EXCL) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return Ok((name, opened?)),
            }
        }
    }

    /// Attaches to what another process made under this name.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`]; [`io::ErrorKind::InvalidInput`] if the name is a path; [`io::ErrorKind::InvalidData`]
    /// if the file is empty (its maker has not sized it as yet) or no file; else as open(2) and mmap(2).
    pub fn open(name: &str) -> io::Result<Self> {
        Self::map(name.to_owned(), open(&path_of(name)?, OFlags::empty())?)
    }

    /// What another process has, from its descriptor. The name need not exist any more.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn attach(name: String, fd: OwnedFd) -> io::Result<Self> {
        path_of(&name)?;
        Self::map(name, fd)
    }

    fn map(name: String, fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let size = usize::try_from(stat.st_size).unwrap_or(0);
        if size == 0 || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is empty, or no memory"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), size, protection, MapFlags::SHARED, &fd, 0)
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let name = name.trim_start_matches('/').to_owned();
        Ok(Self { name, fd, base, size })
    }

    /// Takes the name away. The memory goes with the last process that has it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if the name is gone, or stands for other memory by now; else as unlink(2).
    pub fn unlink(&self) -> io::Result<()> {
        let path = path_of(&self.name)?;
        let named = rustix::fs::statat(rustix::fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW)?;
        let mine = rustix::fs::fstat(&self.fd)?;
        if (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name stands for other shared memory by now"));
        }
        std::fs::remove_file(path)
    }

    /// The name to attach by, without a slash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.size
    }

    /// Never: it has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Copies `bytes.len()` bytes at `offset` out, as [`Bytes::read`](super::Bytes::read).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they do not lie within.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        OutOfRange::check(offset, bytes.len(), self.size)?;
        words::copy_out(self.words(), offset, bytes);
        Ok(())
    }

    /// Copies bytes to `offset`, as [`Bytes::write`](super::Bytes::write).
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they do not fit; nothing is written then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        OutOfRange::check(offset, bytes.len(), self.size)?;
        words::copy_in(self.words(), offset, bytes);
        Ok(())
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is of whole pages, hence of whole words, and is touched by atomics only in this process
        // (but by those who use the raw pointer).
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.size.div_ceil(WORD)) }
    }

    /// Where the bytes are, aligned to a page. Valid while `self` lives. Other processes may write there at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base.cast()
    }

    /// A file of its own over the same memory, to be read and written with `pread(2)` and the like.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn to_file(&self) -> io::Result<File> {
        Ok(self.fd.try_clone()?.into())
    }
}

impl AsFd for Named {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Unlinks at the end of a test, failed or not.
    struct Unlinked(Named);
    impl Drop for Unlinked {
        fn drop(&mut self) {
            let _ = self.0.unlink();
        }
    }

    fn made(size: usize) -> Unlinked {
        Unlinked(Named::create(None, size).unwrap())
    }

    #[test]
    fn what_one_writes_another_reads_by_the_name() {
        let one = made(1001);
        assert_eq!((one.0.name().len(), one.0.len()), (12, 1001));
        one.0.write(993, b"the end.").unwrap();
        let two = Named::open(one.0.name()).unwrap();
        let mut read = [0; 9];
        two.read(992, &mut read).unwrap();
        assert_eq!(&read, b"\0the end.");
        assert!(two.read(993, &mut read).is_err());
        assert!(two.write(1000, b"12").is_err());
        drop(two);
        assert!(Named::open(&format!("/{}", one.0.name())).is_ok(), "dropping it must leave the name");
    }

    #[test]
    fn a_name_is_given_once_and_taken_away_once() {
        let one = made(1);
        let name = one.0.name().to_owned();
        assert_eq!(Named::create(Some(&name), 1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        one.0.unlink().unwrap();
        assert_eq!(Named::open(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(one.0.unlink().unwrap_err().kind(), io::ErrorKind::NotFound);
        one.0.write(0, b"x").unwrap();
        let two = Unlinked(Named::create(Some(&name), 1).unwrap());
        assert_eq!(one.0.unlink().unwrap_err().kind(), io::ErrorKind::NotFound, "the name is another's now");
        assert!(Named::open(&name).is_ok());
        drop(two);
    }

    #[test]
    fn it_is_had_by_its_descriptor_without_the_name() {
        let one = made(10);
        one.0.unlink().unwrap();
        let two = Named::attach(one.0.name().to_owned(), one.0.as_fd().try_clone_to_owned().unwrap()).unwrap();
        one.0.write(0, b"still here").unwrap();
        let mut read = [0; 10];
        two.read(0, &mut read).unwrap();
        assert_eq!(&read, b"still here");
        let null = File::open("/dev/null").unwrap();
        assert_eq!(Named::attach("null".into(), null.into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn neither_paths_nor_nothing_are_made() {
        for name in ["", "/", "a/b", "..", "/../tmp/x", "nul\0"] {
            assert_eq!(Named::create(Some(name), 1).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
            assert!(Named::open(name).is_err());
        }
        assert_eq!(Named::create(None, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn what_can_not_be_made_leaves_no_name() {
        let name = format!("procession-test-{}", std::process::id());
        for size in [1 << 60, usize::MAX] {
            let error = Named::create(Some(&name), size).unwrap_err();
            assert!(!matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData), "{error}");
        }
        assert_eq!(Named::open(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
