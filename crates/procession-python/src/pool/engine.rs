//! The parent's end.

use std::{
    collections::HashMap,
    io,
    os::fd::{BorrowedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use procession_core::{
    memory::{Travelling, Way},
    pool::{Definition, Engine, Event, Job, Order, Reaction},
};
use pyo3::{
    IntoPyObjectExt, PyTraverseError, PyVisit,
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
    types::{PyDict, PyDictMethods, PyTuple},
};

use super::{
    MEASURED, Mode, PATIENCE, PoolPort,
    backlog::{Backlog, Deferred, PoolBacklog},
    by_value::{Main, with_pickle_of},
    exits,
    functions::Functions,
    has_function, is_large,
    results::{ApplyResult, Call, Callbacks, MapResult},
    streams::{IMapIterator, PoolFeed},
    terms::{self, TaskTerms},
};
use crate::{
    laden::{self, Load},
    plain::Numbers,
};

/// What the parent has of a pool besides its processes.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct PoolEngine {
    pub(super) engine: Engine,
    pub(super) functions: Functions,
    /// The results whose callbacks are still to be called, by the numbers of their jobs.
    unsettled: Mutex<HashMap<u64, Py<ApplyResult>>>,
    /// Calls that wait until the workers have taken more of those before them.
    pub(super) backlog: Backlog,
    main: Main,
    /// The thread that attends to the pool: in `run`, or in what that had it do.
    attendant: Mutex<Option<ThreadId>>,
}

/// What the tasks of a call have in common.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) function: Py<PyAny>,
    definition: Definition,
    mode: u32,
    /// Shared arrays in a function that was pickled already, by value, to go with each task.
    lent: Vec<Travelling>,
}

impl Recipe {
    /// Whether the workers know the function, so that it need not go with each task.
    pub(super) fn is_defined(&self) -> bool {
        has_function(self.definition)
    }

    /// The same, with workers that tell how long each item took.
    pub(super) fn measured(self) -> Self {
        Self { mode: self.mode | MEASURED, ..self }
    }
}

impl PoolEngine {
    /// The engine, unless this process was forked from the one that has the pool.
    pub(super) fn here(&self) -> PyResult<&Engine> {
        if self.engine.belongs_here() {
            return Ok(&self.engine);
        }
        Err(PyRuntimeError::new_err(
            "this pool belongs to the process that made it: make a pool of its own in the forked child",
        ))
    }

    pub(super) fn recipe(&self, function: &Bound<'_, PyAny>, mode: Mode) -> PyResult<Recipe> {
        let engine = self.here()?;
        let define = || (self.functions.define(engine, function, self.main.get()), Travelling::of_message());
        let (defined, lent) = Travelling::with_message(Way::Lent, define, |_| true);
        let (definition, function) = defined?;
        Ok(Recipe { function: function.unbind(), definition, mode: mode as u32, lent })
    }

    /// Pickles the arguments of a task and gives it to the workers.
    pub(super) fn submit(&self, job: &Job, index: u64, recipe: &Recipe, payload: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = payload.py();
        let put = |parts: &[&[u8]], buffers: &[&[u8]]| self.submit_pickle(py, job, index, recipe, parts, buffers);
        if recipe.is_defined() {
            with_pickle_of(payload, self.main.get(), Way::Lent, put)?
        } else {
            let both = (recipe.function.bind(py), payload).into_bound_py_any(py)?;
            with_pickle_of(&both, self.main.get(), Way::Lent, put)?
        }
    }

    /// Gives a task to the workers.
    pub(super) fn submit_pickle(
        &self,
        py: Python<'_>,
        job: &Job,
        index: u64,
        recipe: &Recipe,
        parts: &[&[u8]],
        buffers: &[&[u8]],
    ) -> PyResult<()> {
        let mut lent = Travelling::of_message();
        lent.extend_from_slice(&recipe.lent);
        job.lend(index, lent);
        let submitted = if laden::is_worth_it(parts, buffers) {
            py.detach(|| self.submit_laden(job, index, recipe, parts, buffers))
        } else {
            let submit = || self.engine.submit(job, index, recipe.definition, recipe.mode, parts);
            // Other threads may go on while much is copied.
            if is_large(parts) { py.detach(submit) } else { submit() }.map_err(PyErr::from)
        };
        submitted.inspect_err(|_| job.take_back(index))
    }

    /// Gives a task to the workers whose large parts go in blocks.
    fn submit_laden(&self, job: &Job, index: u64, recipe: &Recipe, parts: &[&[u8]], buffers: &[&[u8]]) -> PyResult<()> {
        let fill = |parts: &[&[u8]], patience| self.engine.fill(job, parts, patience);
        let load = Load::new(&fill, parts, buffers, PATIENCE);
        let (payload, blocks) = load.into_parts();
        let payload: Vec<&[u8]> = payload.iter().map(AsRef::as_ref).collect();
        Ok(self.engine.submit_laden(job, index, recipe.definition, recipe.mode, &payload, &[], blocks)?)
    }

