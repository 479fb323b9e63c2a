//! What a ring's shared memory looks like.
//!
//! | bytes of the file  | what | reached by |
//! |--------------------|------|------------|
//! | the first page     | the segment's header, then [`Header`] | mapping |
//! | [`WINDOW`] bytes   | the window: the oldest messages | mapping |
//! | [`BLOCK_TABLE`] bytes | the table of blocks (`memory/blocks`) | mapping |
//! | from [`SPILL_AT`]  | the spill: what did not fit the window | pread, pwrite |
//! | from [`BLOCKS_AT`] | the blocks: large buffers that go with messages | each by a mapping of its own |
//!
//! Both areas are rings of bytes of their own: positions count all bytes that ever went through, and are reduced when
//! memory is touched. A message is a record: its length in eight bytes, the bytes, and padding to a multiple of eight. If it
//! has descriptors with it, the length is marked ([`ACCOMPANIED`]), and the bytes begin with their ticket (`courier.rs`). If it has
//! blocks with it, that is marked too ([`LADEN`]); then come their number, in eight bytes, and which they are.
#![allow(unsafe_code)]

use std::{
    mem::{MaybeUninit, offset_of},
    ptr::NonNull,
};

use super::{holders::Holders, published::Published, sleepers::Sleepers};
use crate::{
    loom::{AtomicU32, AtomicU64},
    memory::{BLOCK_TABLE, BlocksLayout, HEADER, Segment},
    sync::LockWord,
};

/// Where the window begins. The smallest page is more than the headers need.
pub(super) const WINDOW_AT: usize = 4096;
/// The size of the window, a power of two: room for a backlog of tens of thousands of small messages, which are much
/// cheaper here than in the spill.
pub(super) const WINDOW: u64 = 1 << 22;
/// Where the table of blocks begins.
const TABLE_AT: usize = WINDOW_AT + WINDOW as usize;
/// How much of the file is mapped.
pub(super) const MAPPED: usize = TABLE_AT + BLOCK_TABLE;
/// How much of the window is secured at a time.
pub(super) const WINDOW_STEP: u64 = 1 << 16;
/// Where the spill begins: at a multiple of any page size.
pub(super) const SPILL_AT: u64 = 1 << 23;
/// The size of the file, which takes no memory where nothing was written.
pub(super) const FILE: u64 = 1 << 42;
/// Where the blocks begin: at a multiple of any page size.
pub(super) const BLOCKS_AT: u64 = 1 << 41;
/// The room of the spill if the file is as large as it can be; less where the system limits the size of files.
pub(super) const SPILL: u64 = BLOCKS_AT - SPILL_AT;
/// The length that precedes each message.
pub(super) const PREFIX: u64 = 8;

/// In the length: the message has descriptors with it, and the first [`TICKET`] bytes say which. No message is so long.
pub(super) const ACCOMPANIED: u64 = 1 << 63;
/// In the length: the message has blocks with it, and the bytes begin with which, after the ticket if there is one.
pub(super) const LADEN: u64 = 1 << 62;
/// Both marks.
pub(super) const MARKS: u64 = ACCOMPANIED | LADEN;
/// A message has no more blocks than this.
pub(super) const MOST_BLOCKS: usize = 64;
/// How long a ticket is.
pub(super) const TICKET: usize = 8;

/// "prcring" and the version of the layout.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"prcring\x03");

/// How much room a message of `length` bytes takes; `None` if that cannot be represented.
pub(super) fn record(length: u64) -> Option<u64> {
    length.checked_add(PREFIX)?.checked_next_multiple_of(8)
}

/// The words of the producers: where the window ends, where the spill ends, and from where on the spill was begun anew.
pub(super) const WINDOW_TAIL: usize = 0;
pub(super) const SPILL_TAIL: usize = 1;
pub(super) const SPILL_BASE: usize = 2;
/// The words of the consumers: where the window begins and where the spill begins.
pub(super) const WINDOW_HEAD: usize = 0;
pub(super) const SPILL_HEAD: usize = 1;

