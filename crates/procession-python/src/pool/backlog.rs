//! Calls that are not pickled before the workers have taken more of those before them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pyo3::prelude::*;

use super::{engine::PoolEngine, results::Call};

/// A call that has not been pickled yet.
#[derive(Debug)]
pub(super) struct Deferred {
    pub(super) call: Arc<Call>,
    pub(super) func: Py<PyAny>,
    pub(super) args: Py<PyAny>,
    pub(super) kwds: Py<PyAny>,
}

/// The calls that wait, by priority.
#[derive(Debug, Default)]
pub(super) struct Backlog(Mutex<Classes>);

type Classes = BTreeMap<Reverse<i32>, VecDeque<Arc<Deferred>>>;

impl Backlog {
    fn classes(&self) -> MutexGuard<'_, Classes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call, unless none is there that comes before it and `has_room` says that there is room: then it is given back.
    /// Tells otherwise whether it is the first.
    pub(super) fn push(&self, task: Deferred, has_room: impl FnOnce(i32) -> bool) -> Result<bool, Deferred> {
        let priority = task.call.job().terms().priority;
        let mut classes = self.classes();
        if classes.range(..=Reverse(priority)).next().is_none() && has_room(priority) {
            return Err(task);
        }
        let first = classes.is_empty();
        classes.entry(Reverse(priority)).or_default().push_back(Arc::new(task));
        Ok(first)
    }

    pub(super) fn len(&self) -> usize {
        self.classes().values().map(VecDeque::len).sum()
    }

    /// The call whose turn it is, and its priority. It stays in its place until it is submitted, so that later calls queue up
    /// behind it.
    pub(super) fn next(&self) -> Option<(i32, Arc<Deferred>)> {
        let classes = self.classes();
        let (Reverse(priority), class) = classes.first_key_value()?;
        Some((*priority, class.front()?.clone()))
    }

    /// The one that was the next was submitted. False if no other is left.
    pub(super) fn submitted(&self, priority: i32) -> bool {
        let mut classes = self.classes();
        if let Some(class) = classes.get_mut(&Reverse(priority)) {
            let done = class.pop_front();
            if class.is_empty() {
                classes.remove(&Reverse(priority));
            }
            let left = !classes.is_empty();
            // Not under the lock: it may be the last to have what it was called with.
            drop(classes);
            drop(done);
            return left;
        }
        !classes.is_empty()
    }

    pub(super) fn clear(&self) {
        let taken = std::mem::take(&mut *self.classes());
        drop(taken);
    }
}

/// Hands the calls to the workers that had to wait until these had taken what was there.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct PoolBacklog(pub(super) Py<PoolEngine>);

#[pymethods]
impl PoolBacklog {
    /// Hands at most `count` calls over, as far as there is room. Returns False when none is left.
    fn feed(&self, py: Python<'_>, count: usize) -> PyResult<bool> {
        let this = self.0.get();
        let engine = this.here()?;
        for number in 0..count {
            let Some((priority, task)) = this.backlog.next() else {
                return Ok(false);
            };
            if number == 0 {
                py.detach(|| engine.wait_for_room_for(priority));
            }
            if engine.is_full_for(priority) {
                break;
            }
            this.submit_call(py, &task);
            drop(task);
            if !this.backlog.submitted(priority) {
                engine.submitted();
                return Ok(false);
            }
        }
        engine.submitted();
        Ok(true)
    }
}
