//! The thread that attends to a pool: what it waits for in [`Engine::run`], and how a pool ends.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

use super::{
    control::Overdue,
    engine::{DOORBELL, Engine, Event, Phase, State},
    job::Job,
    message::{self, ResultHeader, TaskHeader, Verdict},
};

/// For how long to leave it when there is no memory, the first time and at most.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(128);
/// For how long to sleep in one go, if not for ever.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

impl Engine {
    /// Waits for something that the face has to do. For one thread, which calls it again and again until
    /// [`Event::Over`]. Signals do not end the wait.
    ///
    /// # Errors
    ///
    /// As `epoll_wait(2)`, which fails only if the descriptors were closed behind its back.
    pub fn run(&self) -> io::Result<Event> {
        let mut pause = PAUSE;
        loop {
            let all_given = self.submit_again();
            let rest = {
                let mut state = self.state();
                // The doorbell was heard, perhaps for what another thread had read before it rang.
                self.pass_on(&state);
                let next_limit = self.look_for_overdue(&mut state);
                if let Some(event) = self.next_event(&mut state) {
                    return Ok(event);
                }
                let owed = state.stops_due > 0 || !all_given || state.orders.are_due();
                let rest = next_limit.into_iter().chain(owed.then_some(LONGEST_PAUSE)).min();
                // None, too, if it lies beyond what the clock can say.
                state.next_look = rest.and_then(|rest| Instant::now().checked_add(rest));
                rest
            };
            self.listen(rest)?;
            if self.poll_all() {
                pause = PAUSE;
            } else {
                // There is no memory to read what has come. The doorbell is rung for it at once: without a pause, this
                // thread would do nothing else until there is memory again.
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// As [`run`](Self::run), without waiting: `None` if there is nothing to do. For the thread that is in `run` otherwise,
    /// when it waits for something else in the midst of what the face does.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_now(&self) -> io::Result<Option<Event>> {
        self.listen(Some(Duration::ZERO))?;
        self.poll_all();
        let mut state = self.state();
        self.pass_on(&state);
        self.look_for_overdue(&mut state);
        Ok(if state.phase == Phase::Terminated { None } else { self.next_event(&mut state) })
    }

    fn next_event(&self, state: &mut State) -> Option<Event> {
        if state.phase == Phase::Terminated {
            return Some(Event::Over);
        }
        if let Some(job) = state.finished.pop_front() {
            return Some(Event::Finished(job));
        }
        if let Some(slot) = state.ended.pop_front() {
            return Some(Event::Ended(slot));
        }
        if let Some(slot) = state.to_kill.pop_front() {
            return Some(Event::Condemned(slot));
        }
        if state.orders.are_due() {
            self.see_to_orders(state);
        }
        if state.phase == Phase::Closed && state.dispatch.is_idle() {
            state.phase = Phase::Stopping;
            state.stops_due = state.hired.len();
        }
        if state.phase == Phase::Stopping {
            self.send_stops(state);
        }
        (state.phase == Phase::Stopping && state.hired.is_empty()).then_some(Event::Over)
    }

    /// Tells as many workers to stop as are still to be told. Where there is no memory to say so, it is said later on.
    pub(super) fn send_stops(&self, state: &mut State) {
        while state.stops_due > 0 && message::put(&self.tasks, &TaskHeader::STOP.to_bytes(), &[]).is_ok() {
            state.stops_due -= 1;
        }
    }

    /// Sleeps until there is something to look at, or the rest is over. Takes note of workers that have ended.
    fn listen(&self, rest: Option<Duration>) -> io::Result<()> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 16];
        // Waits of weeks are beyond what older kernels take.
        let rest = rest.and_then(|rest| Timespec::try_from(rest.min(LONGEST_SLEEP)).ok());
        let count = match epoll::wait(&self.poller, &mut events, rest.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            let mark = event.data;
            if mark.u64() == DOORBELL {
                let _ = rustix::io::read(&*self.doorbell, &mut [0; 8]);
            } else {
                self.state().ended.push_back((mark.u64() - 1) as usize);
            }
        }
        Ok(())
    }

    /// No more jobs will be opened; when those under way are done, the workers are told to stop.
    pub fn close(&self) {
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.phase = Phase::Closed;
            if !state.reading {
                self.arm(&state);
            }
            self.ring_doorbell();
        }
    }

    /// The pool is over: what is still to come is given up ([`Terminated`](super::Verdict::Terminated)). The face ends the
    /// workers.
    pub fn terminate(&self) {
        let mut state = self.state();
        if state.phase == Phase::Terminated {
            return;
        }
        state.phase = Phase::Terminated;
        let jobs = state.dispatch.give_up();
        // Those that are done, too, if the face was not told of them: it never will be.
        let finished = std::mem::take(&mut state.finished);
        state.again.clear();
        let drawer = self.empty_drawer(&mut state);
        drop(state);
        drop(drawer);
        for job in jobs.into_iter().chain(finished) {
            job.settle();
            job.wake();
        }
        // The reader sleeps on the ring.
        let _ = message::put(&self.results, &ResultHeader::NUDGE.to_bytes(), &[]);
        self.ring_doorbell();
    }

    /// The face has done what it had to do at the end of a job that was opened with `notify`.
    pub fn settle(&self, job: &Job) {
        job.settle();
        job.wake();
        if self.state().reading {
            // It may be this job that the reader waits for.
            let _ = message::put(&self.results, &ResultHeader::NUDGE.to_bytes(), &[]);
        }
    }

    /// Condemns workers whose tasks have had their time. Tells when to look again.
    fn look_for_overdue(&self, state: &mut State) -> Option<Duration> {
        // A task that is taken from now on has all its time.
        let mut soonest = state.dispatch.shortest_limit()?;
        // The count is read before the slots are, as in `retire`.
        let takes = self.tasks.get_count();
        for &slot in &state.hired {
            match self.control.overdue(slot, takes) {
                Overdue::Yes => {
                    state.condemned.insert(slot, Verdict::Overdue);
                    state.to_kill.push_back(slot);
                }
                Overdue::In(left) => soonest = soonest.min(left),
                Overdue::Never => {}
            }
        }
        Some(soonest)
    }
}