/// The words all processes share. All zeros is an empty ring.
///
/// | word | changed by | what it says |
/// |------|------------|--------------|
/// | `magic`, `spill` | the maker | the layout · the room of the spill |
/// | `producer` | producers | held while a message is put in |
/// | `tail` | holder of `producer` | how many messages were ever put, and where they end |
/// | `seen_*` | holder of `producer` | lower bounds of `head`, so that the consumers' line is left alone |
/// | `secured` | holder of `producer` | how much of the window has memory behind it |
/// | `ticket` | holder of `producer` | the last ticket that was given to descriptors, from one on |
/// | `consumer` | consumers | held while a message is taken out |
/// | `head` | holder of `consumer` | how many messages were ever taken, and where the next begins |
/// | `seen_window_tail` | holder of `consumer` | a lower bound of the window's tail |
/// | `discarded` | holder of `consumer`, of `producer` while the spill is empty | up to where its memory was given back |
/// | `getters`, `putters` | sleepers and their wakers | see [`Sleepers`] |
/// | `doorbell` | the owner | not zero: somebody wants to be told of each message by other means than a futex |
/// | `done`, `joiners` | the queue on the ring | how many messages were dealt with, and who waits for all of them |
/// | `bell_lock`, `bell_state` | the pollable descriptor | see `pollable.rs` |
/// | `blocks_used` | producers | how many entries of the table of blocks were ever used |
/// | `holders` | consumers and joiners | see `holders.rs` |
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) spill: AtomicU64,
    pub(super) producers: Producers,
    pub(super) seen: Seen,
    pub(super) consumers: Consumers,
    pub(super) sleepers: Sleeping,
    pub(super) joining: Joining,
    pub(super) storage: Storage,
    pub(super) holders: Holders,
}

/// The line of the producers, which consumers read.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Producers {
    pub(super) lock: LockWord,
    pub(super) tail: Published<3>,
}

/// What producers remember, which consumers never look at.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Seen {
    pub(super) get_count: AtomicU64,
    pub(super) window_head: AtomicU64,
    pub(super) spill_head: AtomicU64,
    pub(super) secured: AtomicU64,
    pub(super) ticket: AtomicU64,
}

/// The line of the consumers, which producers read when they run out of room.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Consumers {
    pub(super) lock: LockWord,
    pub(super) head: Published<2>,
    pub(super) seen_window_tail: AtomicU64,
    pub(super) discarded: AtomicU64,
}

/// The line that everybody reads and that seldom changes.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Sleeping {
    pub(super) getters: Sleepers,
    pub(super) putters: Sleepers,
    pub(super) doorbell: AtomicU32,
}

/// What the queue built on the ring needs.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Joining {
    pub(super) done: AtomicU64,
    pub(super) joiners: Sleepers,
    pub(super) bell_lock: LockWord,
    pub(super) bell_state: AtomicU32,
}

/// What belongs to the blocks.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Storage {
    pub(super) blocks_used: AtomicU64,
}

/// Where the blocks of a ring and their words are.
pub(super) const BLOCKS: BlocksLayout = BlocksLayout {
    table: TABLE_AT,
    used: HEADER + offset_of!(Header, storage) + offset_of!(Storage, blocks_used),
    // The count is what a `Published` begins with.
    taken: HEADER + offset_of!(Header, consumers) + offset_of!(Consumers, head),
    data: BLOCKS_AT,
};

/// Where a process has the header and the window mapped.
#[derive(Debug, Clone)]
pub(super) struct Map {
    segment: Segment,
    header: NonNull<Header>,
    window: NonNull<u8>,
}

