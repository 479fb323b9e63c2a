//! Which jobs are under way, and what follows from what is heard of them. Nothing here waits, sleeps or reads a ring.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    job::{Job, Order, Outcome},
    message::TaskId,
    terms::Terms,
};

/// The jobs whose outcomes are not all in.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    last: u64,
    jobs: HashMap<u64, Arc<Job>>,
    /// How many of them the face wants to be told of.
    notifying: usize,
    /// How long tasks of jobs under way may take, and how many jobs it is for each.
    limits: BTreeMap<Duration, usize>,
    /// The pool is terminated: every later job is given up at once.
    over: bool,
}

/// What became of a job by something that was heard.
#[derive(Debug)]
pub(super) enum Change {
    /// Nothing that anybody waits for.
    None,
    /// An outcome is there to be taken.
    Progress(Arc<Job>),
    /// All its outcomes are in.
    Done(Arc<Job>),
}

impl Dispatch {
    /// A new job, of no tasks as yet.
    pub(super) fn open(&mut self, order: Order, notify: bool, terms: Terms) -> Arc<Job> {
        self.last += 1;
        let job = Arc::new(Job::new(self.last, order, notify, terms));
        if self.over {
            job.give_up();
        } else {
            self.notifying += usize::from(notify);
            if let Some(limit) = terms.limit {
                *self.limits.entry(limit).or_default() += 1;
            }
            self.jobs.insert(self.last, job.clone());
        }
        job
    }

    /// Has the face be told of the end of a job. False if that has come already.
    pub(super) fn notify(&mut self, job: &Job) -> bool {
        if job.is_done() {
            return false;
        }
        if !job.notifies() {
            job.notify();
            self.notifying += 1;
        }
        true
    }

    /// A task was lost with its worker. Returns its job if it is to be given to another worker.
    pub(super) fn lose(&self, id: TaskId) -> Option<Arc<Job>> {
        self.jobs.get(&id.job).filter(|job| job.lose(id.index)).cloned()
    }

    /// The outcome of a task. Those of unknown tasks, and second ones, change nothing.
    pub(super) fn deliver(&mut self, id: TaskId, outcome: Outcome) -> Change {
        let Some(job) = self.jobs.get(&id.job) else {
            return Change::None;
        };
        if !job.deliver(id.index, outcome) {
            return Change::None;
        }
        let job = job.clone();
        self.changed(job)
    }

    /// The number of a job's tasks.
    pub(super) fn seal(&mut self, job: u64, total: u64) -> Change {
        let Some(job) = self.jobs.get(&job).cloned() else {
            return Change::None;
        };
        job.seal(total);
        self.changed(job)
    }

    /// Ends a job that nobody wants any more. `None` if it is done already.
    pub(super) fn cancel(&mut self, job: u64) -> Option<Change> {
        let job = self.jobs.get(&job)?.clone();
        job.cancel();
        Some(self.changed(job))
    }

    /// The priority of the tasks of a job; `None` if nobody waits for any of them.
    pub(super) fn priority(&self, job: u64) -> Option<i32> {
        self.jobs.get(&job).map(|job| job.terms().priority)
    }

    fn changed(&mut self, job: Arc<Job>) -> Change {
        if !job.is_done() {
            return Change::Progress(job);
        }
        self.jobs.remove(&job.id());
        self.notifying -= usize::from(job.notifies());
        if let Some(limit) = job.terms().limit
            && let Some(count) = self.limits.get_mut(&limit)
        {
            *count -= 1;
            if *count == 0 {
                self.limits.remove(&limit);
            }
        }
        Change::Done(job)
    }

    /// Gives up all jobs, and all that are to come. Returns those it ended.
    pub(super) fn give_up(&mut self) -> Vec<Arc<Job>> {
        self.over = true;
        self.notifying = 0;
        self.limits.clear();
        let jobs: Vec<_> = self.jobs.drain().map(|(_, job)| job).collect();
        for job in &jobs {
            job.give_up();
        }
        jobs
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many jobs are under way.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The shortest limit of a job that is under way.
    pub(super) fn shortest_limit(&self) -> Option<Duration> {
        self.limits.keys().next().copied()
    }

    /// Whether the face wants to know of the end of any job that is under way.
    pub(super) fn notifies(&self) -> bool {
        self.notifying > 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        super::{
            job::Next,
            message::{ResultHeader, Verdict},
        },
        *,
    };

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome::new(verdict, vec![0; ResultHeader::LENGTH].into())
    }

