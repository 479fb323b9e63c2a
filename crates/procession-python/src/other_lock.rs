//! The lock of a condition, if it is none of this package: an object with the same methods, as the standard package takes it.

use std::{cell::RefCell, time::Duration};

use procession_core::sync::{Acquired, Monitor, NotHeld, Wait, WaitError};
use pyo3::{prelude::*, types::PyTuple};

use crate::acquire::Acquire;

/// How long such a lock is waited for in one go: what ends the wait is looked at in between.
const SLICE: Duration = Duration::from_millis(50);

thread_local! {
    /// What a method raised, while the core was calling it.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Any object with `acquire()` and `release()`; to wait and notify with, also with the methods `_is_mine()` and `_count()` of
/// a `_semlock`.
#[derive(Debug)]
pub(crate) struct OtherLock(pub(crate) Py<PyAny>);

impl OtherLock {
    /// The exception that a method raised in this thread since this was last asked.
    pub(crate) fn take_raised() -> PyResult<()> {
        RAISED.take().map_or(Ok(()), Err)
    }

    fn call<R>(&self, call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<R>) -> Option<R> {
        Python::attach(|py| match call(self.0.bind(py)) {
            Ok(value) => Some(value),
            Err(error) => {
                RAISED.set(Some(error));
                None
            }
        })
    }

    fn take(&self, arguments: (bool, Option<f64>)) -> Option<bool> {
        self.call(|lock| {
            let arguments = match arguments {
                (block, None) => PyTuple::new(lock.py(), [block])?,
                (block, Some(seconds)) => (block, seconds).into_pyobject(lock.py())?,
            };
            lock.call_method1("acquire", arguments)?.is_truthy()
        })
    }

    fn give(&self) -> Option<()> {
        self.call(|lock| lock.call_method0("release").map(drop))
    }
}

impl Acquire for OtherLock {
    const NAME: &str = "lock";

    fn try_acquire(&self) -> bool {
        self.take((false, None)).unwrap_or(false)
    }

    fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError> {
        if self.try_acquire() { Ok(Acquired::Held) } else { Err(WaitError::TimedOut) }
    }

    fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        loop {
            let slice = wait.remaining(SLICE)?;
            match self.take((true, Some(slice.as_secs_f64()))) {
                Some(true) => return Ok(Acquired::Held),
                Some(false) => wait.signalled()?,
                // It is raised in the end.
                None => return Err(WaitError::Interrupted),
            }
        }
    }

    fn raised(&self) -> PyResult<()> {
        Self::take_raised()
    }

    fn release(&self) -> PyResult<()> {
        Python::attach(|py| self.0.call_method0(py, "release").map(drop))
    }
}

impl Monitor for OtherLock {
    fn is_mine(&self) -> bool {
        self.call(|lock| lock.getattr("_semlock")?.call_method0("_is_mine")?.is_truthy()).unwrap_or(false)
    }

    fn give_up(&self) -> Result<u32, NotHeld> {
        let depth = self.call(|lock| lock.getattr("_semlock")?.call_method0("_count")?.extract::<u32>());
        let depth = depth.ok_or(NotHeld)?;
        for _ in 0..depth {
            self.give().ok_or(NotHeld)?;
        }
        Ok(depth)
    }

    fn get_back(&self, depth: u32, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
        for _ in 0..depth {
            let _ = Acquire::acquire(self, wait)?;
        }
        Ok(Acquired::Held)
    }
}
