//! What pickle can't take, or takes by a name that a worker does not know, goes by value: through cloudpickle, where that is
//! installed (see `by_value.py`).

use std::sync::OnceLock;

use procession_core::memory::{Travelling, Way};
use pyo3::{
    exceptions::{PyAttributeError, PyTypeError},
    prelude::*,
    sync::PyOnceLock,
    types::PyBytes,
};

use crate::{
    pickling::{with_arrays, with_buffers_of_message},
    plain::Plain,
};

/// What tells, in a program whose main module is not a file, which of its functions and classes the workers know.
pub(super) type Main = OnceLock<Py<PyAny>>;

/// The main module as it appears in a pickle.
const NAME: &[u8] = b"__main__";
/// What a pickler writes at once is no longer, but for the contents of large objects.
const LONGEST_FRAME: usize = 1 << 17;

/// As [`with_buffers`](crate::pickling::with_buffers); what pickle refuses goes by value, and what is of a `main` module that workers
/// don't know. Shared arrays go in the given way.
///
/// # Errors
///
/// As there. What cloudpickle can't take either is refused as pickle has refused it.
pub(super) fn with_pickle_of<R>(
    object: &Bound<'_, PyAny>,
    main: Option<&Py<PyAny>>,
    way: Way,
    put: impl FnMut(&[&[u8]], &[&[u8]]) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    let mut put = put;
    if let Some(plain) = Plain::of(object) {
        return Ok(put(&plain.parts(), &[]));
    }
    with_arrays(way, || match main {
        Some(main) => with_pickle_beyond(object, main, put),
        None => match with_buffers_of_message(object, &mut put) {
            Err(error) => {
                Travelling::take_back();
                with_buffers_of_message(&stand_in(object, error, None)?, put)
            }
            done => done,
        },
    })
}

/// For workers that don't know the main module.
fn with_pickle_beyond<R>(
    object: &Bound<'_, PyAny>,
    main: &Py<PyAny>,
    mut put: impl FnMut(&[&[u8]], &[&[u8]]) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    let py = object.py();
    let pickled = with_buffers_of_message(object, |parts, buffers| {
        if parts.iter().any(|part| mentions_main(part)) { Ok(None) } else { put(parts, buffers).map(Some) }
    });
    match pickled {
        Ok(Ok(Some(done))) => Ok(Ok(done)),
        Ok(Ok(None)) => {
            Travelling::take_back();
            let pickle = main.bind(py).call_method1(pyo3::intern!(py, "dumps"), (object,))?.cast_into::<PyBytes>()?;
            Ok(put(&[pickle.as_bytes()], &[]))
        }
        Ok(Err(error)) => Ok(Err(error)),
        Err(error) => {
            Travelling::take_back();
            with_buffers_of_message(&stand_in(object, error, Some(main))?, put)
        }
    }
}

fn mentions_main(part: &[u8]) -> bool {
    // A pickler writes longer pieces only of contents, of arrays or the like.
    part.len() <= LONGEST_FRAME && part.windows(NAME.len()).any(|window| window == NAME)
}

/// Something whose pickle is read as `object`, which pickle has refused.
///
/// # Errors
///
/// The refusal, if it is to stay.
#[cold]
pub(super) fn stand_in<'py>(
    object: &Bound<'py, PyAny>,
    refusal: PyErr,
    main: Option<&Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    static PICKLING_ERROR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static STAND_IN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = object.py();
    let refused = refusal.is_instance_of::<PyAttributeError>(py)
        || refusal.is_instance_of::<PyTypeError>(py)
        || refusal.matches(py, PICKLING_ERROR.import(py, "_pickle", "PicklingError")?)?;
    if !refused {
        return Err(refusal);
    }
    match main {
        Some(main) => main.bind(py).call_method1("stand_in", (object, refusal.value(py))),
        None => STAND_IN.import(py, "procession.by_value", "stand_in")?.call1((object, refusal.value(py))),
    }
}
