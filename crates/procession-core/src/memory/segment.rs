//! Segments: anonymous files in memory, mapped by each process that was handed their descriptor.
//!
//! A segment has no name. The kernel frees it with the last process that has it, however that process ended, so nothing
//! is ever left behind. Its size is fixed and sealed: no other process can make an access fail by cutting it short. Pages are
//! secured ([`Segment::secure`]) before they are written through the mapping, so that lack of memory is an error and
//! not a `SIGBUS`.
//!
//! Each segment begins with a header, which is written before anybody else can see it and never again:
//!
//! | bytes | meaning |
//! |-------|---------|
//! | 0-7   | magic number, with the version of the layout |
//! | 8-23  | the identity of the segment, random |
//! | 24-31 | how many bytes are mapped |
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

use crate::{process, sys::available::ensure_available};

/// "procshm" and the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"procshm\x01");

/// Where what is stored in a segment begins.
pub const HEADER: usize = 64;

/// What tells a segment from all others: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(u128);

impl SegmentId {
    /// As bytes, to hand over along with the descriptor.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// From [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        random(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }
}

/// Fills `bytes` with random ones.
pub(super) fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        // SAFETY: the pointer and the length describe the rest of `bytes`.
        let count = unsafe { libc::getrandom(bytes[filled..].as_mut_ptr().cast(), bytes.len() - filled, 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// A segment mapped into this process. Clones share the mapping and the descriptor; the last one that is dropped undoes both.
///
/// A forked child has the same mapping at the same address, and a descriptor of its own.
#[derive(Clone, Debug)]
pub struct Segment(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    fd: OwnedFd,
    base: NonNull<u8>,
    length: usize,
    id: SegmentId,
}

// SAFETY: the mapping is plain shared memory, which stays mapped while the value lives; every access through it is by atomics
// or by copies whose order atomics see to.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        registered(|known| {
            if known.get(&self.id).is_some_and(|mapping| mapping.strong_count() == 0) {
                known.remove(&self.id);
            }
        });
        // SAFETY: base and length are those of the mapping made in `Segment::map`, and no clone is left to use it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The segments of this process, so that one sent many times is mapped once. Made anew in a forked child, whose copy of
/// the parent's may have been caught while locked; all that is lost by it is the knowledge of what is mapped already.
fn registered<R>(look: impl FnOnce(&mut HashMap<SegmentId, Weak<Mapping>>) -> R) -> R {
    static KNOWN: process::ForkLocal<Mutex<HashMap<SegmentId, Weak<Mapping>>>> = process::ForkLocal::new();
    look(&mut KNOWN.get().lock().unwrap_or_else(PoisonError::into_inner))
}

impl Segment {
    /// Makes a segment: a file of `size` bytes, sparse, of which the first `mapped` are mapped. Both are rounded up to
    /// whole pages. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    ///
    /// As `memfd_create(2)`, `ftruncate(2)` and mmap(2): too many descriptors, or no address space.
    pub fn create(name: &str, mapped: usize, size: u64) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let mapped = mapped.max(HEADER).next_multiple_of(page);
        let size = size.max(mapped as u64).next_multiple_of(page as u64);
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, size)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let id = SegmentId::random()?;
        let mut header = [0; 32];
        header[..8].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..24].copy_from_slice(&id.to_bytes());
        header[24..].copy_from_slice(&(mapped as u64).to_le_bytes());
        write_at(fd.as_fd(), &header, 0)?;
        let segment = Self::map(fd, mapped, id)?;
        registered(|known| known.insert(id, Arc::downgrade(&segment.0)));
        Ok(segment)
    }

    /// The segment that a descriptor handed over by another process stands for. If this process has it already, that
    /// one is returned and the descriptor closed (unless it is the very one that is in use).
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] if the descriptor is of something else, else as mmap(2).
    pub fn attach(fd: OwnedFd) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut header = [0; 32];
        read_at(fd.as_fd(), &mut header, 0)?;
        let word = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        if word(0) != MAGIC {
            return Err(invalid("the descriptor is not of a shared segment, or of another version"));
        }
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(invalid("the shared segment is not sealed"));
        }
        let mapped = usize::try_from(word(24)).map_err(|_| invalid("the shared segment is too large to map"))?;
        if mapped < HEADER || mapped as u64 > rustix::fs::fstat(&fd)?.st_size as u64 {
            return Err(invalid("the shared segment has a wrong size"));
        }
        let id = SegmentId(u128::from(word(16)) << 64 | u128::from(word(8)));
        registered(|known| {
            if let Some(mapping) = known.get(&id).and_then(Weak::upgrade) {
                if mapping.fd.as_raw_fd() == fd.as_raw_fd() {
                    let _ = fd.into_raw_fd();
                }
                return Ok(Self(mapping));
            }
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
            let segment = Self::map(fd, mapped, id)?;
            known.insert(id, Arc::downgrade(&segment.0));
            Ok(segment)
        })
    }

    /// The segment with this id, if this process has it.
    pub fn known(id: SegmentId) -> Option<Self> {
        registered(|known| known.get(&id).and_then(Weak::upgrade)).map(Self)
    }

    fn map(fd: OwnedFd, length: usize, id: SegmentId) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &fd,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self(Arc::new(Mapping { fd, base, length, id })))
    }

    /// What tells it from all other segments.
    pub fn id(&self) -> SegmentId {
        self.0.id
    }

    /// How many bytes are mapped, from the beginning.
    pub fn len(&self) -> usize {
        self.0.length
    }

    /// Never: a segment has a header at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The address of `length` bytes at `offset`, valid while the segment lives; `None` if they do not lie in the mapping.
    ///
    /// Other processes may write there at any time: it is for atomics and raw copies, never for references to plain data.
    pub fn address(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        // SAFETY: the offset lies in the mapping or at its end.
        (end <= self.0.length).then(|| unsafe { self.0.base.add(offset) })
    }

    /// Makes sure that memory stands behind `length` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// As fallocate(2), `ENOSPC` or `ENOMEM` if there is not enough memory.
    pub fn secure(&self, offset: u64, length: u64) -> io::Result<()> {
        ensure_available(length)?;
        retry(|| rustix::fs::fallocate(&self.0.fd, FallocateFlags::KEEP_SIZE, offset, length))
    }

    /// Gives the memory behind `length` bytes at `offset` back; they read as zeros afterwards. Blocks while the kernel frees it.
    ///
    /// # Errors
    ///
    /// As fallocate(2).
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        retry(|| {
            rustix::fs::fallocate(&self.0.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
        })
    }

    /// Writes to the file, mapped there or not.
    ///
    /// # Errors
    ///
    /// As pwrite(2): `ENOSPC` or `ENOMEM` if memory is lacking, `EFBIG` or `EPERM` past the end.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_at(self.0.fd.as_fd(), bytes, offset)
    }

    /// Reads from the file, mapped there or not.
    ///
    /// # Errors
    ///
    /// As pread(2), and [`io::ErrorKind::UnexpectedEof`] past the end.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        read_at(self.0.fd.as_fd(), bytes, offset)
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    rustix::io::retry_on_intr(&mut call).map_err(Into::into)
}

