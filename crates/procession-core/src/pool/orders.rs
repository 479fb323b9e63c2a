//! Orders that concern tasks which wait already: they are cancelled, or others come before them; and workers that are to
//! leave. See PROTOCOL.md, "The parent takes tasks back".
//!
//! Mostly tasks lie in the ring in the order in which they came. For an order that changes this, the parent, which may
//! take from the ring like any worker, takes all that is there into its *drawer* and puts into the ring again what is to
//! be done, in the new order. As long as the order is not simply that of arrival, only as much lies in the ring as
//! the workers need so as not to wait; the rest follows whenever a result is heard or a worker is hired.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use super::{
    drawer::{Drawer, Waiting},
    engine::{BACKLOG, Engine, Phase, State},
    job::Job,
    message::{self, ResultHeader, TaskHeader},
};
use crate::{
    channel::{Along, TakeError},
    memory::Filled,
    sync::Wait,
};

/// For how long to wait for the lock of the ring, which others hold for as long as they copy a message.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many messages are taken out of the ring in one go.
const BATCH: u64 = 256;
/// How many tasks lie in the ring for each worker if they came out of it only because one was cancelled.
const AHEAD: u64 = 4;

/// What is kept in the parent of the tasks that wait.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) drawer: Drawer,
    /// The lowest priority of a task that was put into the ring since it was last empty.
    lowest: Option<i32>,
    /// The ring's count of tasks put when the last one with a priority of its own was.
    prioritised: u64,
    /// How many results are to be heard before all is put into the ring. Taking it out again for the next task that
    /// is cancelled takes time.
    pause: u64,
    /// Whether something could not be put into the ring for want of memory.
    stuck: bool,
    /// Whether something could not be taken out of it: for the same reason, or as the holder of its lock is stopped.
    unsorted: bool,
    /// Jobs that were cancelled meanwhile.
    cancelled: Vec<u64>,
    /// How many tasks of jobs that were cancelled may be in the drawer.
    unwanted: u64,
}

impl Orders {
    /// Whether something is to be tried again.
    pub(super) fn are_due(&self) -> bool {
        self.stuck || self.unsorted
    }
}

impl Engine {
    /// Nobody wants what is still to come of a job: tasks that wait are never begun, and workers that are at one are to be
    /// killed ([`Event::Condemned`](super::Event::Condemned)); they do nothing else before. In the place of the outcomes
    /// that are still to come, there is one [`Verdict::Cancelled`](super::Verdict::Cancelled). False if the job is done.
    pub fn cancel(&self, job: &Job) -> bool {
        // What has been done already counts.
        self.poll();
        let mut state = self.state();
        let Some(change) = state.dispatch.cancel(job.id()) else {
            return job.is_cancelled();
        };
        self.effect(&mut state, change);
        state.orders.unwanted += job.under_way();
        self.withdraw(&mut state, job.id());
        if state.reading {
            // It may be this job that the reader waits for.
            let _ = message::put(&self.results, &ResultHeader::NUDGE.to_bytes(), &[]);
        }
        true
    }

    /// The tasks of a job are not to be done.
    fn withdraw(&self, state: &mut State, job: u64) {
        state.orders.cancelled.push(job);
        self.rearrange(state);
        Self::forget_unwanted(state);
        let left = state.orders.drawer.len();
        state.orders.pause = if left > BATCH { left / 8 } else { 0 };
        self.feed(state);
    }

    /// Lets go of tasks that wait for nobody, as soon as they are so many that to look at all costs little for each.
    fn forget_unwanted(state: &mut State) {
        let State { orders, dispatch, .. } = state;
        if orders.unwanted >= orders.drawer.len().div_ceil(2) {
            orders.unwanted = 0;
            orders.drawer.retain(|header| dispatch.priority(header.id.job).is_some());
        }
    }

    /// Condemns workers that are at a task of a job that was cancelled. Nothing of these jobs is in the ring any more, and
    /// who took the last task out of it has published that before.
    fn condemn_cancelled(&self, state: &mut State) {
        let takes = self.tasks.get_count();
        for job in std::mem::take(&mut state.orders.cancelled) {
            for &slot in &state.hired {
                if self.control.condemn(slot, takes, job) {
                    state.to_kill.push_back(slot);
                }
            }
        }
        if !state.to_kill.is_empty() {
            self.ring_doorbell();
        }
    }

