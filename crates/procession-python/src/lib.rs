//! Python bindings of procession: the module `procession._core`.
//!
//! One concept a file, named as in the core. Hot calls are methods that Python classes inherit directly; whatever is not
//! hot is Python, in the package beside this module.

mod process;
mod wait;

/// The native part of the package `procession`. Not for direct use.
#[pyo3::pymodule]
pub mod _core {
    #[pymodule_export]
    use super::process::{
        Child, follow, life_sentinel, message_sockets, receive_with_descriptors, send_with_descriptors, spawnv_passfds, unfollow,
        wait_readable,
    };
}
