//! The worker's end.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Instant,
};

use procession_core::{
    channel::{Along, TakeError},
    memory::{Travelling, Way},
    pool::{Definition, Port, Task, Verdict, Worker},
    process::resident,
};
use pyo3::{
    exceptions::{PyMemoryError, PyOSError, PyRuntimeError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyTuple},
};

use super::{MEASURED, Mode, PATIENCE, SoftLimit, by_value::with_pickle_of, has_function, is_large, of_pool_module};
use crate::{
    laden::{self, Load},
    pickling::{loads, with_arrays},
    wait::{Timeout, block},
};

/// What a worker process is handed.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct PoolPort(Port);

impl PoolPort {
    pub(super) fn new(port: Port) -> Self {
        Self(port)
    }
}

#[pymethods]
impl PoolPort {
    /// What to hand over to a process that is not forked.
    fn _share<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyTuple>)> {
        let numbers = self.0.descriptors().map(|fd| fd.as_raw_fd());
        Ok((PyBytes::new(py, b""), PyTuple::new(py, numbers)?))
    }

    /// From what another process handed over; takes the descriptors.
    #[staticmethod]
    #[allow(unsafe_code)]
    fn _attach(_state: &[u8], fds: [RawFd; 4]) -> PyResult<Self> {
        // SAFETY: whoever calls this gives the descriptors away.
        let fds = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok(Self(Port::attach(fds)?))
    }

    /// Take the place of a worker in the pool.
    fn enter(&self, place: usize) -> PyResult<PoolWorker> {
        Ok(PoolWorker(Worker::enter(self.0.clone(), place)?))
    }
}

/// A worker process's place in its pool.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct PoolWorker(Worker);

#[pymethods]
impl PoolWorker {
    /// Do tasks, until the pool has no more, or `most` are done, or this process has more than `most_memory` bytes after one.
    /// With a `state`, functions get it as their first argument. Returns how many tasks it was.
    #[pyo3(signature = (most = None, state = None, most_memory = None))]
    fn serve(
        &self,
        py: Python<'_>,
        most: Option<u64>,
        state: Option<Py<PyAny>>,
        most_memory: Option<u64>,
    ) -> PyResult<u64> {
        let mut functions = Functions { state, known: HashMap::new() };
        let mut done = 0;
        self.0.ready();
        while most.is_none_or(|most| done < most) {
            let taken = block(py, Timeout::FOREVER, |wait| match self.0.take(wait) {
                Err(TakeError::Wait(error)) => Err(error),
                other => Ok(other),
            })?;
            let task = match taken {
                Some(Ok(Some(task))) => task,
                Some(Ok(None)) => break,
                Some(Err(TakeError::Read(error))) => return Err(PyOSError::new_err(error.to_string())),
                Some(Err(error)) => return Err(PyRuntimeError::new_err(error.to_string())),
                None => continue,
            };
            let mut task = task;
            self.run(py, &mut task, &mut functions)?;
            self.0.recycle(task);
            done += 1;
            if let Some(most) = most_memory
                && resident()? > most
            {
                break;
            }
        }
        Ok(done)
    }

    /// Tell what the pool is to know at the end of this worker: a pickle, or a failure as `procession.pool` writes it.
    fn leave(&self, succeeded: bool, told: &[u8]) -> PyResult<()> {
        Ok(self.0.leave(if succeeded { Verdict::Done } else { Verdict::Failed }, told)?)
    }
}

/// The functions this worker has been asked to call.
struct Functions {
    /// What each of them gets as its first argument, if anything.
    state: Option<Py<PyAny>>,
    /// By the numbers of their definitions.
    known: HashMap<u32, Py<PyAny>>,
}

impl Functions {
    /// The function as it is to be called.
    fn bind<'py>(&self, function: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        static PARTIAL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = function.py();
        match &self.state {
            Some(state) => PARTIAL.import(py, "functools", "partial")?.call1((function, state)),
            None => Ok(function),
        }
    }
}

/// Nanoseconds for each of the items of a task that took from `began` until now, as far as they can be told; never zero.
fn pace(began: Instant, value: &Bound<'_, PyAny>) -> u32 {
    let items = value.len().unwrap_or(1).max(1);
    u32::try_from(began.elapsed().as_nanos() / items as u128).unwrap_or(u32::MAX).max(1)
}

