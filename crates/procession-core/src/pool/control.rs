//! The control segment: what the processes of a pool know of each other besides the rings.
//!
//! | place | meaning | who writes |
//! |-------|---------|------------|
//! | [`Board`] | the alarm, and the claim on the oldest task | see there |
//! | [`Slot`]s, a cache line each | who works there, and the task in hand | its worker; the parent while it is empty |
//! | behind the mapping | the definitions, one after another | the parent, before it names them in a task |
//!
//! The scenarios are in PROTOCOL.md.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::{
    alarm::Alarm,
    message::{Definition, TaskHeader, TaskId},
};
use crate::{
    kills::point,
    loom::{AtomicU64, Ordering},
    memory::Segment,
    process::ProcessId,
};

/// Where the board stands: behind the segment's own header.
const BOARD: usize = 64;
/// Where the slots begin.
const SLOTS: usize = 128;
/// How large the table of definitions may grow. It takes memory only as far as it is written.
const DEFINITIONS: u64 = 1 << 30;
/// Words all processes of the pool look at.
#[derive(Debug)]
#[repr(C, align(64))]
struct Board {
    /// When the doorbell is to be rung.
    alarm: Alarm,
    /// Who last published that it takes a task: the task's place in the ring (48 bits) and the slot (16 bits). Written
    /// under the task ring's consumer lock, before the ring's commit.
    claim: AtomicU64,
    /// The [`position`](super::message::TaskHeader) of the last task that was taken. Written as the claim is.
    taken: AtomicU64,
    /// How many slots there are. Written once.
    slots: AtomicU64,
}

/// A worker's place.
///
/// | `sequence` | state | who changes it, and to what |
/// |------------|-------|-----------------------------|
/// | 0 | no task in hand | the worker, about to take a task: its place in the ring, counted from one |
/// | n | the task is `job`, `index`, if the ring's count of takes has reached n; else it is still in the ring | the worker, when its result is in the result ring: 0 · the next taker of n, when this one died before its commit: 0 · the parent, when the task was taken and has had its time, or is cancelled: n with `CONDEMNED` |
/// | n with `CONDEMNED` | as n; the worker is going to be killed and takes no other task | the worker, when its result is in the result ring: 0 |
#[derive(Debug)]
#[repr(C, align(64))]
struct Slot {
    /// [`ProcessId`] of the worker, 0 until it has come that far.
    process: AtomicU64,
    sequence: AtomicU64,
    job: AtomicU64,
    index: AtomicU64,
    /// 1 when the worker is about to take its first task.
    ready: AtomicU64,
    /// How many results it has sent.
    served: AtomicU64,
    /// When the task is to be done, by the clock of [`now`]; 0: whenever it likes. Written before `sequence`.
    deadline: AtomicU64,
}

/// Marks the `sequence` of a worker that is going to be killed.
const CONDEMNED: u64 = 1 << 63;

/// Nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What [`Control::overdue`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// It has had its time. Its worker takes no other task after it, and is to be killed.
    Yes,
    /// It has this long left.
    In(Duration),
    /// There is no task, or it may take as long as it likes.
    Never,
}

impl Slot {
    fn task(&self) -> TaskId {
        TaskId { job: self.job.load(Ordering::Acquire), index: self.index.load(Ordering::Acquire) }
    }
}

/// The control segment of a pool, in the parent or in a worker.
#[derive(Clone, Debug)]
pub(super) struct Control {
    segment: Segment,
    slots: usize,
}

/// What a worker's slot tells after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remains {
    /// Who it was; `None` if it ended before it got so far as to say.
    pub(super) process: Option<ProcessId>,
    /// Whether it had got so far as to take tasks.
    pub(super) ready: bool,
}

/// The task a dead worker had in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InHand {
    pub(super) id: TaskId,
    /// Whether the worker was going to be killed for it.
    pub(super) condemned: bool,
}

impl Control {
    /// With room for so many workers at a time.
    pub(super) fn create(slots: usize) -> io::Result<Self> {
        let slots = slots.min(usize::from(u16::MAX));
        let mapped = (SLOTS + slots * size_of::<Slot>()).next_multiple_of(rustix::param::page_size());
        let segment = Segment::create("procession-pool", mapped, mapped as u64 + DEFINITIONS)?;
        segment.secure(0, SLOTS as u64)?;
        let control = Self { segment, slots };
        control.alarm().clear();
        control.board().slots.store(slots as u64, Ordering::Relaxed);
        Ok(control)
    }

