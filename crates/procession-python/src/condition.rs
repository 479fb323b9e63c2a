//! `Condition`.

use std::os::fd::RawFd;

use procession_core::sync::{self, Acquired, ConditionError, Monitor, Wait, WaitError};
use pyo3::{
    exceptions::{PyAssertionError, PyTypeError},
    prelude::*,
    types::{PyDict, PyTuple, PyType},
};

use crate::{
    acquire::{self, Acquire},
    handle::{self, SharedState},
    late::Late,
    lock::Lock,
    method::{self, Acquirable},
    other_lock::OtherLock,
    rlock::RLock,
    wait::{self, Timeout},
};

/// The native part of `procession.synchronize.Condition`.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Condition(Late<Parts>);

#[derive(Debug)]
struct Parts {
    condition: sync::Condition,
    lock: LockOfCondition,
}

/// The lock of a condition.
#[derive(Debug)]
pub(crate) enum LockOfCondition {
    Lock(Py<Lock>),
    RLock(Py<RLock>),
    Other(OtherLock),
}

impl LockOfCondition {
    fn of(lock: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(lock) = lock.cast::<Lock>() {
            lock.get().core()?;
            return Ok(Self::Lock(lock.clone().unbind()));
        }
        if let Ok(lock) = lock.cast::<RLock>() {
            lock.get().core()?;
            return Ok(Self::RLock(lock.clone().unbind()));
        }
        for method in ["acquire", "release"] {
            if !lock.getattr(method).is_ok_and(|method| method.is_callable()) {
                return Err(PyTypeError::new_err(
                    "the lock of a Condition must be a lock, with acquire() and release()",
                ));
            }
        }
        Ok(Self::Other(OtherLock(lock.clone().unbind())))
    }
}

macro_rules! with_lock {
    ($self:ident, $lock:ident => $body:expr) => {
        match $self {
            // Looked at when the condition was made: they have what they are made of.
            Self::Lock(lock) => {
                let $lock = lock.get().core().expect("initialized");
                $body
            }
            Self::RLock(lock) => {
                let $lock = lock.get().core().expect("initialized");
                $body
            }
            Self::Other($lock) => $body,
        }
    };
}

impl Acquire for LockOfCondition {
    const NAME: &str = "lock";

    fn try_acquire(&self) -> bool {
        with_lock!(self, lock => Acquire::try_acquire(lock))
    }

    fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError> {
        with_lock!(self, lock => Acquire::try_acquire_or_recover(lock))
    }

    fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        with_lock!(self, lock => Acquire::acquire(lock, wait))
    }

    fn release(&self) -> PyResult<()> {
        with_lock!(self, lock => Acquire::release(lock))
    }

    fn raised(&self) -> PyResult<()> {
        with_lock!(self, lock => Acquire::raised(lock))
    }
}

impl Monitor for LockOfCondition {
    fn is_mine(&self) -> bool {
        with_lock!(self, lock => Monitor::is_mine(lock))
    }

    fn give_up(&self) -> Result<u32, sync::NotHeld> {
        with_lock!(self, lock => Monitor::give_up(lock))
    }

    fn get_back(&self, depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        with_lock!(self, lock => Monitor::get_back(lock, depth, wait))
    }
}

impl Acquirable for Condition {
    type Core = LockOfCondition;

    fn core(&self) -> PyResult<&LockOfCondition> {
        Ok(&self.0.get()?.lock)
    }
}

#[cold]
fn not_held() -> PyErr {
    PyAssertionError::new_err("the lock of the condition must be acquired first, by the thread that waits or notifies")
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Late::new())
    }

    /// Gives a class derived from this one the methods `acquire`, `release` and so on for its own (see [`method`]).
    #[classmethod]
    fn _own_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
        method::install::<Self>(class)
    }

    fn _create(&self, lock: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.set(Parts { lock: LockOfCondition::of(lock)?, condition: sync::Condition::create()? })
    }

    fn _share<'py>(&self, py: Python<'py>) -> PyResult<SharedState<'py>> {
        let condition = &self.0.get()?.condition;
        Ok(handle::share(py, condition.hand_over(), condition))
    }

    fn _attach(&self, lock: &Bound<'_, PyAny>, state: &[u8], fds: (RawFd,)) -> PyResult<()> {
        let (handle, fd) = handle::taken(state, fds)?;
        let lock = LockOfCondition::of(lock)?;
        self.0.set(Parts { lock, condition: sync::Condition::attach(handle, fd)? })
    }

    /// The lock, as it was given.
    #[getter]
    fn _lock(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match &self.0.get()?.lock {
            LockOfCondition::Lock(lock) => lock.clone_ref(py).into_any(),
            LockOfCondition::RLock(lock) => lock.clone_ref(py).into_any(),
            LockOfCondition::Other(OtherLock(lock)) => lock.clone_ref(py),
        })
    }

    /// Release the lock, wait to be notified, at most timeout seconds, and acquire the lock again. Return whether there was
    /// a notification.
    #[pyo3(signature = (timeout=Timeout::FOREVER), text_signature = "($self, timeout=None)")]
    fn wait(&self, py: Python<'_>, timeout: Timeout) -> PyResult<bool> {
        let Parts { condition, lock } = self.0.get()?;
        // The outcome is passed through whole: with an exception of a signal handler it does not matter.
        let waited = wait::block(py, timeout, |wait| Ok(condition.wait(lock, wait)))?;
        OtherLock::take_raised()?;
        match waited {
            None | Some(Err(ConditionError::LockNotRegained(_))) => Ok(false),
            Some(Err(ConditionError::NotHeld)) => Err(not_held()),
            Some(Ok(waited)) => {
                // The lock is the caller's in any case, also if the warning is an exception.
                acquire::report(py, LockOfCondition::NAME, Some(waited.lock), || Ok(()))?;
                Ok(waited.outcome.is_ok())
            }
        }
    }

    /// Wake n waiters, those who have waited longest. Never blocks.
    #[pyo3(signature = (n=1))]
    fn notify(&self, n: i64) -> PyResult<()> {
        // A negative number is none, as in the standard package.
        self.notify_up_to(usize::try_from(n).unwrap_or(0))
    }

    /// Wake all who wait. Never blocks.
    fn notify_all(&self) -> PyResult<()> {
        self.notify_up_to(usize::MAX)
    }

    fn _waiters(&self) -> PyResult<usize> {
        Ok(self.0.get()?.condition.waiters())
    }
}

impl Condition {
    fn notify_up_to(&self, count: usize) -> PyResult<()> {
        let Parts { condition, lock } = self.0.get()?;
        let notified = condition.notify(lock, count);
        OtherLock::take_raised()?;
        notified.map(drop).map_err(|_| not_held())
    }
}
