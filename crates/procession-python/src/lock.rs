//! `Lock`.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use procession_core::sync;
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple, PyType},
};

use crate::{
    handle::{self, SharedState},
    late::Late,
    method::{self, Acquirable},
};

/// The native part of `procession.synchronize.Lock`.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Lock(Late<sync::Lock>);

impl Acquirable for Lock {
    type Core = sync::Lock;

    #[inline]
    fn core(&self) -> PyResult<&sync::Lock> {
        self.0.get()
    }
}

#[pymethods]
impl Lock {
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

    fn _create(&self) -> PyResult<()> {
        self.0.set(sync::Lock::create()?)
    }

    fn _share<'py>(&self, py: Python<'py>) -> PyResult<SharedState<'py>> {
        let lock = self.core()?;
        Ok(handle::share(py, lock.hand_over(), lock))
    }

    fn _attach(&self, state: &[u8], fds: (RawFd,)) -> PyResult<()> {
        let (handle, fd) = handle::taken(state, fds)?;
        self.0.set(sync::Lock::attach(handle, fd)?)
    }

    fn locked(&self) -> PyResult<bool> {
        Ok(self.core()?.owner().is_some())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self.core()?.is_mine())
    }

    fn _count(&self) -> PyResult<u32> {
        let mine = self.core()?.owner() == Some(procession_core::process::ProcessId::current());
        Ok(u32::from(mine))
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.locked()?))
    }

    fn _is_zero(&self) -> PyResult<bool> {
        self.locked()
    }

    #[getter]
    fn handle(&self) -> PyResult<RawFd> {
        Ok(self.core()?.as_fd().as_raw_fd())
    }
}
