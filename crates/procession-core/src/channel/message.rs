//! A message that is about to be taken.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use super::{
    layout::{ACCOMPANIED, LADEN, MARKS, MOST_BLOCKS, TICKET, as_uninit},
    ring::Ring,
    spill::Spill,
};
use crate::memory::{BlockReference, Claimed};

/// How much is read along with the length of a spilled message.
const AHEAD: usize = 1024;
/// How much is read at once while the messages are small.
const READ: usize = 1 << 16;
/// Up to here a message is small.
const SMALL: u64 = 1 << 12;

/// A message that is still in the ring, as its reader sees it.
#[derive(Debug)]
pub struct Message<'a> {
    ring: &'a Ring,
    sequence: u64,
    length: u64,
    /// Of its descriptors; zero if it has none.
    ticket: u64,
    /// What of its blocks the reader has not taken.
    blocks: Mutex<Vec<Claimed>>,
    laden: bool,
    place: Place,
}

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum Place {
    Window {
        position: u64,
    },
    /// What was read ahead has something else before them: so many bytes.
    Spill {
        position: u64,
        base: u64,
        ahead: Box<Ahead>,
        skip: usize,
    },
}

/// What was read from the spill along with the length: all of a small message.
#[derive(Debug)]
pub(super) struct Ahead {
    bytes: [u8; AHEAD],
    length: usize,
}

/// What this process read of the spill beyond the message it was to take. Bytes between head and tail do not change, and
/// a position never comes again, so it is good for as long as the head lies in it.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    start: u64,
    bytes: Vec<u8>,
    /// Whether the last message was small, so that it pays.
    small: bool,
}

impl Ahead {
    /// Reads the record at `position`, of which, with those behind it, `left` bytes were published.
    pub(super) fn read(cache: &Mutex<ReadAhead>, spill: &Spill<'_>, position: u64, left: u64) -> io::Result<Box<Self>> {
        let mut ahead = Box::new(Self { bytes: [0; AHEAD], length: left.min(AHEAD as u64) as usize });
        let into = &mut ahead.bytes[..ahead.length];
        // It is only ever locked by a holder of the consumer lock, but a forked child may have been given it locked.
        let Ok(mut cache) = cache.try_lock() else {
            spill.read(position, as_uninit(into))?;
            return Ok(ahead);
        };
        if cache.at(position, into.len()).is_none() && cache.small {
            cache.fill(spill, position, left)?;
        }
        match cache.at(position, into.len()) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => spill.read(position, as_uninit(into))?,
        }
        cache.small = ahead.prefix() & !MARKS <= SMALL;
        if !cache.small {
            cache.bytes = Vec::new();
        }
        Ok(ahead)
    }

    /// The length of the message, as it stands there.
    pub(super) fn prefix(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, |prefix| u64::from_le_bytes(*prefix))
    }
}

impl ReadAhead {
    fn at(&self, position: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(position.checked_sub(self.start)?).ok()?;
        self.bytes.get(start..start.checked_add(length)?)
    }

    fn fill(&mut self, spill: &Spill<'_>, position: u64, left: u64) -> io::Result<()> {
        // Were the reading to fail, what is there now would be taken for it.
        self.bytes.clear();
        self.start = position;
        let length = left.min(READ as u64) as usize;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(length, 0);
        spill.read(position, as_uninit(&mut bytes))?;
        self.bytes = bytes;
        Ok(())
    }
}

impl<'a> Message<'a> {
    #[inline]
    pub(super) fn new(ring: &'a Ring, sequence: u64, length: u64, place: Place) -> Self {
        Self { ring, sequence, length, ticket: 0, blocks: Mutex::default(), laden: false, place }
    }

    /// A message whose bytes begin with the ticket of its descriptors, and with what blocks it has, as the marks in its
    /// prefix say; `None` if they don't. The blocks are claimed.
    pub(super) fn accompanied(mut self, prefix: u64) -> io::Result<Option<Self>> {
        if prefix & ACCOMPANIED != 0 {
            let Some(ticket) = self.first_word()? else { return Ok(None) };
            // No producer gives out the number zero.
            if ticket == 0 {
                return Ok(None);
            }
            self.ticket = ticket;
        }
        if prefix & LADEN != 0 {
            let Some(count) = self.first_word()? else { return Ok(None) };
            let Some(claimed) = self.claim_blocks(count)? else { return Ok(None) };
            self.blocks = Mutex::new(claimed);
            self.laden = true;
        }
        Ok(Some(self))
    }

