//! The ring: messages of bytes, many producers, many consumers, in shared memory.
//!
//! See PROTOCOL.md for what happens when, and `layout.rs` for the words. In short: a producer holds one lock while it
//! writes a message behind the tail, then publishes the new tail by one store; a consumer holds another while it copies
//! the message at the head out, then publishes the new head. Whoever is killed in between has changed nothing that
//! others look at.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    courier::Courier,
    layout::{BLOCKS, BLOCKS_AT, FILE, MAGIC, MAPPED, Map, SPILL_AT, SPILL_HEAD, SPILL_TAIL, WINDOW_AT},
    message::ReadAhead,
    spill,
};
use crate::{
    loom::Ordering::{Acquire, Relaxed, Release},
    memory::{Blocks, Filled, Segment},
    process::ProcessId,
    sync::{LockWord, Wait, WaitError},
};

/// That a message went in, or came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "whoever waits by other means than the ring's own has to be told"]
pub struct Delivered {
    /// How many messages it was.
    pub count: u64,
    /// Whether somebody waits by other means ([`Ring::set_doorbell`]) and has to be woken.
    pub doorbell: bool,
}

/// A ring of messages in shared memory. Clones are the same ring.
///
/// It holds as many messages as there is memory for, in the order in which they were put. Any number of threads and
/// processes may use it; a forked child has it too. A process killed at any moment leaves it as it was before or after
/// the call it was in.
#[derive(Clone, Debug)]
pub struct Ring {
    map: Map,
    ahead: Arc<Mutex<ReadAhead>>,
    courier: Option<Courier>,
    blocks: Option<Blocks>,
}

impl Ring {
    /// Makes an empty ring. It takes one page of memory until it is used. `name` is what `/proc/PID/maps` shows.
    ///
    /// # Errors
    ///
    /// If descriptors or address space are lacking.
    pub fn create(name: &str) -> io::Result<Self> {
        // A file larger than the process may write would end it by a signal.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX);
        let size = FILE.min(limit);
        let segment = Segment::create(name, MAPPED, size)?;
        let ring = Self::new(segment).ok_or(io::ErrorKind::FileTooLarge)?;
        let header = ring.map.header();
        // A page of its own for the header, whatever the size of a page: it is written through the mapping.
        ring.map.segment().secure(0, WINDOW_AT as u64)?;
        header.spill.store(size.min(BLOCKS_AT).saturating_sub(SPILL_AT), Relaxed);
        header.magic.store(MAGIC, Release);
        Ok(ring)
    }

