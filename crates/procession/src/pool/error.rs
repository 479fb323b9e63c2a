//! What can go wrong with a pool and its tasks.

use std::{io, time::Duration};

use procession_core::{
    pool::{Job, Outcome, Verdict},
    process::Exit,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::AsyncResult;
use crate::{
    code::ForeignCode,
    message::{DecodeError, EncodeError},
    panic::Panic,
    start::StartError,
};

/// A pool can't be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PoolError {
    /// It was to have none.
    #[error("a pool needs at least one worker")]
    NoWorkers,
    /// The pool belongs to the process that this one was forked from.
    #[error("this pool belongs to the process that made it: make a pool of its own in the forked child")]
    Forked,
    /// Its workers are to run on a CPU that there is not, or that this process may not use; or on none.
    #[error("workers can't be bound to CPU {0:?}: it is not among those that this process may use")]
    Cpu(Option<usize>),
    /// A worker process can't be started.
    #[error("a worker can't be started: {0}")]
    Start(#[from] StartError),
    /// The arguments of its initializer can't be sent.
    #[error("the initializer's arguments can't be sent: {0}")]
    Encode(#[from] EncodeError),
    /// Its initializer can't be named to other processes.
    #[error(transparent)]
    Function(#[from] ForeignCode),
    /// Descriptors, memory or threads are lacking.
    #[error("no pool can be made: {0}")]
    Io(#[from] io::Error),
}

/// A task was not handed to the workers.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The pool was closed or terminated.
    #[error("the pool is closed: it takes no more tasks")]
    Closed,
    /// The pool belongs to the process that this one was forked from.
    #[error("this pool belongs to the process that made it: make a pool of its own in the forked child")]
    Forked,
    /// The arguments can't be sent.
    #[error("the arguments can't be sent: {0}")]
    Encode(#[from] EncodeError),
    /// The function can't be named to other processes.
    #[error(transparent)]
    Function(#[from] ForeignCode),
    /// Memory for the task is lacking, or it has more descriptors than can go along.
    #[error("the task can't be handed to the workers: {0}")]
    Io(#[from] io::Error),
}

/// Why a task has no result.
///
/// Whatever happens to a worker, each task ends with a result or with one of these.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Its function panicked. The worker goes on.
    #[error("the task {0}")]
    Panicked(Panic),
    /// The worker process ended while it was at the task: it was killed, or aborted, or exited. Another one takes its
    /// place, and no other task is affected.
    #[error("the worker (process {pid}) {}{}", ended(*.exit), others(*.attempts))]
    WorkerLost {
        /// The process it was.
        pid: u32,
        /// How it ended.
        exit: Exit,
        /// How many workers the task was given to, all of which ended: one, but for [`retries`](super::CallOptions::retries).
        attempts: u32,
    },
    /// It took longer than its [`timeout`](super::CallOptions::timeout), or the pool's
    /// [`task_timeout`](super::PoolBuilder::task_timeout), and its worker was killed.
    #[error("the task took longer than {limit:?}, and its worker (process {pid}) was killed")]
    TimedOut {
        /// The process that was killed.
        pid: u32,
        /// What the limit is.
        limit: Duration,
    },
    /// It was cancelled: see [`AsyncResult::cancel`].
    #[error("the task was cancelled")]
    Cancelled,
    /// The pool was terminated, or dropped, before the task was done.
    #[error("the pool was terminated before the task was done")]
    Terminated,
    /// No worker is there to run it, and none can be had: they end before they are ready. Most likely the pool's
    /// initializer panics.
    #[error("the pool has no workers: they ended before they were ready for tasks ({0}), so see what they printed")]
    NoWorkers(String),
    /// The worker can't read the arguments.
    #[error("the arguments can't be read by the worker: {0}")]
    Arguments(String),
    /// The worker can't send the result.
    #[error("the result can't be sent by the worker: {0}")]
    Unsendable(String),
    /// The result can't be read in this process.
    #[error("the result can't be read: {0}")]
    Decode(#[from] DecodeError),
    /// It was in a chunk with others that could not be sent or read as a whole. The first of them has the reason itself.
    #[error("its chunk failed: {0}")]
    Chunk(String),
    /// It was not handed to the workers.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The result was given out before: a future was polled again after its end.
    #[error("the result was given out before")]
    Taken,
}

fn ended(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exited with code {code} during the task"),
        Exit::Signal(signal) => format!("was ended by signal {signal} during the task"),
        Exit::Unknown => String::from("ended during the task"),
    }
}

fn others(attempts: u32) -> String {
    match attempts {
        0 | 1 => String::new(),
        2 => String::from(", as another one did before"),
        _ => format!(", as {} others did before", attempts - 1),
    }
}

/// A result has not come in time, or there is none.
#[derive(Error)]
#[non_exhaustive]
pub enum GetError<R> {
    /// It is still to come: here is the handle again.
    #[error("the result has not come in time")]
    TimedOut(AsyncResult<R>),
    /// The task failed.
    #[error(transparent)]
    Failed(TaskError),
}

impl<R> std::fmt::Debug for GetError<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut(result) => f.debug_tuple("TimedOut").field(result).finish(),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// What a worker sends of a task that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    Panicked(Panic),
    Arguments(String),
    Unsendable(String),
}

/// What has become of a worker: goes with the task that was in its hands.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum End {
    Exited(u32, i32),
    Killed(u32, i32),
    Unknown(u32),
    NotStarted(String),
}

impl End {
    pub(super) fn of(pid: u32, exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self::Exited(pid, code),
            Exit::Signal(signal) => Self::Killed(pid, signal),
            Exit::Unknown => Self::Unknown(pid),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Nothing in it can't be written.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Which process it was, and how it ended.
    fn told(self) -> (u32, Exit) {
        match self {
            Self::Exited(pid, code) => (pid, Exit::Code(code)),
            Self::Killed(pid, signal) => (pid, Exit::Signal(signal)),
            Self::Unknown(pid) => (pid, Exit::Unknown),
            Self::NotStarted(_) => (0, Exit::Unknown),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Exited(pid, code) => format!("process {pid} exited with code {code}"),
            Self::Killed(pid, signal) => format!("process {pid} was ended by signal {signal}"),
            Self::Unknown(pid) => format!("process {pid} ended"),
            Self::NotStarted(problem) => format!("one could not be started: {problem}"),
        }
    }
}

/// The error that the outcome of a task stands for; `None` if it stands for a result.
pub(super) fn error_of(outcome: &Outcome, job: &Job) -> Option<TaskError> {
    let payload = outcome.payload();
    let unreadable = |error: postcard::Error| TaskError::Decode(error.into());
    let end = || postcard::from_bytes::<End>(payload);
    let attempts = outcome.deaths;
    Some(match outcome.verdict {
        Verdict::Done => return None,
        Verdict::Failed => failure_in(payload),
        Verdict::Lost => end().map_or_else(unreadable, |end| {
            let (pid, exit) = end.told();
            TaskError::WorkerLost { pid, exit, attempts }
        }),
        Verdict::Overdue => end().map_or_else(unreadable, |end| {
            let limit = job.terms().limit.unwrap_or_default();
            TaskError::TimedOut { pid: end.told().0, limit }
        }),
        Verdict::Unserved => end().map_or_else(unreadable, |end| TaskError::NoWorkers(end.describe())),
        Verdict::Cancelled => TaskError::Cancelled,
        // Refused ones are kept where they were refused; an end is not of a task.
        Verdict::Terminated | Verdict::Refused | Verdict::End => TaskError::Terminated,
    })
}

/// What a worker has sent instead of a result.
pub(super) fn failure_in(payload: &[u8]) -> TaskError {
    match postcard::from_bytes(payload) {
        Ok(Failure::Panicked(panic)) => TaskError::Panicked(panic),
        Ok(Failure::Arguments(why)) => TaskError::Arguments(why),
        Ok(Failure::Unsendable(why)) => TaskError::Unsendable(why),
        Err(error) => TaskError::Decode(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_is_told_to_its_task() {
        let pass = |end: End| postcard::from_bytes::<End>(&end.to_bytes()).unwrap();
        for exit in [Exit::Code(3), Exit::Signal(9), Exit::Unknown] {
            assert_eq!(pass(End::of(7, exit)).told(), (7, exit));
        }
        let text = |attempts| TaskError::WorkerLost { pid: 7, exit: Exit::Signal(11), attempts }.to_string();
        assert_eq!(text(1), "the worker (process 7) was ended by signal 11 during the task");
        assert_eq!(text(2), text(1) + ", as another one did before");
        assert_eq!(text(4), text(1) + ", as 3 others did before");
        let late = TaskError::TimedOut { pid: 7, limit: Duration::from_millis(1500) };
        assert_eq!(late.to_string(), "the task took longer than 1.5s, and its worker (process 7) was killed");
        assert!(End::NotStarted("no room".into()).describe().ends_with("no room"));
    }
}
