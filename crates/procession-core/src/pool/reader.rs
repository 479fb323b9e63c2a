//! Hearing results: the office of the reader (see `engine.rs`, and PROTOCOL.md, "Who hears results").

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    dispatch::Change,
    engine::{Engine, Phase, State},
    job::{Job, Outcome},
    message::{self, Arrived, ResultHeader, Verdict},
};
use crate::{
    channel::TakeError,
    sync::{Wait, WaitError},
    sys::futex,
};

/// How many results may lie in the ring before the parent wants to be told, where no callback waits for them.
const HEAP: u64 = 256;
/// How many results are read in one go before the reader looks whether its own job has something.
const BATCH: u64 = 256;
/// The longest rest of a reader that waits for many results.
const LONGEST_REST: Duration = Duration::from_millis(1);
/// A shorter rest than this would cost more than it saves.
const SHORTEST_REST: Duration = Duration::from_micros(80);

impl Engine {
    /// Waits until `ready` says so of a job. Returns at once if it does; reads results meanwhile.
    ///
    /// # Errors
    ///
    /// [`WaitError`] if the deadline passed or a signal ended the wait.
    pub fn wait(&self, job: &Arc<Job>, ready: impl Fn(&Job) -> bool, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let mut followed = false;
        loop {
            let (word, seen) = job.word();
            if ready(job) {
                if followed {
                    // As below: the office may have been offered to this thread, which has no use for it.
                    self.pass_on(&self.state());
                }
                return Ok(());
            }
            let mut state = self.state();
            if state.reading {
                followed = true;
                state.followers.push_back(job.clone());
                drop(state);
                let slept =
                    if ready(job) { Ok(()) } else { job.asleep(|| wait.park(word, seen, Duration::from_millis(500))) };
                let mut state = self.state();
                if let Some(at) = state.followers.iter().position(|other| Arc::ptr_eq(other, job)) {
                    state.followers.remove(at);
                }
                if slept.is_err() {
                    // The office of the reader may just have been offered to this thread.
                    self.pass_on(&state);
                }
                drop(state);
                slept?;
            } else {
                state.reading = true;
                drop(state);
                self.control.alarm().clear();
                let read = self.read_for(job, &ready, wait);
                let mut state = self.state();
                state.reading = false;
                self.pass_on(&state);
                return read;
            }
        }
    }

    /// Reads what is there, unless another thread does anyway. Never blocks.
    pub fn poll(&self) {
        self.poll_all();
    }

    /// As [`poll`](Self::poll). Tells whether all that was there when it began is read, or another thread does it.
    pub(super) fn poll_all(&self) -> bool {
        let there = self.results.put_count();
        if there == self.results.get_count() {
            return true;
        }
        let mut state = self.state();
        if state.reading {
            return true;
        }
        state.reading = true;
        drop(state);
        while self.hear_what_is_there(BATCH) > 0 {}
        let read = self.results.get_count() >= there;
        let mut state = self.state();
        state.reading = false;
        self.pass_on(&state);
        read
    }

    /// If nobody reads: the next one that waits is asked to, else the doorbell.
    pub(super) fn pass_on(&self, state: &State) {
        if state.reading {
            return;
        }
        match state.followers.front() {
            Some(job) => job.wake(),
            None => self.arm(state),
        }
    }

    /// Has the doorbell rung when there is something to hear that somebody wants to know.
    pub(super) fn arm(&self, state: &State) {
        if state.dispatch.is_idle() {
            return;
        }
        let urgent = state.dispatch.notifies() || state.phase != Phase::Open || self.is_ordered();
        let count = self.results.get_count() + if urgent { 1 } else { HEAP };
        self.control.alarm().set(count);
        if self.control.alarm().is_due(|| self.results.put_count(), false) {
            self.ring_doorbell();
        }
    }

    pub(super) fn ring_doorbell(&self) {
        // It fails only when it rings already, as loud as can be.
        let _ = rustix::io::write(&*self.doorbell, &1_u64.to_ne_bytes());
    }

    fn read_for(&self, job: &Job, ready: impl Fn(&Job) -> bool, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        let began = Instant::now();
        let mut heard = 0;
        loop {
            heard += self.hear_what_is_there(BATCH);
            if ready(job) {
                return Ok(());
            }
            // While tasks wait in the parent, those who do them wait for it.
            if self.is_ordered() || !rest(job, began, heard, wait)? {
                heard += self.hear_next(wait)?;
                if ready(job) {
                    return Ok(());
                }
            }
        }
    }

    /// Reads at most so many results that are in the ring; tells how many it was.
    fn hear_what_is_there(&self, most: u64) -> u64 {
        let mut messages = Vec::new();
        let taken = self.results.try_take_many_with(most, |message| {
            messages.push(message::copy_all(message)?);
            Ok(())
        });
        self.hear_taken(messages, taken.map_or(0, |taken| taken.count))
    }

