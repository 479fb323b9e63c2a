//! Pools: the parent's end, the results it gives out, and the worker's end.

mod backlog;
mod by_value;
mod engine;
mod exits;
mod functions;
mod results;
mod soft_limit;
mod streams;
mod terms;
mod worker;

use std::time::Duration;

use procession_core::pool::Definition;
use pyo3::{prelude::*, sync::PyOnceLock};

pub(crate) use self::{
    backlog::PoolBacklog,
    engine::PoolEngine,
    results::{ApplyResult, MapResult},
    soft_limit::SoftLimit,
    streams::{IMapIterator, IMapUnorderedIterator, PoolFeed},
    terms::TaskTerms,
    worker::{PoolPort, PoolWorker},
};

/// How a function is applied to the payload of its task. The numbers go from the parent to its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Mode {
    /// The payload is a tuple of positional arguments.
    Call = 0,
    /// The payload is a pair: positional arguments, keyword arguments.
    CallWithKeywords = 1,
    /// The payload is the one argument.
    Single = 2,
    /// The payload is a tuple of arguments, for a call each.
    Map = 3,
    /// The payload is a tuple of tuples of arguments, for a call each.
    StarMap = 4,
}

impl Mode {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Call, Self::CallWithKeywords, Self::Single, Self::Map, Self::StarMap]
            .into_iter()
            .find(|mode| *mode as u32 == number)
    }
}

/// Added to a mode if the worker is to tell how long each item took.
const MEASURED: u32 = 1 << 16;

/// Tells of a task without a definition: its function comes in a pair with the payload.
fn has_function(definition: Definition) -> bool {
    definition.number != 0
}

/// Whether copying the pieces of a pickle takes so long that other threads should go on meanwhile.
fn is_large(parts: &[&[u8]]) -> bool {
    parts.iter().map(|part| part.len()).sum::<usize>() >= 1 << 16
}

/// How long at most to wait for memory that is warm.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something of the module `procession.pool`.
fn of_pool_module<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("procession.pool").map(Bound::unbind))?;
    module.bind(py).getattr(name)
}
