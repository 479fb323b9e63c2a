//! What stands in the rings: the headers of tasks and results.
//!
//! A header is followed by bytes of the face that only the face understands. Both ends are processes of one pool; still,
//! what comes out of shared memory is checked before it is used.

use std::{io, os::fd::OwnedFd, time::Duration};

use crate::{
    channel::{Along, Message, PutError, Ring},
    memory::{Claimed, Travelling, Way, Whereabouts},
    sync::Wait,
};

/// What tells a task from all others of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The job it is a part of. Zero is no job.
    pub job: u64,
    /// Which part, counted from zero.
    pub index: u64,
}

/// Where the function of a task is to be found: a stretch of the pool's table of definitions.
///
/// The default one, of number zero, stands for "none": the payload says it all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Definition {
    /// Counted from one, in the order in which they were defined.
    pub number: u32,
    /// How many bytes.
    pub length: u32,
    /// From where on, counted from the beginning of the table.
    pub offset: u64,
}

/// A message of the task ring: something to do, or, with job zero, the word to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskHeader {
    /// Which task.
    pub id: TaskId,
    /// Its function.
    pub definition: Definition,
    /// For the face: in which way the function is applied to the payload.
    pub mode: u32,
    /// How many bytes of payload were ever submitted, these included: what tells how much is still to be taken.
    pub position: u64,
    /// How long a worker may be at it, in nanoseconds, or 0: as long as it likes.
    pub limit: u64,
    /// After how many nanoseconds it is to be asked to come to an end, or 0: never.
    pub soft_limit: u64,
}

impl TaskHeader {
    /// How long the encoded form is.
    pub const LENGTH: usize = 64;

    /// The word to stop: the worker that takes it ends.
    pub const STOP: Self = Self {
        id: TaskId { job: 0, index: 0 },
        definition: Definition { number: 0, length: 0, offset: 0 },
        mode: 0,
        position: 0,
        limit: 0,
        soft_limit: 0,
    };

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.id.job.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.index.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.definition.number.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.definition.length.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.definition.offset.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.mode.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.position.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.limit.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.soft_limit.to_le_bytes());
        bytes
    }

    /// From the beginning of a message; `None` if that is too short.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.first_chunk()?;
        Some(Self {
            id: TaskId { job: long(bytes, 0), index: long(bytes, 8) },
            definition: Definition { number: short(bytes, 16), length: short(bytes, 20), offset: long(bytes, 24) },
            mode: short(bytes, 32),
            position: long(bytes, 40),
            limit: long(bytes, 48),
            soft_limit: long(bytes, 56),
        })
    }
}

/// What a message of the result ring says of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// It returned; the payload holds what.
    Done = 0,
    /// It raised; the payload holds what.
    Failed = 1,
    /// Its worker died with it; the payload says how.
    Lost = 2,
    /// No worker is left to run it and none can be had; the payload says how the last one ended.
    Unserved = 3,
    /// The pool was terminated first.
    Terminated = 4,
    /// It never became a task: the face could not encode it, and keeps the reason.
    Refused = 5,
    /// Not of a task: the job has as many parts as the index says.
    End = 6,
    /// It had its time, and its worker was killed for that; the payload says how it ended.
    Overdue = 7,
    /// Its job was cancelled first. Said by the parent to itself.
    Cancelled = 8,
}

impl Verdict {
    fn from_number(number: u32) -> Option<Self> {
        use Verdict::{Done, End, Failed, Lost, Overdue, Refused, Terminated, Unserved};
        [Done, Failed, Lost, Unserved, Terminated, Refused, End, Overdue].into_iter().find(|it| *it as u32 == number)
    }
}

/// A message of the result ring. With job zero it is not of a task: `Done` and `Failed` are then the last words of the
/// worker that the index names ([`Engine::exits`](super::Engine::exits)), any other says nothing, and is there to wake
/// whoever waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultHeader {
    /// Which task.
    pub id: TaskId,
    /// What became of it.
    pub verdict: Verdict,
}

