//! The worker's end of a pool.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    control::Control,
    exits,
    message::{self, Definition, ResultHeader, TaskHeader, TaskId, Verdict},
};
use crate::{
    channel::{Along, Ring, TakeError},
    memory::{Claimed, Filled, Travelling},
    sync::Wait,
};

/// From this size on a result is worth a ring of the doorbell even where nobody is in a hurry, so that memory which is
/// shared does not fill up.
const LARGE: usize = 64 * 1024;

/// As much room as a worker keeps for the next task.
const ROOM: usize = 8 << 20;

/// What a process needs to have to be a worker: the rings, the control segment and the doorbell.
#[derive(Clone, Debug)]
pub struct Port {
    tasks: Ring,
    results: Ring,
    control: Control,
    doorbell: Arc<OwnedFd>,
}

impl Port {
    pub(super) fn new(tasks: Ring, results: Ring, control: Control, doorbell: Arc<OwnedFd>) -> Self {
        Self { tasks, results, control, doorbell }
    }

    /// From the descriptors of [`descriptors`](Self::descriptors), in a process they were handed to.
    ///
    /// # Errors
    ///
    /// If they are not of a pool.
    pub fn attach([tasks, results, control, doorbell]: [OwnedFd; 4]) -> io::Result<Self> {
        Ok(Self {
            tasks: Ring::attach(tasks)?,
            results: Ring::attach(results)?,
            control: Control::attach(control)?,
            doorbell: Arc::new(doorbell),
        })
    }

    /// [`attach`](Self::attach), with the descriptors of [`couriers`](Self::couriers).
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    pub fn attach_with_couriers(
        [tasks, results, control, doorbell]: [OwnedFd; 4],
        [tasks_in, tasks_out, results_in, results_out]: [OwnedFd; 4],
    ) -> io::Result<Self> {
        Ok(Self {
            tasks: Ring::attach_with_courier(tasks, [tasks_in, tasks_out])?,
            results: Ring::attach_with_courier(results, [results_in, results_out])?,
            control: Control::attach(control)?,
            doorbell: Arc::new(doorbell),
        })
    }

    /// What to hand over.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 4] {
        [self.tasks.as_fd(), self.results.as_fd(), self.control.as_fd(), self.doorbell.as_fd()]
    }

    /// What to hand over besides, if tasks and results may have descriptors with them.
    pub fn couriers(&self) -> Option<[BorrowedFd<'_>; 4]> {
        couriers(&self.tasks, &self.results)
    }

    fn ring_doorbell(&self) {
        // It fails only when it rings already.
        let _ = rustix::io::write(&*self.doorbell, &1_u64.to_ne_bytes());
    }
}

pub(super) fn couriers<'a>(tasks: &'a Ring, results: &'a Ring) -> Option<[BorrowedFd<'a>; 4]> {
    let ([tasks_in, tasks_out], [results_in, results_out]) = tasks.courier().zip(results.courier())?;
    Some([tasks_in, tasks_out, results_in, results_out])
}

/// A task in the hands of a worker.
#[derive(Debug)]
pub struct Task {
    header: TaskHeader,
    message: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    blocks: Vec<Claimed>,
}

impl Task {
    /// Which one it is.
    pub fn id(&self) -> TaskId {
        self.header.id
    }

    /// Its function.
    pub fn definition(&self) -> Definition {
        self.header.definition
    }

    /// How the function is to be applied.
    pub fn mode(&self) -> u32 {
        self.header.mode
    }

    /// For how long it may be run before it is to be asked to come to an end: see
    /// [`Terms::soft_limit`](super::Terms::soft_limit).
    pub fn soft_limit(&self) -> Option<Duration> {
        (self.header.soft_limit != 0).then(|| Duration::from_nanos(self.header.soft_limit))
    }

    /// What it is to be applied to.
    pub fn payload(&self) -> &[u8] {
        &self.message[TaskHeader::LENGTH..]
    }

    /// The descriptors that came with it.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// The blocks that came with it.
    pub fn take_blocks(&mut self) -> Vec<Claimed> {
        std::mem::take(&mut self.blocks)
    }
}

/// A worker: takes tasks, one at a time, and sends their results.
#[derive(Debug)]
pub struct Worker {
    port: Port,
    slot: usize,
    /// For the next task.
    room: Mutex<Vec<u8>>,
    /// Whether it is going to be killed, for a task that took too long.
    condemned: AtomicBool,
}

