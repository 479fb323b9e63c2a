//! The blocks of a segment: which there are, finding a free one, giving them back.
#![allow(unsafe_code)]

use std::{
    io,
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64 as LocalU64},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Segment, mapped,
    word::{Entry, Mark},
};
use crate::{
    kills::point,
    loom::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    process::ProcessId,
    sys::available::{ensure_available, physical},
};

/// How many blocks there are at most.
pub const BLOCKS: usize = 512;
/// How long a block is at most. Only what was written takes memory.
pub const LONGEST: u64 = 1 << 32;
/// How many bytes the table takes.
pub const TABLE: usize = BLOCKS * size_of::<Entry>();
/// How much memory is kept behind free blocks, of each segment. Fresh memory is several times dearer than a copy.
const KEPT: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };
/// The dead are looked for at most so often by those who need fresh memory.
const SWEEP_EVERY: Duration = Duration::from_millis(50);

/// Where in a segment its blocks are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The table, [`TABLE`] bytes, mapped.
    pub table: usize,
    /// A word that says how many entries of the table were ever used; in memory that is there.
    pub used: usize,
    /// The word that counts the messages taken.
    pub taken: usize,
    /// Where in the file the first block begins, at a multiple of any page size. Not mapped.
    pub data: u64,
}

/// The table as one process has it.
#[derive(Debug)]
pub(super) struct Table {
    segment: Segment,
    entries: NonNull<[Entry]>,
    used: NonNull<AtomicU64>,
    taken: NonNull<AtomicU64>,
    data: u64,
    /// What tells it from other tables of this process.
    number: u64,
    /// How much all blocks together may take.
    limit: u64,
    /// When the dead were last looked for, in milliseconds since the beginning.
    swept: LocalU64,
    beginning: Instant,
    /// What of the longest wait for a warm block is tried, in 64ths, and how often one was needed.
    share: AtomicU32,
    waits: AtomicU32,
}

// SAFETY: the addresses are of shared memory that `segment` keeps mapped, and of atomics.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Drop for Table {
    fn drop(&mut self) {
        mapped::forget(self.number);
    }
}

/// What a look at all blocks found.
struct Survey {
    /// A free block with enough memory behind it, of those the one with the least.
    warm: Option<u32>,
    /// The free block with the most memory of those with less, and how much that is.
    best: Option<(u32, u64)>,
    /// How many belong to somebody.
    live: usize,
    /// How much memory is behind all.
    memory: u64,
}

impl Table {
    /// `None` if the segment has no room for blocks.
    pub(super) fn new(segment: Segment, layout: Layout) -> Option<Self> {
        static NUMBER: LocalU64 = LocalU64::new(0);
        let size = rustix::fs::fstat(&segment).ok()?.st_size as u64;
        let room = size.checked_sub(layout.data)? / LONGEST;
        let count = usize::try_from(room).unwrap_or(BLOCKS).min(BLOCKS);
        let entries = segment.address(layout.table, TABLE)?.cast::<Entry>();
        let word = |at| segment.address(at, size_of::<AtomicU64>()).map(NonNull::cast::<AtomicU64>);
        let aligned =
            layout.table.is_multiple_of(align_of::<Entry>()) && (layout.used | layout.taken).is_multiple_of(8);
        (count > 0 && aligned).then_some(())?;
        Some(Self {
            entries: NonNull::slice_from_raw_parts(entries, count),
            used: word(layout.used)?,
            taken: word(layout.taken)?,
            data: layout.data,
            number: NUMBER.fetch_add(1, Relaxed),
            limit: physical() / 2,
            swept: LocalU64::new(0),
            beginning: Instant::now(),
            share: AtomicU32::new(WHOLE),
            waits: AtomicU32::new(0),
            segment,
        })
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Where in the file a block begins.
    pub(super) fn offset(&self, slot: u32) -> u64 {
        self.data + u64::from(slot) * LONGEST
    }

    fn all(&self) -> &[Entry] {
        // SAFETY: mapped as long as `self`, aligned, and made of atomics only.
        unsafe { self.entries.as_ref() }
    }

    fn used(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { self.used.as_ref() }
    }

    /// How many messages were ever taken.
    pub(super) fn taken(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.taken.as_ref() }.load(Acquire)
    }

    /// The blocks that were ever used. Nothing else of the table is touched: it would take memory.
    fn entries(&self) -> &[Entry] {
        let used = usize::try_from(self.used().load(Acquire)).unwrap_or(BLOCKS);
        let all = self.all();
        &all[..used.min(all.len())]
    }