    #[test]
    fn a_job_ends_with_its_last_outcome() {
        let mut dispatch = Dispatch::default();
        let job = dispatch.open(Order::Collected, true, Terms::default());
        job.make(9);
        assert!(matches!(dispatch.seal(job.id(), 2), Change::Progress(_)));
        let task = |index| TaskId { job: job.id(), index };
        assert!(matches!(dispatch.deliver(task(1), outcome(Verdict::Done)), Change::Progress(_)));
        assert!(matches!(dispatch.deliver(task(1), outcome(Verdict::Lost)), Change::None));
        assert!(!dispatch.is_idle());
        assert!(dispatch.notifies());
        assert!(
            matches!(dispatch.deliver(task(0), outcome(Verdict::Done)), Change::Done(done) if done.id() == job.id())
        );
        assert!(dispatch.is_idle());
        assert!(matches!(dispatch.deliver(task(0), outcome(Verdict::Done)), Change::None));
    }

    #[test]
    fn the_face_may_ask_later_on_to_be_told() {
        let mut dispatch = Dispatch::default();
        let job = dispatch.open(Order::Collected, false, Terms::default());
        job.make(9);
        dispatch.seal(job.id(), 1);
        for _ in 0..2 {
            assert!(dispatch.notify(&job));
            assert!(dispatch.notifies());
        }
        let id = TaskId { job: job.id(), index: 0 };
        assert!(matches!(dispatch.deliver(id, outcome(Verdict::Done)), Change::Done(done) if done.notifies()));
        assert!(!dispatch.notifies());
        assert!(!dispatch.notify(&job), "it is done");
        assert!(job.is_settled(), "nothing is to be waited for but its end");
    }

    #[test]
    fn outcomes_of_unknown_jobs_are_ignored() {
        let mut dispatch = Dispatch::default();
        assert!(matches!(dispatch.deliver(TaskId { job: 9, index: 0 }, outcome(Verdict::Done)), Change::None));
        assert!(matches!(dispatch.seal(9, 0), Change::None));
    }

    #[test]
    fn a_stream_ends_when_its_length_is_known_and_reached() {
        let mut dispatch = Dispatch::default();
        let job = dispatch.open(Order::Sequence, false, Terms::default());
        job.make(9);
        let first = TaskId { job: job.id(), index: 0 };
        assert!(matches!(dispatch.deliver(first, outcome(Verdict::Done)), Change::Progress(_)));
        assert!(matches!(dispatch.seal(job.id(), 1), Change::Done(_)));
    }

    #[test]
    fn after_giving_up_every_job_is_given_up() {
        let mut dispatch = Dispatch::default();
        let before = dispatch.open(Order::Collected, false, Terms::default());
        let ended = dispatch.give_up();
        assert_eq!(ended.iter().map(|job| job.id()).collect::<Vec<_>>(), [before.id()]);
        let after = dispatch.open(Order::Sequence, false, Terms::default());
        for job in [before, after] {
            assert!(matches!(job.next(), Next::Outcome(_, outcome) if outcome.verdict == Verdict::Terminated));
            assert!(matches!(job.next(), Next::End));
        }
        assert!(dispatch.is_idle());
    }

    #[test]
    fn the_shortest_limit_is_that_of_jobs_under_way() {
        let mut dispatch = Dispatch::default();
        let seconds = |number| Some(Duration::from_secs(number));
        let mut open = |limit| {
            let job = dispatch.open(Order::Collected, false, Terms { limit: seconds(limit), ..Terms::default() });
            job.make(0);
            dispatch.seal(job.id(), 1);
            job.id()
        };
        let (one, also_one, two) = (open(1), open(1), open(2));
        for (job, then) in [(one, seconds(1)), (also_one, seconds(2)), (two, None)] {
            dispatch.deliver(TaskId { job, index: 0 }, outcome(Verdict::Done));
            assert_eq!(dispatch.shortest_limit(), then);
        }
        dispatch.open(Order::Collected, false, Terms { limit: seconds(1), ..Terms::default() });
        dispatch.give_up();
        assert_eq!(dispatch.shortest_limit(), None);
    }
}
