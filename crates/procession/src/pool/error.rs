//! What can go wrong with a pool and its tasks.

use std::{io, time::Duration};

use procession_core::{
    pool::{Outcome, Verdict},
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
    #[error("the worker (process {pid}) {}", ended(*.exit))]
    WorkerLost {
        /// The process it was.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
    /// It took longer than the pool's [`task_timeout`](super::PoolBuilder::task_timeout), and its worker was killed.
    #[error("the task took longer than {limit:?}, and its worker (process {pid}) was killed")]
    TimedOut {
        /// The process that was killed.
        pid: u32,
        /// What the limit is.
        limit: Duration,
    },
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
    /// Killed by the pool, as its task had had its time.
    Overdue(u32, Duration),
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

    /// The error of the task that it had in hand.
    fn lost(self) -> TaskError {
        match self {
            Self::Exited(pid, code) => TaskError::WorkerLost { pid, exit: Exit::Code(code) },
            Self::Killed(pid, signal) => TaskError::WorkerLost { pid, exit: Exit::Signal(signal) },
            Self::Unknown(pid) => TaskError::WorkerLost { pid, exit: Exit::Unknown },
            Self::Overdue(pid, limit) => TaskError::TimedOut { pid, limit },
            Self::NotStarted(_) => TaskError::WorkerLost { pid: 0, exit: Exit::Unknown },
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Exited(pid, code) => format!("process {pid} exited with code {code}"),
            Self::Killed(pid, signal) => format!("process {pid} was ended by signal {signal}"),
            Self::Unknown(pid) | Self::Overdue(pid, _) => format!("process {pid} ended"),
            Self::NotStarted(problem) => format!("one could not be started: {problem}"),
        }
    }
}

/// The error that the outcome of a task stands for; `None` if it stands for a result.
pub(super) fn error_of(outcome: &Outcome) -> Option<TaskError> {
    let payload = outcome.payload();
    let unreadable = |error: postcard::Error| TaskError::Decode(error.into());
    Some(match outcome.verdict {
        Verdict::Done => return None,
        Verdict::Failed => match postcard::from_bytes(payload) {
            Ok(Failure::Panicked(panic)) => TaskError::Panicked(panic),
            Ok(Failure::Arguments(why)) => TaskError::Arguments(why),
            Ok(Failure::Unsendable(why)) => TaskError::Unsendable(why),
            Err(error) => unreadable(error),
        },
        Verdict::Lost | Verdict::Overdue => postcard::from_bytes(payload).map_or_else(unreadable, End::lost),
        Verdict::Unserved => {
            postcard::from_bytes(payload).map_or_else(unreadable, |end: End| TaskError::NoWorkers(end.describe()))
        }
        // Refused ones are kept where they were refused; an end is not of a task.
        Verdict::Terminated | Verdict::Cancelled | Verdict::Refused | Verdict::End => TaskError::Terminated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_is_told_to_its_task() {
        let pass = |end: End| postcard::from_bytes::<End>(&end.to_bytes()).unwrap();
        for exit in [Exit::Code(3), Exit::Signal(9), Exit::Unknown] {
            let TaskError::WorkerLost { pid: 7, exit: told } = pass(End::of(7, exit)).lost() else {
                panic!("not lost");
            };
            assert_eq!(told, exit);
        }
        let limit = Duration::from_millis(1500);
        let late = pass(End::Overdue(7, limit)).lost();
        assert!(matches!(late, TaskError::TimedOut { pid: 7, limit: told } if told == limit));
        assert_eq!(late.to_string(), "the task took longer than 1.5s, and its worker (process 7) was killed");
        let lost = End::of(7, Exit::Signal(11)).lost().to_string();
        assert_eq!(lost, "the worker (process 7) was ended by signal 11 during the task");
        assert!(End::NotStarted("no room".into()).describe().ends_with("no room"));
    }
}