impl PoolWorker {
    /// Runs a task and sends what comes of it.
    fn run(&self, py: Python<'_>, task: &mut Task, functions: &mut Functions) -> PyResult<()> {
        let began = (task.mode() & MEASURED != 0).then(Instant::now);
        let called = match task.soft_limit() {
            None => self.call(py, task, functions),
            Some(limit) => SoftLimit::run(py, limit, || self.call(py, task, functions)),
        };
        let sent = match called {
            Ok(value) => match with_pickle_of(&value, None, Way::Sent, |parts, buffers| {
                let pace = began.map_or(0, |began| pace(began, &value));
                if laden::is_worth_it(parts, buffers) {
                    return py.detach(|| self.send_laden(task, pace, parts, buffers));
                }
                self.send(py, task, Verdict::Done, pace, parts)
            }) {
                Ok(sent) => sent,
                Err(error) => return self.report(py, task, "_unencodable_result", (error.into_value(py), value)),
            },
            Err(error) => return self.report(py, task, "_failure", (error.into_value(py),)),
        };
        match sent {
            Err(error) if error.is_instance_of::<PyOSError>(py) => self.report(
                py,
                task,
                "_unencodable_result",
                (error.into_value(py), "a result too large for the memory"),
            ),
            other => other,
        }
    }

    /// Sends a result whose large parts go in blocks.
    fn send_laden(&self, task: &Task, pace: u32, parts: &[&[u8]], buffers: &[&[u8]]) -> PyResult<()> {
        let fill = |parts: &[&[u8]], patience| self.0.fill(parts, patience);
        let load = Load::new(&fill, parts, buffers, PATIENCE);
        Ok(self.0.finish_along(
            task.id(),
            Verdict::Done,
            pace,
            &load.parts(),
            load.along(),
            &Travelling::of_message(),
        )?)
    }

    fn send(&self, py: Python<'_>, task: &Task, verdict: Verdict, pace: u32, payload: &[&[u8]]) -> PyResult<()> {
        let finish =
            || self.0.finish_along(task.id(), verdict, pace, payload, Along::default(), &Travelling::of_message());
        Ok(if is_large(payload) { py.detach(finish) } else { finish() }?)
    }

    /// Sends a failure, as `procession.pool` puts it into bytes.
    fn report<'py>(
        &self,
        py: Python<'py>,
        task: &Task,
        how: &str,
        about: impl pyo3::call::PyCallArgs<'py>,
    ) -> PyResult<()> {
        with_arrays(Way::Sent, || {
            let payload = of_pool_module(py, how)?.call1(about)?;
            Ok(self.send(py, task, Verdict::Failed, 0, &[payload.cast::<PyBytes>()?.as_bytes()]))
        })?
    }

    fn call<'py>(&self, py: Python<'py>, task: &mut Task, functions: &mut Functions) -> PyResult<Bound<'py, PyAny>> {
        let mode = Mode::from_number(task.mode() & !MEASURED)
            .ok_or_else(|| PyRuntimeError::new_err("a task of an unknown kind"))?;
        let blocks = task.take_blocks();
        let payload = laden::loads(py, task.payload(), blocks)?;
        let (function, payload) = if has_function(task.definition()) {
            (self.function(py, task.definition(), functions)?, payload)
        } else {
            let (function, payload) = payload.extract()?;
            (functions.bind(function)?, payload)
        };
        match mode {
            Mode::Call => match payload.cast::<PyTuple>() {
                Ok(arguments) => function.call1(arguments),
                Err(_) => function.call1(of_builtins_tuple(&payload)?),
            },
            Mode::CallWithKeywords => {
                let (arguments, keywords): (Bound<'_, PyAny>, Bound<'_, PyAny>) = payload.extract()?;
                let merged = PyDict::new(py);
                merged.update(keywords.cast()?)?;
                function.call(of_builtins_tuple(&arguments)?, Some(&merged))
            }
            Mode::Single => function.call1((payload,)),
            Mode::Map => of_pool_module(py, "mapstar")?.call1(((function, payload),)),
            Mode::StarMap => of_pool_module(py, "starmapstar")?.call1(((function, payload),)),
        }
    }

    fn function<'py>(
        &self,
        py: Python<'py>,
        definition: Definition,
        functions: &mut Functions,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(function) = functions.known.get(&definition.number) {
            return Ok(function.bind(py).clone());
        }
        let bytes = self.0.definition(definition).map_err(|error| PyMemoryError::new_err(error.to_string()))?;
        let function = functions.bind(loads(py, &bytes)?)?;
        functions.known.insert(definition.number, function.clone().unbind());
        Ok(function)
    }
}

/// Positional arguments may be given as any iterable.
fn of_builtins_tuple<'py>(arguments: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
    match arguments.cast::<PyTuple>() {
        Ok(tuple) => Ok(tuple.clone()),
        Err(_) => PyTuple::new(arguments.py(), arguments.try_iter()?.collect::<PyResult<Vec<_>>>()?),
    }
}
