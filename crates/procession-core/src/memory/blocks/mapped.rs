//! What this process has mapped of blocks, and what becomes of that when it forks.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    sync::{Arc, Once},
};

use rustix::mm::{MapFlags, ProtFlags};

use super::{Claim, Claimed, fork_mutex::ForkMutex, table::Table, word::Mark};
use crate::{kills::point, sys::available::physical};

/// `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE`, of Linux 5.14; on older ones each page comes when it is touched.
const POPULATE_READ: libc::c_int = 22;
const POPULATE_WRITE: libc::c_int = 23;

/// How much memory one process leaves behind the blocks it lets go, of all segments together: so many idle queues do not add up.
fn most_left() -> u64 {
    if cfg!(test) { 32 << 20 } else { physical() / 16 }
}

/// A stretch of a block's file, mapped from the block's beginning on.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: an address and a length; who may touch the memory is the affair of who has the block.
unsafe impl Send for Mapping {}

/// What a block that is held is in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    /// The block.
    Block,
    /// A copy of its own, since a fork: the block was given back then.
    Copy,
    /// The block, and a forked child has it too, as there was no way to copy it. It is given back when this process ends.
    Both,
}

#[derive(Debug)]
struct Holding {
    table: Arc<Table>,
    slot: u32,
    mark: Mark,
    mapping: Mapping,
    /// How much of the mapping is the block's contents.
    length: usize,
    backing: Backing,
}

#[derive(Debug)]
struct Mapped {
    /// What [`HeldBlock`]s stand for, by their numbers.
    held: Vec<Option<Holding>>,
    unused: Vec<usize>,
    /// Mappings of blocks that this process does not hold, kept for the next time, by table and slot.
    kept: BTreeMap<(u64, u32), Mapping>,
    /// How much memory was behind the free blocks of each table when this process last gave one back.
    left: BTreeMap<u64, u64>,
}

/// A forked child has the parent's mappings, and the blocks it held as copies.
static MAPPED: ForkMutex<Mapped> =
    ForkMutex::new(Mapped { held: Vec::new(), unused: Vec::new(), kept: BTreeMap::new(), left: BTreeMap::new() });

