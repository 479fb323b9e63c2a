//! What `apply_async` and `map_async` return.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use procession_core::{
    memory::Travelling,
    pool::{Job, Next, Outcome, Verdict},
};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyBaseException, PyRuntimeError, PyValueError},
    prelude::*,
    sync::{MutexExt, PyOnceLock},
    types::{PyDict, PyList, PyTuple},
};

use super::{PoolEngine, of_pool_module};
use crate::{
    laden,
    pickling::loads,
    wait::{Timeout, block},
};

/// A call under way, or done.
#[derive(Debug)]
pub(super) struct Call {
    engine: Py<PoolEngine>,
    job: Arc<Job>,
    /// The pool, which lives until the call is done, and the function, which is named if a worker dies with it.
    kept: Mutex<Option<(Py<PyAny>, Py<PyAny>)>>,
    callbacks: Mutex<Callbacks>,
    /// Why tasks were refused, by their index.
    refused: Mutex<HashMap<u64, Py<PyBaseException>>>,
}

/// What is to be called when a call is done.
#[derive(Debug, Default)]
pub(super) struct Callbacks {
    pub(super) on_value: Option<Py<PyAny>>,
    pub(super) on_error: Option<Py<PyAny>>,
}

impl Call {
    pub(super) fn new(
        engine: &Bound<'_, PoolEngine>,
        job: Arc<Job>,
        owner: &Bound<'_, PyAny>,
        function: &Bound<'_, PyAny>,
        callbacks: Callbacks,
    ) -> Self {
        Self {
            engine: engine.clone().unbind(),
            job,
            kept: Mutex::new(Some((owner.clone().unbind(), function.clone().unbind()))),
            callbacks: Mutex::new(callbacks),
            refused: Mutex::default(),
        }
    }

    pub(super) fn job(&self) -> &Arc<Job> {
        &self.job
    }

    pub(super) fn engine(&self) -> &PoolEngine {
        self.engine.get()
    }

    /// A task that could not be pickled, say: the error is what its caller gets.
    pub(super) fn refuse(&self, py: Python<'_>, index: u64, error: PyErr) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(index, error.into_value(py));
        let engine = &self.engine.get().engine;
        py.detach(|| engine.refuse(&self.job, index));
    }