    /// In a process that was handed the descriptor.
    pub(super) fn attach(fd: OwnedFd) -> io::Result<Self> {
        let invalid =
            || io::Error::new(io::ErrorKind::InvalidData, "the descriptor is not of a pool's control segment");
        let segment = Segment::attach(fd)?;
        segment.address(BOARD, size_of::<Board>()).ok_or_else(invalid)?;
        let control = Self { segment, slots: 0 };
        let slots = usize::try_from(control.board().slots.load(Ordering::Relaxed)).map_err(|_| invalid())?;
        let length = slots.checked_mul(size_of::<Slot>()).ok_or_else(invalid)?;
        control.segment.address(SLOTS, length).ok_or_else(invalid)?;
        Ok(Self { slots, ..control })
    }

    fn board(&self) -> &Board {
        let address = self.segment.address(BOARD, size_of::<Board>()).expect("looked at when the segment was mapped");
        // SAFETY: the board lies in the mapping, which lives as long as `self`, is aligned, and consists of atomics.
        unsafe { address.cast().as_ref() }
    }

    fn slot(&self, number: usize) -> &Slot {
        assert!(number < self.slots, "no such worker");
        let address = self.segment.address(SLOTS + number * size_of::<Slot>(), size_of::<Slot>());
        let address = address.expect("looked at when the segment was mapped");
        // SAFETY: the slot lies in the mapping, which lives as long as `self`, is aligned, and consists of atomics.
        unsafe { address.cast().as_ref() }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn alarm(&self) -> &Alarm {
        &self.board().alarm
    }

    /// How much of what was submitted has been taken.
    pub(super) fn taken(&self) -> u64 {
        self.board().taken.load(Ordering::Relaxed)
    }

    pub(super) fn note_taken(&self, position: u64) {
        // Written by the holder of the consumer lock, and by the parent when it has taken tasks back.
        if position > self.taken() {
            self.board().taken.fetch_max(position, Ordering::Relaxed);
        }
    }

    // A worker's place, as the parent sees it.

    /// Makes a slot empty for the next worker.
    ///
    /// # Errors
    ///
    /// If memory is lacking.
    pub(super) fn prepare(&self, number: usize) -> io::Result<()> {
        let slot = self.slot(number);
        self.segment.secure((SLOTS + number * size_of::<Slot>()) as u64, size_of::<Slot>() as u64)?;
        for word in [&slot.sequence, &slot.ready, &slot.process, &slot.served, &slot.deadline] {
            word.store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Who was there.
    pub(super) fn remains(&self, number: usize) -> Remains {
        let slot = self.slot(number);
        Remains {
            process: ProcessId::from_bits(slot.process.load(Ordering::SeqCst)),
            ready: slot.ready.load(Ordering::SeqCst) != 0,
        }
    }

    /// The task that the dead worker of a slot had in hand. `takes` is the task ring's count of takes, read after the
    /// worker's end.
    ///
    /// See PROTOCOL.md, "a worker dies about to take a task": a place beyond the count was never taken by it.
    pub(super) fn in_hand(&self, number: usize, takes: u64) -> Option<InHand> {
        let slot = self.slot(number);
        let sequence = slot.sequence.load(Ordering::SeqCst);
        let condemned = sequence & CONDEMNED != 0;
        (1..=takes).contains(&(sequence & !CONDEMNED)).then(|| InHand { id: slot.task(), condemned })
    }

    /// How many results the worker of a slot has sent.
    pub(super) fn served_by(&self, number: usize) -> u64 {
        self.slot(number).served.load(Ordering::Relaxed)
    }

    /// Whether the task of the worker of a slot has had its time. If so, the worker is condemned, of which is told once.
    /// `takes` is the task ring's count of takes, read before.
    ///
    /// See PROTOCOL.md, "A task has had its time".
    pub(super) fn overdue(&self, number: usize, takes: u64) -> Overdue {
        let slot = self.slot(number);
        let sequence = slot.sequence.load(Ordering::SeqCst);
        if !(1..=takes).contains(&sequence) {
            return Overdue::Never;
        }
        // It may be that of a later task by now, and then the task in question is done.
        let deadline = slot.deadline.load(Ordering::Acquire);
        if deadline == 0 {
            return Overdue::Never;
        }
        let left = deadline.saturating_sub(now());
        if left > 0 {
            return Overdue::In(Duration::from_nanos(left));
        }
        match slot.sequence.compare_exchange(sequence, sequence | CONDEMNED, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => Overdue::Yes,
            Err(_) => Overdue::Never,
        }
    }

    /// Condemns the worker of a slot if it is at a task of this job. Tells whether it did. `takes` is the task ring's count
    /// of takes, read before.
    ///
    /// See PROTOCOL.md, "A job is cancelled".
    pub(super) fn condemn(&self, number: usize, takes: u64, job: u64) -> bool {
        let slot = self.slot(number);
        let sequence = slot.sequence.load(Ordering::SeqCst);
        // If it is at another task by now, the sequence is another one, too.
        (1..=takes).contains(&sequence)
            && slot.job.load(Ordering::Acquire) == job
            && slot
                .sequence
                .compare_exchange(sequence, sequence | CONDEMNED, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
    }

    /// The task that the worker of a slot is at, as of now, for show: it may be another the moment after.
    pub(super) fn at_work(&self, number: usize) -> Option<TaskId> {
        let slot = self.slot(number);
        (slot.sequence.load(Ordering::Acquire) != 0).then(|| slot.task())
    }

    // A worker's place, as the worker sees it.

    pub(super) fn enter(&self, number: usize) {
        self.slot(number).process.store(ProcessId::current().to_bits(), Ordering::SeqCst);
    }

    pub(super) fn ready(&self, number: usize) {
        self.slot(number).ready.store(1, Ordering::SeqCst);
    }

    /// Publishes that the worker takes the task whose place in the ring is `sequence`. Called under the task ring's
    /// consumer lock, before its commit.
    pub(super) fn take(&self, number: usize, sequence: u64, task: &TaskHeader) {
        let TaskHeader { id, position, limit, .. } = *task;
        self.note_taken(position);
        point("pool: a task read, not claimed");
        let claim = sequence << 16 | number as u64;
        self.disclaim(sequence, Some(number));
        point("pool: a former claimant's task struck out");
        self.board().claim.store(claim, Ordering::Release);
        point("pool: a task claimed, not named");
        let slot = self.slot(number);
        // Most have no limit, and need no look at the clock.
        slot.deadline.store(if limit == 0 { 0 } else { now().saturating_add(limit) }, Ordering::Relaxed);
        slot.job.store(id.job, Ordering::Relaxed);
        slot.index.store(id.index, Ordering::Relaxed);
        point("pool: a task named, its place not stored");
        slot.sequence.store(sequence, Ordering::Release);
        point("pool: a task in hand, still in the ring");
    }

    /// Whoever claimed this place in the ring, but for the worker of slot `except`, died before it took what is still there.
    /// Called under the task ring's consumer lock, before the commit of who takes it now.
    pub(super) fn disclaim(&self, sequence: u64, except: Option<usize>) {
        let claim = self.board().claim.load(Ordering::Relaxed);
        let former = (claim & 0xffff) as usize;
        if claim >> 16 == sequence & (u64::MAX >> 16) && Some(former) != except && former < self.slots {
            let word = &self.slot(former).sequence;
            let _ = word.compare_exchange(sequence, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// The task's result is in the result ring. Tells whether the worker may take another task.
    pub(super) fn served(&self, number: usize) -> bool {
        point("pool: a result sent, its task still in hand");
        let slot = self.slot(number);
        let former = slot.sequence.swap(0, Ordering::SeqCst);
        point("pool: a task done, not counted");
        slot.served.store(slot.served.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        former & CONDEMNED == 0
    }

    // The definitions.

    /// Stores a definition behind what is there. Only the parent does, one thread at a time.
    ///
    /// # Errors
    ///
    /// If memory is lacking or the table is full.
    pub(super) fn define(&self, number: u32, offset: u64, bytes: &[u8]) -> io::Result<Definition> {
        let full = || io::Error::new(io::ErrorKind::StorageFull, "the pool's table of definitions is full");
        let length = u32::try_from(bytes.len()).map_err(|_| full())?;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > DEFINITIONS) {
            return Err(full());
        }
        self.segment.write_at(bytes, self.segment.len() as u64 + offset)?;
        Ok(Definition { number, length, offset })
    }

    /// The bytes of a definition.
    ///
    /// # Errors
    ///
    /// If it does not lie in the table.
    pub(super) fn definition(&self, definition: Definition) -> io::Result<Vec<u8>> {
        let end = definition.offset.checked_add(definition.length.into());
        if end.is_none_or(|end| end > DEFINITIONS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the definition lies outside of the pool's table"));
        }
        let mut bytes = vec![0; definition.length as usize];
        self.segment.read_at(&mut bytes, self.segment.len() as u64 + definition.offset)?;
        Ok(bytes)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn task(index: u64) -> TaskId {
        TaskId { job: 3, index }
    }

    fn header(index: u64, position: u64) -> TaskHeader {
        TaskHeader { id: task(index), position, ..TaskHeader::STOP }
    }

    fn in_hand(control: &Control, number: usize, takes: u64) -> Option<TaskId> {
        control.in_hand(number, takes).map(|in_hand| in_hand.id)
    }

    #[test]
    fn a_task_is_in_hand_from_its_commit_to_its_result() {
        let control = Control::create(2).unwrap();
        control.prepare(0).unwrap();
        assert_eq!(in_hand(&control, 0, 5), None);
        control.take(0, 6, &header(7, 100));
        assert_eq!(in_hand(&control, 0, 5), None, "published, not taken");
        assert_eq!(in_hand(&control, 0, 6), Some(task(7)));
        assert_eq!(control.at_work(0), Some(task(7)));
        control.served(0);
        assert_eq!(in_hand(&control, 0, 6), None);
    }

    #[test]
    fn a_task_claimed_by_the_dead_belongs_to_who_takes_it() {
        let control = Control::create(2).unwrap();
        control.take(0, 6, &header(7, 100));
        // The worker of slot 0 dies before its commit; slot 1 gets the consumer lock.
        control.take(1, 6, &header(7, 100));
        assert_eq!(in_hand(&control, 0, 6), None);
        assert_eq!(in_hand(&control, 1, 6), Some(task(7)));
        // A slot that has taken another task since is left alone.
        control.take(0, 7, &header(8, 200));
        assert_eq!(control.taken(), 200);
        assert_eq!(in_hand(&control, 0, 7), Some(task(8)));
        assert_eq!(in_hand(&control, 1, 7), Some(task(7)));
    }

    #[test]
    fn a_task_that_has_had_its_time_condemns_its_worker_and_no_other_task() {
        const LIMIT: Duration = Duration::from_millis(20);
        let limited = |index, limit: Duration| TaskHeader { limit: limit.as_nanos() as u64, ..header(index, 100) };
        let control = Control::create(1).unwrap();
        control.take(0, 5, &header(6, 100));
        assert_eq!(control.overdue(0, 5), Overdue::Never, "it may take as long as it likes");
        control.served(0);
        control.take(0, 6, &limited(7, LIMIT));
        std::thread::sleep(LIMIT * 2);
        assert_eq!(control.overdue(0, 5), Overdue::Never, "published, not taken");
        assert_eq!(control.in_hand(0, 6), Some(InHand { id: task(7), condemned: false }));
        assert_eq!(control.overdue(0, 6), Overdue::Yes);
        assert_eq!(control.overdue(0, 6), Overdue::Never, "told once");
        assert_eq!(control.in_hand(0, 6), Some(InHand { id: task(7), condemned: true }));
        assert_eq!(control.at_work(0), Some(task(7)));
        assert!(!control.served(0), "it is going to be killed");
        assert_eq!(control.in_hand(0, 6), None);
        // The next worker of the slot has the whole time.
        control.prepare(0).unwrap();
        control.take(0, 7, &limited(8, LIMIT * 10_000));
        assert!(matches!(control.overdue(0, 7), Overdue::In(left) if left > LIMIT && left <= LIMIT * 10_000));
        assert!(control.served(0));
        assert_eq!(control.served_by(0), 1);
        // What would end after the clock does never ends.
        control.take(0, 8, &TaskHeader { limit: u64::MAX, ..header(9, 300) });
        assert!(matches!(control.overdue(0, 8), Overdue::In(left) if left > LIMIT));
    }

    #[test]
    fn definitions_are_read_where_they_were_written() {
        let control = Control::create(1).unwrap();
        let one = control.define(1, 0, b"one").unwrap();
        let two = control.define(2, 3, b"and two").unwrap();
        let elsewhere = Control::attach(control.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(elsewhere.definition(one).unwrap(), b"one");
        assert_eq!(elsewhere.definition(two).unwrap(), b"and two");
        assert!(control.define(3, DEFINITIONS, b"x").is_err());
        assert!(elsewhere.definition(Definition { offset: u64::MAX, ..one }).is_err());
        assert!(elsewhere.definition(Definition { offset: DEFINITIONS, ..one }).is_err());
    }

    #[test]
    fn slots_and_board_are_found_by_another_process() {
        let control = Control::create(3).unwrap();
        let fd = control.as_fd().try_clone_to_owned().unwrap();
        let other = Control::attach(fd).unwrap();
        assert_eq!(other.slots(), 3);
        other.enter(2);
        other.ready(2);
        assert_eq!(control.remains(2), Remains { process: Some(ProcessId::current()), ready: true });
        control.prepare(2).unwrap();
        assert_eq!(control.remains(2), Remains { process: None, ready: false });
        let small = Segment::create("test", 64, 64).unwrap();
        assert!(Control::attach(small.as_fd().try_clone_to_owned().unwrap()).unwrap().slots() == 0);
    }
}