impl Worker {
    /// The worker of a slot that [`hire`](super::Engine::hire) has given.
    ///
    /// # Errors
    ///
    /// If the pool has no such slot.
    pub fn enter(port: Port, slot: usize) -> io::Result<Self> {
        if slot >= port.control.slots() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pool has no such place for a worker"));
        }
        port.control.enter(slot);
        Ok(Self { port, slot, room: Mutex::default(), condemned: AtomicBool::new(false) })
    }

    /// Preparations are over: from now on the end of this worker is no sign that others would end in the same way.
    pub fn ready(&self) {
        self.port.control.ready(self.slot);
    }

    /// The next task; `None` if there is to be none. Blocks until there is one.
    ///
    /// # Errors
    ///
    /// [`TakeError::Wait`] if a signal ended the wait or the deadline passed; another one if there is no memory for the
    /// task, which is then left to other workers.
    pub fn take(&self, wait: &mut Wait<'_>) -> Result<Option<Task>, TakeError> {
        if self.is_condemned() {
            return Ok(None);
        }
        let mut room = std::mem::take(&mut *self.room.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            let taken = self.port.tasks.take_with(wait, |message| {
                let mut bytes = std::mem::take(&mut room);
                message.replace(&mut bytes)?;
                let descriptors = message.descriptors()?;
                if let Some(header) = TaskHeader::from_bytes(&bytes).filter(|header| header.id.job != 0) {
                    self.port.control.take(self.slot, message.sequence() + 1, &header);
                }
                Ok((bytes, descriptors, message.take_blocks()))
            });
            let ((message, descriptors, blocks), _) = taken?;
            match TaskHeader::from_bytes(&message) {
                Some(TaskHeader::STOP) => return Ok(None),
                Some(header) => return Ok(Some(Task { header, message, descriptors, blocks })),
                // Nothing this pool has sent.
                None => {}
            }
        }
    }

    /// Whether it is going to be killed, for the task it was at last: it gets no other.
    pub fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Relaxed)
    }

    /// A task is done with: its room may be that of the next one. Fresh memory for each large task would cost more
    /// than copying it.
    pub fn recycle(&self, task: Task) {
        if task.message.capacity() <= ROOM {
            *self.room.lock().unwrap_or_else(PoisonError::into_inner) = task.message;
        }
    }

    /// Sends what became of the task in hand.
    ///
    /// # Errors
    ///
    /// If there is no memory for it: something shorter may be sent in its place.
    pub fn finish(&self, id: TaskId, verdict: Verdict, payload: &[&[u8]]) -> io::Result<()> {
        self.finish_with(id, verdict, payload, &[])
    }

    /// [`finish`](Self::finish), with descriptors that go along. Blocks while as many results with descriptors are in the
    /// ring as the system allows (a few hundred).
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish); if there are more than 253 descriptors, or the pool has no couriers.
    pub fn finish_with(
        &self,
        id: TaskId,
        verdict: Verdict,
        payload: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.finish_paced(id, verdict, 0, payload, descriptors)
    }

    /// [`finish_with`](Self::finish_with), with a word of how long each item of the task took, in nanoseconds. Zero if that
    /// was not measured.
    ///
    /// # Errors
    ///
    /// As [`finish_with`](Self::finish_with).
    pub fn finish_paced(
        &self,
        id: TaskId,
        verdict: Verdict,
        pace: u32,
        payload: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.finish_along(id, verdict, pace, payload, Along { descriptors, blocks: &[] }, &[])
    }

    /// Copies what is part of a result into a block that can go along with it; see [`Ring::fill`].
    pub fn fill(&self, parts: &[&[u8]], patience: Duration) -> Option<Filled> {
        self.port.results.fill(parts, patience)
    }

    /// [`finish_paced`](Self::finish_paced), with blocks of [`fill`](Self::fill) as well. The parent fetches the `arrays`, which were
    /// [sent](Travelling::send) with the payload, as soon as it reads the result.
    ///
    /// # Errors
    ///
    /// As [`finish_with`](Self::finish_with).
    ///
    /// # Panics
    ///
    /// If the blocks are not of [`fill`](Self::fill), or more than [`Along::MOST_BLOCKS`].
    pub fn finish_along(
        &self,
        id: TaskId,
        verdict: Verdict,
        pace: u32,
        payload: &[&[u8]],
        along: Along<'_>,
        arrays: &[Travelling],
    ) -> io::Result<()> {
        let header = ResultHeader { id, verdict };
        let (short, long);
        let header: &[u8] = if arrays.is_empty() {
            short = header.to_bytes_paced(pace);
            &short
        } else {
            long = header.to_bytes_with(pace, arrays);
            &long
        };
        message::put_with(&self.port.results, header, payload, along, || {
            // Nobody waits for these results, perhaps: the parent has to be asked to read them.
            self.port.ring_doorbell();
            Ok(())
        })?;
        if !self.port.control.served(self.slot) {
            self.condemned.store(true, Ordering::Relaxed);
        }
        let length: usize = payload.iter().map(|part| part.len()).sum();
        // Arrays are this process's to keep until the parent has them.
        let is_large = length >= LARGE || !along.blocks.is_empty() || !arrays.is_empty();
        if self.port.control.alarm().is_due(|| self.port.results.put_count(), is_large) {
            self.port.ring_doorbell();
        }
        Ok(())
    }

    /// Its last words, when it ends in order: they are told by [`Engine::exits`](super::Engine::exits).
    ///
    /// # Errors
    ///
    /// If there is no memory for them.
    pub fn leave(&self, verdict: Verdict, words: &[u8]) -> io::Result<()> {
        exits::send(&self.port.results, self.slot, verdict, words)
    }

    /// The bytes of a function.
    ///
    /// # Errors
    ///
    /// If it was never defined.
    pub fn definition(&self, definition: Definition) -> io::Result<Vec<u8>> {
        self.port.control.definition(definition)
    }
}
