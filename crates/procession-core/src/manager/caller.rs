//! Who calls a method of an object, as the object sees it.

use std::{
    cell::Cell,
    sync::{Condvar, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    Failure,
    objects::Held,
    protocol::{ClientId, ObjectId},
    server::{Line, Shared},
};
use crate::{process::ProcessId, sync::Slices};

pub(super) type Undo = Box<dyn FnOnce()>;

/// A call under way: who made it, and what the object can do for it.
pub struct Caller<'a> {
    pub(super) server: &'a Shared,
    pub(super) line: &'a Line,
    pub(super) thread: u64,
    pub(super) undo: Cell<Option<Undo>>,
}

impl std::fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("client", &self.client()).field("thread", &self.thread).finish_non_exhaustive()
    }
}

/// Why a wait for another client ended without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The time is over.
    TimedOut,
    /// The client that called is gone, or the server ends: there is nobody to reply to.
    Gone,
}

impl From<Gone> for Failure {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

/// The client that called is gone, or the server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl Caller<'_> {
    /// The client, which is a process.
    pub fn client(&self) -> ClientId {
        self.line.client
    }

    /// The process of the client, if it told and is of this machine.
    pub fn process(&self) -> Option<ProcessId> {
        self.line.process
    }

    /// A number for the thread that called: no other thread of any client has it at the same time.
    pub fn thread(&self) -> u64 {
        self.thread
    }

    /// Keeps an object from within another one.
    ///
    /// # Errors
    ///
    /// There is no such object: [`Failure::BadArguments`].
    pub fn hold(&self, id: ObjectId) -> Result<Held, Failure> {
        self.server.objects.hold(id).ok_or_else(|| Failure::BadArguments(format!("there is no object {id}")))
    }

    /// Counts a reference of the client to an object, which the reply tells it of.
    pub fn grant(&self, held: &Held) {
        self.server.objects.retain(self.client(), held.id());
    }

    /// Has `undo` called if the client turns out to be gone when the reply is sent.
    pub fn if_undelivered(&self, undo: impl FnOnce() + 'static) {
        self.undo.set(Some(Box::new(undo)));
    }

    /// For waiting until another client does something; until `deadline`, if there is one.
    pub fn waiting(&self, deadline: Option<Instant>) -> Waiting<'_> {
        Waiting { caller: self, deadline, slices: Slices::new() }
    }

    /// Whether there is nobody to reply to any more.
    pub fn is_gone(&self) -> bool {
        self.server.stopping.load(Ordering::Relaxed) || self.line.hung_up()
    }
}

/// A wait of a caller: ends when the caller is gone, too.
#[derive(Debug)]
pub struct Waiting<'a> {
    caller: &'a Caller<'a>,
    deadline: Option<Instant>,
    slices: Slices,
}

impl Waiting<'_> {
    /// Waits on a condition variable; returns for whatever reason it does, to have the state looked at again.
    ///
    /// Once the caller is gone, nothing may be taken in its name; a notification that it was sent instead of another is
    /// passed on.
    ///
    /// # Errors
    ///
    /// [`Ended`]; with the guard, which is released if dropped.
    pub fn wait<'m, T>(
        &mut self,
        condvar: &Condvar,
        guard: MutexGuard<'m, T>,
    ) -> Result<MutexGuard<'m, T>, (MutexGuard<'m, T>, Ended)> {
        let mut slice = self.slices.next();
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err((guard, Ended::TimedOut));
            }
            slice = slice.min(left);
        }
        let (guard, _) = condvar.wait_timeout(guard, slice).unwrap_or_else(PoisonError::into_inner);
        if self.caller.is_gone() {
            condvar.notify_one();
            return Err((guard, Ended::Gone));
        }
        Ok(guard)
    }
}
