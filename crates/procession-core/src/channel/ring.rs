//! The ring: messages of bytes, many producers, many consumers, in shared memory.
//!
//! See PROTOCOL.md for what happens when, and `layout.rs` for the words. In short: a producer holds one lock while it
//! writes a message behind the tail, then publishes the new tail by one store; a consumer holds another while it copies
//! the message at the head out, then publishes the new head. Whoever is killed in between has changed nothing that
//! others look at.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    layout::{
        FILE, MAGIC, Map, PREFIX, SPILL_AT, SPILL_BASE, SPILL_HEAD, SPILL_TAIL, WINDOW, WINDOW_AT, WINDOW_HEAD,
        WINDOW_STEP, WINDOW_TAIL, as_uninit, record,
    },
    spill::{self, AHEAD, Spill},
};
use crate::{
    loom::Ordering::{Acquire, Relaxed, Release},
    memory::Segment,
    process::ProcessId,
    sync::{LockWord, Slices, Wait, WaitError, spin},
};

/// Why a message was not put.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// As many messages as the bound allows are in the ring (only if nothing was to be waited for).
    #[error("the queue is full")]
    Full,
    /// Another thread or process is putting a message just now (only if nothing was to be waited for).
    #[error("another producer is at work")]
    Busy,
    /// The wait ended.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// There is no memory for the message.
    #[error("no memory for the message: {0}")]
    Memory(io::Error),
    /// The shared memory holds what no ring can: another process wrote there.
    #[error("the shared memory of the queue is damaged")]
    Damaged,
}

