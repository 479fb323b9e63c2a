//! What a Python object is made of once its `__init__` ran.

use std::sync::OnceLock;

use pyo3::{exceptions::PyRuntimeError, prelude::*};

/// The native part of an object, set once by `__init__` or `__setstate__`, so that subclasses may have an `__init__` with
/// arguments of their own (those of `__new__` are ignored).
#[derive(Debug)]
pub(crate) struct Late<T>(OnceLock<T>);

impl<T> Late<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The native part.
    ///
    /// # Errors
    ///
    /// `RuntimeError` if it was not set: a subclass does not call `super().__init__()`.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<&T> {
        #[cold]
        fn missing() -> PyErr {
            PyRuntimeError::new_err("__init__() of the base class was not called: call super().__init__(...) first")
        }
        self.0.get().ok_or_else(missing)
    }

    /// Sets the native part.
    ///
    /// # Errors
    ///
    /// `RuntimeError` if it was set before.
    pub(crate) fn set(&self, value: T) -> PyResult<()> {
        self.0.set(value).map_err(|_| PyRuntimeError::new_err("__init__() was called twice"))
    }
}