    /// Tries again what could not be done.
    pub(super) fn see_to_orders(&self, state: &mut State) {
        if state.orders.unsorted {
            self.rearrange(state);
        }
        self.feed(state);
    }

    /// Gives a task to the workers in its turn, where that is not simply the end of the line.
    pub(super) fn put_in_order(
        &self,
        job: &Job,
        header: TaskHeader,
        payload: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
        blocks: Vec<Filled>,
    ) -> io::Result<()> {
        let descriptors = descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        let task = Waiting::new(header, payload, descriptors, blocks);
        let mut state = self.state();
        state.orders.drawer.push(job.terms().priority, task);
        if state.orders.lowest.is_some_and(|lowest| lowest < job.terms().priority) || !self.is_ordered() {
            // It comes before some that are in the ring.
            self.rearrange(&mut state);
        }
        self.feed(&mut state);
        Ok(())
    }

    /// A task was put into the ring: looks whether it should not have been.
    pub(super) fn look_again(&self, job: &Job) {
        // Whoever does not see the task in the ring has closed the gate before, and cancelled the job before that.
        let closed = self.gate.was_closed();
        if job.is_cancelled() {
            self.withdraw(&mut self.state(), job.id());
        } else if closed {
            let mut state = self.state();
            self.rearrange(&mut state);
            self.feed(&mut state);
        }
    }

    /// Whether tasks wait in the parent.
    pub(super) fn is_ordered(&self) -> bool {
        self.gate.is_closed()
    }

    /// Takes back what is in the ring. To be followed by [`feed`](Self::feed).
    fn rearrange(&self, state: &mut State) {
        // Whoever puts a task into the ring after this sees it: see `look_again`.
        self.gate.close();
        let mut taken = Vec::new();
        let all = loop {
            let before = taken.len();
            let batch = self.tasks.take_now_with(BATCH, &mut Wait::timeout(PATIENCE), |message| {
                // As every other who takes it: see PROTOCOL.md, "A worker dies about to take a task".
                self.control.disclaim(message.sequence() + 1, None);
                taken.push(message::copy_all(message)?);
                Ok(())
            });
            // What was read but not taken out is still in the ring.
            taken.truncate(before + batch.as_ref().map_or(0, |batch| batch.count as usize));
            match batch {
                Ok(_) => {}
                Err(TakeError::Empty) => break true,
                Err(_) => break false,
            }
        };
        let orders = &mut state.orders;
        orders.lowest = None;
        // The oldest is to be the first.
        for task in taken.into_iter().rev().filter_map(Waiting::from_message) {
            if task.header().id.job == 0 {
                state.leaving += u64::from(task.header() == TaskHeader::STOP);
            } else if let Some(priority) = state.dispatch.priority(task.header().id.job) {
                orders.drawer.put_back(priority, task);
            }
        }
        self.note_drawer(state);
        if all {
            state.orders.unsorted = false;
            self.condemn_cancelled(state);
        } else if !std::mem::replace(&mut state.orders.unsorted, true) {
            // The thread in `run` tries again.
            self.ring_doorbell();
        }
    }

    /// What is neither in the ring nor in the drawer is not to be waited for.
    fn note_drawer(&self, state: &State) {
        if self.tasks.is_empty() {
            self.control.note_taken(self.submitted_bytes().saturating_sub(state.orders.drawer.bytes()));
        }
    }

    /// Puts into the ring what workers are to take next.
    pub(super) fn feed(&self, state: &mut State) {
        let is_stuck = !self.feed_all(state);
        let was_stuck = std::mem::replace(&mut state.orders.stuck, is_stuck);
        self.note_drawer(state);
        if self.is_ordered() && !state.reading {
            // From now on each result has to be heard.
            self.arm(state);
        }
        if is_stuck && !was_stuck {
            // The thread in `run` tries again.
            self.ring_doorbell();
        }
    }

