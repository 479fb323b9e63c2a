//! What `imap` and `imap_unordered` return, and what feeds it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procession_core::pool::{Engine, Job, Next, Pace};
use pyo3::{
    PyTraverseError, PyVisit,
    exceptions::{PyRuntimeError, PyStopIteration},
    prelude::*,
    sync::MutexExt,
    types::{PyDict, PyIterator, PyTuple},
};

use super::{
    Mode,
    engine::{Chunk, Recipe, chunk_of},
    results::{Call, timeout_error},
};
use crate::wait::{Timeout, block};

/// What `Pool.imap()` returns: an iterator over the results, in the order of the items.
#[pyclass(module = "procession.pool", name = "IMapIterator", frozen, subclass, weakref)]
#[derive(Debug)]
pub(crate) struct IMapIterator {
    /// `None` only in instances of Python subclasses that do all by themselves.
    call: Option<Arc<Call>>,
    /// If results come in chunks: what is left of the last one.
    chunk: Option<Mutex<Option<Py<PyIterator>>>>,
}

/// What `Pool.imap_unordered()` returns: an iterator over the results, as they come.
#[pyclass(module = "procession.pool", name = "IMapUnorderedIterator", extends = IMapIterator, frozen, subclass)]
#[derive(Debug)]
pub(crate) struct IMapUnorderedIterator;

impl IMapIterator {
    pub(super) fn over(py: Python<'_>, call: Arc<Call>, ordered: bool, chunks: bool) -> PyResult<Bound<'_, Self>> {
        let base = Self { call: Some(call), chunk: chunks.then(Mutex::default) };
        if ordered {
            return Bound::new(py, base);
        }
        Ok(Bound::new(py, PyClassInitializer::from(base).add_subclass(IMapUnorderedIterator))?.into_super())
    }

    fn call(&self) -> PyResult<&Call> {
        self.call.as_deref().ok_or_else(|| PyRuntimeError::new_err("not of a pool of processes"))
    }

    /// The next one of the chunk that was begun.
    fn next_of_chunk(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(chunk) = &self.chunk else {
            return Ok(None);
        };
        let mut chunk = chunk.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        let next = chunk.as_ref().and_then(|items| items.bind(py).clone().next()).transpose()?;
        if next.is_none() {
            *chunk = None;
        }
        Ok(next.map(Bound::unbind))
    }
}

#[pymethods]
impl IMapIterator {
    /// For subclasses that do all by themselves.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn make(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { call: None, chunk: None }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(Ok(chunk)) = self.chunk.as_ref().map(Mutex::try_lock) {
            visit.call(&*chunk)?;
        }
        self.call.as_ref().map_or(Ok(()), |call| call.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(call) = &self.call {
            call.clear();
        }
        if let Some(chunk) = &self.chunk {
            let taken = chunk.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(taken);
        }
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.next(py, None)
    }

    /// How many results were taken out, or chunks of them.
    fn _taken(&self) -> PyResult<u64> {
        Ok(self.call()?.job().taken())
    }

    /// Do without what is still to come: what waits for a worker is never begun, a worker that is at it is killed, and no
    /// more items are taken from the iterable. The results that are there already can be had; then
    /// `concurrent.futures.CancelledError` is raised, once. False if all results are there.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        self.call()?.cancel(py)
    }

    /// Whether it was cancelled before all results were there.
    fn cancelled(&self) -> PyResult<bool> {
        Ok(self.call()?.job().is_cancelled())
    }

    /// The next result. `TimeoutError` if it does not come within `timeout` seconds.
    #[pyo3(signature = (timeout = None))]
    fn next(&self, py: Python<'_>, timeout: Option<Timeout>) -> PyResult<Py<PyAny>> {
        let timeout = timeout.unwrap_or(Timeout::FOREVER);
        let call = self.call()?;
        loop {
            if let Some(next) = self.next_of_chunk(py)? {
                return Ok(next);
            }
            match call.job().next() {
                Next::Outcome(index, mut outcome) => {
                    let value = call.value_of(py, index, &mut outcome)?;
                    let Some(chunk) = &self.chunk else {
                        return Ok(value.unbind());
                    };
                    let items = value.try_iter()?.unbind();
                    *chunk.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner) = Some(items);
                    continue;
                }
                Next::End => {
                    call.let_go();
                    return Err(PyStopIteration::new_err(()));
                }
                Next::Pending => {}
            }
            if !call.wait(py, timeout, Job::has_next)? {
                return Err(PyErr::from_value(timeout_error(py)?.call0()?));
            }
        }
    }
}

#[pymethods]
impl IMapUnorderedIterator {
    /// For subclasses that do all by themselves.
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn make(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(IMapIterator::make(args, kwargs)).add_subclass(Self)
    }
}

