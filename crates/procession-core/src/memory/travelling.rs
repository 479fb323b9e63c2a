//! Memory that any process can be told of: by a name of a few bytes instead of a descriptor.
//!
//! Messages of queues and pools can't carry descriptors. So a sender [tells](Travelling::send) where the memory is to be had, in
//! which process and under which number, and the receiver [fetches](Travelling::fetch) it there. Between the two the memory is
//! *under way*: the sender keeps it, even if nobody there uses it any more.
//!
//! What a pool gives its workers is only *lent*: the pool keeps it until it knows what became of the task, and nothing is counted.
//! What comes back is fetched when the result arrives, long before anybody unpickles it ([`Travelling::with_arrived`]).
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

/// How memory goes with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is kept until the receiver has fetched it.
    Sent,
    /// Whoever makes the message keeps it ([`Travelling::of_message`]) until the receiver has it for sure.
    Lent,
}

/// The message that a thread is making.
#[derive(Debug)]
struct Making {
    way: Way,
    with_it: Vec<Travelling>,
}

thread_local! {
    static MAKING: RefCell<Option<Making>> = const { RefCell::new(None) };
    /// What has come with the message that is being read, and is not fetched any more.
    static ARRIVED: RefCell<Vec<Travelling>> = const { RefCell::new(Vec::new()) };
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
    /// Whether the sender waits to hear that it was fetched.
    pub way: Way,
}

impl Whereabouts {
    /// How long the encoded form is.
    pub const LENGTH: usize = 24;

