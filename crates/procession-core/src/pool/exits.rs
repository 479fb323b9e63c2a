//! The last words of workers: what they have to tell when they end in order.
//!
//! They come through the result ring, after all of the worker's results, and are of no job. Nobody is woken for them: they are
//! asked for when all workers have ended, and then they are in the ring, or have been read with something else.

use std::{io, time::Duration};

use super::{
    engine::Engine,
    job::Outcome,
    message::{self, Arrived, ResultHeader, TaskId, Verdict},
};
use crate::channel::Ring;

/// What has been heard.
#[derive(Debug, Default)]
pub(super) struct Exits(Vec<(usize, Outcome)>);

impl Exits {
    pub(super) fn hear(&mut self, header: ResultHeader, message: Arrived) {
        if matches!(header.verdict, Verdict::Done | Verdict::Failed) {
            self.0.push((header.id.index as usize, Outcome::new(header.verdict, message)));
        }
    }
}

pub(super) fn send(results: &Ring, slot: usize, verdict: Verdict, words: &[u8]) -> io::Result<()> {
    debug_assert!(matches!(verdict, Verdict::Done | Verdict::Failed), "anything else is taken for a nudge");
    let header = ResultHeader { id: TaskId { job: 0, index: slot as u64 }, verdict };
    message::put(results, &header.to_bytes(), &[words])
}

/// For how long to wait for another thread that has taken results out and is about to hear them.
const PATIENCE: Duration = Duration::from_secs(1);

impl Engine {
    /// The last words of the workers that have ended so far, in the order in which they came, with the slot of each. They are
    /// handed out once.
    pub fn exits(&self) -> Vec<(usize, Outcome)> {
        const PAUSE: Duration = Duration::from_millis(1);
        let there = self.results.put_count();
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            self.poll();
            if self.results.get_count() >= there && !self.state().reading {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        std::mem::take(&mut self.state().exits.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::pool::{Order, Worker};

    #[test]
    fn last_words_are_of_no_job_and_told_once() {
        let engine = Engine::create(2).unwrap();
        let worker = |slot| {
            assert_eq!(engine.hire().unwrap(), Some(slot));
            Worker::enter(engine.port(), slot).unwrap()
        };
        let (first, second) = (worker(0), worker(1));
        let job = engine.open(Order::Collected, false);
        engine.seal(&job, 1);
        second.leave(Verdict::Done, b"goodbye").unwrap();
        first.leave(Verdict::Failed, b"alas").unwrap();
        let told: Vec<_> = engine
            .exits()
            .into_iter()
            .map(|(slot, outcome)| (slot, outcome.verdict, outcome.payload().to_vec()))
            .collect();
        assert_eq!(told, [(1, Verdict::Done, b"goodbye".to_vec()), (0, Verdict::Failed, b"alas".to_vec())]);
        assert!(engine.exits().is_empty());
        assert!(!job.is_done());
    }
}