    /// Pickles a call and gives it to the workers; what goes wrong is the call's result.
    pub(super) fn submit_call(&self, py: Python<'_>, task: &Deferred) {
        if task.call.job().is_cancelled() {
            return;
        }
        let (func, args, kwds) = (task.func.bind(py), task.args.bind(py), task.kwds.bind(py));
        let submit = || {
            if kwds.cast::<PyDict>().is_ok_and(PyDictMethods::is_empty) {
                return self.submit(task.call.job(), 0, &self.recipe(func, Mode::Call)?, args);
            }
            let both = (args, kwds).into_bound_py_any(py)?;
            self.submit(task.call.job(), 0, &self.recipe(func, Mode::CallWithKeywords)?, &both)
        };
        if let Err(error) = submit() {
            task.call.refuse(py, 0, error);
        }
    }

    fn open_call(
        slf: &Bound<'_, Self>,
        owner: Bound<'_, PyAny>,
        function: &Bound<'_, PyAny>,
        callbacks: Callbacks,
        terms: Option<&Bound<'_, TaskTerms>>,
    ) -> PyResult<Arc<Call>> {
        let engine = slf.get().here()?;
        let notify = callbacks.on_value.is_some() || callbacks.on_error.is_some();
        let job = engine.open_with(Order::Collected, notify, terms::of_call(terms));
        Ok(Arc::new(Call::new(slf, job, &owner, function, callbacks)))
    }

    fn next(
        &self,
        py: Python<'_>,
        event: impl Fn() -> io::Result<Option<Event>> + Sync,
    ) -> PyResult<Option<Py<PyAny>>> {
        loop {
            match py.detach(&event)? {
                Some(Event::Over) | None => return Ok(None),
                // As another kind of number: the one's complement of the place.
                Some(Event::Condemned(place)) => return (!place.cast_signed()).into_py_any(py).map(Some),
                Some(Event::Ended(place)) => return place.into_py_any(py).map(Some),
                Some(Event::Finished(job)) => {
                    let result = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.id());
                    if let Some(result) = result {
                        return result.into_py_any(py).map(Some);
                    }
                    // `terminate` has dropped it since: its callbacks are not called, and nobody is to wait for that.
                    py.detach(|| self.engine.settle(&job));
                }
            }
        }
    }

    /// Whether this is the thread that attends to the pool.
    pub(super) fn is_attendant(&self) -> bool {
        *self.attendant.lock().unwrap_or_else(PoisonError::into_inner) == Some(thread::current().id())
    }

    /// The result's callbacks are called when it is there; until then it is kept, whatever the caller does.
    fn keep_until_settled(&self, call: &Call, result: &Bound<'_, ApplyResult>) {
        if call.job().notifies() && !call.job().is_settled() {
            let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
            unsettled.insert(call.job().id(), result.clone().unbind());
        }
    }
}