    /// The value of an outcome, or the exception that it stands for.
    pub(super) fn value_of<'py>(
        &self,
        py: Python<'py>,
        index: u64,
        outcome: &mut Outcome,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (blocks, arrays) = (outcome.take_blocks(), outcome.take_arrays());
        let payload = outcome.payload();
        let raised = match outcome.verdict {
            Verdict::Done => match Travelling::with_arrived(arrays, || laden::loads(py, payload, blocks)) {
                Ok(value) => return Ok(value),
                Err(error) => of_pool_module(py, "_undecodable_result")?.call1((error.into_value(py),))?,
            },
            Verdict::Failed => match Travelling::with_arrived(arrays, || failure(py, payload)) {
                Ok(raised) => raised,
                Err(error) => {
                    of_pool_module(py, "_undecodable_error")?.call1((error.into_value(py), traceback(payload)))?
                }
            },
            Verdict::Refused => {
                let reason = self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
                return Err(reason.map_or_else(
                    || PyRuntimeError::new_err("the task could not be sent"),
                    |reason| PyErr::from_value(reason.into_bound(py).into_any()),
                ));
            }
            Verdict::Lost | Verdict::Unserved => {
                let taken = outcome.verdict == Verdict::Lost;
                let arguments = (loads(py, payload)?, self.function(py), index, taken, outcome.deaths);
                of_pool_module(py, "_lost_task")?.call1(arguments)?
            }
            Verdict::Overdue => {
                let limit = self.job.terms().limit.unwrap_or_default().as_secs_f64();
                let limits = py.import("procession.limits")?;
                limits.call_method1("_overdue_task", (loads(py, payload)?, self.function(py), index, limit))?
            }
            Verdict::Cancelled => of_pool_module(py, "_cancelled_task")?.call0()?,
            Verdict::Terminated | Verdict::End => of_pool_module(py, "_terminated_task")?.call0()?,
        };
        Err(PyErr::from_value(raised))
    }

    /// Nobody wants it any more. False if it is done.
    pub(super) fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        let engine = self.engine.get().here()?;
        Ok(py.detach(|| engine.cancel(&self.job)))
    }

    /// The function that is called, as long as it is not known what came of that.
    fn function(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map(|(_, function)| function.clone_ref(py))
    }

    /// Waits until `ready` says so; `false` if the time is over.
    pub(super) fn wait(
        &self,
        py: Python<'_>,
        timeout: Timeout,
        ready: impl Fn(&Job) -> bool + Send + Sync,
    ) -> PyResult<bool> {
        if ready(&self.job) {
            return Ok(true);
        }
        let engine = self.engine.get().here()?;
        if self.engine.get().is_attendant() {
            return self.wait_and_attend(py, timeout, ready);
        }
        Ok(block(py, timeout, |wait| engine.wait(&self.job, ready, wait))?.is_some())
    }

    /// A callback waits for another result, and keeps the thread that attends to the pool from doing so: it does it here,
    /// as otherwise nobody hears of the end of the very worker that is at the task, or calls the callback that belongs
    /// to the result.
    fn wait_and_attend(
        &self,
        py: Python<'_>,
        timeout: Timeout,
        ready: impl Fn(&Job) -> bool + Send + Sync,
    ) -> PyResult<bool> {
        const SLICE: Duration = Duration::from_millis(20);
        let engine = self.engine.get().here()?;
        let deadline = timeout.deadline(Instant::now());
        loop {
            let slice =
                deadline.map_or(SLICE, |deadline| SLICE.min(deadline.saturating_duration_since(Instant::now())));
            if block(py, Timeout::after(slice), |wait| engine.wait(&self.job, &ready, wait))?.is_some() {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(false);
            }
            // Not held meanwhile: this very call may be concluded there.
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let owner = kept.as_ref().map(|(owner, _)| owner.clone_ref(py));
            drop(kept);
            if let Some(owner) = owner {
                owner.bind(py).getattr("_crew")?.call_method0("attend_meanwhile")?;
            }
        }
    }

    /// Shows the collector what is kept: for the one object that all others which have the call refer to.
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.engine)?;
        // What is in use at the moment is no garbage.
        if let Ok(kept) = self.kept.try_lock()
            && let Some((owner, function)) = &*kept
        {
            visit.call(owner)?;
            visit.call(function)?;
        }
        if let Ok(callbacks) = self.callbacks.try_lock() {
            visit.call(&callbacks.on_value)?;
            visit.call(&callbacks.on_error)?;
        }
        if let Ok(refused) = self.refused.try_lock() {
            for reason in refused.values() {
                visit.call(reason)?;
            }
        }
        Ok(())
    }

    /// Lets go of all that could be a part of a cycle.
    pub(super) fn clear(&self) {
        self.let_go();
        let taken = std::mem::take(&mut *self.callbacks.lock().unwrap_or_else(PoisonError::into_inner));
        drop(taken);
        let taken = std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner));
        drop(taken);
    }

    /// The call is done: nothing is kept any longer than needed.
    pub(super) fn let_go(&self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(kept);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // In a forked child there is nobody to deliver, and a lock of the job may have been held at the fork, for ever.
        if self.engine.get().engine.belongs_here() {
            self.job.abandon();
        }
    }
}

/// The exception of a failed task, with the traceback of the worker as its cause.
pub(super) fn failure<'py>(py: Python<'py>, payload: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let (text, pickle) = split_failure(payload);
    let raised = loads(py, pickle)?;
    if !text.is_empty() {
        let cause = of_pool_module(py, "RemoteTraceback")?.call1((text,))?;
        raised.setattr("__cause__", cause)?;
    }
    Ok(raised)
}

pub(super) fn traceback(payload: &[u8]) -> String {
    split_failure(payload).0
}

