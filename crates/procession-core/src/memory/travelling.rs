//! Memory that any process can be told of: by a name of a few bytes instead of a descriptor.
//!
//! Messages of queues and pools can't carry descriptors. So a sender [tells](Travelling::send) where the memory is to be had, in
//! which process and under which number, and the receiver [fetches](Travelling::fetch) it there. Between the two the memory is
//! *under way*: the sender keeps it, even if nobody there uses it any more.
//!
//! How often it is under way stands in the memory itself, in its first page, one word for each sender (or for several,
//! whose ids are the same modulo [`SENDERS`]):
//!
//! | who | what |
//! |---|---|
//! | sender | adds one, before the message is made |
//! | receiver | takes one away, when it has the memory |
//! | sender, later | lets go of the memory, once its word is not above zero and nobody here uses it |
//!
//! * *A receiver dies before it has fetched it, or the message is never taken out.* The word stays above zero: the sender keeps
//!   the memory until its own end. Nothing is lost but the room.
//! * *A sender dies before the receiver has fetched it.* Fetching fails, with an error that says so. One that ends in good
//!   order waits a while before ([`Travelling::linger`]).
//! * *A message is read twice.* The word goes below zero, and the sender may let go of the memory while another message is
//!   under way, which then fails if nobody uses the memory in the sender.
//! * *The number stands for another file by now*, or the pid for another process. The file's own random id says so.
//! * *A forked child* is a sender of its own: its parent's words are not its business.
#![allow(unsafe_code)]

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

use super::{Segment, SegmentId};
use crate::process::ForkLocal;

/// The bytes before the memory that is the user's: a page, so that what follows is aligned to one.
const BEFORE: usize = 4096;
/// Where the words of the senders begin, behind the header of the segment.
const WORDS: usize = 64;
/// How many there are.
const SENDERS: u32 = 500;

const _: () = assert!(WORDS + 8 * SENDERS as usize <= BEFORE);

/// What this process has sent and is perhaps still under way.
static UNDER_WAY: ForkLocal<Mutex<Vec<Segment>>> = ForkLocal::new();

thread_local! {
    /// What this thread has sent since [`Travelling::with_return`] was called, if it was.
    static SENT: RefCell<Option<Vec<Segment>>> = const { RefCell::new(None) };
}

/// Memory, all zero at first, that can be sent to any process of the same user on this machine. Clones are the same memory.
#[derive(Clone, Debug)]
pub struct Travelling(Segment);

/// Where the memory is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// What tells it from all other memory.
    pub id: SegmentId,
    /// The process that has it.
    pub pid: u32,
    /// Its descriptor there.
    pub number: RawFd,
}

impl Travelling {
    /// So many bytes, all zero. Memory for them is secured.
    ///
    /// # Errors
    ///
    /// `ENOMEM` or `ENOSPC` if there is not enough memory, or as `memfd_create(2)` and mmap(2).
    pub fn allocate(length: usize) -> io::Result<Self> {
        let all = length.checked_add(BEFORE).filter(|&all| isize::try_from(all).is_ok());
        let all = all.ok_or(io::ErrorKind::OutOfMemory)?;
        sweep();
        let segment = Segment::create("procession-array", all, all as u64)?;
        segment.secure(0, all as u64)?;
        Ok(Self(segment))
    }

    /// The memory behind a descriptor that another process handed over.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] if it is something else, else as mmap(2).
    pub fn attach(fd: std::os::fd::OwnedFd) -> io::Result<Self> {
        let segment = Segment::attach(fd)?;
        if segment.len() < BEFORE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is of another kind"));
        }
        Ok(Self(segment))
    }

    /// Says that the memory goes on its way, and where the receiver will find it. This process keeps it until then.
    pub fn send(&self) -> Whereabouts {
        let pid = std::process::id();
        self.word(pid).fetch_add(1, Ordering::AcqRel);
        SENT.with_borrow_mut(|sent| sent.iter_mut().for_each(|sent| sent.push(self.0.clone())));
        sweep();
        let mut kept = UNDER_WAY.get().lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().all(|segment| segment.id() != self.0.id()) {
            kept.push(self.0.clone());
        }
        Whereabouts { id: self.0.id(), pid, number: self.0.as_fd().as_raw_fd() }
    }

    /// Calls what makes a message and sends it. What is [sent](Self::send) meanwhile by this thread counts as come back if the
    /// message was not sent after all: else it would be kept for nobody.
    pub fn with_return<R>(call: impl FnOnce() -> R, was_sent: impl FnOnce(&R) -> bool) -> R {
        let pid = std::process::id();
        let outer = SENT.replace(Some(Vec::new()));
        let result = call();
        let sent = SENT.replace(outer).unwrap_or_default();
        // A child that was forked meanwhile has nothing to do with it.
        if !sent.is_empty() && !was_sent(&result) && pid == std::process::id() {
            for segment in &sent {
                word(segment, pid).fetch_sub(1, Ordering::AcqRel);
            }
            drop(sent);
            sweep();
        }
        result
    }

    /// The memory that was sent. If this process has it already, that is found without a look at the sender.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if the sender has ended, or has let go of it; else as open(2) and mmap(2).
    pub fn fetch(whereabouts: Whereabouts) -> io::Result<Self> {
        let found = match Segment::known(whereabouts.id) {
            Some(segment) => Self(segment),
            None => Self::fetch_anew(whereabouts)?,
        };
        found.word(whereabouts.pid).fetch_sub(1, Ordering::AcqRel);
        sweep();
        Ok(found)
    }

    fn fetch_anew(whereabouts: Whereabouts) -> io::Result<Self> {
        let gone = || {
            let pid = whereabouts.pid;
            let text =
                format!("the shared memory is gone: process {pid}, which sent it, has ended or has let go of it");
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let path = format!("/proc/{}/fd/{}", whereabouts.pid, whereabouts.number);
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
        let file = file.map_err(|error| match error {
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH | rustix::io::Errno::NXIO => gone(),
            error => error.into(),
        })?;
        match Self::attach(file) {
            Ok(found) if found.0.id() == whereabouts.id => Ok(found),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(error),
            _ => Err(gone()),
        }
    }

    /// Waits until all that this process has sent was fetched, at most so long. Whether it was.
    pub fn linger(limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut pause = Duration::from_micros(100);
        while !sweep() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(10));
        }
        true
    }

    /// How many bytes there are, up to a page more than were asked for.
    pub fn len(&self) -> usize {
        self.0.len() - BEFORE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first byte, aligned to a page. The bytes stay mapped while the value or a clone of it lives. Other processes may
    /// write to them at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.0.address(BEFORE, 0).expect("a page is before it")
    }

    fn word(&self, pid: u32) -> &AtomicI64 {
        word(&self.0, pid)
    }
}

