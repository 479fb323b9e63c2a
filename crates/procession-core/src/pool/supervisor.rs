//! What to do when a worker has ended. Nothing here waits or starts anything.

/// How many workers in a row may end before they were ready to take a task, beyond one for each place.
///
/// A few may be bad luck (the machine was short of memory, say). All of them is an initializer that fails, or a main
/// module that can't be imported: no later one will do better.
const PATIENCE: usize = 3;

/// What is to be done when a worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Start another one in its place.
    Replace,
    /// Leave its place empty: there are as many as there should be, or new workers end before they are ready, but others
    /// are at work.
    Shrink,
    /// Nobody is left and starting more does not help: what is queued can't be run.
    GiveUp,
}

/// Counts the workers that never got ready.
#[derive(Debug)]
pub(super) struct Supervisor {
    places: usize,
    early_ends: usize,
}

impl Supervisor {
    /// For a pool of so many workers.
    pub(super) fn new(places: usize) -> Self {
        Self { places, early_ends: 0 }
    }

    /// The pool is to have so many workers from now on.
    pub(super) fn resize(&mut self, places: usize) {
        self.places = places;
    }

    /// A worker has ended, or could not be started. `was_ready` tells whether it had come so far as to take tasks,
    /// `others_ready` whether any other has and still lives.
    pub(super) fn ended(&mut self, was_ready: bool, others_ready: bool) -> Reaction {
        if was_ready {
            self.early_ends = 0;
            return Reaction::Replace;
        }
        self.early_ends += 1;
        if self.early_ends < self.places + PATIENCE {
            Reaction::Replace
        } else if others_ready {
            Reaction::Shrink
        } else {
            Reaction::GiveUp
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_were_at_work_are_always_replaced() {
        let mut supervisor = Supervisor::new(2);
        for _ in 0..100 {
            assert_eq!(supervisor.ended(true, false), Reaction::Replace);
        }
    }

    #[test]
    fn workers_that_never_get_ready_are_not_started_for_ever() {
        let mut supervisor = Supervisor::new(2);
        let mut starts = 0;
        while supervisor.ended(false, false) == Reaction::Replace {
            starts += 1;
            assert!(starts < 100);
        }
        assert_eq!(starts, 2 + PATIENCE - 1);
        assert_eq!(supervisor.ended(false, false), Reaction::GiveUp);
        assert_eq!(supervisor.ended(false, true), Reaction::Shrink);
    }

    #[test]
    fn one_that_gets_ready_shows_that_it_can_be_done() {
        let mut supervisor = Supervisor::new(1);
        for _ in 0..PATIENCE {
            assert_eq!(supervisor.ended(false, false), Reaction::Replace);
        }
        assert_eq!(supervisor.ended(true, false), Reaction::Replace);
        assert_eq!(supervisor.ended(false, false), Reaction::Replace);
    }
}
