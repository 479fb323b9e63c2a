//! A line: requests and replies between two processes of one machine, over shared memory beside a socket. See `LINE.md`.
//!
//! One side asks ([`Asking`]), the other serves ([`Serving`]), strictly by turns, so all there is are two areas for bytes, one
//! for each way, and a word that says whose turn it is. The socket is the doorbell of whoever sleeps, and tells at
//! once when the other process has ended.
#![cfg_attr(not(loom), allow(unsafe_code))]

mod asking;
mod attendance;
mod patience;
mod serving;

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicUsize,
    time::{Duration, Instant},
};

pub use asking::Asking;
pub use attendance::{Attendance, Attended, Lines, Pace, Pending};
pub use serving::Serving;

use super::{Connection, ConnectionError, wait::poll_one};
use crate::{
    kills::point,
    loom::{AtomicU32, AtomicU64, Ordering, fence},
    memory::{HEADER, Segment},
    sync::{Wait, WaitError},
    sys::io::{self as sys, Blocking},
};

/// So many bytes of a message lie in shared memory at a time.
pub const AREA: usize = 1024 * 1024;
/// Of each area so many have memory from the beginning; the rest gets some when a message needs it.
const FIRST: usize = 4096;
/// Where the area for requests begins, behind the words. The area for replies follows it.
const REQUESTS: usize = 4096;
const REPLIES: usize = REQUESTS + AREA;
const LENGTH: usize = REPLIES + AREA;

/// What the low byte of the state word says.
///
/// | phase | whose turn | what is in the areas |
/// |---|---|---|
/// | `Free` | client | nothing: nothing was asked yet, or the reply has been read |
/// | `Asked` | server | a request, or its last piece |
/// | `AskedPart` | server | a piece of a request, of which there are more |
/// | `GiveMore` | client | nothing: the server has read the piece and wants the next |
/// | `Taken` | server | the request was read and is being done |
/// | `AskAgain` | client | the request, untouched: nobody looks any more, the client is to hand it over again |
/// | `Answered` | client | a reply, or its last piece |
/// | `AnsweredPart` | client | a piece of a reply, of which there are more |
/// | `TakeMore` | server | nothing: the client has read the piece and wants the next |
///
/// Only the side whose turn it is stores the word and writes its area, so there are no races for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Free,
    Asked,
    AskedPart,
    GiveMore,
    Taken,
    AskAgain,
    Answered,
    AnsweredPart,
    TakeMore,
}

impl Phase {
    fn of_client(self) -> bool {
        matches!(self, Self::Free | Self::GiveMore | Self::AskAgain | Self::Answered | Self::AnsweredPart)
    }

    fn of_server(self) -> bool {
        matches!(self, Self::Asked | Self::AskedPart | Self::TakeMore)
    }
}

/// The state word.
///
/// | bits | meaning |
/// |---|---|
/// | 0-7 | the [`Phase`] |
/// | 8-31 | the number of the request, which its reply repeats |
/// | 32-63 | how many bytes of the message lie in the area |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    phase: Phase,
    sequence: u32,
    length: usize,
}

const SEQUENCE: u32 = (1 << 24) - 1;

impl State {
    fn to_word(self) -> u64 {
        (self.length as u64) << 32 | u64::from(self.sequence & SEQUENCE) << 8 | self.phase as u64
    }

    /// `None` for what neither side stores: the other process wrote there by mistake.
    fn from_word(word: u64) -> Option<Self> {
        let phase = match word as u8 {
            0 => Phase::Free,
            1 => Phase::Asked,
            2 => Phase::AskedPart,
            3 => Phase::GiveMore,
            4 => Phase::Taken,
            5 => Phase::AskAgain,
            6 => Phase::Answered,
            7 => Phase::AnsweredPart,
            8 => Phase::TakeMore,
            _ => return None,
        };
        let length = (word >> 32) as usize;
        (length <= AREA).then_some(Self { phase, sequence: (word >> 8) as u32 & SEQUENCE, length })
    }
}

/// Keeps words that different processes write from sharing a cache line.
#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Apart<T>(T);

