//! `Semaphore` and `BoundedSemaphore`.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use procession_core::sync;
use pyo3::{
    exceptions::{PyOSError, PyOverflowError},
    prelude::*,
    types::{PyDict, PyTuple, PyType},
};

use crate::{
    handle::{self, SharedState},
    late::Late,
    method::{self, Acquirable},
};

/// The native part of `procession.synchronize.Semaphore`.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Semaphore(Late<sync::Semaphore>);

impl Acquirable for Semaphore {
    type Core = sync::Semaphore;

    #[inline]
    fn core(&self) -> PyResult<&sync::Semaphore> {
        self.0.get()
    }
}

#[pymethods]
impl Semaphore {
    #[classattr]
    const SEM_VALUE_MAX: u32 = sync::Semaphore::MAXIMUM;

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

    fn _create(&self, value: i64, maximum: i64) -> PyResult<()> {
        let count = |number: i64| match u32::try_from(number) {
            Ok(count) if count <= sync::Semaphore::MAXIMUM => Ok(count),
            _ if number < 0 => {
                Err(PyOSError::new_err((libc::EINVAL, format!("a semaphore can't have {number} permits"))))
            }
            _ => Err(PyOverflowError::new_err(format!(
                "a semaphore can't have {number} permits: {} is the most",
                sync::Semaphore::MAXIMUM
            ))),
        };
        self.0.set(sync::Semaphore::create(count(value)?, count(maximum)?)?)
    }

    fn _share<'py>(&self, py: Python<'py>) -> PyResult<SharedState<'py>> {
        let semaphore = self.core()?;
        Ok(handle::share(py, semaphore.hand_over(), semaphore))
    }

    fn _attach(&self, state: &[u8], fds: (RawFd,)) -> PyResult<()> {
        let (handle, fd) = handle::taken(state, fds)?;
        self.0.set(sync::Semaphore::attach(handle, fd)?)
    }

    fn locked(&self) -> PyResult<bool> {
        Ok(self.core()?.value() == 0)
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self.core()?.held() != 0)
    }

    fn _count(&self) -> PyResult<u64> {
        Ok(self.core()?.held())
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(self.core()?.value())
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self.core()?.value() == 0)
    }

    #[getter]
    fn maxvalue(&self) -> PyResult<u32> {
        Ok(self.core()?.maximum())
    }

    #[getter]
    fn handle(&self) -> PyResult<RawFd> {
        Ok(self.core()?.as_fd().as_raw_fd())
    }
}
