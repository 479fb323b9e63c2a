//! The extension module `procession._core`: nothing but the bindings' init function.
pub use procession_python::_core;
