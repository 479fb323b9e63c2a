//! The words of a block, and who may change them (BLOCKS.md).

use crate::{
    kills::point,
    loom::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    process::ProcessId,
};

/// Nobody's.
const FREE: u64 = 0;
/// Who sends it fills it, or has sent it, and nobody has taken the message yet.
const FILLING: u64 = 1;
/// Who took the message has it, or is about to take it.
const HELD: u64 = 2;

const PID: u64 = (1 << 22) - 1;
const KIND: u32 = 22;
const TAG: u32 = 24;

/// What all processes know of a block. All zeros is a free one without memory.
///
/// | bits of `word` | meaning |
/// |----------------|---------|
/// | 0-21  | the pid of the owner; no pid of Linux is larger |
/// | 22-23 | free, filling, held |
/// | 24-31 | a number that tells times apart at which one process claimed it |
/// | 32-63 | the owner's start time, as in a [`ProcessId`] |
///
/// | word | changed by | what it says |
/// |------|------------|--------------|
/// | `word` | see BLOCKS.md | whose it is |
/// | `position` | who fills it, holding the ring's producer lock | the number of its message, counted from one |
/// | `generation` | who fills it | how often it was filled: the message says it too |
/// | `warm` | the owner | so many bytes at its beginning have memory behind them, at most |
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Entry {
    word: AtomicU64,
    position: AtomicU64,
    generation: AtomicU64,
    pub(super) warm: AtomicU64,
}

/// A word as its owner stored it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    /// `None` for a pid that is larger than Linux has.
    fn new(kind: u64, owner: ProcessId, tag: u8) -> Option<Self> {
        let pid = u64::from(owner.pid());
        let start = owner.to_bits() >> 32 << 32;
        (pid <= PID).then_some(Self(pid | kind << KIND | u64::from(tag) << TAG | start))
    }

    pub(super) fn owner(self) -> Option<ProcessId> {
        ProcessId::from_bits(self.0 & PID | self.0 >> 32 << 32)
    }
}

impl Entry {
    pub(super) fn is_free(&self) -> bool {
        self.word.load(Acquire) == FREE
    }

    /// Whose it is; `None` if nobody's.
    pub(super) fn owner(&self) -> Option<ProcessId> {
        Mark(self.word.load(Acquire)).owner()
    }

    /// Makes a free block the caller's, to be filled.
    pub(super) fn acquire(&self, me: ProcessId) -> Option<Mark> {
        let mark = Mark::new(FILLING, me, 0)?;
        self.word.compare_exchange(FREE, mark.0, AcqRel, Relaxed).ok()?;
        point("block: to be filled, its position that of its former message");
        Some(mark)
    }

    /// Counts the filling that begins. Only for the owner.
    pub(super) fn next_generation(&self) -> u64 {
        let generation = self.generation.load(Relaxed).wrapping_add(1);
        self.generation.store(generation, Relaxed);
        generation
    }

    /// Notes which message it goes with. Only for the owner, holding the producer lock, before that is published.
    pub(super) fn place(&self, position: u64) {
        self.position.store(position, Release);
    }

    /// Makes the block of a message the caller's. Only for the holder of the consumer lock, before the message is taken
    /// out. `None` if it is not the block that the message means, which no process does that keeps to the protocol.
    pub(super) fn claim(&self, generation: u64, position: u64, me: ProcessId, tag: u8) -> Option<Mark> {
        let mark = Mark::new(HELD, me, tag)?;
        let present = self.word.load(Acquire);
        if present == FREE || self.generation.load(Relaxed) != generation || self.position.load(Relaxed) != position {
            return None;
        }
        self.word.compare_exchange(present, mark.0, AcqRel, Relaxed).ok()?;
        point("block: claimed, its message still in the ring");
        Some(mark)
    }