    /// As bytes. Only of memory that was sent.
    pub(crate) fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..16].copy_from_slice(&self.id.to_bytes());
        bytes[16..20].copy_from_slice(&self.pid.to_le_bytes());
        bytes[20..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let [id @ .., p0, p1, p2, p3, n0, n1, n2, n3] = *bytes;
        let (pid, number) = (u32::from_le_bytes([p0, p1, p2, p3]), RawFd::from_le_bytes([n0, n1, n2, n3]));
        Self { id: SegmentId::from_bytes(id), pid, number, way: Way::Sent }
    }
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

    /// Says that the memory goes on its way, and where the receiver will find it. This process keeps it until then, but where it
    /// is only [lent](Way::Lent).
    pub fn send(&self) -> Whereabouts {
        let way = MAKING.with_borrow_mut(|making| {
            making.as_mut().map_or(Way::Sent, |making| {
                making.with_it.push(self.clone());
                making.way
            })
        });
        if way == Way::Sent {
            self.word(std::process::id()).fetch_add(1, Ordering::AcqRel);
            sweep();
            let mut kept = UNDER_WAY.get().lock().unwrap_or_else(PoisonError::into_inner);
            if kept.iter().all(|segment| segment.id() != self.0.id()) {
                kept.push(self.0.clone());
            }
        }
        self.whereabouts(way)
    }

    /// What [`send`](Self::send) has told.
    pub(crate) fn whereabouts(&self, way: Way) -> Whereabouts {
        Whereabouts { id: self.0.id(), pid: std::process::id(), number: self.0.as_fd().as_raw_fd(), way }
    }

    /// Calls what makes a message and sends it. What is [sent](Self::send) meanwhile by this thread counts as come back if the
    /// message was not sent after all: else it would be kept for nobody.
    pub fn with_message<R>(way: Way, call: impl FnOnce() -> R, was_sent: impl FnOnce(&R) -> bool) -> R {
        let pid = std::process::id();
        let outer = MAKING.replace(Some(Making { way, with_it: Vec::new() }));
        let result = call();
        // A child that was forked meanwhile has nothing to do with it.
        if pid == std::process::id() && !was_sent(&result) {
            Self::take_back();
        }
        MAKING.set(outer);
        result
    }

    /// What was sent so far counts as come back: the message that this thread is making is begun anew, or was not sent.
    pub fn take_back() {
        drop(Self::unsent());
    }

    /// What was sent so far, of a message that is sent later on.
    pub fn unsent() -> Unsent {
        let sent = MAKING.with_borrow_mut(|making| {
            let making = making.as_mut().filter(|making| making.way == Way::Sent)?;
            Some(std::mem::take(&mut making.with_it))
        });
        Unsent { with_it: sent.unwrap_or_default(), pid: std::process::id() }
    }

    /// What goes with the message that this thread is making, so far.
    pub fn of_message() -> Vec<Self> {
        MAKING.with_borrow(|making| making.as_ref().map(|making| making.with_it.clone()).unwrap_or_default())
    }

    /// Calls what reads a message. What is [fetched](Self::fetch) meanwhile by this thread may have arrived already.
    pub fn with_arrived<R>(arrived: Vec<Self>, call: impl FnOnce() -> R) -> R {
        if arrived.is_empty() {
            return call();
        }
        let outer = ARRIVED.replace(arrived);
        let result = call();
        drop(ARRIVED.replace(outer));
        result
    }

    /// The memory that was sent. If this process has it already, that is found without a look at the sender.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] if the sender has ended, or has let go of it; else as open(2) and mmap(2).
    pub fn fetch(whereabouts: Whereabouts) -> io::Result<Self> {
        let arrived = ARRIVED.with_borrow_mut(|arrived| {
            let place = arrived.iter().position(|memory| memory.0.id() == whereabouts.id);
            place.map(|place| arrived.swap_remove(place))
        });
        if let Some(arrived) = arrived {
            return Ok(arrived);
        }
        let found = match Segment::known(whereabouts.id) {
            Some(segment) => Self(segment),
            None => Self::fetch_anew(whereabouts)?,
        };
        if whereabouts.way == Way::Sent {
            found.word(whereabouts.pid).fetch_sub(1, Ordering::AcqRel);
        }
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

/// What goes with a message that is not on its way yet. Dropped, it counts as come back: else it would be kept for nobody.
#[derive(Debug)]
pub struct Unsent {
    with_it: Vec<Travelling>,
    pid: u32,
}

impl Unsent {
    /// The message is on its way.
    pub fn sent(mut self) {
        self.with_it.clear();
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        // A child that was forked meanwhile has nothing to do with it.
        if self.with_it.is_empty() || self.pid != std::process::id() {
            return;
        }
        for memory in self.with_it.drain(..) {
            memory.word(self.pid).fetch_sub(1, Ordering::AcqRel);
        }
        sweep();
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
        let whereabouts = Travelling::with_message(Way::Sent, || memory.send(), |_| true);
        let id = whereabouts.id;
        assert_eq!(Travelling::with_message(Way::Sent, || memory.send(), |_| false), whereabouts);
        Travelling::with_message(
            Way::Sent,
            || {
                memory.send();
                Travelling::take_back();
                assert!(Travelling::of_message().is_empty());
            },
            |()| true,
        );
        // Two messages that are sent later on, of which one is not.
        let later = || Travelling::with_message(Way::Sent, || (memory.send(), Travelling::unsent()).1, |_| true);
        later().sent();
        drop(later());
        Travelling::fetch(whereabouts).unwrap();
        assert!(is_kept(id));
        assert!(is_kept(id));
        drop(memory);
        Travelling::fetch(whereabouts).unwrap();
        assert!(!is_kept(id));
    }

    #[test]
    fn what_is_lent_is_kept_by_nobody_else_and_its_return_is_not_told() {
        let memory = Travelling::allocate(100).unwrap();
        let (whereabouts, lent) =
            Travelling::with_message(Way::Lent, || (memory.send(), Travelling::of_message()), |_| true);
        assert!(!is_kept(whereabouts.id));
        drop(memory);
        drop(Travelling::fetch(whereabouts).unwrap());
        assert_eq!(lent[0].word(std::process::id()).load(Ordering::Relaxed), 0);
        drop(lent);
        assert_eq!(Travelling::fetch(whereabouts).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_has_arrived_is_not_fetched_again() {
        let memory = Travelling::allocate(100).unwrap();
        let whereabouts = memory.send();
        assert_eq!(Whereabouts::from_bytes(&whereabouts.to_bytes()), whereabouts);
        let arrived = Travelling::fetch(whereabouts).unwrap();
        assert!(!is_kept(whereabouts.id));
        drop(memory);
        let again = Travelling::with_arrived(vec![arrived], || {
            let received = Travelling::fetch(whereabouts).unwrap();
            assert_eq!(received.word(std::process::id()).load(Ordering::Relaxed), 0);
            drop(received);
            Travelling::fetch(whereabouts)
        });
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn another_file_under_the_number_is_not_taken_for_it() {
        let memory = Travelling::allocate(10).unwrap();
        let number = memory.as_fd().as_raw_fd();
        let id = SegmentId::from_bytes([7; 16]);
        let wrong = Whereabouts { id, pid: std::process::id(), number, way: Way::Sent };
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