/// The words of a line, in shared memory behind the segment's header.
///
/// `server` and `client` are 1 while that side is about to sleep, or sleeps, until the doorbell rings, and 0 while it
/// looks at the state by itself.
#[derive(Debug, Default)]
#[repr(C)]
struct Words {
    state: Apart<AtomicU64>,
    server: Apart<AtomicU32>,
    client: Apart<AtomicU32>,
}

#[cfg(not(loom))]
const _: () = assert!(HEADER + size_of::<Words>() <= REQUESTS && HEADER.is_multiple_of(align_of::<Words>()));

/// What wakes the other side, and what one sleeps on.
trait Bell {
    /// Wakes the other side: the sleep it is in, or the next one if it is not asleep. Does not wait.
    fn ring(&self) -> Result<(), ConnectionError>;

    /// Sleeps until the other side rings or ends, or until a moment. May return without a reason.
    fn sleep(&self, until: Option<Instant>, wait: &mut Wait<'_>) -> Result<(), ConnectionError>;
}

/// Any byte does; how many there are does not matter.
const RING: &[u8] = b"!";

impl Bell for Connection {
    fn ring(&self) -> Result<(), ConnectionError> {
        let in_use = self.in_use()?;
        loop {
            match sys::send(in_use.number(), &[IoSlice::new(RING)], Blocking::No) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Full of bytes that nobody has read: the other side won't sleep before it has.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(ended(error)),
                Ok(_) => return Ok(()),
            }
        }
    }

    fn sleep(&self, until: Option<Instant>, wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
        let in_use = self.in_use()?;
        let fd = in_use.number();
        let mut blocking = Blocking::No;
        match until {
            Some(moment) => match poll_one(fd, libc::POLLIN, &mut wait.no_later_than(moment)) {
                Err(ConnectionError::Wait(WaitError::TimedOut)) => {
                    return wait.remaining(Duration::MAX).map(drop).map_err(Into::into);
                }
                slept => slept?,
            },
            None if wait.deadline().is_some() => poll_one(fd, libc::POLLIN, wait)?,
            None => blocking = Blocking::Yes,
        }
        // Many rings are as good as one.
        let mut bytes = [MaybeUninit::uninit(); 64];
        match sys::receive(fd, &mut bytes, blocking) {
            Ok(0) => Err(ConnectionError::Ended),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(wait.signalled()?),
            Err(error) => Err(ended(error)),
            Ok(_) => Ok(()),
        }
    }
}

fn ended(error: io::Error) -> ConnectionError {
    match error.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => ConnectionError::Ended,
        _ => ConnectionError::Io(error),
    }
}

impl Words {
    /// The state, as it is now.
    fn state(&self) -> Result<State, ConnectionError> {
        // What the other side wrote before it stored the word is seen by whoever sees the word.
        State::from_word(self.state.0.load(Ordering::Acquire)).ok_or(ConnectionError::BadLength)
    }

    /// Gives the turn to the other side, whose word is `other`, and rings if it sleeps.
    fn hand_over(&self, state: State, other: &Apart<AtomicU32>, bell: &impl Bell) -> Result<(), ConnectionError> {
        point("line: the turn about to be given away");
        self.state.0.store(state.to_word(), Ordering::Release);
        // Pairs with the fence in `sleep`: either the state is seen there, or the sleeper here.
        fence(Ordering::SeqCst);
        point("line: the turn given away, nobody woken");
        if other.0.load(Ordering::Relaxed) == 0 { Ok(()) } else { bell.ring() }
    }

    /// Says that the side of word `mine` does not look any more, and returns whether it may sleep now: whether there
    /// is still nothing to do for it.
    fn falls_asleep(
        &self,
        mine: &Apart<AtomicU32>,
        nothing: impl FnOnce(Phase) -> bool,
    ) -> Result<bool, ConnectionError> {
        mine.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        point("line: about to sleep, not looked again");
        Ok(nothing(self.state()?.phase))
    }

    fn wakes_up(mine: &Apart<AtomicU32>) {
        mine.0.store(0, Ordering::Relaxed);
    }
}