/// A failure's payload: the length of the traceback's text in four bytes, the text, and the pickle of the exception.
fn split_failure(payload: &[u8]) -> (String, &[u8]) {
    let Some((length, rest)) = payload.split_first_chunk() else {
        return (String::new(), payload);
    };
    let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
    let (text, pickle) = rest.split_at(length);
    (String::from_utf8_lossy(text).into_owned(), pickle)
}

/// What has been made of a call's outcomes.
#[derive(Debug)]
enum Content {
    /// Nothing, or a part of the list of a map, and the first error met on the way.
    Loading(Option<Py<PyList>>, Option<Py<PyBaseException>>),
    Value(Py<PyAny>),
    Error(Py<PyBaseException>),
}

/// The result of `Pool.apply_async()`, to be waited for.
#[pyclass(module = "procession.pool", name = "ApplyResult", frozen, subclass, weakref, generic)]
#[derive(Debug)]
pub(crate) struct ApplyResult {
    /// `None` only in instances of Python subclasses that do all by themselves.
    call: Option<Arc<Call>>,
    content: Mutex<Content>,
    /// The thread that unpickles it.
    loading: Mutex<Option<ThreadId>>,
}

/// The result of `Pool.map_async()` and `Pool.starmap_async()`, to be waited for.
#[pyclass(module = "procession.pool", name = "MapResult", extends = ApplyResult, frozen, subclass)]
#[derive(Debug)]
pub(crate) struct MapResult;

/// Says for so long as it lives which thread unpickles a result.
struct Loading<'a>(&'a Mutex<Option<ThreadId>>);

impl<'a> Loading<'a> {
    fn by(place: &'a Mutex<Option<ThreadId>>, thread: ThreadId) -> Self {
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Self(place)
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ApplyResult {
    pub(super) fn new(call: Arc<Call>) -> Self {
        Self { call: Some(call), content: Mutex::new(Content::Loading(None, None)), loading: Mutex::new(None) }
    }

    fn call(&self) -> PyResult<&Call> {
        self.call.as_deref().ok_or_else(|| PyRuntimeError::new_err("not the result of a pool of processes"))
    }

    /// Makes what can be made of the outcomes that are there.
    fn load(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let call = this.call()?;
        let me = thread::current().id();
        if *this.loading.lock().unwrap_or_else(PoisonError::into_inner) == Some(me) {
            return Err(PyRuntimeError::new_err(
                "this result is being unpickled by the caller itself: what unpickles it must not ask for it",
            ));
        }
        let mut content = this.content.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        let Content::Loading(list, failed) = &mut *content else {
            return Ok(());
        };
        let _loading = Loading::by(&this.loading, me);
        let is_map = slf.is_instance_of::<MapResult>();
        let loaded = loop {
            match call.job.next() {
                Next::Pending => return Ok(()),
                Next::End => {
                    let list = list.take().unwrap_or_else(|| PyList::empty(py).unbind());
                    break failed.take().map_or_else(|| Content::Value(list.into_any()), Content::Error);
                }
                Next::Outcome(index, mut outcome) => {
                    let value = call.value_of(py, index, &mut outcome);
                    if !is_map {
                        break value.map_or_else(
                            |error| Content::Error(error.into_value(py)),
                            |value| Content::Value(value.unbind()),
                        );
                    }
                    let list = list.get_or_insert_with(|| PyList::empty(py).unbind()).bind(py);
                    let added = value.and_then(|chunk| list.call_method1(pyo3::intern!(py, "extend"), (chunk,)));
                    if let Err(error) = added {
                        failed.get_or_insert_with(|| error.into_value(py));
                    }
                }
            }
        };
        *content = loaded;
        drop(content);
        call.let_go();
        Ok(())
    }

    /// The value, or the error raised; `None` if it is not there.
    fn loaded(&self, py: Python<'_>) -> Option<PyResult<Py<PyAny>>> {
        let content = self.content.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        match &*content {
            Content::Loading(..) => None,
            Content::Value(value) => Some(Ok(value.clone_ref(py))),
            Content::Error(error) => Some(Err(PyErr::from_value(error.bind(py).clone().into_any()))),
        }
    }
}

#[pymethods]
impl ApplyResult {
    /// For subclasses that do all by themselves.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn make(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { call: None, content: Mutex::new(Content::Loading(None, None)), loading: Mutex::new(None) }
    }

    /// Whether the call has completed.
    fn ready(&self) -> PyResult<bool> {
        let call = self.call()?;
        if !call.job.is_settled() && call.engine().engine.belongs_here() {
            call.engine().engine.poll();
        }
        Ok(call.job.is_settled())
    }

    /// Whether the call completed without raising. `ValueError` if it has not completed.
    fn successful(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if !this.ready()? {
            return Err(PyValueError::new_err(format!("{} not ready", slf.repr()?)));
        }
        Self::load(slf)?;
        Ok(matches!(this.loaded(slf.py()), Some(Ok(_))))
    }

    /// Wait until the call has completed, at most `timeout` seconds.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<Timeout>) -> PyResult<()> {
        self.call()?.wait(py, timeout.unwrap_or(Timeout::FOREVER), Job::is_settled)?;
        Ok(())
    }