impl ResultHeader {
    /// How long the encoded form is.
    pub const LENGTH: usize = 24;
    /// More arrays than this are not told of behind the header.
    const MOST_ARRAYS: usize = u16::MAX as usize;

    /// Wakes whoever waits for results.
    pub const NUDGE: Self = Self { id: TaskId { job: 0, index: 0 }, verdict: Verdict::End };

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.id.job.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.index.to_le_bytes());
        bytes[16..18].copy_from_slice(&(self.verdict as u16).to_le_bytes());
        bytes
    }

    /// As bytes, with a word of how long each item of the task took, in nanoseconds: zero if that was not measured.
    pub fn to_bytes_paced(self, pace: u32) -> [u8; Self::LENGTH] {
        let mut bytes = self.to_bytes();
        bytes[20..].copy_from_slice(&pace.to_le_bytes());
        bytes
    }

    /// Header and, behind it, where the memory is to be had that goes with the payload.
    pub(super) fn to_bytes_with(self, pace: u32, arrays: &[Travelling]) -> Vec<u8> {
        let told = &arrays[..arrays.len().min(Self::MOST_ARRAYS)];
        let mut bytes = self.to_bytes_paced(pace).to_vec();
        bytes[18..20].copy_from_slice(&(told.len() as u16).to_le_bytes());
        bytes.extend(told.iter().flat_map(|memory| memory.whereabouts(Way::Sent).to_bytes()));
        bytes
    }

    /// Where the memory is to be had that goes with the payload; and the payload.
    pub(super) fn split(bytes: &[u8]) -> (&[[u8; Whereabouts::LENGTH]], &[u8]) {
        let count = bytes.get(18..20).map_or(0, |count| usize::from(u16::from_le_bytes([count[0], count[1]])));
        let behind = bytes.get(Self::LENGTH..).unwrap_or_default();
        let (arrays, payload) = behind.split_at(behind.len().min(count * Whereabouts::LENGTH));
        (arrays.as_chunks().0, payload)
    }

    /// How long each item of the task took, in nanoseconds; zero if that was not measured.
    pub fn pace(bytes: &[u8]) -> u32 {
        bytes.first_chunk::<{ Self::LENGTH }>().map_or(0, |bytes| short(bytes, 20))
    }

    /// From the beginning of a message; `None` if that is too short or says nothing known.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.first_chunk()?;
        let id = TaskId { job: long(bytes, 0), index: long(bytes, 8) };
        Some(Self { id, verdict: Verdict::from_number(short(bytes, 16) & 0xffff)? })
    }
}

/// Puts a message into a ring of the pool. Waits only for others that are just doing the same.
///
/// # Errors
///
/// If memory is lacking.
pub(super) fn put(ring: &Ring, header: &[u8], payload: &[&[u8]]) -> io::Result<()> {
    put_with(ring, header, payload, Along::default(), || Ok(()))
}

/// [`put`], with descriptors and blocks that go along. While as many are on their way as can be, `full` is called again and again; it
/// may put an end to it.
///
/// # Errors
///
/// As [`put`], those of [`PutError::Descriptors`], and that of `full`.
pub(super) fn put_with(
    ring: &Ring,
    header: &[u8],
    payload: &[&[u8]],
    along: Along<'_>,
    mut full: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    #[cfg(test)]
    lack::of_memory()?;
    let joined;
    let parts: &[&[u8]] = match payload {
        [] => &[header],
        [one] => &[header, one],
        several => {
            joined = std::iter::once(&header).chain(several).copied().collect::<Vec<_>>();
            &joined
        }
    };
    loop {
        let put = if along.descriptors.is_empty() {
            ring.put_along(parts, along, None, &mut Wait::forever())
        } else {
            ring.put_along(parts, along, None, &mut Wait::timeout(FULL))
        };
        match put {
            Ok(_) => return Ok(()),
            Err(PutError::Memory(error) | PutError::Descriptors(error)) => return Err(error),
            Err(PutError::Damaged) => return Err(io::Error::other("the shared memory of the pool is damaged")),
            // Nothing was to be waited for but the lock, and room for descriptors.
            Err(PutError::Full | PutError::Busy | PutError::Wait(_)) => full()?,
        }
    }
}

