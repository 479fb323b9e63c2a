//! What workers tell when they end.

use procession_core::pool::Verdict;
use pyo3::prelude::*;

use super::{
    PoolEngine, of_pool_module,
    results::{failure, traceback},
};
use crate::pickling::loads;

/// What each has told since this was last asked for: whether it went well, and the value or the exception.
pub(super) fn of(py: Python<'_>, engine: &PoolEngine) -> PyResult<Vec<(bool, Py<PyAny>)>> {
    let engine = engine.here()?;
    let told = py.detach(|| engine.exits());
    told.into_iter()
        .map(|(_, outcome)| {
            let payload = outcome.payload();
            let done = outcome.verdict == Verdict::Done;
            let read = if done { loads(py, payload) } else { failure(py, payload) };
            let told = match read {
                Ok(told) => return Ok((done, told.unbind())),
                Err(error) if done => of_pool_module(py, "_undecodable_result")?.call1((error.into_value(py),))?,
                Err(error) => {
                    of_pool_module(py, "_undecodable_error")?.call1((error.into_value(py), traceback(payload)))?
                }
            };
            Ok((false, told.unbind()))
        })
        .collect()
}