    /// Reads results, waiting for the first.
    fn hear_next(&self, wait: &mut Wait<'_>) -> Result<u64, WaitError> {
        let mut messages = Vec::new();
        let taken = self.results.take_many_with(BATCH, wait, |message| {
            messages.push(message::copy_all(message)?);
            Ok(())
        });
        match taken {
            Ok(taken) => Ok(self.hear_taken(messages, taken.count)),
            Err(TakeError::Wait(error)) => Err(error),
            // No memory for a copy, most likely: the message is still there, and memory may be there again later on.
            Err(_) => wait.remaining(LONGEST_REST).map(|rest| {
                std::thread::sleep(rest);
                0
            }),
        }
    }

    fn hear_taken(&self, mut messages: Vec<Arrived>, taken: u64) -> u64 {
        // What was read but not taken out is still in the ring.
        messages.truncate(taken as usize);
        messages.iter_mut().for_each(Arrived::fetch_arrays);
        let mut state = self.state();
        for message in messages {
            self.hear(&mut state, message);
        }
        self.feed_after(&mut state, taken);
        let again = !state.again.is_empty();
        drop(state);
        if again && !self.submit_again() {
            // The thread in `run` tries it again.
            self.ring_doorbell();
        }
        taken
    }

    /// Does what a message of the result ring says.
    pub(super) fn hear(&self, state: &mut State, message: Arrived) {
        let Some(header) = ResultHeader::from_bytes(&message.bytes) else {
            return;
        };
        if header.id.job == 0 {
            state.exits.hear(header, message);
            return;
        }
        if header.verdict == Verdict::Lost && state.retry(header.id) {
            return;
        }
        let change = match header.verdict {
            Verdict::End => state.dispatch.seal(header.id.job, header.id.index),
            verdict => state.dispatch.deliver(header.id, Outcome::new(verdict, message)),
        };
        self.effect(state, change);
    }

    pub(super) fn effect(&self, state: &mut State, change: Change) {
        match change {
            Change::None => {}
            Change::Progress(job) => {
                if job.has_next() || job.is_paced() {
                    job.wake();
                }
            }
            Change::Done(job) => {
                job.wake();
                let told = job.notifies();
                if told {
                    state.finished.push_back(job);
                }
                if told || (state.phase != Phase::Open && state.dispatch.is_idle()) {
                    self.ring_doorbell();
                }
            }
        }
    }

    /// How many jobs are under way.
    pub fn jobs(&self) -> usize {
        self.poll();
        self.state().dispatch.len()
    }
}

/// Where many results are still to come at a high rate, being woken for each would slow down those who make them.
/// Sleeps for a small part of the time they will take, and tells whether it did.
fn rest(job: &Job, began: Instant, heard: u64, wait: &mut Wait<'_>) -> Result<bool, WaitError> {
    let remaining = job.remaining().min(1 << 20) as u32;
    if remaining < 16 || heard == 0 {
        return Ok(false);
    }
    let rest = (began.elapsed() / heard.min(1 << 30) as u32 * (remaining / 8)).min(LONGEST_REST);
    if rest < SHORTEST_REST {
        return Ok(false);
    }
    let rest = wait.remaining(rest)?;
    let (word, seen) = job.word();
    if futex::wait(word, seen, Some(rest)) == futex::Slept::Interrupted {
        wait.signalled()?;
    }
    Ok(true)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::pool::{Order, TaskId};

    #[test]
    fn a_ring_for_what_was_read_already_is_not_the_last_one() {
        let engine = Engine::create(1).unwrap();
        let job = engine.open(Order::Collected, true);
        engine.seal(&job, 2);
        job.make(1);
        let put = |index| {
            let header = ResultHeader { id: TaskId { job: job.id(), index }, verdict: Verdict::Done };
            message::put(&engine.results, &header.to_bytes(), &[]).unwrap();
        };
        let is_due = || engine.control.alarm().is_due(|| engine.results.put_count(), false);
        put(0);
        // Another thread reads it, and the alarm is that of before: it is due, and the doorbell rings.
        engine.poll();
        assert!(!is_due());
        // The thread in `run` finds nothing.
        assert!(engine.run_now().unwrap().is_none());
        put(1);
        assert!(is_due(), "a callback waits for it, and nobody is told");
    }

    #[test]
    fn who_is_offered_the_office_without_need_of_it_passes_it_on() {
        let engine = Engine::create(1).unwrap();
        let (mine, told) = (engine.open(Order::Collected, false), engine.open(Order::Collected, true));
        engine.seal(&mine, 1);
        mine.make(0);
        engine.seal(&told, 1);
        engine.state().reading = true;
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| engine.wait(&mine, Job::is_done, &mut Wait::forever()));
            while engine.state().followers.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // What the last reader does when the follower's result came along with its own.
            let mut state = engine.state();
            let id = TaskId { job: mine.id(), index: 0 };
            engine.hear(&mut state, ResultHeader { id, verdict: Verdict::Done }.to_bytes().to_vec().into());
            state.reading = false;
            engine.control.alarm().clear();
            engine.pass_on(&state);
            drop(state);
            follower.join().unwrap().unwrap();
        });
        assert!(engine.control.alarm().clear(), "nobody reads, and a callback waits: the doorbell has to be rung");
    }
}