    fn claim_blocks(&mut self, count: u64) -> io::Result<Option<Vec<Claimed>>> {
        let mut claimed = Vec::new();
        for _ in 0..count {
            let mut reference = [0; BlockReference::LENGTH];
            if claimed.len() == MOST_BLOCKS || !self.first_bytes(&mut reference)? {
                return Ok(None);
            }
            let block = BlockReference::from_bytes(&reference)
                .and_then(|reference| self.ring.blocks()?.claim(reference, self.sequence + 1));
            match block {
                Some(block) => claimed.push(block),
                None => return Ok(None),
            }
        }
        Ok(Some(claimed))
    }

    fn first_word(&mut self) -> io::Result<Option<u64>> {
        const { assert!(TICKET == size_of::<u64>()) };
        let mut word = [0; TICKET];
        Ok(self.first_bytes(&mut word)?.then_some(u64::from_le_bytes(word)))
    }

    /// Takes bytes off the beginning. False if it has not so many.
    fn first_bytes(&mut self, into: &mut [u8]) -> io::Result<bool> {
        let length = into.len();
        if self.length < length as u64 {
            return Ok(false);
        }
        self.copy_from(0, as_uninit(into))?;
        self.length -= length as u64;
        match &mut self.place {
            Place::Window { position } => *position += length as u64,
            Place::Spill { position, skip, .. } => {
                *position += length as u64;
                *skip += length;
            }
        }
        Ok(true)
    }

    /// The blocks that go with it. They are the reader's if the message is taken, and else the next reader's; those that
    /// are not taken from here are given back with the message.
    pub fn take_blocks(&self) -> Vec<Claimed> {
        std::mem::take(&mut self.blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether blocks came with it.
    #[inline]
    pub fn has_blocks(&self) -> bool {
        self.laden
    }

    /// Those that were not taken.
    #[inline]
    pub(super) fn into_blocks(self) -> Vec<Claimed> {
        self.blocks.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_spilled(&self) -> bool {
        matches!(self.place, Place::Spill { .. })
    }

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
            Place::Window { position } => self.ring.map().read_window(position + offset.min(self.length), into),
            Place::Spill { position, base, ahead, skip } => {
                let known = &ahead.bytes[(*skip).min(ahead.length)..ahead.length];
                let known = &known[known.len().min(offset as usize)..];
                let known = &known[..known.len().min(length)];
                let (first, rest) = into.split_at_mut(known.len());
                for (byte, known) in first.iter_mut().zip(known) {
                    byte.write(*known);
                }
                if !rest.is_empty() {
                    Spill::new(self.ring.map(), *base).read(position + offset + known.len() as u64, rest)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Whether it has descriptors with it.
    #[inline]
    pub fn has_descriptors(&self) -> bool {
        self.ticket != 0
    }

    /// Copies of the descriptors that are with it, closed on exec. The message still has them until it is taken out.
    ///
    /// # Errors
    ///
    /// `EMFILE` if this process has no room for them; [`io::ErrorKind::Unsupported`] if it has the ring without its
    /// courier; [`io::ErrorKind::InvalidData`] if another process took them.
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        if !self.has_descriptors() {
            return Ok(Vec::new());
        }
        let without = || io::Error::new(io::ErrorKind::Unsupported, "the queue is attached without its courier");
        self.ring.its_courier().ok_or_else(without)?.copy(self.ticket)
    }

    /// [`copy_from`](Self::copy_from) to a place that holds something already.
    ///
    /// # Errors
    ///
    /// As [`copy_from`](Self::copy_from).
    pub fn copy_over(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.copy_from(offset, as_uninit(into))
    }

    /// The bytes.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::OutOfMemory`], or as [`copy_from`](Self::copy_from).
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.replace(&mut bytes)?;
        Ok(bytes)
    }

    /// The bytes, in place of what `bytes` holds: for those who have room already.
    ///
    /// # Errors
    ///
    /// As [`to_vec`](Self::to_vec); `bytes` is empty then.
    pub fn replace(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        let length = usize::try_from(self.length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.try_reserve_exact(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.copy_from(0, &mut bytes.spare_capacity_mut()[..length])?;
        // SAFETY: reserved, and initialized by `copy_from`, which was given as much as the message has.
        unsafe { bytes.set_len(length) };
        Ok(())
    }
}