#[pymethods]
impl PoolEngine {
    /// For a pool of so many workers.
    #[new]
    fn new(places: usize) -> PyResult<Self> {
        Ok(Self {
            engine: Engine::create(places)?,
            functions: Functions::default(),
            unsettled: Mutex::default(),
            backlog: Backlog::default(),
            main: Main::new(),
            attendant: Mutex::default(),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(unsettled) = self.unsettled.try_lock() {
            for result in unsettled.values() {
                visit.call(result)?;
            }
        }
        if let Some(main) = self.main.get() {
            visit.call(main)?;
        }
        self.functions.traverse(&visit)
    }

    fn __clear__(&self) {
        let taken = std::mem::take(&mut *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner));
        drop(taken);
        self.functions.clear();
    }

    /// What a worker is handed.
    fn port(&self) -> PyResult<PoolPort> {
        Ok(PoolPort::new(self.here()?.port()))
    }

    /// A place for a worker that is about to be started; None if no more are needed.
    fn hire(&self) -> PyResult<Option<usize>> {
        Ok(self.here()?.hire()?)
    }

    /// Watch over the worker of a place, by its sentinel.
    fn watch(&self, place: usize, sentinel: RawFd) -> PyResult<()> {
        if sentinel < 0 {
            return Err(PyValueError::new_err("a sentinel is the number of an open descriptor"));
        }
        // SAFETY: it is used only in this call, during which the interpreter's lock is held and the process object
        // that it belongs to is not closed.
        #[allow(unsafe_code)]
        let sentinel = unsafe { BorrowedFd::borrow_raw(sentinel) };
        Ok(self.here()?.watch(place, sentinel)?)
    }

    /// The worker of a place has ended, or could not be started; `how` goes with the task it had in hand. Returns
    /// "replace" or "shrink" or "give up".
    fn retire(&self, py: Python<'_>, place: usize, how: &[u8]) -> PyResult<&'static str> {
        let engine = self.here()?;
        Ok(match py.detach(|| engine.retire(place, how)) {
            Reaction::Replace => "replace",
            Reaction::Shrink => "shrink",
            Reaction::GiveUp => "give up",
        })
    }

    /// Wait for something to do: a number is the place of a worker that has ended, or, if it is negative, `~place` of one
    /// that is to be killed; a result has callbacks to be called. None: the pool is over.
    fn run(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let engine = self.here()?;
        *self.attendant.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
        self.next(py, || engine.run().map(Some))
    }

    /// As `run()`, without waiting: None also if there is nothing to do.
    fn run_now(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let engine = self.here()?;
        self.next(py, || engine.run_now())
    }

    /// No more calls; when all is done the workers end.
    fn close(&self) {
        if self.engine.belongs_here() {
            self.engine.close();
        }
    }

    /// What is under way is given up.
    fn terminate(&self) {
        if self.engine.belongs_here() {
            self.engine.terminate();
            let unsettled = std::mem::take(&mut *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner));
            drop(unsettled);
            self.backlog.clear();
        }
    }

    /// Whether this is the process that made it.
    fn belongs_here(&self) -> bool {
        self.engine.belongs_here()
    }

    /// The main module is not a file: `main` tells which of its functions and classes the workers know, and sends the others.
    fn send_main(&self, main: Py<PyAny>) {
        // Once, when the pool is made.
        let _ = self.main.set(main);
    }

    /// What workers told when they ended, since this was last asked for: whether it went well, and a value or an exception.
    fn exit_results(&self, py: Python<'_>) -> PyResult<Vec<(bool, Py<PyAny>)>> {
        exits::of(py, self)
    }

    /// So many more workers are needed.
    fn grow(&self, more: usize) -> PyResult<()> {
        self.here()?.grow(more);
        Ok(())
    }

    /// So many workers fewer are needed. As many end when they are through with what they are at.
    fn shrink(&self, py: Python<'_>, fewer: usize) -> PyResult<()> {
        let engine = self.here()?;
        py.detach(|| engine.shrink(fewer)).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
            _ => error.into(),
        })
    }

    /// How many workers there should be.
    fn places(&self) -> PyResult<usize> {
        Ok(self.here()?.places())
    }

    /// How many calls are under way.
    fn jobs(&self) -> PyResult<usize> {
        Ok(self.here()?.jobs())
    }

    /// Has a worker call `func(*args, **kwds)`.
    #[pyo3(signature = (owner, func, args, kwds, callback = None, error_callback = None, terms = None))]
    #[allow(clippy::too_many_arguments)] // they are those of Pool.apply_async
    fn apply_async<'py>(
        slf: &Bound<'py, Self>,
        owner: Bound<'py, PyAny>,
        func: &Bound<'py, PyAny>,
        args: &Bound<'py, PyAny>,
        kwds: &Bound<'py, PyAny>,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
        terms: Option<&Bound<'py, TaskTerms>>,
    ) -> PyResult<Bound<'py, ApplyResult>> {
        let py = slf.py();
        let task_owner = owner.clone();
        let callbacks = Callbacks { on_value: callback, on_error: error_callback };
        let call = Self::open_call(slf, owner, func, callbacks, terms)?;
        let result = Bound::new(py, ApplyResult::new(call.clone()))?;
        let this = slf.get();
        this.keep_until_settled(&call, &result);
        this.engine.seal(call.job(), 1);
        let task =
            Deferred { call, func: func.clone().unbind(), args: args.clone().unbind(), kwds: kwds.clone().unbind() };
        let first = match this.backlog.push(task, |priority| !this.engine.is_full_for(priority)) {
            Err(task) => {
                this.submit_call(py, &task);
                this.engine.submitted();
                return Ok(result);
            }
            // What is still to be taken by workers is much already: this one is pickled later on, in its turn.
            Ok(first) => first,
        };
        if first {
            let feed = Bound::new(py, PoolBacklog(slf.clone().unbind()))?;
            let feeding = task_owner.getattr("_crew").and_then(|crew| crew.call_method1("feed", (feed,)));
            if feeding.is_err() {
                // No thread can be had: then now, and at the cost of memory, rather than never.
                while let Some((priority, task)) = this.backlog.next() {
                    this.submit_call(py, &task);
                    this.backlog.submitted(priority);
                }
                this.engine.submitted();
            }
        }
        Ok(result)
    }

    /// Has the workers call `func` for each item, chunks of them at a time, as the returned feed is fed. Returns the
    /// result, and the feed. A `chunksize` of zero stands for "auto".
    #[pyo3(signature = (owner, func, items, chunksize, star, callback = None, error_callback = None, terms = None))]
    #[allow(clippy::too_many_arguments)] // they are those of Pool.map_async
    fn map_async<'py>(
        slf: &Bound<'py, Self>,
        owner: Bound<'py, PyAny>,
        func: &Bound<'py, PyAny>,
        items: &Bound<'py, PyAny>,
        chunksize: usize,
        star: bool,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
        terms: Option<&Bound<'py, TaskTerms>>,
    ) -> PyResult<(Bound<'py, ApplyResult>, Bound<'py, PoolFeed>)> {
        let py = slf.py();
        let callbacks = Callbacks { on_value: callback, on_error: error_callback };
        let call = Self::open_call(slf, owner, func, callbacks, terms)?;
        let result = Bound::new(py, PyClassInitializer::from(ApplyResult::new(call.clone())).add_subclass(MapResult))?;
        let result = result.into_super();
        slf.get().keep_until_settled(&call, &result);
        let mode = if star { Mode::StarMap } else { Mode::Map };
        let any = result.clone().into_any();
        Ok((result, Bound::new(py, PoolFeed::new(call, &any, func, mode, items, chunksize))?))
    }

    /// Has the workers call `func` for each item, as the returned feed is fed. Returns the iterator over what comes back,
    /// and the feed. A `chunksize` of zero stands for "auto".
    #[pyo3(signature = (owner, func, items, chunksize, ordered, terms = None))]
    fn stream<'py>(
        slf: &Bound<'py, Self>,
        owner: &Bound<'py, PyAny>,
        func: &Bound<'py, PyAny>,
        items: &Bound<'py, PyAny>,
        chunksize: usize,
        ordered: bool,
        terms: Option<&Bound<'py, TaskTerms>>,
    ) -> PyResult<(Bound<'py, IMapIterator>, Bound<'py, PoolFeed>)> {
        let order = if ordered { Order::Sequence } else { Order::Arrival };
        let job = slf.get().here()?.open_with(order, false, terms::of_call(terms));
        let call = Arc::new(Call::new(slf, job, owner, func, Callbacks::default()));
        let iterator = IMapIterator::over(slf.py(), call.clone(), ordered, chunksize != 1)?;
        let mode = if chunksize == 1 { Mode::Single } else { Mode::Map };
        let any = iterator.clone().into_any();
        Ok((iterator, Bound::new(slf.py(), PoolFeed::new(call, &any, func, mode, items, chunksize))?))
    }

    /// How many tasks are still to be taken by the workers.
    fn waiting(&self) -> PyResult<u64> {
        Ok(self.here()?.statistics().queued + self.backlog.len() as u64)
    }

    /// Whether so much is still to be taken by the workers that more had better wait.
    fn is_full(&self) -> bool {
        self.engine.is_full()
    }
}