/// Why no message was taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// There is none (only if nothing was to be waited for).
    #[error("the queue is empty")]
    Empty,
    /// Another thread or process is taking a message just now (only if nothing was to be waited for).
    #[error("another consumer is at work")]
    Busy,
    /// The wait ended.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The message could not be read, or its reader refused it. It is still in the ring.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The shared memory holds what no ring can: another process wrote there.
    #[error("the shared memory of the queue is damaged")]
    Damaged,
}

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
/// processes may use it; a forked child has it too. A process killed at any moment leaves it as it was before or after the
/// call it was in.
#[derive(Clone, Debug)]
pub struct Ring(Map);

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
        let segment = Segment::create(name, WINDOW_AT + WINDOW as usize, size)?;
        let ring = Self::new(segment).ok_or(io::ErrorKind::FileTooLarge)?;
        let header = ring.0.header();
        // A page of its own for the header, whatever the size of a page: it is written through the mapping.
        ring.0.segment().secure(0, WINDOW_AT as u64)?;
        header.spill.store(size.saturating_sub(SPILL_AT), Relaxed);
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
        if ring.0.header().magic.load(Acquire) == MAGIC { Ok(ring) } else { Err(invalid()) }
    }

    fn new(segment: Segment) -> Option<Self> {
        Map::new(segment).map(Self)
    }

    /// The memory it is in.
    pub fn segment(&self) -> &Segment {
        self.0.segment()
    }

    pub(super) fn map(&self) -> &Map {
        &self.0
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
        self.0.header().producers.tail.count()
    }

    /// How many messages were ever taken.
    pub fn get_count(&self) -> u64 {
        self.0.header().consumers.head.count()
    }

    /// Frees the locks a dead process holds, so that nobody has to find out by waiting. Tells whether there were any.
    /// Nothing else has to be repaired after a death.
    pub fn release_dead(&self, owner: ProcessId) -> bool {
        let header = self.0.header();
        let producer = header.producers.lock.release_dead(owner);
        let consumer = header.consumers.lock.release_dead(owner);
        header.joining.bell_lock.release_dead(owner) || producer || consumer
    }

    /// Has every message that is put or taken from now on reported by [`Delivered::doorbell`], in whichever process, or
    /// no longer. For somebody who waits on a descriptor: that one sets it, looks once more whether the ring is empty,
    /// and waits; who put the message makes the descriptor readable.
    pub fn set_doorbell(&self, on: bool) {
        self.0.header().sleepers.doorbell.store(u32::from(on), Release);
        // Pairs with the fence in `wake`: whoever does not see it has put its message before the caller looks again.
        crate::loom::fence(crate::loom::Ordering::SeqCst);
    }

    /// Whether the doorbell is set.
    pub fn doorbell(&self) -> bool {
        self.0.header().sleepers.doorbell.load(Acquire) != 0
    }

    /// Puts one message, the `parts` one after another. Waits while `bound` messages or more are in the ring, and while
    /// other producers are at work.
    ///
    /// # Errors
    ///
    /// [`PutError`], never `Full` or `Busy`. The message is not in the ring then.
    pub fn put(&self, parts: &[&[u8]], bound: Option<u64>, wait: &mut Wait<'_>) -> Result<Delivered, PutError> {
        self.put_many(&[parts], bound, wait)
    }

    /// [`put`](Self::put) without waiting.
    ///
    /// # Errors
    ///
    /// [`PutError`]
    #[inline]
    pub fn try_put(&self, parts: &[&[u8]], bound: Option<u64>) -> Result<Delivered, PutError> {
        self.try_put_many(&[parts], bound)
    }

    /// Puts as many of the messages as the bound allows, in order and nothing in between, but one at least: waits for that. The caller
    /// goes on with the rest ([`Delivered::count`] tells how many went in).
    ///
    /// # Errors
    ///
    /// [`PutError`], never `Full` or `Busy`. None of the messages is in the ring then.
    pub fn put_many(
        &self,
        messages: &[&[&[u8]]],
        bound: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Delivered, PutError> {
        let mut slices = Slices::new();
        loop {
            match self.put_now(messages, bound, wait) {
                Err(PutError::Full) => self.wait_for_room(bound, wait, &mut slices)?,
                other => return other,
            }
        }
    }

    /// Waits until no other producer is at work.
    pub(super) fn wait_for_turn(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        Held::acquire(&self.0.header().producers.lock, wait).map(drop)
    }

    /// Waits until there is room, or there may be: for a slice at most.
    pub(super) fn wait_for_room(
        &self,
        bound: Option<u64>,
        wait: &mut Wait<'_>,
        slices: &mut Slices,
    ) -> Result<(), WaitError> {
        let header = self.0.header();
        let seen = self.get_count();
        let full = self.put_count().saturating_sub(seen) >= bound.unwrap_or(u64::MAX);
        if !full || spin(|| self.get_count() != seen) {
            return Ok(());
        }
        header.sleepers.putters.sleep(&header.consumers.head.count, seen, wait, slices.next())
    }

    /// [`put_many`](Self::put_many) without waiting for room; `patience` is for the moments in which another producer
    /// is at work.
    ///
    /// # Errors
    ///
    /// [`PutError`], never `Busy`.
    pub fn put_now(
        &self,
        messages: &[&[&[u8]]],
        bound: Option<u64>,
        patience: &mut Wait<'_>,
    ) -> Result<Delivered, PutError> {
        let held = Held::acquire(&self.0.header().producers.lock, patience)?;
        self.put_holding(held, messages, bound)
    }

    /// [`put_many`](Self::put_many) without waiting.
    ///
    /// # Errors
    ///
    /// [`PutError`]
    #[inline]
    pub fn try_put_many(&self, messages: &[&[&[u8]]], bound: Option<u64>) -> Result<Delivered, PutError> {
        let held = Held::try_acquire(&self.0.header().producers.lock).ok_or(PutError::Busy)?;
        self.put_holding(held, messages, bound)
    }

    fn put_holding(&self, held: Held<'_>, messages: &[&[&[u8]]], bound: Option<u64>) -> Result<Delivered, PutError> {
        let header = self.0.header();
        let before = header.sleepers.getters.before();
        let (put_count, mut tail) = header.producers.tail.read();
        let allowed = self.allowed(put_count, bound).min(messages.len() as u64);
        let Some(last) = allowed.checked_sub(1) else {
            return Err(PutError::Full);
        };
        let mut last_but_one = tail;
        let mut written = 0;
        for parts in &messages[..=last as usize] {
            let position = tail;
            match self.write(&mut tail, parts) {
                Ok(()) => {
                    last_but_one = position;
                    written += 1;
                }
                // Those before are put; the next call meets the error.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
            super::point();
        }
        // The count has to change by an odd number (see `published.rs`).
        if written % 2 == 0 {
            header.producers.tail.publish(put_count + written - 1, last_but_one);
        }
        header.producers.tail.publish(put_count + written, tail);
        super::point();
        drop(held);
        header.sleepers.getters.wake(&header.producers.tail.count, before, written);
        Ok(Delivered { count: written, doorbell: header.sleepers.doorbell.load(Relaxed) != 0 })
    }

    /// How many messages may be put.
    #[inline]
    fn allowed(&self, put_count: u64, bound: Option<u64>) -> u64 {
        let Some(bound) = bound else { return u64::MAX };
        let seen = &self.0.header().seen.get_count;
        let room = |got: u64| bound.saturating_sub(put_count.saturating_sub(got));
        match room(seen.load(Acquire)) {
            0 => {
                let got = self.get_count();
                seen.store(got, Release);
                room(got)
            }
            room => room,
        }
    }

    /// Writes a message behind the tail, and moves that (only the caller's copy of it).
    #[inline]
    fn write(&self, tail: &mut [u64; 3], parts: &[&[u8]]) -> Result<(), PutError> {
        let length = parts.iter().fold(0_u64, |sum, part| sum + part.len() as u64);
        let size = record(length).ok_or(PutError::Damaged)?;
        let seen = &self.0.header().seen;
        let fits = |tail: &[u64; 3]| {
            let used = tail[WINDOW_TAIL].wrapping_sub(seen.window_head.load(Acquire));
            tail[SPILL_TAIL] == seen.spill_head.load(Acquire) && used <= WINDOW && size <= WINDOW - used
        };
        if !fits(tail) {
            let (_, head) = self.0.header().consumers.head.read();
            if tail[WINDOW_TAIL].wrapping_sub(head[WINDOW_HEAD]) > WINDOW {
                return Err(PutError::Damaged);
            }
            seen.window_head.store(head[WINDOW_HEAD], Release);
            seen.spill_head.store(head[SPILL_HEAD], Release);
            if !fits(tail) {
                return self.write_to_spill(tail, parts, length, size);
            }
        }
        let start = tail[WINDOW_TAIL];
        self.secure_window(start, size)?;
        self.0.write_window(start, &length.to_le_bytes());
        let mut position = start + PREFIX;
        for part in parts {
            super::point();
            self.0.write_window(position, part);
            position += part.len() as u64;
        }
        tail[WINDOW_TAIL] = start + size;
        Ok(())
    }

    /// Sees to it that memory is behind the part of the window that is going to be written.
    #[inline]
    fn secure_window(&self, start: u64, size: u64) -> Result<(), PutError> {
        let secured = &self.0.header().seen.secured;
        let present = secured.load(Relaxed);
        let end = (start % WINDOW + size).min(WINDOW);
        if end <= present {
            return Ok(());
        }
        let wanted = end.next_multiple_of(WINDOW_STEP);
        let from = present.min(WINDOW);
        self.0.segment().secure(WINDOW_AT as u64 + from, wanted - from).map_err(PutError::Memory)?;
        super::point();
        secured.store(wanted, Relaxed);
        Ok(())
    }

    #[cold]
    fn write_to_spill(&self, tail: &mut [u64; 3], parts: &[&[u8]], length: u64, size: u64) -> Result<(), PutError> {
        let header = self.0.header();
        let used = tail[SPILL_TAIL].wrapping_sub(header.seen.spill_head.load(Acquire));
        let (_, published) = header.producers.tail.read();
        if used == 0 && published[SPILL_TAIL] == tail[SPILL_TAIL] {
            if published[SPILL_BASE] != tail[SPILL_TAIL] {
                spill::begin_anew(&self.0);
            }
            tail[SPILL_BASE] = tail[SPILL_TAIL];
        }
        let room = spill::room(&self.0);
        if used > room {
            return Err(PutError::Damaged);
        }
        if size > room - used {
            return Err(PutError::Memory(io::ErrorKind::StorageFull.into()));
        }
        Spill::new(&self.0, tail[SPILL_BASE])
            .write_record(tail[SPILL_TAIL], parts, length)
            .map_err(PutError::Memory)?;
        tail[SPILL_TAIL] += size;
        Ok(())
    }

    /// Takes the oldest message, waiting for one. `read` gets to see it while it is still in the ring; only when `read` has
    /// returned is it taken out, so that a process killed meanwhile leaves it to others.
    ///
    /// Other consumers wait while `read` runs, so it should do no more than copy the message and note what has to be
    /// known before the message is gone.
    ///
    /// # Errors
    ///
    /// [`TakeError`], never `Empty` or `Busy`. `Read` if `read` refused: the message stays then.
    pub fn take_with<R>(
        &self,
        wait: &mut Wait<'_>,
        read: impl FnOnce(&Message<'_>) -> io::Result<R>,
    ) -> Result<(R, Delivered), TakeError> {
        let (mut read, mut result) = (Some(read), None);
        let taken = self.take_many_with(1, wait, |message| {
            if let Some(read) = read.take() {
                result = Some(read(message)?);
            }
            Ok(())
        })?;
        result.map(|result| (result, taken)).ok_or(TakeError::Damaged)
    }

    /// [`take_with`](Self::take_with) without waiting.
    ///
    /// # Errors
    ///
    /// [`TakeError`]
    #[inline]
    pub fn try_take_with<R>(
        &self,
        read: impl FnOnce(&Message<'_>) -> io::Result<R>,
    ) -> Result<(R, Delivered), TakeError> {
        let (mut read, mut result) = (Some(read), None);
        let taken = self.try_take_many_with(1, |message| {
            if let Some(read) = read.take() {
                result = Some(read(message)?);
            }
            Ok(())
        })?;
        result.map(|result| (result, taken)).ok_or(TakeError::Damaged)
    }

    /// Takes up to `most` messages, as many as are there, waiting for the first. `read` sees one after another; they are
    /// taken out together after the last. If `read` refuses one, that one and those behind it stay.
    ///
    /// # Errors
    ///
    /// [`TakeError`], never `Empty` or `Busy`. `Read` if the first message was refused.
    pub fn take_many_with(
        &self,
        most: u64,
        wait: &mut Wait<'_>,
        mut read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<Delivered, TakeError> {
        let mut slices = Slices::new();
        loop {
            match self.take_now_with(most, wait, &mut read) {
                Err(TakeError::Empty) => self.wait_for_message(wait, &mut slices)?,
                other => return other,
            }
        }
    }

    /// Waits until there is a message, or there may be: for a slice at most.
    fn wait_for_message(&self, wait: &mut Wait<'_>, slices: &mut Slices) -> Result<(), WaitError> {
        let header = self.0.header();
        let seen = self.put_count();
        if self.get_count() < seen || spin(|| self.put_count() != seen) {
            return Ok(());
        }
        header.sleepers.getters.sleep(&header.producers.tail.count, seen, wait, slices.next())
    }

    /// Waits until there is a message, without taking it.
    ///
    /// # Errors
    ///
    /// [`WaitError`]
    pub fn wait_filled(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let header = self.0.header();
        let mut slices = Slices::new();
        while self.is_empty() {
            self.wait_for_message(wait, &mut slices)?;
        }
        // A wake meant for a consumer may have come here: it is passed on.
        header.sleepers.getters.wake(&header.producers.tail.count, u64::MAX, 1);
        Ok(())
    }

    /// [`take_many_with`](Self::take_many_with) without waiting for a message; `patience` is for the moments in which
    /// another consumer is at work.
    ///
    /// # Errors
    ///
    /// [`TakeError`], never `Busy`.
    pub fn take_now_with(
        &self,
        most: u64,
        patience: &mut Wait<'_>,
        read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<Delivered, TakeError> {
        if self.is_empty() {
            return Err(TakeError::Empty);
        }
        let held = Held::acquire(&self.0.header().consumers.lock, patience)?;
        self.take_holding(held, most, read)
    }

    /// [`take_many_with`](Self::take_many_with) without waiting.
    ///
    /// # Errors
    ///
    /// [`TakeError`]
    #[inline]
    pub fn try_take_many_with(
        &self,
        most: u64,
        read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<Delivered, TakeError> {
        if self.is_empty() {
            return Err(TakeError::Empty);
        }
        let held = Held::try_acquire(&self.0.header().consumers.lock).ok_or(TakeError::Busy)?;
        self.take_holding(held, most, read)
    }

    fn take_holding(
        &self,
        held: Held<'_>,
        most: u64,
        mut read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<Delivered, TakeError> {
        let header = self.0.header();
        let before = header.sleepers.putters.before();
        let (get_count, mut head) = header.consumers.head.read();
        let mut last_but_one = head;
        let mut taken = 0;
        let mut spilled = false;
        while taken < most.max(1) {
            let Some((message, next)) = self.message_at(get_count + taken, &head, taken == 0)? else {
                break;
            };
            super::point();
            match read(&message) {
                Ok(()) => {}
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error.into()),
            }
            spilled |= matches!(message.place, Place::Spill { .. });
            last_but_one = head;
            head = next;
            taken += 1;
        }
        if taken == 0 {
            return Err(TakeError::Empty);
        }
        super::point();
        if taken % 2 == 0 {
            header.consumers.head.publish(get_count + taken - 1, last_but_one);
        }
        header.consumers.head.publish(get_count + taken, head);
        super::point();
        drop(held);
        header.sleepers.putters.wake(&header.consumers.head.count, before, taken);
        if spilled && spill::left_much(&self.0) {
            self.trim();
        }
        Ok(Delivered { count: taken, doorbell: header.sleepers.doorbell.load(Relaxed) != 0 })
    }

    /// The message at a head, and the head behind it; `None` if there is none. `first` says that the head is the
    /// published one.
    #[inline]
    fn message_at(
        &self,
        sequence: u64,
        head: &[u64; 2],
        first: bool,
    ) -> Result<Option<(Message<'_>, [u64; 2])>, TakeError> {
        let header = self.0.header();
        let seen = &header.consumers.seen_window_tail;
        let mut left = seen.load(Acquire).wrapping_sub(head[WINDOW_HEAD]);
        if left == 0 || left > WINDOW {
            let (put_count, tail) = header.producers.tail.read();
            if sequence >= put_count {
                return Ok(None);
            }
            seen.store(tail[WINDOW_TAIL], Release);
            left = tail[WINDOW_TAIL].wrapping_sub(head[WINDOW_HEAD]);
            if left == 0 {
                return self.spilled_at(sequence, head, &tail, first).map(Some);
            }
            if left > WINDOW {
                return Err(TakeError::Damaged);
            }
        }
        let mut prefix = [0; PREFIX as usize];
        self.0.read_window(head[WINDOW_HEAD], as_uninit(&mut prefix));
        let length = u64::from_le_bytes(prefix);
        let size = record(length).filter(|&size| size <= left).ok_or(TakeError::Damaged)?;
        let place = Place::Window { position: head[WINDOW_HEAD] + PREFIX };
        let next = [head[WINDOW_HEAD] + size, head[SPILL_HEAD]];
        Ok(Some((Message { ring: self, sequence, length, place }, next)))
    }

    #[cold]
    fn spilled_at(
        &self,
        sequence: u64,
        head: &[u64; 2],
        tail: &[u64; 3],
        first: bool,
    ) -> Result<(Message<'_>, [u64; 2]), TakeError> {
        let left = tail[SPILL_TAIL].wrapping_sub(head[SPILL_HEAD]);
        if left < PREFIX || left > spill::room(&self.0) {
            return Err(TakeError::Damaged);
        }
        let spill = Spill::new(&self.0, tail[SPILL_BASE]);
        if first {
            spill.discard_read(head[SPILL_HEAD]);
        }
        let mut ahead = Box::new(Ahead { bytes: [0; AHEAD], length: left.min(AHEAD as u64) as usize });
        spill.read(head[SPILL_HEAD], as_uninit(&mut ahead.bytes[..ahead.length]))?;
        let length = ahead.bytes.first_chunk().map_or(0, |prefix| u64::from_le_bytes(*prefix));
        let size = record(length).filter(|&size| size <= left).ok_or(TakeError::Damaged)?;
        let place = Place::Spill { position: head[SPILL_HEAD] + PREFIX, base: tail[SPILL_BASE], ahead };
        let next = [head[WINDOW_HEAD], head[SPILL_HEAD] + size];
        Ok((Message { ring: self, sequence, length, place }, next))
    }

    /// Gives the memory of an empty spill back (PROTOCOL.md, "The spill runs empty").
    #[cold]
    fn trim(&self) {
        let header = self.0.header();
        // If a producer is long at work, the next message that is spilled does it.
        let mut patience = Wait::timeout(std::time::Duration::from_millis(50));
        let Ok(_held) = Held::acquire(&header.producers.lock, &mut patience) else { return };
        let (_, tail) = header.producers.tail.read();
        let (_, head) = header.consumers.head.read();
        if head[SPILL_HEAD] == tail[SPILL_TAIL] {
            spill::begin_anew(&self.0);
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.segment().as_fd()
    }
}

/// The lock of a side, held. Freed when dropped.
pub(super) struct Held<'a>(&'a LockWord);

impl<'a> Held<'a> {
    #[inline]
    fn try_acquire(lock: &'a LockWord) -> Option<Self> {
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

/// A message that is still in the ring, as its reader sees it.
#[derive(Debug)]
pub struct Message<'a> {
    ring: &'a Ring,
    sequence: u64,
    length: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Window { position: u64 },
    Spill { position: u64, base: u64, ahead: Box<Ahead> },
}

/// What was read from the spill along with the length: all of a small message.
#[derive(Debug)]
struct Ahead {
    bytes: [u8; AHEAD],
    length: usize,
}

impl Message<'_> {
    /// Its number: how many messages were taken out of the ring before it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies the bytes from `offset` on, as many as `into` has room for and the message has. All of these are
    /// initialized afterwards; what `into` has beyond is left alone.
    ///
    /// # Errors
    ///
    /// As pread(2), if the message lies in the file.
    pub fn copy_from(&self, offset: u64, into: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        let left = self.length.saturating_sub(offset);
        let length = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let into = &mut into[..length];
        match &self.place {
            Place::Window { position } => self.ring.0.read_window(position + offset.min(self.length), into),
            Place::Spill { position, base, ahead } => {
                let known = &ahead.bytes[PREFIX as usize..ahead.length];
                let known = &known[known.len().min(offset as usize)..];
                let known = &known[..known.len().min(length)];
                let (first, rest) = into.split_at_mut(known.len());
                for (byte, known) in first.iter_mut().zip(known) {
                    byte.write(*known);
                }
                if !rest.is_empty() {
                    Spill::new(&self.ring.0, *base).read(position + offset + known.len() as u64, rest)?;
                }
            }
        }
        Ok(())
    }

    /// The bytes.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::OutOfMemory`], or as [`copy_from`](Self::copy_from).
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let length = usize::try_from(self.length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.try_reserve_exact(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.copy_from(0, &mut bytes.spare_capacity_mut()[..length])?;
        // SAFETY: reserved, and initialized by `copy_from`, which was given as much as the message has.
        unsafe { bytes.set_len(length) };
        Ok(bytes)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "ring_tests.rs"]
mod tests;