/// How long a message with descriptors waits for room before something is done about it.
const FULL: Duration = Duration::from_millis(20);

/// A message as it came out of its ring.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) blocks: Vec<Claimed>,
    /// Of results: memory that was sent with them, and has been fetched.
    pub(super) arrays: Vec<Travelling>,
}

impl Arrived {
    /// Fetches what was sent with a result. If its sender has ended before, whoever unpickles the result gets to know.
    pub(super) fn fetch_arrays(&mut self) {
        let (arrays, _) = ResultHeader::split(&self.bytes);
        self.arrays =
            arrays.iter().filter_map(|bytes| Travelling::fetch(Whereabouts::from_bytes(bytes)).ok()).collect();
    }
}

impl From<Vec<u8>> for Arrived {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, descriptors: Vec::new(), blocks: Vec::new(), arrays: Vec::new() }
    }
}

/// A copy of a message that is still in its ring, with copies of its descriptors, and its blocks.
///
/// # Errors
///
/// As [`copy`], and if this process has no room for the descriptors.
pub(super) fn copy_all(message: &Message<'_>) -> io::Result<Arrived> {
    let (bytes, descriptors) = (copy(message)?, message.descriptors()?);
    Ok(Arrived { bytes, descriptors, blocks: message.take_blocks(), arrays: Vec::new() })
}

/// The bytes of a message that is still in its ring.
///
/// # Errors
///
/// If they can't be read, or there is no memory for them.
pub(super) fn copy(message: &Message<'_>) -> io::Result<Vec<u8>> {
    #[cfg(test)]
    lack::of_memory()?;
    message.to_vec()
}

/// Lack of memory, for tests.
#[cfg(test)]
pub(super) mod lack {
    use std::{cell::Cell, io};

    thread_local! {
        /// How often from now on this thread finds no memory for a message.
        pub(in super::super) static TIMES: Cell<u32> = const { Cell::new(0) };
    }

    pub(super) fn of_memory() -> io::Result<()> {
        let left = TIMES.get();
        TIMES.set(left.saturating_sub(1));
        if left == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn short(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn task_headers_come_back(
            (job, index, number, length, offset) in any::<(u64, u64, u32, u32, u64)>(),
            (mode, position, limit, soft_limit) in any::<(u32, u64, u64, u64)>(),
        ) {
            let header = TaskHeader {
                id: TaskId { job, index },
                definition: Definition { number, length, offset },
                mode,
                position,
                limit,
                soft_limit,
            };
            let mut message = header.to_bytes().to_vec();
            message.extend_from_slice(b"payload");
            prop_assert_eq!(TaskHeader::from_bytes(&message), Some(header));
            prop_assert_eq!(TaskHeader::from_bytes(&message[..TaskHeader::LENGTH - 1]), None);
        }

        #[test]
        fn result_headers_come_back_and_unknown_verdicts_do_not(
            job: u64, index: u64, number in 0..12u32, pace: u32,
        ) {
            let mut bytes = ResultHeader { id: TaskId { job, index }, verdict: Verdict::Done }.to_bytes();
            bytes[16..18].copy_from_slice(&(number as u16).to_le_bytes());
            match ResultHeader::from_bytes(&bytes) {
                Some(header) => {
                    prop_assert_eq!(header.verdict as u32, number);
                    let paced = header.to_bytes_paced(pace);
                    prop_assert_eq!(ResultHeader::from_bytes(&paced), Some(header));
                    prop_assert_eq!((ResultHeader::pace(&paced), ResultHeader::pace(&bytes)), (pace, 0));
                    prop_assert_eq!(header.to_bytes(), bytes);
                }
                None => prop_assert!(number > 7),
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = TaskHeader::from_bytes(&bytes);
            let _ = ResultHeader::from_bytes(&bytes);
            let (arrays, payload) = ResultHeader::split(&bytes);
            prop_assert!(arrays.len() * Whereabouts::LENGTH + payload.len() <= bytes.len());
        }
    }
}