/// The next items of an iterator.
pub(super) enum Chunk<'py> {
    /// As a tuple.
    Tuple(Bound<'py, PyTuple>),
    /// All of them numbers: the pickle of the tuple.
    Numbers(Numbers),
}

impl Chunk<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Tuple(items) => items.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }
}

/// The next items of an iterator; `None` if there are none left. With a `patience`, as many as come in that time. They may be
/// pickled if they are `defined` as all that is to be pickled.
pub(super) fn chunk_of<'py>(
    py: Python<'py>,
    items: &mut Bound<'py, pyo3::types::PyIterator>,
    size: usize,
    patience: Option<Duration>,
    defined: bool,
) -> PyResult<Option<Chunk<'py>>> {
    let mut numbers = defined.then(Numbers::new);
    let mut chunk = Vec::new();
    let mut count = 0;
    let began = patience.map(|_| Instant::now());
    while count < size.max(1) {
        let Some(item) = items.next().transpose()? else { break };
        count += 1;
        if !numbers.as_mut().map_or(Ok(false), |numbers| numbers.add(&item))? {
            if let Some(numbers) = numbers.take() {
                chunk = numbers.into_items(py);
            }
            chunk.push(item);
        }
        if began.is_some_and(|began| Some(began.elapsed()) >= patience) {
            break;
        }
    }
    match numbers {
        _ if count == 0 => Ok(None),
        Some(numbers) => Ok(Some(Chunk::Numbers(numbers))),
        None => Ok(Some(Chunk::Tuple(PyTuple::new(py, chunk)?))),
    }
}
