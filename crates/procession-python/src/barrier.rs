//! `Barrier`.

use std::os::fd::RawFd;

use procession_core::sync::{self, BarrierError, Passage};
use pyo3::{
    exceptions::PyValueError,
    import_exception,
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    handle::{self, SharedState},
    late::Late,
    wait::{self, Timeout},
};

import_exception!(threading, BrokenBarrierError);

/// The native part of `procession.synchronize.Barrier`.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Barrier(Late<sync::Barrier>);

#[cold]
fn broken() -> PyErr {
    BrokenBarrierError::new_err(
        "the barrier is broken: a wait timed out, its action failed, or it was aborted or reset",
    )
}

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Late::new())
    }

    fn _create(&self, parties: i64) -> PyResult<()> {
        let parties = u32::try_from(parties).ok().filter(|&parties| parties != 0);
        let parties = parties.ok_or_else(|| PyValueError::new_err("parties must be at least 1, and fit 32 bits"))?;
        self.0.set(sync::Barrier::create(parties)?)
    }

    fn _share<'py>(&self, py: Python<'py>) -> PyResult<SharedState<'py>> {
        let barrier = self.0.get()?;
        Ok(handle::share(py, barrier.hand_over(), barrier))
    }

    fn _attach(&self, state: &[u8], fds: (RawFd,)) -> PyResult<()> {
        let (handle, fd) = handle::taken(state, fds)?;
        self.0.set(sync::Barrier::attach(handle, fd)?)
    }

    /// Arrive and wait for the others; the last to arrive calls the action before they all pass.
    fn _pass(&self, py: Python<'_>, timeout: Timeout, action: Option<&Bound<'_, PyAny>>) -> PyResult<u32> {
        let barrier = self.0.get()?;
        let acts = action.is_some();
        let passage = wait::block(py, timeout, |wait| Ok(barrier.wait(acts, wait)))?;
        let result = match passage {
            Some(Ok(Passage::Act(turn))) => {
                // If it raises, the turn is dropped, which breaks the barrier.
                action.map(Bound::call0).transpose()?;
                turn.finish()
            }
            Some(Ok(Passage::Passed(index))) => Ok(index),
            Some(Err(error)) => Err(error),
            None => Err(BarrierError::Broken),
        };
        result.map_err(|_| broken())
    }

    /// Make the barrier as new. Who waits gets `BrokenBarrierError`.
    fn reset(&self) -> PyResult<()> {
        self.0.get()?.reset();
        Ok(())
    }

    /// Break the barrier until it is reset.
    fn abort(&self) -> PyResult<()> {
        self.0.get()?.abort();
        Ok(())
    }

    /// How many pass together.
    #[getter]
    fn parties(&self) -> PyResult<u32> {
        Ok(self.0.get()?.parties())
    }

    /// How many have arrived and wait for the others.
    #[getter]
    fn n_waiting(&self) -> PyResult<u32> {
        Ok(self.0.get()?.waiting())
    }

    /// Whether the barrier is broken.
    #[getter]
    fn broken(&self) -> PyResult<bool> {
        Ok(self.0.get()?.is_broken())
    }
}