    pub(super) fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries().get(slot as usize)
    }

    /// Fills a free block with the parts; `None` if there is to be none: the bytes are sent as they are then.
    pub(super) fn fill(&self, parts: &[&[u8]], length: u64, patience: Duration) -> Option<(u32, Mark)> {
        if length == 0 || length > LONGEST {
            return None;
        }
        let (slot, mark) = self.find(length, patience)?;
        if self.write(slot, parts, length).is_err() {
            self.give_back_cold(slot, mark);
            return None;
        }
        Some((slot, mark))
    }

    fn write(&self, slot: u32, parts: &[&[u8]], length: u64) -> io::Result<()> {
        let entry = &self.all()[slot as usize];
        let warm = entry.warm.load(Relaxed);
        if length <= warm && mapped::write(self, slot, parts, length as usize) {
            point("block: filled, its message not put");
            return Ok(());
        }
        // Written by the file, as lack of memory is an error then and not a signal.
        let page = rustix::param::page_size() as u64;
        entry.warm.store(warm.max(length.next_multiple_of(page)), Release);
        ensure_available(length.saturating_sub(warm))?;
        point("block: about to get memory, which is noted already");
        let mut at = self.offset(slot);
        for part in parts {
            self.segment.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn survey(&self, length: u64) -> Survey {
        // A block with much more memory than is needed would keep that from others.
        let most = (length * 4).max(1 << 20);
        let mut survey = Survey { warm: None, best: None, live: 0, memory: 0 };
        let mut least = u64::MAX;
        for (slot, entry) in self.entries().iter().enumerate() {
            let warm = entry.warm.load(Relaxed).min(LONGEST);
            survey.memory += warm;
            if !entry.is_free() {
                survey.live += 1;
            } else if warm >= length && warm <= most {
                if warm < least {
                    least = warm;
                    survey.warm = Some(slot as u32);
                }
            } else if warm < length && survey.best.is_none_or(|(_, best)| warm > best) {
                survey.best = Some((slot as u32, warm));
            }
        }
        survey
    }

    /// A block for so many bytes, now the caller's.
    fn find(&self, length: u64, patience: Duration) -> Option<(u32, Mark)> {
        let me = ProcessId::current();
        let mut waited = false;
        // Another process may be faster each time; then it goes without.
        for _ in 0..BLOCKS {
            let survey = self.survey(length);
            if let Some(slot) = survey.warm {
                if let Some(mark) = self.all()[slot as usize].acquire(me) {
                    return Some((slot, mark));
                }
                continue;
            }
            if self.sweep_if_due() {
                continue;
            }
            if !waited && survey.live >= crowd() {
                waited = true;
                self.wait_for_warm(length, patience);
                continue;
            }
            let warm = survey.best.map_or(0, |(_, warm)| warm);
            if survey.memory + (length - warm) > self.limit {
                return None;
            }
            let slot = match survey.best {
                Some((slot, _)) => slot,
                None => self.new_slot()?,
            };
            if let Some(mark) = self.all()[slot as usize].acquire(me) {
                return Some((slot, mark));
            }
        }
        None
    }

    /// An entry that was not used before.
    fn new_slot(&self) -> Option<u32> {
        let used = self.used().load(Acquire);
        let slot = usize::try_from(used).ok().filter(|&slot| slot < self.all().len())?;
        let (table, page) = (self.all().as_ptr().addr(), rustix::param::page_size());
        let at = &raw const self.all()[slot];
        if slot == 0 || at.addr().is_multiple_of(page) {
            let start = self.segment.address(0, 0)?.as_ptr().addr();
            let (from, to) = (at.addr() - start, (at.addr() + 1).next_multiple_of(page) - start);
            debug_assert!(table >= start);
            self.segment.secure(from as u64, (to - from) as u64).ok()?;
        }
        // Others may have done the same.
        let _ = self.used().compare_exchange(used, used + 1, AcqRel, Relaxed);
        Some(slot as u32)
    }

    /// Gives a block back, with its memory if enough is kept already, or if the process `has_enough` of other segments. Tells how much
    /// memory is kept behind free blocks then.
    pub(super) fn give_back(&self, slot: u32, mark: Mark, has_enough: bool) -> u64 {
        let Some(entry) = self.entry(slot) else { return 0 };
        let kept = |entry: &Entry| if entry.is_free() { entry.warm.load(Relaxed).min(LONGEST) } else { 0 };
        let kept = self.entries().iter().map(kept).sum::<u64>();
        let warm = entry.warm.load(Relaxed).min(LONGEST);
        if warm > 0 && (has_enough || kept + warm > KEPT) {
            self.give_back_cold(slot, mark);
            return kept;
        }
        if entry.free(mark) { kept + warm } else { kept }
    }

    /// Gives a block back that is not to keep memory.
    fn give_back_cold(&self, slot: u32, mark: Mark) {
        let Some(entry) = self.entry(slot) else { return };
        // It may belong to another taker of its message since: then its memory is not this process's to discard.
        let Some(mark) = entry.take_back(mark, ProcessId::current()) else { return };
        let page = rustix::param::page_size() as u64;
        let warm = entry.warm.load(Relaxed).min(LONGEST).next_multiple_of(page);
        if warm == 0 || self.segment.discard(self.offset(slot), warm).is_ok() {
            point("block: its memory given back, not noted");
            entry.warm.store(0, Release);
        }
        entry.free(mark);
    }

    /// Frees what dead processes have left; tells whether there was any.
    fn sweep(&self, dead: impl Fn(ProcessId) -> bool) -> bool {
        let me = ProcessId::current();
        let mut freed = false;
        for (slot, entry) in self.entries().iter().enumerate() {
            if let Some(mark) = entry.seize(me, || self.taken(), &dead) {
                point("block: of a dead process, about to be given back");
                // What memory is behind it is not known for sure.
                self.give_back_cold(slot as u32, mark);
                freed = true;
            }
        }
        freed
    }

    /// Frees what a process has left that is known to be dead.
    pub(super) fn release_dead(&self, process: ProcessId) {
        if !self.entries().is_empty() {
            self.sweep(|owner| owner == process);
        }
    }

    /// How many belong to somebody.
    #[cfg(all(test, not(loom)))]
    pub(super) fn live(&self) -> usize {
        self.entries().iter().filter(|entry| !entry.is_free()).count()
    }

    /// Frees what dead processes have left, whenever that was last done.
    #[cfg(all(test, not(loom)))]
    pub(super) fn sweep_now(&self) {
        self.sweep(|owner| !owner.is_alive());
    }

    fn sweep_if_due(&self) -> bool {
        let now = self.beginning.elapsed().as_millis() as u64;
        let last = self.swept.load(Relaxed);
        if now.saturating_sub(last) < SWEEP_EVERY.as_millis() as u64 && last != 0 {
            return false;
        }
        self.swept.store(now.max(1), Relaxed);
        // Each process is asked for once.
        let mut dead: Vec<ProcessId> = self.entries().iter().filter_map(Entry::owner).collect();
        dead.sort_unstable_by_key(|owner| owner.to_bits());
        dead.dedup();
        dead.retain(|owner| !owner.is_alive());
        !dead.is_empty() && self.sweep(|owner| dead.contains(&owner))
    }

    /// Waits a little for a warm block: at most as long as it would take to get fresh memory, to map it, and to give it back.
    fn wait_for_warm(&self, length: u64, patience: Duration) {
        let share = self.share.load(Relaxed);
        let probe = self.waits.fetch_add(1, Relaxed).is_multiple_of(PROBE_EVERY);
        let whole = Duration::from_nanos(length.saturating_mul(2)).min(LONGEST_WAIT);
        let limit = (whole * if probe { WHOLE } else { share } / WHOLE).min(patience);
        if limit.is_zero() {
            return;
        }
        let (began, taken) = (Instant::now(), self.taken());
        let mut looks = 0;
        let useful = loop {
            if self.survey(length).warm.is_some() {
                break true;
            }
            if began.elapsed() >= limit {
                break self.taken() != taken;
            }
            looks += 1;
            if looks < 20 {
                thread::yield_now();
            } else {
                thread::sleep(Duration::from_micros(50));
            }
        };
        self.share.store(if useful { WHOLE } else { share / 2 }, Relaxed);
    }
}

/// All of a wait, in 64ths.
const WHOLE: u32 = 64;
/// Once in so many times a wait that was of no use is tried again in full.
const PROBE_EVERY: u32 = 64;
/// Nobody waits longer, however large the block is.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// From so many blocks in use on it is likely that one comes back soon.
fn crowd() -> usize {
    static CROWD: OnceLock<usize> = OnceLock::new();
    *CROWD.get_or_init(|| thread::available_parallelism().map_or(1, usize::from) + 2)
}