    /// False if there is no memory for it.
    fn feed_all(&self, state: &mut State) -> bool {
        while state.leaving > 0 {
            if message::put(&self.tasks, &TaskHeader::STOP.to_bytes(), &[]).is_err() {
                return false;
            }
            state.leaving -= 1;
        }
        loop {
            let in_ring = self.tasks.len();
            let orders = &mut state.orders;
            if in_ring == 0 {
                orders.lowest = None;
            }
            let in_order = !orders.drawer.has_priorities() && orders.prioritised <= self.tasks.get_count();
            let workers = state.hired.len().max(1) as u64;
            let enough = match (in_order, orders.pause) {
                (true, 0) => u64::MAX,
                (true, _) => AHEAD * workers,
                (false, _) => workers,
            };
            if in_ring >= enough {
                return true;
            }
            let Some((priority, task)) = orders.drawer.pop() else {
                if in_order {
                    self.gate.open();
                    orders.pause = 0;
                }
                return true;
            };
            let mut header = task.header();
            if state.dispatch.priority(header.id.job).is_none() {
                // Nobody waits for it: it was cancelled.
                continue;
            }
            header.position = self.submitted_bytes().saturating_sub(orders.drawer.bytes());
            let descriptors: Vec<_> = task.descriptors().iter().map(AsFd::as_fd).collect();
            let along = Along { descriptors: &descriptors, blocks: task.blocks() };
            let full = || Err(io::ErrorKind::WouldBlock.into());
            if message::put_with(&self.tasks, &header.to_bytes(), &[task.payload()], along, full).is_err() {
                orders.drawer.put_back(priority, task);
                return false;
            }
            orders.lowest = Some(orders.lowest.map_or(priority, |lowest| lowest.min(priority)));
            if priority != 0 {
                orders.prioritised = self.tasks.put_count();
            }
        }
    }

    /// So many results were heard, or a worker was hired.
    pub(super) fn feed_after(&self, state: &mut State, heard: u64) {
        if self.is_ordered() {
            state.orders.pause = state.orders.pause.saturating_sub(heard);
            self.feed(state);
        }
    }

    /// Tasks that wait in the parent, which are forgotten.
    pub(super) fn empty_drawer(&self, state: &mut State) -> Drawer {
        self.gate.open();
        std::mem::take(&mut state.orders).drawer
    }

    /// As [`is_full`](Self::is_full), for tasks of a priority: those that come after them do not count.
    pub fn is_full_for(&self, priority: i32) -> bool {
        if priority == 0 && !self.is_ordered() {
            return self.is_full();
        }
        let state = self.state();
        let drawer = &state.orders.drawer;
        if drawer.bytes() > BACKLOG && drawer.bytes_before(priority) > BACKLOG {
            return true;
        }
        drop(state);
        // All that is in the ring is of priority zero, unless what is there is little.
        priority <= 0 && !self.is_ordered() && self.is_full()
    }

    // Workers.

    /// So many more workers are needed: [`hire`](Self::hire) them.
    pub fn grow(&self, more: usize) {
        let mut state = self.state();
        let places = state.places.saturating_add(more);
        state.resize(places);
    }

    /// So many workers fewer are needed. As many end as soon as they are through with their present task, and are not to be
    /// replaced.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if none would be left.
    pub fn shrink(&self, fewer: usize) -> io::Result<()> {
        let mut state = self.state();
        let Some(places) = state.places.checked_sub(fewer).filter(|places| *places > 0) else {
            let message =
                format!("a pool of {} can't have {fewer} workers fewer: one at least has to stay", state.places);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        state.resize(places);
        if matches!(state.phase, Phase::Open | Phase::Closed) {
            // Each word to stop ends one worker. Should one of them end for another reason meanwhile, the word ends one
            // too many, which is replaced.
            state.leaving += state.hired.len().saturating_sub(places).min(fewer) as u64;
            self.rearrange(&mut state);
            self.feed(&mut state);
        }
        Ok(())
    }

    /// How many workers there should be.
    pub fn places(&self) -> usize {
        self.state().places
    }
}

#[cfg(all(test, not(loom)))]
#[path = "orders_tests.rs"]
mod tests;