// SAFETY: the addresses are of shared memory that `segment` keeps mapped; the header is atomics, and the window is
// touched by raw copies whose order the header's counts see to.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// `None` if the segment is too small for a ring.
    pub(super) fn new(segment: Segment) -> Option<Self> {
        const { assert!(HEADER.is_multiple_of(align_of::<Header>()) && HEADER + size_of::<Header>() <= WINDOW_AT) };
        let header = segment.address(HEADER, size_of::<Header>())?.cast();
        let window = segment.address(WINDOW_AT, WINDOW as usize)?;
        Some(Self { segment, header, window })
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    #[inline]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: mapped as long as `self`, aligned (the segment begins at a page), made of atomics only.
        unsafe { self.header.as_ref() }
    }

    /// Copies into the window. The caller has checked that the place is free and at most [`WINDOW`] long.
    #[inline]
    pub(super) fn write_window(&self, position: u64, bytes: &[u8]) {
        let (start, first) = parts_of(position, bytes.len());
        let (one, two) = bytes.split_at(first);
        // SAFETY: `start` lies in the window.
        let place = unsafe { self.window.add(start) };
        // SAFETY: the part ends at the window's end at the latest; nobody reads it before it is published.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(one).cast(), one.len()) };
        if !two.is_empty() {
            // SAFETY: as above; it begins at the window's start.
            unsafe { self.window.copy_from_nonoverlapping(NonNull::from(two).cast(), two.len()) };
        }
    }

    /// Writes the length that precedes a message, as [`write_window`](Self::write_window).
    #[inline]
    pub(super) fn write_length(&self, position: u64, length: u64) {
        // SAFETY: it lies in the window, where nobody reads it before it is published.
        unsafe { self.length_at(position).write(length) };
    }

    /// Reads the length that precedes a message, as [`read_window`](Self::read_window).
    #[inline]
    pub(super) fn read_length(&self, position: u64) -> u64 {
        // SAFETY: it lies in the window, and was published; any bytes are a number.
        unsafe { self.length_at(position).read() }
    }

    /// Records begin at multiples of eight, so a length never reaches across the end of the window.
    #[inline]
    fn length_at(&self, position: u64) -> NonNull<u64> {
        const { assert!(PREFIX as usize == size_of::<u64>() && WINDOW.is_multiple_of(PREFIX)) };
        let start = (position % WINDOW) & !(PREFIX - 1);
        // SAFETY: eight bytes before the end of the window at least.
        let place = unsafe { self.window.add(start as usize) };
        place.cast()
    }

    /// Copies out of the window; `into` is at most [`WINDOW`] long.
    #[inline]
    pub(super) fn read_window(&self, position: u64, into: &mut [MaybeUninit<u8>]) {
        let (start, first) = parts_of(position, into.len());
        let (one, two) = into.split_at_mut(first);
        let lengths = (one.len(), two.len());
        // SAFETY: `start` lies in the window.
        let place = unsafe { self.window.add(start) };
        // SAFETY: the part ends at the window's end at the latest, and was published; uninitialized bytes may be
        // written.
        unsafe { place.copy_to_nonoverlapping(NonNull::from(one).cast(), lengths.0) };
        if lengths.1 > 0 {
            // SAFETY: as above; it begins at the window's start.
            unsafe { self.window.copy_to_nonoverlapping(NonNull::from(two).cast(), lengths.1) };
        }
    }
}

/// Initialized bytes as a place to copy to.
pub(super) fn as_uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let length = bytes.len();
    // SAFETY: the same memory and lifetime; nothing in this crate writes uninitialized bytes to such a place.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), length) }
}

/// Where in the window a position is, and how many of `length` bytes lie before the window's end.
fn parts_of(position: u64, length: usize) -> (usize, usize) {
    debug_assert!(length as u64 <= WINDOW, "checked by the caller");
    let start = (position % WINDOW) as usize;
    (start, length.min(WINDOW as usize - start))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{LONGEST_BLOCK, MOST_BLOCKS as ALL_BLOCKS};

    #[test]
    fn the_layout_is_what_it_was() {
        assert_eq!(size_of::<Producers>(), 64);
        assert_eq!(size_of::<Consumers>(), 64);
        assert_eq!(offset_of!(Published<2>, count), 0);
        assert!(MAPPED as u64 <= SPILL_AT && FILE - BLOCKS_AT == ALL_BLOCKS as u64 * LONGEST_BLOCK);
        assert_eq!(size_of::<Holders>(), 33 * 64);
        assert_eq!(size_of::<Header>(), 40 * 64);
    }

    #[test]
    fn lengths_are_read_as_they_were_written() {
        let map = Map::new(Segment::create("test", WINDOW_AT + WINDOW as usize, 0).unwrap()).unwrap();
        for position in [0, 8, WINDOW - 8, WINDOW, 3 * WINDOW + 16] {
            map.write_length(position, position + 5);
            assert_eq!(map.read_length(position), position + 5);
            let mut bytes = [0; 8];
            map.read_window(position, as_uninit(&mut bytes));
            assert_eq!(u64::from_le_bytes(bytes), position + 5);
        }
    }

    proptest! {
        #[test]
        fn records_hold_the_message_and_are_aligned(length in 0..u64::MAX - 16) {
            let size = record(length).unwrap();
            prop_assert!(size.is_multiple_of(8) && size >= length + PREFIX && size < length + PREFIX + 8);
        }

        #[test]
        fn what_is_written_across_the_end_is_read_back(
            position in any::<u64>(),
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            // Near the end, and anywhere.
            for position in [position, position / WINDOW * WINDOW + WINDOW - 100] {
                let segment = Segment::create("test", WINDOW_AT + WINDOW as usize, 0).unwrap();
                let map = Map::new(segment).unwrap();
                map.write_window(position, &bytes);
                let mut back = vec![0; bytes.len()];
                map.read_window(position, as_uninit(&mut back));
                prop_assert_eq!(back, bytes.clone());
            }
        }
    }

    #[test]
    fn a_length_beyond_all_memory_is_no_record() {
        assert_eq!(record(u64::MAX), None);
        assert_eq!(record(u64::MAX - 8), None);
    }
}
