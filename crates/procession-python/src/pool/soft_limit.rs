//! Asking a task to come to an end: an exception that is raised in it when its soft time limit is over.
//!
//! A timer of the worker's own sends a signal to the main thread, whose handler, as any of Python's, runs between two
//! steps of whatever that thread runs. It raises only while a task is run whose time is over, and once. The task is run as
//! long as `deadline` says so, which is set and reset where no handler can run. So a signal that comes late finds that
//! there is no such task, or another one whose time is not over, and does nothing.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use procession_core::process::SignalTimer;
use pyo3::{prelude::*, sync::PyOnceLock};

/// The soft limit of the task that a worker process runs.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug, Default)]
pub(crate) struct SoftLimit {
    /// When the time of the task is over, by the clock of [`now`]; 0: it has no limit, it was asked already, or there is no
    /// task.
    deadline: AtomicU64,
    /// In seconds, as bits.
    limit: AtomicU64,
    timer: Mutex<Option<SignalTimer>>,
}

/// Nanoseconds of the timer's clock.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

#[pymethods]
impl SoftLimit {
    /// The signal's handler.
    fn __call__(&self, py: Python<'_>, _signum: &Bound<'_, PyAny>, _frame: &Bound<'_, PyAny>) -> PyResult<()> {
        let deadline = self.deadline.load(Ordering::Relaxed);
        if deadline == 0 || now() < deadline {
            return Ok(());
        }
        self.deadline.store(0, Ordering::Relaxed);
        let seconds = f64::from_bits(self.limit.load(Ordering::Relaxed));
        let limits = py.import("procession.limits")?;
        Err(PyErr::from_value(limits.call_method1("_soft_limit_reached", (seconds,))?))
    }
}

impl SoftLimit {
    /// Runs a task, in which an exception is raised after so long.
    ///
    /// # Errors
    ///
    /// Those of the task, and if there is no timer to be had.
    pub(super) fn run<R>(py: Python<'_>, limit: Duration, task: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
        static OF_THIS_PROCESS: PyOnceLock<Py<SoftLimit>> = PyOnceLock::new();
        let this = OF_THIS_PROCESS.get_or_try_init(py, || Py::new(py, Self::default()))?;
        this.get().prepare(py, this)?;
        let this = this.get();
        let nanoseconds = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        this.limit.store(limit.as_secs_f64().to_bits(), Ordering::Relaxed);
        this.deadline.store(now().saturating_add(nanoseconds), Ordering::Relaxed);
        this.with_timer(|timer| timer.set(limit))?;
        let result = task();
        // Nothing of Python's runs between the end of the task and this.
        this.deadline.store(0, Ordering::Relaxed);
        this.with_timer(SignalTimer::clear)?;
        result
    }

    /// Makes the timer, and has its signal handled, if that was not done in this process.
    fn prepare(&self, py: Python<'_>, handler: &Py<Self>) -> PyResult<()> {
        let timer = || self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        if timer().as_ref().is_some_and(SignalTimer::belongs_here) {
            return Ok(());
        }
        let limits = py.import("procession.limits")?;
        let signal = limits.call_method1("_listen", (handler,))?.extract()?;
        *timer() = Some(SignalTimer::new(signal)?);
        Ok(())
    }

    fn with_timer(&self, call: impl FnOnce(&SignalTimer) -> io::Result<()>) -> io::Result<()> {
        self.timer.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Ok(()), call)
    }
}