impl Mapping {
    fn new(table: &Table, slot: u32, length: usize) -> io::Result<Self> {
        let length = length.max(1 << 16).next_power_of_two();
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                table.segment().as_fd(),
                table.offset(slot),
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, length })
    }

    /// Has all pages come at once, which is cheaper than one after another.
    fn populate(&self, length: usize, how: libc::c_int) -> bool {
        // SAFETY: the range lies in the mapping; its contents do not change.
        unsafe { libc::madvise(self.base.as_ptr().cast(), length.min(self.length), how) == 0 }
    }

    /// Makes the first `length` bytes memory of this process alone, with the same contents at the same address. What other
    /// threads write meanwhile is not lost: a page is replaced by its copy in one step, and so is the mapping.
    fn make_private(&self, table: &Table, slot: u32, length: usize) -> bool {
        let length = length.next_multiple_of(rustix::param::page_size()).min(self.length);
        // All of it: a part would be one mapping more, of which a process can't have any number.
        // SAFETY: it takes the place of this mapping, with the same contents.
        let mapped = unsafe {
            rustix::mm::mmap(
                self.base.as_ptr().cast(),
                self.length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                table.segment().as_fd(),
                table.offset(slot),
            )
        };
        if mapped.is_err() {
            return false;
        }
        if !self.populate(length, POPULATE_WRITE) {
            for at in (0..length).step_by(rustix::param::page_size()) {
                // SAFETY: it lies in the mapping.
                let byte = unsafe { self.base.add(at) };
                // SAFETY: mapped, and a byte is always aligned; other threads may write there meanwhile.
                let byte: &AtomicU8 = unsafe { AtomicU8::from_ptr(byte.as_ptr()) };
                // Written, though with what is there: that makes the page a copy.
                byte.fetch_or(0, Relaxed);
            }
        }
        true
    }

    fn undo(self) {
        // SAFETY: base and length are those of a mapping nobody uses any more.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

impl Mapped {
    /// The mapping of a block that belongs to the caller, of so many bytes at least; and whether it is new.
    fn mapping(&mut self, table: &Table, slot: u32, length: usize) -> io::Result<(Mapping, bool)> {
        match self.kept.remove(&(table.number(), slot)) {
            Some(mapping) if mapping.length >= length => return Ok((mapping, false)),
            Some(mapping) => mapping.undo(),
            None => {}
        }
        Ok((Mapping::new(table, slot, length)?, true))
    }

    fn keep(&mut self, table: &Table, slot: u32, mapping: Mapping) {
        if let Some(former) = self.kept.insert((table.number(), slot), mapping) {
            former.undo();
        }
    }

    fn forget(&mut self, table: u64) -> Vec<Mapping> {
        let mut rest = self.kept.split_off(&(table, 0));
        let mut others = rest.split_off(&(table + 1, 0));
        self.kept.append(&mut others);
        self.left.remove(&table);
        rest.into_values().collect()
    }

    fn hold(&mut self, holding: Holding) -> usize {
        let number = self.unused.pop().unwrap_or(self.held.len());
        if number == self.held.len() {
            self.held.push(None);
        }
        self.held[number] = Some(holding);
        number
    }
}

/// Copies to the beginning of a block that belongs to the caller and has memory behind it. False if it can't be mapped.
pub(super) fn write(table: &Table, slot: u32, parts: &[&[u8]], length: usize) -> bool {
    watch_forks();
    let Ok((mapping, new)) = MAPPED.lock().mapping(table, slot, length) else { return false };
    if new {
        mapping.populate(length, POPULATE_WRITE);
    }
    let mut at = 0;
    for part in parts {
        let room = length.saturating_sub(at).min(part.len());
        // SAFETY: it lies in the mapping, which is at least `length` long.
        let place = unsafe { mapping.base.add(at) };
        // SAFETY: nobody else looks at the block before it is sent; the part is no longer than what is left.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(*part).cast(), room) };
        at += room;
    }
    MAPPED.lock().keep(table, slot, mapping);
    true
}

/// Undoes what is kept of a table that is no longer used.
pub(super) fn forget(table: u64) {
    let forgotten = MAPPED.lock().forget(table);
    forgotten.into_iter().for_each(Mapping::undo);
}

/// A block that came with a message, as memory of the one who took that.
///
/// Nobody else has it. When it is dropped the block goes back to where it came from. When the process forks, the memory
/// becomes its own, and the child has a copy: what one writes then the other does not see.
#[derive(Debug)]
pub struct HeldBlock {
    number: usize,
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: it is like a box of bytes: who has it has the memory.
unsafe impl Send for HeldBlock {}
// SAFETY: as above; through a shared reference only its address can be had.
unsafe impl Sync for HeldBlock {}

impl HeldBlock {
    pub(super) fn new(mut claimed: Claimed) -> io::Result<Self> {
        watch_forks();
        let length = claimed.len();
        let claim = claimed.claim()?;
        let mapped = MAPPED.lock().mapping(&claim.table, claim.reference.slot, length);
        let Claim { table, reference, mark, .. } = claim;
        let (mapping, new) = mapped.inspect_err(|_| {
            table.give_back(reference.slot, mark, false);
        })?;
        if new {
            mapping.populate(length, POPULATE_READ);
        }
        let base = mapping.base;
        let holding = Holding { table, slot: reference.slot, mark, mapping, length, backing: Backing::Block };
        Ok(Self { number: MAPPED.lock().hold(holding), base, length })
    }

    /// Where its bytes are. They are the owner's to read and write.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl std::ops::Deref for HeldBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block belongs to this object, which is borrowed; another process that keeps to the protocol does not touch it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) }
    }
}

impl std::ops::DerefMut for HeldBlock {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and it is borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length) }
    }
}

impl Drop for HeldBlock {
    fn drop(&mut self) {
        let mut mapped = MAPPED.lock();
        let Some(holding) = mapped.held[self.number].take() else { return };
        let Holding { table, slot, mark, mapping, length, backing } = holding;
        mapped.unused.push(self.number);
        match backing {
            Backing::Block => {
                let others = mapped.left.iter().filter(|(other, _)| **other != table.number());
                let has_enough = others.map(|(_, left)| *left).sum::<u64>() + length as u64 > most_left();
                mapped.keep(&table, slot, mapping);
                drop(mapped);
                point("block: let go, not free yet");
                let left = table.give_back(slot, mark, has_enough);
                MAPPED.lock().left.insert(table.number(), left);
            }
            Backing::Copy | Backing::Both => {
                drop(mapped);
                mapping.undo();
            }
        }
    }
}

/// In the process that forks, before it does (BLOCKS.md, "A process that holds blocks forks").
extern "C" fn before_fork() {
    MAPPED.before_fork(|mapped| {
        for holding in mapped.held.iter_mut().flatten().filter(|holding| holding.backing == Backing::Block) {
            let Holding { table, slot, mapping, length, .. } = holding;
            if mapping.make_private(table, *slot, *length) {
                holding.backing = Backing::Copy;
                holding.table.give_back(holding.slot, holding.mark, false);
            } else {
                holding.backing = Backing::Both;
            }
        }
    });
}

extern "C" fn after_fork() {
    MAPPED.after_fork();
}

extern "C" fn after_fork_in_child() {
    MAPPED.after_fork();
    // What is behind blocks that were let go is the parent's affair.
    MAPPED.lock().left.clear();
}

/// Has forks seen to, from now on: before anything of this process is mapped or held.
fn watch_forks() {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        // SAFETY: the handlers are functions; what they do is allowed around a fork: the one in the child stores a number and frees
        // memory, which glibc allows.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork_in_child)) };
    });
}
