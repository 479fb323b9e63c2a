//! What a call says of its tasks.

use std::time::Duration;

use procession_core::pool::Terms;
use pyo3::{exceptions::PyValueError, prelude::*};

/// How long each task of a call may take, how often it is tried again if its worker dies, and when its turn comes. The
/// values were looked at by `procession.limits`.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct TaskTerms {
    #[pyo3(get)]
    timeout: Option<f64>,
    #[pyo3(get)]
    soft_timeout: Option<f64>,
    #[pyo3(get)]
    retries: u32,
    #[pyo3(get)]
    priority: i32,
}

#[pymethods]
impl TaskTerms {
    #[new]
    #[pyo3(signature = (timeout = None, soft_timeout = None, retries = 0, priority = 0))]
    fn new(timeout: Option<f64>, soft_timeout: Option<f64>, retries: u32, priority: i32) -> PyResult<Self> {
        if [timeout, soft_timeout].into_iter().flatten().any(|seconds| seconds.is_nan() || seconds <= 0.0) {
            return Err(PyValueError::new_err("a time limit must be more than 0 seconds"));
        }
        Ok(Self { timeout, soft_timeout, retries, priority })
    }

    /// Whether a task may not take as long as it likes.
    fn _limited(&self) -> bool {
        self.terms().limit.is_some() || self.terms().soft_limit.is_some()
    }
}

impl TaskTerms {
    pub(super) fn terms(&self) -> Terms {
        // What no clock can represent has no end.
        let limit = |seconds: Option<f64>| seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Terms {
            limit: limit(self.timeout),
            soft_limit: limit(self.soft_timeout),
            retries: self.retries,
            priority: self.priority,
        }
    }
}

/// The terms of a call that may have none.
pub(super) fn of_call(terms: Option<&Bound<'_, TaskTerms>>) -> Terms {
    terms.map_or_else(Terms::default, |terms| terms.get().terms())
}
