//! The spill: the part of a ring's file behind the window, reached only by reads and writes of the file.
//!
//! Memory that was read is given back in large steps, some is kept warm at the beginning, and when all was read the next
//! message goes to the beginning again (PROTOCOL.md, "The spill runs empty").

use std::{io, mem::MaybeUninit, os::fd::AsFd};

use super::layout::{MARKS, Map, PREFIX, SPILL, SPILL_AT, SPILL_BASE, SPILL_HEAD, SPILL_TAIL};
use crate::{
    kills::point,
    loom::Ordering::{Acquire, Relaxed, Release},
};

/// How much that was read is left before memory is given back, and how much is kept for good.
const STEP: u64 = 16 << 20;
/// The room is a multiple of this, and with it of any page size.
const ROUND: u64 = 1 << 16;
/// Messages up to here are put together before they are written, so that one system call does.
const TOGETHER: usize = 1 << 16;

/// The spill as one process sees it, with the position that was its beginning when it was begun anew.
pub(super) struct Spill<'a> {
    map: &'a Map,
    base: u64,
    room: u64,
}

impl<'a> Spill<'a> {
    pub(super) fn new(map: &'a Map, base: u64) -> Self {
        Self { map, base, room: room(map) }
    }

    /// Calls `access` for each stretch of the file that `length` bytes at `position` are in, at most two.
    fn stretches(
        &self,
        position: u64,
        length: u64,
        mut access: impl FnMut(u64, usize, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let start = position.wrapping_sub(self.base) % self.room;
        let first = length.min(self.room - start);
        access(SPILL_AT + start, 0, first as usize)?;
        if first < length { access(SPILL_AT, first as usize, length as usize) } else { Ok(()) }
    }

    fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.stretches(position, bytes.len() as u64, |at, from, to| self.map.segment().write_at(&bytes[from..to], at))
    }

    /// Writes a record. The caller has checked that there is room.
    pub(super) fn write_record(&self, position: u64, parts: &[&[u8]], prefix: u64) -> io::Result<()> {
        let length = prefix & !MARKS;
        let prefix = prefix.to_le_bytes();
        if length as usize <= TOGETHER {
            let mut record = Vec::with_capacity(prefix.len() + length as usize);
            record.extend_from_slice(&prefix);
            for part in parts {
                record.extend_from_slice(part);
            }
            return self.write(position, &record);
        }
        self.write(position, &prefix)?;
        let mut position = position + PREFIX;
        for part in parts {
            point("spill: a part of a message about to be written");
            self.write(position, part)?;
            position += part.len() as u64;
        }
        Ok(())
    }

    /// Reads bytes that were written.
    pub(super) fn read(&self, position: u64, into: &mut [MaybeUninit<u8>]) -> io::Result<()> {
        self.stretches(position, into.len() as u64, |at, from, to| read_at(self.map, &mut into[from..to], at))
    }

    /// Gives back the memory between two positions, whole pages of it.
    fn discard(&self, from: u64, to: u64) -> io::Result<()> {
        self.stretches(from, to - from, |at, from, to| {
            let start = at.next_multiple_of(page_size());
            let end = (at + (to - from) as u64) / page_size() * page_size();
            if start < end { self.map.segment().discard(start, end - start) } else { Ok(()) }
        })
    }

    /// Gives back what lies before `head`, if it is much. Only for the holder of the consumer lock while the published
    /// head is `head` and the spill not empty, so that no producer can begin anew meanwhile.
    pub(super) fn discard_read(&self, head: u64) {
        let discarded = &self.map.header().consumers.discarded;
        let from = discarded.load(Acquire);
        if head.wrapping_sub(from) >= STEP && head.wrapping_sub(from) <= self.room {
            // The page at the head holds what was not read yet.
            let upto = head - head.wrapping_sub(self.base) % page_size();
            if self.discard(from, upto).is_ok() {
                point("spill: pages given back, not noted");
                discarded.store(upto, Release);
            }
        }
    }
}

/// The room for spilled messages. Another process may have written anything there: never more than there can be.
pub(super) fn room(map: &Map) -> u64 {
    map.header().spill.load(Relaxed).clamp(ROUND, SPILL) / ROUND * ROUND
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Has the next spilled message go to the beginning. Only for the holder of the producer lock while the spill is empty.
pub(super) fn begin_anew(map: &Map) {
    let header = map.header();
    let (_, tail) = header.producers.tail.read();
    give_back(map, &tail);
    header.consumers.discarded.store(tail[SPILL_TAIL], Release);
    point("spill: empty and given back, its beginning not moved");
    // Nobody looks at the base of an empty spill, so it may be changed in place.
    header.producers.tail.amend(SPILL_BASE, tail[SPILL_TAIL]);
}

fn give_back(map: &Map, tail: &[u64; 3]) {
    let spill = Spill::new(map, tail[SPILL_BASE]);
    let discarded = map.header().consumers.discarded.load(Acquire);
    let kept = if discarded == tail[SPILL_BASE] { STEP } else { 0 };
    let left = tail[SPILL_TAIL].wrapping_sub(discarded);
    if left > kept && left <= spill.room {
        // With the page the tail is in: nothing lies behind it. If it fails the memory stays until it is written over.
        let end = tail[SPILL_TAIL].next_multiple_of(8) + page_size();
        let _ = spill.discard(discarded.wrapping_add(kept), end);
    }
}

/// Whether the spill is empty and left more memory behind than what is kept at its beginning.
pub(super) fn left_much(map: &Map) -> bool {
    let header = map.header();
    let discarded = header.consumers.discarded.load(Acquire);
    let (_, head) = header.consumers.head.read();
    let (_, tail) = header.producers.tail.read();
    let left = tail[SPILL_TAIL].wrapping_sub(discarded);
    let kept = if discarded == tail[SPILL_BASE] { STEP } else { 0 };
    head[SPILL_HEAD] == tail[SPILL_TAIL] && left > kept
}

fn read_at(map: &Map, mut into: &mut [MaybeUninit<u8>], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        let count = match rustix::io::pread(map.segment().as_fd(), &mut *into, at) {
            Ok((read, _)) => read.len(),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into = &mut into[count..];
        at += count as u64;
    }
    Ok(())
}
