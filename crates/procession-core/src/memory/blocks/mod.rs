//! Blocks: memory for large buffers that is handed over with a message instead of being streamed through the ring.
//!
//! The sender copies once, into a free block ([`Blocks::fill`]); the message names the block; who takes the message has the
//! block as memory of its own ([`HeldBlock`]), and when that is dropped the block is free again, its memory still warm.
//! BLOCKS.md beside this file tells what holds at each moment and what happens when a process dies or forks.

mod fork_mutex;
mod mapped;
mod table;
mod word;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

pub use mapped::HeldBlock;
use table::Table;
pub(crate) use table::{BLOCKS, LONGEST, Layout, TABLE};
use word::Mark;

use super::Segment;
use crate::process::{ProcessId, generation};

/// The blocks of a segment. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Blocks(Arc<Table>);

/// Which block, as a message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    slot: u32,
    generation: u64,
    length: u64,
}

impl Reference {
    /// How long the encoded form is.
    pub(crate) const LENGTH: usize = 24;

    pub(crate) fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&u64::from(self.slot).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// `None` if no block can be meant.
    pub(crate) fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let word = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let slot = u32::try_from(word(0)).ok().filter(|&slot| (slot as usize) < BLOCKS)?;
        (1..=LONGEST).contains(&word(16)).then_some(Self { slot, generation: word(8), length: word(16) })
    }
}

impl Blocks {
    /// The blocks of a segment; `None` if it has no room for any.
    pub(crate) fn new(segment: &Segment, layout: Layout) -> Option<Self> {
        Table::new(segment.clone(), layout).map(|table| Self(Arc::new(table)))
    }

    /// Copies the parts into a free block, one after another. Waits at most for so long for one that has memory already.
    /// `None` if there is none to be had, or no memory for it.
    pub(crate) fn fill(&self, parts: &[&[u8]], patience: Duration) -> Option<Filled> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let (slot, mark) = self.0.fill(parts, length, patience)?;
        let generation = self.0.entry(slot)?.next_generation();
        Some(self.filled(Reference { slot, generation, length }, mark))
    }

    fn filled(&self, reference: Reference, mark: Mark) -> Filled {
        Filled { table: self.0.clone(), reference, mark, sent: AtomicBool::new(false), generation: generation() }
    }

    /// Makes the block of the message with this position the caller's. Only for the holder of the consumer lock, before the
    /// message is taken out. `None`: no block is meant, the memory is damaged.
    pub(crate) fn claim(&self, reference: Reference, position: u64) -> Option<Claimed> {
        static TAG: AtomicU8 = AtomicU8::new(0);
        let entry = self.0.entry(reference.slot)?;
        if reference.length > entry.warm.load(crate::loom::Ordering::Relaxed) {
            return None;
        }
        let tag = TAG.fetch_add(1, Relaxed);
        let mark = entry.claim(reference.generation, position, ProcessId::current(), tag)?;
        Some(Claimed(Some(Claim { table: self.0.clone(), reference, mark, position, generation: generation() })))
    }

    /// How many belong to somebody.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn in_use(&self) -> usize {
        self.0.live()
    }

    /// Gives back what a process has left that is known to be dead. That happens anyway, when memory is needed.
    pub(crate) fn release_dead(&self, process: ProcessId) {
        self.0.release_dead(process);
    }
}

/// A block that was filled, to go with one message. Dropped without that, it is given back.
#[derive(Debug)]
pub struct Filled {
    table: Arc<Table>,
    reference: Reference,
    mark: Mark,
    sent: AtomicBool,
    generation: u32,
}

impl Filled {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.reference.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it was filled for this ring and has not gone with a message yet.
    pub(crate) fn belongs_to(&self, blocks: &Blocks) -> bool {
        self.table.segment().id() == blocks.0.segment().id() && !self.sent.load(Relaxed)
    }

    pub(crate) fn reference(&self) -> Reference {
        self.reference
    }

    /// It is going to be in the message of this position. Only for the holder of the producer lock.
    pub(crate) fn place(&self, position: u64) {
        if let Some(entry) = self.table.entry(self.reference.slot) {
            entry.place(position);
        }
    }

    /// The message is published.
    pub(crate) fn set_sent(&self) {
        self.sent.store(true, Relaxed);
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // A forked child has a copy of what is its parent's.
        if !self.sent.load(Relaxed) && self.generation == generation() {
            self.table.give_back(self.reference.slot, self.mark, false);
        }
    }
}

/// A block that came with a message, which is the caller's with the message. Dropped, it is given back.
#[derive(Debug)]
pub struct Claimed(Option<Claim>);

#[derive(Debug)]
struct Claim {
    table: Arc<Table>,
    reference: Reference,
    mark: Mark,
    position: u64,
    generation: u32,
}

impl Claimed {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |claim| claim.reference.length as usize)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The block as memory. Only after its message was taken.
    ///
    /// # Errors
    ///
    /// If it can't be mapped: no address space is left. The contents are lost then. And in a forked child, for a block that
    /// its parent took.
    pub fn hold(self) -> io::Result<HeldBlock> {
        HeldBlock::new(self)
    }

    /// To go with another message of the same ring.
    ///
    /// # Errors
    ///
    /// In a forked child, for a block that its parent took.
    pub fn send_again(mut self) -> io::Result<Filled> {
        let claim = self.claim()?;
        let mark =
            claim.table.entry(claim.reference.slot).and_then(|entry| entry.take_back(claim.mark, ProcessId::current()));
        let mark = mark.ok_or_else(not_here)?;
        Ok(Blocks(claim.table.clone()).filled(claim.reference, mark))
    }

    fn claim(&mut self) -> io::Result<Claim> {
        let here = self.0.as_ref().is_some_and(|claim| claim.generation == generation());
        if here { self.0.take().ok_or_else(not_here) } else { Err(not_here()) }
    }
}

fn not_here() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the block of a message that the parent of this process has taken")
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // A message that was not taken after all keeps its block.
        if let Some(claim) = &self.0
            && claim.generation == generation()
            && claim.table.taken() >= claim.position
        {
            claim.table.give_back(claim.reference.slot, claim.mark, false);
        }
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
