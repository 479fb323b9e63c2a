//! Acquiring: the same for locks and semaphores.

use std::ffi::CString;

use procession_core::sync::{self, Acquired, Wait, WaitError};
use pyo3::{
    Borrowed,
    exceptions::{PyAssertionError, PyRuntimeWarning, PyValueError},
    prelude::*,
};

use crate::wait::{self, Timeout};

/// The truth value of any object, as Python's `if` sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Truth(pub(crate) bool);

impl<'py> FromPyObject<'_, 'py> for Truth {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        object.is_truthy().map(Self)
    }
}

/// What can be acquired and released.
pub(crate) trait Acquire: Sync {
    /// What messages call it.
    const NAME: &str;
    fn try_acquire(&self) -> bool;
    fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError>;
    fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError>;
    /// The standard package's exception if it is not to be released.
    fn release(&self) -> PyResult<()>;
    /// The exception of a lock that is an object of Python's.
    fn raised(&self) -> PyResult<()> {
        Ok(())
    }
}

#[cold]
fn released_too_often() -> PyErr {
    PyValueError::new_err("semaphore or lock released too many times")
}

#[cold]
fn not_owner() -> PyErr {
    PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
}

macro_rules! acquire {
    ($type:ty, $name:literal, $error:expr) => {
        impl Acquire for $type {
            const NAME: &str = $name;
            #[inline]
            fn try_acquire(&self) -> bool {
                self.try_acquire()
            }
            fn try_acquire_or_recover(&self) -> Result<Acquired, WaitError> {
                self.try_acquire_or_recover()
            }
            fn acquire(&self, wait: &mut Wait<'_>) -> Result<Acquired, WaitError> {
                self.acquire(wait)
            }
            #[inline]
            fn release(&self) -> PyResult<()> {
                self.release().map_err(|_| $error)
            }
        }
    };
}

acquire!(sync::Lock, "lock", released_too_often());
acquire!(sync::RLock, "recursive lock", not_owner());
acquire!(sync::Semaphore, "semaphore", released_too_often());

/// The method `acquire(block=True, timeout=None)`.
#[inline]
pub(crate) fn acquire<T: Acquire>(
    py: Python<'_>,
    object: &T,
    block: Truth,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let acquired = object.try_acquire();
    object.raised()?;
    if acquired {
        // A timeout that makes no sense is noticed where there is something to wait for, as in the standard package.
        return Ok(true);
    }
    contended(py, object, block, timeout)
}

#[cold]
fn contended<T: Acquire>(
    py: Python<'_>,
    object: &T,
    block: Truth,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let timeout = match timeout {
        _ if !block.0 => return report(py, T::NAME, object.try_acquire_or_recover().ok(), || object.release()),
        Some(timeout) => timeout.extract()?,
        None => Timeout::FOREVER,
    };
    let acquired = wait::block(py, timeout, |wait| object.acquire(wait))?;
    object.raised()?;
    report(py, T::NAME, acquired, || object.release())
}

/// Tells whether it was acquired, and warns if that was from a dead process. Where warnings are errors, it is given back:
/// who gets an exception from `acquire` does not release.
pub(crate) fn report(
    py: Python<'_>,
    name: &str,
    acquired: Option<Acquired>,
    give_back: impl FnOnce() -> PyResult<()>,
) -> PyResult<bool> {
    if let Some(Acquired::Recovered(dead)) = acquired {
        let text = format!(
            "{name} recovered: process {} died while holding it; what it protects may be half changed",
            dead.pid()
        );
        let text = CString::new(text)?;
        if let Err(raised) = PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1) {
            give_back()?;
            return Err(raised);
        }
    }
    Ok(acquired.is_some())
}
