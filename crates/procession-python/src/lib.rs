//! Python bindings of procession: the module `procession._core`.
//!
//! One concept a file, named as in the core. Hot calls are methods that Python classes inherit directly; whatever is not
//! hot is Python, in the package beside this module.

mod acquire;
mod apart;
mod array;
mod auth;
mod barrier;
mod condition;
mod connection;
mod event;
mod handle;
mod laden;
mod late;
mod line;
mod lock;
mod mapping;
mod method;
mod numbers;
mod other_lock;
mod pickling;
mod plain;
mod pool;
mod process;
mod queue;
mod rlock;
mod semaphore;
mod synchronized;
mod wait;

/// The native part of the package `procession`. Not for direct use.
#[pyo3::pymodule]
pub mod _core {
    use pyo3::prelude::*;

    use crate::{mapping, method, process};

    #[pymodule_export]
    use super::array::ArrayMemory;
    #[pymodule_export]
    use super::auth::{_create_response, _verify_challenge, answer_challenge, authenticate, deliver_challenge};
    #[pymodule_export]
    use super::connection::{Connection, one_way_pipe, pipe, wait};
    #[pymodule_export]
    use super::line::{Attendance, Line, ServedLine, receive_offer};
    #[pymodule_export]
    use super::mapping::map_file;
    #[pymodule_export]
    use super::pickling::{py_dumps, py_loads, reread};
    #[pymodule_export]
    use super::pool::{
        ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult, PoolBacklog, PoolEngine, PoolFeed, PoolPort,
        PoolWorker, SoftLimit, TaskTerms,
    };
    #[pymodule_export]
    use super::process::{
        Child, follow, hand_on, life_sentinel, message_sockets, receive_with_descriptors, send_with_descriptors,
        spawnv_passfds, unfollow, wait_readable,
    };
    #[pymodule_export]
    use super::synchronized::{Synchronized, SynchronizedArray, synchronized_property};
    #[pymodule_export]
    use super::{
        barrier::Barrier, condition::Condition, event::Event, lock::Lock, queue::Queue, rlock::RLock,
        semaphore::Semaphore,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        process::check_kernel()?;
        let py = module.py();
        module.add("MAP_NORESERVE", mapping::MAP_NORESERVE)?;
        method::install::<Lock>(&py.get_type::<Lock>())?;
        method::install::<RLock>(&py.get_type::<RLock>())?;
        method::install::<Condition>(&py.get_type::<Condition>())?;
        method::install::<Semaphore>(&py.get_type::<Semaphore>())
    }
}
