//! Putting messages.

use std::{io, os::fd::BorrowedFd};

use super::{
    courier::Courier,
    layout::{
        ACCOMPANIED, LADEN, MOST_BLOCKS, PREFIX, SPILL_BASE, SPILL_HEAD, SPILL_TAIL, WINDOW, WINDOW_AT, WINDOW_HEAD,
        WINDOW_STEP, WINDOW_TAIL, record,
    },
    ring::{Delivered, Held, Ring},
    spill::{self, Spill},
};
use crate::{
    kills::point,
    loom::Ordering::{Acquire, Relaxed, Release},
    memory::Filled,
    sync::{Slices, Wait, WaitError, spin},
    sys::rights,
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
    /// The descriptors can't go along: there are more than 253, or the ring has no courier.
    #[error("the descriptors can't be sent with the message: {0}")]
    Descriptors(io::Error),
    /// The shared memory holds what no ring can: another process wrote there.
    #[error("the shared memory of the queue is damaged")]
    Damaged,
}

/// What goes along with a message beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Along<'a> {
    /// Whoever takes the message gets copies of them. The caller keeps its own.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Blocks of this ring that were [filled](Ring::fill) and did not go with a message before: at most
    /// [`MOST_BLOCKS`](Self::MOST_BLOCKS). They are the message's once that is put.
    pub blocks: &'a [Filled],
}

impl Along<'_> {
    /// At most so many blocks go with a message.
    pub const MOST_BLOCKS: usize = MOST_BLOCKS;

    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty() && self.blocks.is_empty()
    }
}

impl Ring {
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