/// The shared memory of a line, mapped.
#[derive(Debug)]
struct Memory {
    /// Points into `segment`.
    words: NonNull<Words>,
    segment: Segment,
    /// How many bytes of each area have memory, as far as is known here.
    secured: [AtomicUsize; 2],
}

// SAFETY: the pointer is to atomics in the segment, which stays mapped while the value lives.
#[cfg_attr(loom, allow(unsafe_code))]
unsafe impl Send for Memory {}
// SAFETY: as above.
#[cfg_attr(loom, allow(unsafe_code))]
unsafe impl Sync for Memory {}

/// One of the two areas, by its place.
#[derive(Clone, Copy, Debug)]
enum Area {
    Requests,
    Replies,
}

impl Area {
    fn start(self) -> usize {
        match self {
            Self::Requests => REQUESTS,
            Self::Replies => REPLIES,
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg_attr(loom, allow(unsafe_code))]
impl Memory {
    fn create() -> io::Result<Self> {
        Self::over(Segment::create("procession line", LENGTH, LENGTH as u64)?)
    }

    /// From the descriptor that the other process has sent. Its size is sealed, so the memory can't vanish under us.
    fn attach(fd: OwnedFd) -> io::Result<Self> {
        let segment = Segment::attach(fd)?;
        if segment.len() != LENGTH {
            return Err(invalid("the shared segment is not one of a line"));
        }
        Self::over(segment)
    }

    fn over(segment: Segment) -> io::Result<Self> {
        // The other side may not have done it.
        for start in [0, REQUESTS, REPLIES] {
            segment.secure(start as u64, FIRST as u64)?;
        }
        let words = segment.address(HEADER, size_of::<Words>()).ok_or_else(|| invalid("a line has no words"))?;
        Ok(Self { words: words.cast(), segment, secured: [AtomicUsize::new(FIRST), AtomicUsize::new(FIRST)] })
    }

    fn words(&self) -> &Words {
        // SAFETY: in the mapping, aligned, zeroed memory to begin with, and touched by atomics only.
        unsafe { self.words.as_ref() }
    }

    /// How many bytes may be written to an area now, `wanted` if there is memory for so many.
    fn room(&self, area: Area, wanted: usize) -> usize {
        use std::sync::atomic::Ordering::Relaxed;
        let secured = &self.secured[area as usize];
        let wanted = wanted.min(AREA);
        if wanted > secured.load(Relaxed) {
            if self.segment.secure(area.start() as u64, wanted as u64).is_err() {
                // There is too little memory: the message goes in smaller pieces.
                return secured.load(Relaxed);
            }
            secured.store(wanted, Relaxed);
        }
        wanted
    }

    /// Copies what `parts` hold from `offset` on into an area, as much as goes. Returns how many bytes it was.
    fn write(&self, area: Area, parts: &[&[u8]], offset: usize) -> usize {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let room = self.room(area, total - offset);
        let (mut skip, mut written) = (offset, 0);
        for part in parts {
            let rest = &part[skip.min(part.len())..];
            skip = skip.saturating_sub(part.len());
            let count = rest.len().min(room - written);
            let Some(place) = self.segment.address(area.start() + written, count) else { break };
            // SAFETY: so many bytes are mapped there; nobody has a reference to them, and the other side leaves them alone
            // until it gets the turn.
            unsafe { place.copy_from_nonoverlapping(NonNull::from(rest).cast(), count) };
            written += count;
            if written == room {
                break;
            }
        }
        written
    }

    /// Appends the first `length` bytes of an area.
    fn read(&self, area: Area, length: usize, to: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let place = self.segment.address(area.start(), length.min(AREA)).ok_or(ConnectionError::BadLength)?;
        let length = length.min(AREA);
        to.try_reserve(length).map_err(|_| ConnectionError::BadLength)?;
        let room = NonNull::from(&mut to.spare_capacity_mut()[..length]).cast();
        // SAFETY: so many bytes are mapped there, and room for them was just reserved. A peer that writes them meanwhile
        // spoils its own message.
        unsafe { place.copy_to_nonoverlapping(room, length) };
        // SAFETY: they were just filled.
        unsafe { to.set_len(to.len() + length) };
        Ok(())
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
