//! Functions that were sent to the workers already.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use procession_core::pool::{Definition, Engine};
use pyo3::{
    PyTraverseError, PyVisit,
    prelude::*,
    types::{PyCFunction, PyFunction, PyType},
};

use super::by_value;
use crate::pickling;

/// The opcodes that end the pickle of something which is found by its name: `STACK_GLOBAL`, with or without
/// `MEMOIZE`, then `STOP`.
const BY_NAME: [&[u8]; 2] = [b"\x93\x94.", b"\x93."];

/// The functions of a pool that have a definition, by their address.
///
/// Only what is pickled by its name gets one: for it, the pickle can't become stale. Whatever has a state (partials,
/// bound methods, instances) is pickled with each task, as it is then.
#[derive(Debug, Default)]
pub(super) struct Functions(Mutex<HashMap<usize, Known>>);

#[derive(Debug)]
struct Known {
    /// Kept, so that its address stays its own.
    function: Py<PyAny>,
    definition: Definition,
}

impl Functions {
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(functions) = self.0.try_lock() {
            for known in functions.values() {
                visit.call(&known.function)?;
            }
        }
        Ok(())
    }

    pub(super) fn clear(&self) {
        let taken = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        drop(taken);
    }

    /// The definition of a function. `None` if it has to go with each task: then in this form, which may be one by value.
    ///
    /// # Errors
    ///
    /// Whatever pickling it raises, or an `OSError` if memory is lacking.
    pub(super) fn define<'py>(
        &self,
        engine: &Engine,
        function: &Bound<'py, PyAny>,
        main: Option<&Py<PyAny>>,
    ) -> PyResult<(Definition, Bound<'py, PyAny>)> {
        let address = function.as_ptr() as usize;
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&address) {
            return Ok((known.definition, function.clone()));
        }
        let found_by_name = function.is_exact_instance_of::<PyFunction>()
            || function.is_exact_instance_of::<PyCFunction>()
            || function.is_instance_of::<PyType>();
        if !found_by_name {
            return Ok((Definition::default(), function.clone()));
        }
        if let Some(main) = main {
            let sent = main.bind(function.py()).call_method1("portable", (function,))?;
            if !sent.is(function) {
                return Ok((Definition::default(), sent));
            }
        }
        // Pickling may run code of the user's: not under the lock.
        let pickle = match pickling::to_vec(function) {
            Ok(pickle) => pickle,
            // Once for all tasks of a call.
            Err(refusal) => return Ok((Definition::default(), by_value::stand_in(function, refusal, main)?)),
        };
        if !BY_NAME.iter().any(|end| pickle.ends_with(end)) {
            return Ok((Definition::default(), function.clone()));
        }
        let definition = engine.define(&pickle)?;
        let known = Known { function: function.clone().unbind(), definition };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(address, known);
        Ok((definition, function.clone()))
    }
}