impl AsFd for Travelling {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn word(segment: &Segment, pid: u32) -> &AtomicI64 {
    let place = WORDS + 8 * (pid % SENDERS) as usize;
    let place = segment.address(place, 8).expect("in the page before the memory").cast::<i64>();
    // SAFETY: mapped while the segment lives, aligned, and touched by atomics alone.
    unsafe { AtomicI64::from_ptr(place.as_ptr()) }
}

/// Lets go of what has arrived. Whether that was all.
pub fn sweep() -> bool {
    let pid = std::process::id();
    let mut kept = UNDER_WAY.get().lock().unwrap_or_else(PoisonError::into_inner);
    let arrived: Vec<_> = kept.extract_if(.., |segment| word(segment, pid).load(Ordering::Acquire) <= 0).collect();
    let all = kept.is_empty();
    drop(kept);
    // Unmapping large memory takes a while.
    drop(arrived);
    all
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn is_kept(id: SegmentId) -> bool {
        sweep();
        UNDER_WAY.get().lock().unwrap().iter().any(|segment| segment.id() == id)
    }

    #[test]
    fn it_is_kept_while_it_is_under_way() {
        let memory = Travelling::allocate(100).unwrap();
        assert!(memory.len() >= 100);
        let first = memory.send();
        let second = memory.send();
        drop(memory);
        assert!(is_kept(first.id));
        let received = Travelling::fetch(first).unwrap();
        assert!(is_kept(first.id));
        Travelling::fetch(second).unwrap();
        assert!(!is_kept(first.id));
        drop(received);
        assert_eq!(Travelling::fetch(second).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_not_sent_after_all_is_not_kept() {
        let memory = Travelling::allocate(100).unwrap();
        let whereabouts = Travelling::with_return(|| memory.send(), |_| true);
        let id = whereabouts.id;
        assert_eq!(Travelling::with_return(|| memory.send(), |_| false), whereabouts);
        assert!(is_kept(id));
        drop(memory);
        Travelling::fetch(whereabouts).unwrap();
        assert!(!is_kept(id));
    }

    #[test]
    fn another_file_under_the_number_is_not_taken_for_it() {
        let memory = Travelling::allocate(10).unwrap();
        let number = memory.as_fd().as_raw_fd();
        let id = SegmentId::from_bytes([7; 16]);
        let wrong = Whereabouts { id, pid: std::process::id(), number };
        assert_eq!(Travelling::fetch(wrong).unwrap_err().kind(), io::ErrorKind::NotFound);
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = Whereabouts { number: OwnedFd::from(reader).as_raw_fd(), ..wrong };
        assert!(Travelling::fetch(pipe).is_err());
    }

    #[test]
    fn another_process_fetches_it_and_its_sender_learns_of_it() {
        let memory = Travelling::allocate(1 << 20).unwrap();
        // SAFETY: the child makes system calls, allocates (which glibc allows after fork) and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let whereabouts = memory.send();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(whereabouts.pid == std::process::id()) - 1) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        // The child's word is not this process's.
        assert_eq!(memory.word(std::process::id()).load(Ordering::Relaxed), 0);
        let whereabouts = memory.send();
        // SAFETY: as above.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // As a process that knows nothing of it.
            let found = Travelling::fetch_anew(whereabouts).map(|found| found.as_ptr().as_ptr());
            let fetched = found.is_ok() && Travelling::fetch(whereabouts).is_ok();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!fetched)) };
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        assert_eq!(memory.word(std::process::id()).load(Ordering::Relaxed), 0);
    }
}