/// Takes items from an iterator and has the workers do them. For the thread that feeds a pool.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct PoolFeed {
    call: Arc<Call>,
    /// What the caller got, which is the one that shows the collector what the call keeps.
    result: Py<PyAny>,
    recipe: PyResult<Recipe>,
    chunksize: Option<usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` when it has ended.
    items: Option<PyResult<Py<PyIterator>>>,
    index: u64,
    auto: Option<Auto>,
}

/// What chooses the sizes of chunks.
#[derive(Debug)]
struct Auto {
    pace: Pace,
    /// How many items are left, if that is known.
    left: Option<u64>,
}

impl PoolFeed {
    pub(super) fn new(
        call: Arc<Call>,
        result: &Bound<'_, PyAny>,
        func: &Bound<'_, PyAny>,
        mode: Mode,
        items: &Bound<'_, PyAny>,
        chunksize: usize,
    ) -> Self {
        let mut recipe = call.engine().recipe(func, mode);
        let chunksize = (mode != Mode::Single).then_some(chunksize);
        let auto = (chunksize == Some(0)).then(|| {
            call.job().paces();
            let workers = call.engine().engine.workers();
            Auto { pace: Pace::new(workers), left: items.len().ok().map(|left| left as u64) }
        });
        if auto.is_some() {
            recipe = recipe.map(Recipe::measured);
        }
        let items = items.try_iter().map(Bound::unbind);
        let result = result.clone().unbind();
        Self { call, result, recipe, chunksize, state: Mutex::new(State { items: Some(items), index: 0, auto }) }
    }

    fn finish(&self, py: Python<'_>, engine: &Engine, mut state: MutexGuard<'_, State>) {
        let items = state.items.take();
        let total = state.index;
        drop(state);
        drop(items);
        py.detach(|| {
            engine.end(self.call.job(), total);
            engine.submitted();
        });
    }

    /// Waits until there is to be another chunk of a size to be chosen. False if there is to be none.
    fn awaits_chunk(&self, py: Python<'_>, engine: &Engine) -> PyResult<bool> {
        let state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        let Some(window) = state.auto.as_ref().map(|auto| auto.pace.window()) else {
            return Ok(true);
        };
        drop(state);
        let job = self.call.job();
        let ready = |job: &Job| job.is_done() || job.under_way() < window;
        if !ready(job) {
            engine.submitted();
            while block(py, Timeout::FOREVER, |wait| engine.wait(job, ready, wait))?.is_none() {}
        }
        // Its end is not known as yet: if it is done, it was given up.
        Ok(!job.is_done())
    }

    fn one(&self, py: Python<'_>, state: &mut State) -> PyResult<bool> {
        let Some(items) = &state.items else {
            return Ok(false);
        };
        let recipe = self.recipe.as_ref().map_err(|error| error.clone_ref(py))?;
        let mut items = items.as_ref().map_err(|error| error.clone_ref(py))?.bind(py).clone();
        let (engine, job, index) = (self.call.engine(), self.call.job(), state.index);
        let chunk = match (self.chunksize, &mut state.auto) {
            (None, _) => {
                let Some(item) = items.next().transpose()? else { return Ok(false) };
                engine.submit(job, index, recipe, &item)?;
                state.index += 1;
                return Ok(true);
            }
            (Some(size), None) => chunk_of(py, &mut items, size, None, recipe.is_defined())?,
            (Some(_), Some(auto)) => {
                let size = auto.pace.next(job.pace(), auto.left);
                let chunk = chunk_of(py, &mut items, size, Some(Pace::patience()), recipe.is_defined())?;
                if let (Some(left), Some(chunk)) = (&mut auto.left, &chunk) {
                    *left = left.saturating_sub(chunk.len() as u64);
                }
                chunk
            }
        };
        match chunk {
            None => return Ok(false),
            Some(Chunk::Tuple(items)) => engine.submit(job, index, recipe, &items)?,
            Some(Chunk::Numbers(numbers)) => {
                engine.submit_pickle(py, job, index, recipe, &[&numbers.into_pickle()], &[])?;
            }
        }
        state.index += 1;
        Ok(true)
    }
}

#[pymethods]
impl PoolFeed {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.result)
    }

    /// Hands at most `count` items to the workers, or chunks of them, as far as there is room. Returns False at the end.
    #[pyo3(signature = (count, wait = true))]
    fn feed(&self, py: Python<'_>, count: usize, wait: bool) -> PyResult<bool> {
        let engine = self.call.engine().here()?;
        if wait {
            let priority = self.call.job().terms().priority;
            py.detach(|| engine.wait_for_room_for(priority));
        }
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        if state.items.is_none() {
            return Ok(false);
        }
        for _ in 0..count {
            // Its end is not known as yet: if it is done, it was given up.
            if self.call.job().is_done() {
                self.finish(py, engine, state);
                return Ok(false);
            }
            if self.is_full() {
                break;
            }
            if state.auto.is_some() {
                drop(state);
                let more = self.awaits_chunk(py, engine)?;
                state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
                if !more {
                    self.finish(py, engine, state);
                    return Ok(false);
                }
            }
            let more = match self.one(py, &mut state) {
                Ok(more) => more,
                Err(error) => {
                    self.call.refuse(py, state.index, error);
                    state.index += 1;
                    false
                }
            };
            if !more {
                self.finish(py, engine, state);
                return Ok(false);
            }
        }
        drop(state);
        engine.submitted();
        Ok(true)
    }

    /// Whether so much is still to be taken by the workers before it that more had better wait.
    fn is_full(&self) -> bool {
        let job = self.call.job();
        self.call.engine().engine.is_full_for(job.terms().priority)
    }

    /// How many items were handed over, or chunks of them.
    fn submitted(&self, py: Python<'_>) -> u64 {
        self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner).index
    }

    /// Hand over no more.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        // In a forked child there is nothing to end.
        if !self.call.engine().engine.belongs_here() {
            return Ok(());
        }
        let engine = self.call.engine().here()?;
        let state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        if state.items.is_some() {
            self.finish(py, engine, state);
        }
        Ok(())
    }
}