    /// Do without the call: what waits for a worker is never begun, and a worker that is at it is killed. `get()` raises
    /// `concurrent.futures.CancelledError` then. False if the call has completed before; it stays as it is.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        self.call()?.cancel(py)
    }

    /// Whether it was cancelled before it was complete.
    fn cancelled(&self) -> PyResult<bool> {
        Ok(self.call()?.job.is_cancelled())
    }

    /// What the call returned; if it raised, that is raised. `TimeoutError` after `timeout` seconds.
    #[pyo3(signature = (timeout = None))]
    fn get(slf: &Bound<'_, Self>, timeout: Option<Timeout>) -> PyResult<Py<PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let call = this.call()?;
        let deadline = timeout.and_then(|timeout| timeout.deadline(Instant::now()));
        loop {
            if call.job.is_settled() {
                Self::load(slf)?;
            }
            if call.job.is_settled()
                && let Some(loaded) = this.loaded(py)
            {
                return loaded;
            }
            // The chunks of a map are unpickled while later ones are worked on.
            let in_parts = !call.job.notifies();
            let ready = move |job: &Job| if in_parts { job.has_batch() } else { job.is_settled() };
            if !call.wait(py, Timeout::until(deadline), ready)? {
                return Err(PyErr::from_value(timeout_error(py)?.call0()?));
            }
            Self::load(slf)?;
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(call) = &self.call {
            call.traverse(&visit)?;
        }
        match self.content.try_lock().as_deref() {
            Ok(Content::Loading(list, failed)) => {
                visit.call(list)?;
                visit.call(failed)
            }
            Ok(Content::Value(value)) => visit.call(value),
            Ok(Content::Error(error)) => visit.call(error),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        if let Some(call) = &self.call {
            call.clear();
        }
        let content = std::mem::replace(
            &mut *self.content.lock().unwrap_or_else(PoisonError::into_inner),
            Content::Loading(None, None),
        );
        drop(content);
    }

    /// Calls the callback that is due, if there is one. For the thread that attends to the pool.
    fn _conclude(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let call = this.call()?;
        Self::load(slf)?;
        let callbacks = std::mem::take(&mut *call.callbacks.lock().unwrap_or_else(PoisonError::into_inner));
        let called = match (this.loaded(py), callbacks) {
            (Some(Ok(value)), Callbacks { on_value: Some(callback), .. }) => callback.call1(py, (value,)),
            (Some(Err(error)), Callbacks { on_error: Some(callback), .. }) => {
                callback.call1(py, (error.into_value(py),))
            }
            _ => Ok(py.None()),
        };
        let engine = &call.engine().engine;
        py.detach(|| engine.settle(&call.job));
        called.map(drop)
    }
}

#[pymethods]
impl MapResult {
    /// For subclasses that do all by themselves.
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn make(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(ApplyResult::make(args, kwargs)).add_subclass(Self)
    }
}

/// `procession.TimeoutError`.
pub(super) fn timeout_error(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static TIMEOUT_ERROR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    TIMEOUT_ERROR.import(py, "procession.context", "TimeoutError")
}
