//! `Event`.

use std::os::fd::RawFd;

use procession_core::sync;
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    handle::{self, SharedState},
    late::Late,
    wait::{self, Timeout},
};

/// The native part of `procession.synchronize.Event`.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Event(Late<sync::Event>);

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Late::new())
    }

    fn _create(&self) -> PyResult<()> {
        self.0.set(sync::Event::create()?)
    }

    fn _share<'py>(&self, py: Python<'py>) -> PyResult<SharedState<'py>> {
        let event = self.0.get()?;
        Ok(handle::share(py, event.hand_over(), event))
    }

    fn _attach(&self, state: &[u8], fds: (RawFd,)) -> PyResult<()> {
        let (handle, fd) = handle::taken(state, fds)?;
        self.0.set(sync::Event::attach(handle, fd)?)
    }

    /// Whether the flag is set.
    fn is_set(&self) -> PyResult<bool> {
        Ok(self.0.get()?.is_set())
    }

    /// Set the flag and wake all who wait for it. Never blocks.
    fn set(&self) -> PyResult<()> {
        self.0.get()?.set();
        Ok(())
    }

    /// Clear the flag.
    fn clear(&self) -> PyResult<()> {
        self.0.get()?.clear();
        Ok(())
    }

    /// Wait until the flag is set, at most timeout seconds. Return whether it was.
    #[pyo3(signature = (timeout=Timeout::FOREVER), text_signature = "($self, timeout=None)")]
    fn wait(&self, py: Python<'_>, timeout: Timeout) -> PyResult<bool> {
        let event = self.0.get()?;
        if event.is_set() {
            return Ok(true);
        }
        Ok(wait::block(py, timeout, |wait| event.wait(wait))?.is_some())
    }
}
