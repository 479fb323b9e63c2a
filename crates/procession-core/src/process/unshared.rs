//! Descriptors that a forked child does not keep.
#![allow(unsafe_code)]

use std::{
    mem::MaybeUninit,
    os::fd::RawFd,
    ptr,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering},
};

use super::fork;

/// While this exists, a forked child closes its copy of a descriptor.
///
/// A connection comes to its end only when all copies of it are closed: a child that knows nothing of its parent's connection
/// would otherwise hide the parent's death from the other side.
///
/// A descriptor that was opened before and registered after a fork in another thread is in the child all the same: who can't
/// have that compares [`forks`](super::forks) before opening and after registering, and starts again if it has grown.
#[derive(Debug)]
pub struct Unshared {
    slot: &'static Slot,
    generation: u32,
}

/// | `fd` | meaning |
/// |---|---|
/// | -1 | free |
/// | -2 | being filled |
/// | else | a descriptor, which is still meant by the number if it has this `inode` |
#[derive(Debug)]
struct Slot {
    fd: AtomicI32,
    inode: AtomicU64,
}

const FREE: RawFd = -1;
const FILLING: RawFd = -2;

/// Slots are never given back to the allocator: the child's handler, which may not wait for a lock, walks over them.
#[derive(Debug)]
struct Chunk {
    slots: [Slot; 32],
    next: AtomicPtr<Chunk>,
}

static FIRST: Chunk = Chunk::new();

impl Chunk {
    const fn new() -> Self {
        Self {
            slots: [const { Slot { fd: AtomicI32::new(FREE), inode: AtomicU64::new(0) } }; 32],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: it is null or came from a box that was leaked.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// The next one, made if need be.
    fn next_or_new(&self) -> &'static Self {
        loop {
            if let Some(next) = self.next() {
                return next;
            }
            let new = Box::into_raw(Box::new(Self::new()));
            if self.next.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: it was not published, so this is its only owner.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

impl Unshared {
    /// For a descriptor that is to be closed in forked children.
    pub fn new(fd: RawFd) -> Self {
        let generation = fork::generation();
        let mut chunk = &FIRST;
        loop {
            for slot in &chunk.slots {
                if slot.fd.compare_exchange(FREE, FILLING, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    slot.inode.store(inode_of(fd).unwrap_or_default(), Ordering::Relaxed);
                    slot.fd.store(fd, Ordering::Release);
                    return Self { slot, generation };
                }
            }
            chunk = chunk.next_or_new();
        }
    }
}

impl Drop for Unshared {
    fn drop(&mut self) {
        // In a forked child the slot is free already, and perhaps used for another.
        if self.generation == fork::generation() {
            self.slot.fd.store(FREE, Ordering::Release);
        }
    }
}

/// Run in a forked child.
pub(super) fn in_child() {
    let mut chunk = Some(&FIRST);
    while let Some(present) = chunk {
        for slot in &present.slots {
            let fd = slot.fd.swap(FREE, Ordering::Acquire);
            // A program may close descriptors that it doesn't know, and get the numbers again for others.
            if fd >= 0 && inode_of(fd) == Some(slot.inode.load(Ordering::Relaxed)) {
                // SAFETY: the number means what was registered, which nothing in this process uses.
                unsafe { libc::close(fd) };
            }
        }
        chunk = present.next();
    }
}

fn inode_of(fd: RawFd) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for what the kernel writes; a number that is no descriptor is an error.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it is filled.
    Some(unsafe { stat.assume_init() }.st_ino)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        io::Read,
        os::fd::{AsRawFd, IntoRawFd},
    };

    use super::*;

    /// Forks a child that does `what` and exits with the number it returns.
    fn forked(what: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child calls only what these tests call, none of which needs another thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = what();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn a_forked_child_has_it_no_more() {
        // More than one chunk.
        let pipes: Vec<_> = (0..40).map(|_| std::io::pipe().unwrap()).collect();
        let unshared: Vec<_> = pipes.iter().map(|(_, writer)| Unshared::new(writer.as_raw_fd())).collect();
        let kept = pipes[0].0.as_raw_fd();
        let open = forked(|| pipes.iter().filter(|(_, writer)| inode_of(writer.as_raw_fd()).is_some()).count() as i32);
        assert_eq!(open, 0);
        assert_eq!(forked(|| i32::from(inode_of(kept).is_some())), 1);
        drop(unshared);
        assert_eq!(forked(|| i32::from(inode_of(pipes[0].1.as_raw_fd()).is_some())), 1);
    }

    #[test]
    fn another_file_of_the_same_number_is_left_alone() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let number = writer.into_raw_fd();
        let _unshared = Unshared::new(number);
        let (other_reader, other) = std::io::pipe().unwrap();
        // SAFETY: the number is the writing end, which this test owns and closes below.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert_eq!(forked(|| i32::from(inode_of(number).is_some())), 1);
        // SAFETY: as above.
        unsafe { libc::close(number) };
        drop(other_reader);
    }
}
