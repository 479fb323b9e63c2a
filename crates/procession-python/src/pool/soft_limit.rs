//! Asking a task to come to an end: an exception that is raised in it when its soft time limit is over.
//!
//! A timer of the worker's own sends a signal to the main thread, whose handler, as any of Python's, runs between two
//! steps of whatever that thread runs. It raises only while a task is run whose time is over, and once. The task is run as
//! long as `deadline` says so, which is set and reset where no handler can run. So a signal that comes late finds that
//! there is no such task, or another one whose time is not over, and does nothing.
//!
//! From Python 3.13 on, a process that was forked by another thread than the main one runs handlers only where it is blocked, and
//! not in a loop. There a thread looks a moment later whether the handler has run, and raises the exception in its
//! place. It does so with the interpreter's lock held, as the end of the task is noted, so this too hits the task or nothing.
#![allow(unsafe_code)]

use std::{
    ffi::c_long,
    io, ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use procession_core::process::SignalTimer;
use pyo3::{ffi, prelude::*, sync::PyOnceLock};

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
    /// The thread that looks whether the handler has run, where that is needed.
    watcher: Mutex<Option<Thread>>,
}

/// How long the handler has before the watcher takes its place, in nanoseconds.
const GRACE: u64 = 100_000_000;

/// Nanoseconds of the timer's clock.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The calling thread, as Python numbers it.
fn this_thread() -> c_long {
    // SAFETY: has no requirements.
    unsafe { libc::pthread_self() }.cast_signed()
}

/// Has an exception of a class raised in a thread before its next step; of none, takes back one that is still to be raised.
/// Called with the interpreter's lock held.
fn raise_in_thread(thread: c_long, class: *mut ffi::PyObject) {
    // SAFETY: the interpreter's lock is held, and the class is one, or null.
    unsafe { ffi::PyThreadState_SetAsyncExc(thread, class) };
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
        if let Some(watcher) = &*this.watcher() {
            watcher.unpark();
        }
        let result = task();
        // Nothing of Python's runs between the end of the task and this.
        let raised = this.deadline.swap(0, Ordering::Relaxed) == 0;
        if raised && this.watcher().is_some() {
            // It may be still to come.
            raise_in_thread(this_thread(), ptr::null_mut());
        }
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
        let (signal, deaf) = limits.call_method1("_listen", (handler,))?.extract()?;
        *self.watcher() = None;
        if deaf {
            let class = limits.getattr("SoftTimeLimitExceeded")?.unbind();
            let (this, main) = (handler.clone_ref(py), this_thread());
            let watching = thread::Builder::new().spawn(move || this.get().watch(main, &class))?;
            *self.watcher() = Some(watching.thread().clone());
        }
        *timer() = Some(SignalTimer::new(signal)?);
        Ok(())
    }

    fn watcher(&self) -> MutexGuard<'_, Option<Thread>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of the watcher.
    fn watch(&self, main: c_long, class: &Py<PyAny>) {
        loop {
            let deadline = self.deadline.load(Ordering::Relaxed);
            let left = deadline.saturating_add(GRACE).saturating_sub(now());
            if deadline == 0 {
                thread::park();
            } else if left > 0 {
                thread::park_timeout(Duration::from_nanos(left));
            } else {
                let attached = Python::try_attach(|_| {
                    // It is changed only by who holds the interpreter's lock.
                    if self.deadline.load(Ordering::Relaxed) == deadline {
                        self.deadline.store(0, Ordering::Relaxed);
                        raise_in_thread(main, class.as_ptr());
                    }
                });
                if attached.is_none() {
                    // The interpreter ends.
                    return;
                }
            }
        }
    }

    fn with_timer(&self, call: impl FnOnce(&SignalTimer) -> io::Result<()>) -> io::Result<()> {
        self.timer.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Ok(()), call)
    }
}