    /// Makes a block the sender's again that was claimed with its message, to be sent with another one.
    pub(super) fn take_back(&self, held: Mark, me: ProcessId) -> Option<Mark> {
        let mark = Mark::new(FILLING, me, 0)?;
        self.word.compare_exchange(held.0, mark.0, AcqRel, Relaxed).ok()?;
        Some(mark)
    }

    /// Makes a block the caller's that a dead process left, and whose message is not in the ring. `taken` reads how many
    /// messages were ever taken; `dead` tells whether a process is.
    pub(super) fn seize(
        &self,
        me: ProcessId,
        taken: impl FnOnce() -> u64,
        dead: impl FnOnce(ProcessId) -> bool,
    ) -> Option<Mark> {
        // In this order: see BLOCKS.md, "Who may free what the dead have left".
        let taken = taken();
        let present = self.word.load(Acquire);
        if !Mark(present).owner().is_some_and(dead) {
            return None;
        }
        if self.position.load(Acquire) > taken {
            return None;
        }
        let mark = Mark::new(FILLING, me, 0)?;
        self.word.compare_exchange(present, mark.0, AcqRel, Relaxed).ok()?;
        Some(mark)
    }

    /// Gives it up. False if it is no longer the caller's: it was claimed together with a message that was then not taken,
    /// and belongs to the next one who takes that.
    pub(super) fn free(&self, mark: Mark) -> bool {
        self.word.compare_exchange(mark.0, FREE, AcqRel, Relaxed).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(pid: u32, start: u32) -> ProcessId {
        ProcessId::from_bits(u64::from(pid) | u64::from(start) << 32).unwrap()
    }

    proptest! {
        #[test]
        fn a_mark_tells_its_owner(pid in 1..=PID as u32, start: u32, tag: u8, kind in 1..=2_u64) {
            let mark = Mark::new(kind, process(pid, start), tag).unwrap();
            prop_assert_eq!(mark.owner(), Some(process(pid, start)));
            prop_assert_ne!(mark, Mark::new(3 - kind, process(pid, start), tag).unwrap());
            prop_assert_ne!(mark, Mark::new(kind, process(pid, start), tag ^ 1).unwrap());
        }

        #[test]
        fn pids_that_do_not_fit_have_no_blocks(pid in PID as u32 + 1..) {
            prop_assert_eq!(Mark::new(HELD, process(pid, 1), 0), None);
        }
    }

    #[test]
    fn one_after_another_has_it() {
        let (entry, me, other) = (Entry::default(), process(1, 1), process(2, 2));
        let mark = entry.acquire(me).unwrap();
        assert_eq!(entry.acquire(other), None);
        let generation = entry.next_generation();
        entry.place(5);
        assert_eq!(entry.claim(generation, 4, other, 0), None);
        assert_eq!(entry.claim(generation + 1, 5, other, 0), None);
        let held = entry.claim(generation, 5, other, 0).unwrap();
        assert!(!entry.free(mark));
        assert_eq!(entry.owner(), Some(other));
        let again = entry.claim(generation, 5, other, 1).unwrap();
        assert!(!entry.free(held), "a claim that came to nothing frees nothing");
        let back = entry.take_back(again, me).unwrap();
        assert!(entry.free(back));
        assert!(entry.is_free());
        assert_eq!(entry.claim(generation, 5, other, 0), None);
    }

    #[test]
    fn only_what_the_dead_left_is_seized_and_only_if_its_message_is_gone() {
        let (entry, me, other) = (Entry::default(), process(1, 1), process(2, 2));
        let seize = |taken, dead| entry.seize(me, || taken, |_| dead);
        assert_eq!(seize(9, true), None, "it is free");
        let _ = entry.acquire(other).unwrap();
        entry.place(5);
        assert_eq!(seize(9, false), None);
        assert_eq!(seize(4, true), None);
        let mark = seize(5, true).unwrap();
        assert_eq!(mark.owner(), Some(me));
        assert!(entry.free(mark));
    }
}
