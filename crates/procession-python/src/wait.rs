//! The one place where a Python thread blocks.
//!
//! The interpreter's lock is released, signals are seen (Ctrl-C ends any wait) and the timeout is honoured.

use std::time::{Duration, Instant};

use procession_core::sync::{Wait, WaitError};
use pyo3::{
    Borrowed,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

/// A timeout as Python gives it: seconds as a number, a negative one meaning zero; `None` means without end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeout(Option<Duration>);

impl Timeout {
    /// Without end.
    pub(crate) const FOREVER: Self = Self(None);
    /// Nothing is waited for.
    pub(crate) const NOW: Self = Self(Some(Duration::ZERO));

    /// The moment at which a wait that begins `now` ends, if it does.
    pub(crate) fn deadline(self, now: Instant) -> Option<Instant> {
        self.0.and_then(|limit| now.checked_add(limit))
    }

    /// What is left until `deadline`, for a call that waits more than once.
    pub(crate) fn until(deadline: Option<Instant>) -> Self {
        Self(deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())))
    }

    /// So long from when the wait begins.
    pub(crate) const fn after(limit: Duration) -> Self {
        Self(Some(limit))
    }

    /// Whether nothing is to be waited for.
    pub(crate) fn is_zero(self) -> bool {
        self.0 == Some(Duration::ZERO)
    }
}

impl<'py> FromPyObject<'_, 'py> for Timeout {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if object.is_none() {
            return Ok(Self::FOREVER);
        }
        let seconds: f64 = object
            .extract()
            .map_err(|_| PyTypeError::new_err("a timeout must be a number of seconds, or None to wait without end"))?;
        if seconds.is_nan() {
            return Err(PyValueError::new_err("a timeout must not be NaN"));
        }
        // What no clock can represent has no end.
        Ok(Self(Duration::try_from_secs_f64(seconds.max(0.0)).ok()))
    }
}

/// Runs `call`, which may block, with the interpreter's lock released. `None` if the time is over.
///
/// # Errors
///
/// What a Python signal handler raised meanwhile, `KeyboardInterrupt` for one.
pub(crate) fn block<R: Send>(
    py: Python<'_>,
    timeout: Timeout,
    call: impl Send + FnOnce(&mut Wait<'_>) -> Result<R, WaitError>,
) -> PyResult<Option<R>> {
    // A function, as a method named by its path is not general enough over the interpreter's lifetime.
    fn run_signal_handlers(py: Python<'_>) -> PyResult<()> {
        py.check_signals()
    }
    let mut raised = None;
    let result = py.detach(|| {
        let mut on_signal = || match Python::attach(run_signal_handlers) {
            Ok(()) => true,
            Err(error) => {
                raised = Some(error);
                false
            }
        };
        let wait = timeout.0.map_or_else(Wait::forever, Wait::timeout);
        call(&mut wait.on_signal(&mut on_signal))
    });
    match (result, raised) {
        (_, Some(error)) => Err(error),
        (Ok(value), None) => Ok(Some(value)),
        (Err(_), None) => Ok(None),
    }
}