    /// The ring that a descriptor from another process stands for; it is kept or closed.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] if it is not of a ring, else as [`Segment::attach`].
    pub fn attach(fd: OwnedFd) -> io::Result<Self> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidData, "the descriptor is not of a ring, or of another version");
        let ring = Self::new(Segment::attach(fd)?).ok_or_else(invalid)?;
        if ring.map.header().magic.load(Acquire) == MAGIC { Ok(ring) } else { Err(invalid()) }
    }

    fn new(segment: Segment) -> Option<Self> {
        let blocks = Blocks::new(&segment, BLOCKS);
        Map::new(segment).map(|map| Self { map, ahead: Arc::default(), courier: None, blocks })
    }

    /// [`create`](Self::create), with a courier: messages may have descriptors with them. That takes two sockets more.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_with_courier(name: &str) -> io::Result<Self> {
        Ok(Self { courier: Some(Courier::create()?), ..Self::create(name)? })
    }

    /// [`attach`](Self::attach), with the [descriptors of its courier](Self::courier), which are kept or closed.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach), and [`io::ErrorKind::InvalidData`] if those of the courier are something else.
    pub fn attach_with_courier(fd: OwnedFd, courier: [OwnedFd; 2]) -> io::Result<Self> {
        Self::attach(fd)?.with_courier(courier)
    }

    pub(super) fn with_courier(self, courier: [OwnedFd; 2]) -> io::Result<Self> {
        Ok(Self { courier: Some(Courier::attach(courier)?), ..self })
    }

    /// What another process needs for [`attach_with_courier`](Self::attach_with_courier), beside the ring's own
    /// descriptor; `None` if messages can't have descriptors with them.
    pub fn courier(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.courier.as_ref().map(Courier::descriptors)
    }

    pub(super) fn its_courier(&self) -> Option<&Courier> {
        self.courier.as_ref()
    }

    /// Copies the parts, one after another, into a block that can go along with a message of this ring ([`Along`]): who takes
    /// the message has the memory itself, without another copy. Waits a little for memory that is warm, at most for
    /// `patience`; a twentieth of a second at the very most.
    ///
    /// `None` if there is no block to be had, or no memory: the bytes have to go in the message then. A block costs about a
    /// microsecond, so it pays from some ten thousand bytes on.
    ///
    /// [`Along`]: super::Along
    pub fn fill(&self, parts: &[&[u8]], patience: Duration) -> Option<Filled> {
        self.blocks.as_ref()?.fill(parts, patience)
    }

    pub(crate) fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// The memory it is in.
    pub fn segment(&self) -> &Segment {
        self.map.segment()
    }

    pub(super) fn ahead(&self) -> &Mutex<ReadAhead> {
        &self.ahead
    }

    #[inline]
    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    /// How many messages are in it: exact, as of a moment during the call.
    pub fn len(&self) -> u64 {
        // In this order the first is never ahead of the second.
        let got = self.get_count();
        self.put_count().saturating_sub(got)
    }

    /// Whether no message is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages were ever put.
    pub fn put_count(&self) -> u64 {
        self.map.header().producers.tail.count()
    }

    /// How many messages were ever taken.
    pub fn get_count(&self) -> u64 {
        self.map.header().consumers.head.count()
    }

    /// Frees the locks a dead process holds, so that nobody has to find out by waiting, and the blocks. Tells whether there
    /// were any locks. Nothing else has to be repaired after a death.
    pub fn release_dead(&self, owner: ProcessId) -> bool {
        if let Some(blocks) = &self.blocks {
            blocks.release_dead(owner);
        }
        let header = self.map.header();
        let producer = header.producers.lock.release_dead(owner);
        let consumer = header.consumers.lock.release_dead(owner);
        if producer || consumer {
            self.clear_courier();
        }
        header.joining.bell_lock.release_dead(owner) || producer || consumer
    }

    /// Closes descriptors that a dead process left with the courier, if the ring is empty and nobody is at work in it. Else
    /// that is left to the next one who takes a message with descriptors.
    fn clear_courier(&self) {
        let header = self.map.header();
        if let Some(courier) = &self.courier
            && let Some(_producing) = Held::try_acquire(&header.producers.lock)
            && let Some(_consuming) = Held::try_acquire(&header.consumers.lock)
            && self.is_empty()
        {
            courier.clear();
        }
    }

    /// Has every message that is put or taken from now on reported by [`Delivered::doorbell`], in whichever process, or
    /// no longer. For somebody who waits on a descriptor: that one sets it, looks once more whether the ring is empty,
    /// and waits; who put the message makes the descriptor readable.
    pub fn set_doorbell(&self, on: bool) {
        self.map.header().sleepers.doorbell.store(u32::from(on), Release);
        // Pairs with the fence in `wake`: whoever does not see it has put its message before the caller looks again.
        crate::loom::fence(crate::loom::Ordering::SeqCst);
    }

    /// Whether the doorbell is set.
    pub fn doorbell(&self) -> bool {
        self.map.header().sleepers.doorbell.load(Acquire) != 0
    }

    /// Gives the memory of an empty spill back (PROTOCOL.md, "The spill runs empty").
    #[cold]
    pub(super) fn trim(&self) {
        let header = self.map.header();
        // If a producer is long at work, the next message that is spilled does it.
        let mut patience = Wait::timeout(Duration::from_millis(50));
        let Ok(_held) = Held::acquire(&header.producers.lock, &mut patience) else { return };
        let (_, tail) = header.producers.tail.read();
        let (_, head) = header.consumers.head.read();
        if head[SPILL_HEAD] == tail[SPILL_TAIL] {
            spill::begin_anew(&self.map);
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.segment().as_fd()
    }
}

/// The lock of a side, held. Freed when dropped.
pub(super) struct Held<'a>(&'a LockWord);

impl<'a> Held<'a> {
    #[inline]
    pub(super) fn try_acquire(lock: &'a LockWord) -> Option<Self> {
        lock.try_acquire(ProcessId::current()).then(|| Self(lock))
    }

    /// A lock that a dead process left needs nothing repaired, so it does not matter how it was acquired.
    #[inline]
    pub(super) fn acquire(lock: &'a LockWord, wait: &mut Wait<'_>) -> Result<Self, WaitError> {
        let _acquired = lock.acquire(ProcessId::current(), wait)?;
        Ok(Self(lock))
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        // It is held, unless another process wrote to the shared memory.
        let _ = self.0.release();
    }
}

#[cfg(all(test, not(loom)))]
#[path = "ring_tests.rs"]
mod tests;