    /// Puts as many of the messages as the bound allows, in order and nothing in between, but one at least: waits for
    /// that. The caller goes on with the rest ([`Delivered::count`] tells how many went in).
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
        Held::acquire(&self.map().header().producers.lock, wait).map(drop)
    }

    /// Waits until there is room, or there may be: for a slice at most.
    pub(super) fn wait_for_room(
        &self,
        bound: Option<u64>,
        wait: &mut Wait<'_>,
        slices: &mut Slices,
    ) -> Result<(), WaitError> {
        let header = self.map().header();
        let seen = self.get_count();
        let full = self.put_count().saturating_sub(seen) >= bound.unwrap_or(u64::MAX);
        if !full || spin(|| self.get_count() != seen) {
            return Ok(());
        }
        header.sleepers.putters.sleep(&header.consumers.head.count, seen, wait, slices.next())
    }

    /// A wake that was meant for a producer may have come to somebody who only looks: it is passed on.
    pub(super) fn wake_producer(&self) {
        let header = self.map().header();
        header.sleepers.putters.wake(&header.consumers.head.count, u64::MAX, 1);
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
        if let [first, ..] = messages {
            self.wait_for_window(first, patience);
        }
        let held = Held::acquire(&self.map().header().producers.lock, patience)?;
        self.put_holding(held, messages, bound)
    }

    /// [`put_many`](Self::put_many) without waiting.
    ///
    /// # Errors
    ///
    /// [`PutError`]
    #[inline]
    pub fn try_put_many(&self, messages: &[&[&[u8]]], bound: Option<u64>) -> Result<Delivered, PutError> {
        let held = Held::try_acquire(&self.map().header().producers.lock).ok_or(PutError::Busy)?;
        self.put_holding(held, messages, bound)
    }

    fn put_holding(&self, held: Held<'_>, messages: &[&[&[u8]]], bound: Option<u64>) -> Result<Delivered, PutError> {
        let header = self.map().header();
        let before = header.sleepers.getters.before();
        let (put_count, mut tail) = header.producers.tail.read();
        if messages.is_empty() {
            return Ok(Delivered { count: 0, doorbell: false });
        }
        let allowed = self.allowed(put_count, bound).min(messages.len() as u64);
        let Some(last) = allowed.checked_sub(1) else {
            return Err(PutError::Full);
        };
        let mut last_but_one = tail;
        let mut written = 0;
        for parts in &messages[..=last as usize] {
            let position = tail;
            match self.write(&mut tail, parts, 0) {
                Ok(()) => {
                    last_but_one = position;
                    written += 1;
                }
                // Those before are put; the next call meets the error.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
            point("ring: messages in place, none published");
        }
        // The count has to change by an odd number (see `published.rs`).
        if written % 2 == 0 {
            header.producers.tail.publish(put_count + written - 1, last_but_one);
        }
        header.producers.tail.publish(put_count + written, tail);
        point("ring: messages published, nobody woken");
        drop(held);
        header.sleepers.getters.wake(&header.producers.tail.count, before, written);
        Ok(Delivered { count: written, doorbell: header.sleepers.doorbell.load(Relaxed) != 0 })
    }

    /// [`put`](Self::put), with descriptors that go along: whoever takes the message gets copies of them. The caller
    /// keeps its own. Waits also while as many descriptors are on their way as the system allows (a few hundred
    /// messages with descriptors).
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`PutError::Descriptors`].
    pub fn put_with(
        &self,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        bound: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Delivered, PutError> {
        self.put_along(parts, Along { descriptors, blocks: &[] }, bound, wait)
    }

    /// [`put`](Self::put), with descriptors and blocks that go along; see [`put_with`](Self::put_with).
    ///
    /// # Errors
    ///
    /// As [`put_with`](Self::put_with). The blocks are still the caller's then.
    ///
    /// # Panics
    ///
    /// If the blocks are not what [`Along`] says.
    pub fn put_along(
        &self,
        parts: &[&[u8]],
        along: Along<'_>,
        bound: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Delivered, PutError> {
        let mut room = CourierRoom::new();
        loop {
            match self.put_now_along(parts, along, bound, wait) {
                Err(PutError::Full) if along.descriptors.is_empty() => {
                    self.wait_for_room(bound, wait, room.slices())?;
                }
                Err(PutError::Full) => room.wait(self, bound, wait)?,
                other => return other,
            }
        }
    }

    /// [`put_with`](Self::put_with) without waiting for room; `patience` is for the moments in which another producer is
    /// at work.
    ///
    /// # Errors
    ///
    /// As [`put_now`](Self::put_now), and [`PutError::Descriptors`].
    pub fn put_now_with(
        &self,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        bound: Option<u64>,
        patience: &mut Wait<'_>,
    ) -> Result<Delivered, PutError> {
        self.put_now_along(parts, Along { descriptors, blocks: &[] }, bound, patience)
    }

    /// [`put_along`](Self::put_along) without waiting for room; `patience` is for the moments in which another producer is
    /// at work.
    ///
    /// # Errors
    ///
    /// As [`put_now_with`](Self::put_now_with).
    ///
    /// # Panics
    ///
    /// As [`put_along`](Self::put_along).
    pub fn put_now_along(
        &self,
        parts: &[&[u8]],
        along: Along<'_>,
        bound: Option<u64>,
        patience: &mut Wait<'_>,
    ) -> Result<Delivered, PutError> {
        if along.is_empty() {
            return self.put_now(&[parts], bound, patience);
        }
        self.wait_for_window(parts, patience);
        let held = Held::acquire(&self.map().header().producers.lock, patience)?;
        self.put_accompanied(held, parts, along, bound)
    }

    /// [`put_with`](Self::put_with) without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_put`](Self::try_put), and [`PutError::Descriptors`].
    pub fn try_put_with(
        &self,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        bound: Option<u64>,
    ) -> Result<Delivered, PutError> {
        self.try_put_along(parts, Along { descriptors, blocks: &[] }, bound)
    }

    /// [`put_along`](Self::put_along) without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_put_with`](Self::try_put_with).
    ///
    /// # Panics
    ///
    /// As [`put_along`](Self::put_along).
    pub fn try_put_along(&self, parts: &[&[u8]], along: Along<'_>, bound: Option<u64>) -> Result<Delivered, PutError> {
        if along.is_empty() {
            return self.try_put(parts, bound);
        }
        let held = Held::try_acquire(&self.map().header().producers.lock).ok_or(PutError::Busy)?;
        self.put_accompanied(held, parts, along, bound)
    }

    /// See PROTOCOL.md, "A message has descriptors", and `memory/blocks/BLOCKS.md`.
    fn put_accompanied(
        &self,
        held: Held<'_>,
        parts: &[&[u8]],
        along: Along<'_>,
        bound: Option<u64>,
    ) -> Result<Delivered, PutError> {
        let Along { descriptors, blocks } = along;
        let refused = |kind, what| Err(PutError::Descriptors(io::Error::new(kind, what)));
        let courier = self.its_courier().filter(|_| !descriptors.is_empty());
        if courier.is_none() && !descriptors.is_empty() {
            return refused(io::ErrorKind::Unsupported, "the queue was made for bytes alone");
        }
        if descriptors.len() > rights::MOST {
            return refused(io::ErrorKind::InvalidInput, "a message can have at most 253");
        }
        let ours = |block: &Filled| self.blocks().is_some_and(|blocks| block.belongs_to(blocks));
        assert!(blocks.len() <= MOST_BLOCKS && blocks.iter().all(ours), "blocks that can't go with this message");
        let header = self.map().header();
        let before = header.sleepers.getters.before();
        let (put_count, mut tail) = header.producers.tail.read();
        if self.allowed(put_count, bound) == 0 {
            return Err(PutError::Full);
        }
        let mut beginning = Vec::new();
        let (mut mark, mut ticket) = (0, 0);
        if courier.is_some() {
            ticket = header.seen.ticket.load(Relaxed) + 1;
            header.seen.ticket.store(ticket, Relaxed);
            beginning.extend_from_slice(&ticket.to_le_bytes());
            mark |= ACCOMPANIED;
        }
        if !blocks.is_empty() {
            beginning.extend_from_slice(&(blocks.len() as u64).to_le_bytes());
            for block in blocks {
                block.place(put_count + 1);
                point("ring: a block knows its message, which is not published");
                beginning.extend_from_slice(&block.reference().to_bytes());
            }
            mark |= LADEN;
        }
        let parts: Vec<&[u8]> = std::iter::once(beginning.as_slice()).chain(parts.iter().copied()).collect();
        self.write(&mut tail, &parts, mark)?;
        point("ring: a message in place, its descriptors not sent");
        if let Some(courier) = courier
            && !self.send(courier, ticket, descriptors)?
        {
            return Err(PutError::Full);
        }
        point("ring: descriptors sent, their message not published");
        header.producers.tail.publish(put_count + 1, tail);
        for block in blocks {
            block.set_sent();
        }
        point("ring: a message with descriptors published, nobody woken");
        drop(held);
        header.sleepers.getters.wake(&header.producers.tail.count, before, 1);
        Ok(Delivered { count: 1, doorbell: header.sleepers.doorbell.load(Relaxed) != 0 })
    }

    /// Hands descriptors to the courier. False if that is full. Only for the holder of the producer lock.
    fn send(&self, courier: &Courier, ticket: u64, descriptors: &[BorrowedFd<'_>]) -> Result<bool, PutError> {
        if courier.send(ticket, descriptors).map_err(PutError::Descriptors)? {
            return Ok(true);
        }
        // Of an empty ring's courier all is left behind by the dead, and nobody would ever make room.
        let consumers = Held::try_acquire(&self.map().header().consumers.lock);
        if consumers.is_none() || !self.is_empty() {
            return Ok(false);
        }
        courier.clear();
        courier.send(ticket, descriptors).map_err(PutError::Descriptors)
    }

    /// How many messages may be put.
    #[inline]
    fn allowed(&self, put_count: u64, bound: Option<u64>) -> u64 {
        let Some(bound) = bound else { return u64::MAX };
        let seen = &self.map().header().seen.get_count;
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

    /// Writes a message behind the tail, and moves that (only the caller's copy of it). `mark` goes into its prefix.
    #[inline]
    fn write(&self, tail: &mut [u64; 3], parts: &[&[u8]], mark: u64) -> Result<(), PutError> {
        let length = parts.iter().fold(0_u64, |sum, part| sum + part.len() as u64);
        let size = record(length).ok_or(PutError::Damaged)?;
        let seen = &self.map().header().seen;
        let fits = |tail: &[u64; 3]| {
            let used = tail[WINDOW_TAIL].wrapping_sub(seen.window_head.load(Acquire));
            tail[SPILL_TAIL] == seen.spill_head.load(Acquire) && used <= WINDOW && size <= WINDOW - used
        };
        if !fits(tail) {
            let (_, head) = self.map().header().consumers.head.read();
            if tail[WINDOW_TAIL].wrapping_sub(head[WINDOW_HEAD]) > WINDOW {
                return Err(PutError::Damaged);
            }
            seen.window_head.store(head[WINDOW_HEAD], Release);
            seen.spill_head.store(head[SPILL_HEAD], Release);
            if !fits(tail) {
                return self.write_to_spill(tail, parts, length | mark, size);
            }
        }
        let start = tail[WINDOW_TAIL];
        self.secure_window(start, size)?;
        self.map().write_length(start, length | mark);
        let mut position = start + PREFIX;
        for part in parts {
            point("ring: a part of a message about to be copied");
            self.map().write_window(position, part);
            position += part.len() as u64;
        }
        tail[WINDOW_TAIL] = start + size;
        Ok(())
    }

    /// Sees to it that memory is behind the part of the window that is going to be written.
    #[inline]
    fn secure_window(&self, start: u64, size: u64) -> Result<(), PutError> {
        let secured = &self.map().header().seen.secured;
        let present = secured.load(Relaxed);
        let end = (start % WINDOW + size).min(WINDOW);
        if end <= present {
            return Ok(());
        }
        let wanted = end.next_multiple_of(WINDOW_STEP);
        let from = present.min(WINDOW);
        self.map().segment().secure(WINDOW_AT as u64 + from, wanted - from).map_err(PutError::Memory)?;
        point("ring: pages of the window secured, not noted");
        secured.store(wanted, Relaxed);
        Ok(())
    }

    #[cold]
    fn write_to_spill(&self, tail: &mut [u64; 3], parts: &[&[u8]], prefix: u64, size: u64) -> Result<(), PutError> {
        let header = self.map().header();
        let used = tail[SPILL_TAIL].wrapping_sub(header.seen.spill_head.load(Acquire));
        let (_, published) = header.producers.tail.read();
        if used == 0 && published[SPILL_TAIL] == tail[SPILL_TAIL] {
            if published[SPILL_BASE] != tail[SPILL_TAIL] {
                spill::begin_anew(self.map());
            }
            tail[SPILL_BASE] = tail[SPILL_TAIL];
        }
        let room = spill::room(self.map());
        if used > room {
            return Err(PutError::Damaged);
        }
        if size > room - used {
            return Err(PutError::Memory(io::ErrorKind::StorageFull.into()));
        }
        Spill::new(self.map(), tail[SPILL_BASE])
            .write_record(tail[SPILL_TAIL], parts, prefix)
            .map_err(PutError::Memory)?;
        tail[SPILL_TAIL] += size;
        Ok(())
    }
}

/// How a producer waits that has found no room, be it in the ring or for its descriptors.
#[derive(Debug)]
pub(super) struct CourierRoom {
    slices: Slices,
    /// Whether the courier seemed to have room, and then had none.
    deceived: bool,
}

impl CourierRoom {
    pub(super) fn new() -> Self {
        Self { slices: Slices::new(), deceived: false }
    }

    fn slices(&mut self) -> &mut Slices {
        &mut self.slices
    }

    /// Waits until there is room, or there may be: for a slice at most.
    pub(super) fn wait(&mut self, ring: &Ring, bound: Option<u64>, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let deceived = std::mem::take(&mut self.deceived);
        let full = bound.is_some_and(|bound| ring.len() >= bound);
        match ring.its_courier() {
            Some(courier) if !full && !deceived => {
                courier.wait_for_room(wait)?;
                self.deceived = true;
                Ok(())
            }
            // The user has too many descriptors on their way, elsewhere as well: nobody tells when that is over.
            Some(_) if !full => {
                let (sleepers, count) = (&ring.map().header().sleepers, &ring.map().header().consumers.head.count);
                sleepers.putters.sleep(count, ring.get_count(), wait, self.slices.next())
            }
            _ => ring.wait_for_room(bound, wait, &mut self.slices),
        }
    }
}