fn write_at(fd: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, bytes, offset))?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[count..];
        offset += count as u64;
    }
    Ok(())
}

fn read_at(fd: BorrowedFd<'_>, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *bytes, offset))?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[count..];
        offset += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peek(segment: &Segment, offset: usize) -> u8 {
        // SAFETY: the address lies in the mapping, which outlives the read.
        unsafe { segment.address(offset, 1).unwrap().read_volatile() }
    }

    #[test]
    fn what_is_written_by_the_file_is_read_by_the_mapping() {
        let segment = Segment::create("test", 4096, 1 << 40).unwrap();
        segment.write_at(&[7], 100).unwrap();
        assert_eq!(peek(&segment, 100), 7);
        segment.write_at(b"far", 1 << 39).unwrap();
        let mut far = [0; 3];
        segment.read_at(&mut far, 1 << 39).unwrap();
        assert_eq!(&far, b"far");
        segment.discard(1 << 39, 4096).unwrap();
        segment.read_at(&mut far, 1 << 39).unwrap();
        assert_eq!(far, [0; 3]);
        assert!(segment.read_at(&mut far, 1 << 40).is_err());
        assert!(segment.write_at(&far, 1 << 40).is_err());
    }

    #[test]
    fn addresses_outside_are_refused() {
        let segment = Segment::create("test", 1, 1).unwrap();
        let length = segment.len();
        assert!(segment.address(length - 1, 1).is_some());
        assert!(segment.address(length, 1).is_none());
        assert!(segment.address(usize::MAX, 2).is_none());
    }

    #[test]
    fn a_segment_sent_twice_is_mapped_once() {
        let segment = Segment::create("test", 4096, 4096).unwrap();
        let again = Segment::attach(segment.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(again.id(), segment.id());
        assert_eq!(again.address(0, 1), segment.address(0, 1));
        assert_eq!(again.as_fd().as_raw_fd(), segment.as_fd().as_raw_fd());
    }

    #[test]
    fn a_segment_nobody_has_any_more_is_mapped_anew() {
        let segment = Segment::create("test", 4096, 4096).unwrap();
        segment.write_at(&[9], 200).unwrap();
        let (id, fd) = (segment.id(), segment.as_fd().try_clone_to_owned().unwrap());
        drop(segment);
        let again = Segment::attach(fd).unwrap();
        assert_eq!(again.id(), id);
        assert_eq!(peek(&again, 200), 9);
    }

    #[test]
    fn other_files_are_refused() {
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(Segment::attach(other.into()).is_err());
        let memory = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        write_at(memory.as_fd(), &[0; 64], 0).unwrap();
        assert_eq!(Segment::attach(memory).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
