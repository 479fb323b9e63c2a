//! Taking messages.

use std::io;

use super::{
    layout::{MARKS, PREFIX, SPILL_BASE, SPILL_HEAD, SPILL_TAIL, WINDOW, WINDOW_HEAD, WINDOW_TAIL, record},
    message::{Ahead, Message, Place},
    ring::{Delivered, Held, Ring},
    spill::{self, Spill},
};
use crate::{
    kills::point,
    loom::Ordering::{Acquire, Relaxed, Release},
    sync::{Slices, Wait, WaitError, spin},
};

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

impl Ring {
    /// Takes the oldest message, waiting for one. `read` gets to see it while it is still in the ring; only when `read`
    /// has returned is it taken out, so that a process killed meanwhile leaves it to others.
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

    /// Takes up to `most` messages, as many as are there, waiting for the first. `read` sees one after another; they
    /// are taken out together after the last. If `read` refuses one, that one and those behind it stay.
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
        let header = self.map().header();
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
        let header = self.map().header();
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
        let held = Held::acquire(&self.map().header().consumers.lock, patience)?;
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
        let held = Held::try_acquire(&self.map().header().consumers.lock).ok_or(TakeError::Busy)?;
        self.take_holding(held, most, read)
    }

    fn take_holding(
        &self,
        held: Held<'_>,
        most: u64,
        mut read: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> Result<Delivered, TakeError> {
        let header = self.map().header();
        let before = header.sleepers.putters.before();
        let (get_count, mut head) = header.consumers.head.read();
        let mut last_but_one = head;
        let mut taken = 0;
        let mut spilled = false;
        let mut ticket = 0;
        let mut unwanted = Vec::new();
        while taken < most.max(1) {
            let (message, next) = match self.message_at(get_count + taken, &head, taken == 0) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                // Those before are taken; the next call meets the error.
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            };
            if ticket != 0 && message.has_descriptors() {
                // Its packet is behind that of the other one, where nobody can look.
                break;
            }
            point("ring: a message about to be read");
            match read(&message) {
                Ok(()) => {}
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error.into()),
            }
            spilled |= message.is_spilled();
            ticket |= message.ticket();
            // Given back when the message is out of the ring, which it is not yet.
            unwanted.extend(message.into_blocks());
            last_but_one = head;
            head = next;
            taken += 1;
        }
        if taken == 0 {
            return Err(TakeError::Empty);
        }
        point("ring: messages read, not taken");
        if taken % 2 == 0 {
            header.consumers.head.publish(get_count + taken - 1, last_but_one);
        }
        header.consumers.head.publish(get_count + taken, head);
        point("ring: messages taken, nobody told of the room");
        if ticket != 0 {
            self.take_descriptors_out(ticket);
        }
        drop(held);
        drop(unwanted);
        header.sleepers.putters.wake(&header.consumers.head.count, before, taken);
        if spilled && spill::left_much(self.map()) {
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
        let header = self.map().header();
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
        let length = self.map().read_length(head[WINDOW_HEAD]);
        let place = Place::Window { position: head[WINDOW_HEAD] + PREFIX };
        let Some(size) = record(length).filter(|&size| size <= left) else {
            // The mark makes the length an impossible one, so that only who has it pays for it.
            let (message, size) = self.accompanied_at(sequence, length, left, place)?;
            return Ok(Some((message, [head[WINDOW_HEAD] + size, head[SPILL_HEAD]])));
        };
        let next = [head[WINDOW_HEAD] + size, head[SPILL_HEAD]];
        Ok(Some((Message::new(self, sequence, length, place), next)))
    }

    /// A message with descriptors, and the size of its record, if that is what the prefix says.
    #[cold]
    fn accompanied_at(
        &self,
        sequence: u64,
        prefix: u64,
        left: u64,
        place: Place,
    ) -> Result<(Message<'_>, u64), TakeError> {
        let length = prefix & !MARKS;
        let size = record(length).filter(|&size| size <= left && prefix != length).ok_or(TakeError::Damaged)?;
        let message = Message::new(self, sequence, length, place).accompanied(prefix)?;
        message.map(|message| (message, size)).ok_or(TakeError::Damaged)
    }

    /// After the head was moved past the message (PROTOCOL.md, "A message has descriptors").
    #[cold]
    fn take_descriptors_out(&self, ticket: u64) {
        if let Some(courier) = self.its_courier() {
            courier.take_out(ticket);
        }
        point("ring: descriptors taken out after their message");
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
        if left < PREFIX || left > spill::room(self.map()) {
            return Err(TakeError::Damaged);
        }
        let spill = Spill::new(self.map(), tail[SPILL_BASE]);
        if first {
            spill.discard_read(head[SPILL_HEAD]);
        }
        let ahead = Ahead::read(self.ahead(), &spill, head[SPILL_HEAD], left)?;
        let prefix = ahead.prefix();
        let (position, base) = (head[SPILL_HEAD] + PREFIX, tail[SPILL_BASE]);
        let place = Place::Spill { position, base, ahead, skip: PREFIX as usize };
        let (message, size) = match record(prefix).filter(|&size| size <= left) {
            Some(size) => (Message::new(self, sequence, prefix, place), size),
            None => self.accompanied_at(sequence, prefix, left, place)?,
        };
        Ok((message, [head[WINDOW_HEAD], head[SPILL_HEAD] + size]))
    }
}
