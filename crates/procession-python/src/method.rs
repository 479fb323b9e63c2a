//! `acquire`, `release`, `__enter__` and `__exit__`, as close to the interpreter as it gets.
//!
//! The methods that `#[pymethods]` makes enter and leave `PyO3` at each call, which takes longer than the lock does. These
//! are plain functions in the interpreter's fast calling conventions. They work on the words alone while nothing is
//! contended, and enter `PyO3` only to wait or to raise.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
};

use pyo3::{
    Borrowed, PyClass,
    exceptions::{PyRuntimeError, PyTypeError},
    ffi,
    prelude::*,
    pyclass::boolean_struct::True,
    types::{PyString, PyTuple, PyType},
};

use crate::acquire::{self, Acquire, Truth};

/// A class whose instances are acquired and released. It is frozen, so that a reference to an instance's contents is valid
/// whenever the instance is.
pub(crate) trait Acquirable: PyClass<Frozen = True> + Sync {
    type Core: Acquire;

    /// What to acquire.
    ///
    /// # Errors
    ///
    /// `RuntimeError` if `__init__` did not run.
    fn core(&self) -> PyResult<&Self::Core>;
}

/// Puts the four methods on `class`, a `T` or a subclass of it.
///
/// Methods serve the subclasses of their class as well. But the interpreter calls them by a shorter way if the object is
/// of their very class, so the classes that users get have methods of their own.
///
/// # Errors
///
/// `TypeError` if it is no subclass.
pub(crate) fn install<T: Acquirable>(class: &Bound<'_, PyType>) -> PyResult<()> {
    if !class.is_subclass_of::<T>()? {
        return Err(PyTypeError::new_err("the class is not derived from the native one"));
    }
    let method = ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: acquire::<T> };
    define(
        class,
        c"acquire",
        method,
        ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        c"acquire($self, /, block=True, timeout=None)\n--\n\n\
          Acquire it, waiting while others hold it: as long as it takes if timeout is None, else that many seconds;\n\
          not at all if block is false. Return whether it was acquired.",
    )?;
    // Not METH_NOARGS, for which the interpreter has no short way if the method was taken from the object beforehand.
    let method = ffi::PyMethodDefPointer { PyCFunctionFast: release::<T> };
    define(class, c"release", method, ffi::METH_FASTCALL, c"release($self, /)\n--\n\nRelease it.")?;
    let method = ffi::PyMethodDefPointer { PyCFunction: enter::<T> };
    define(class, c"__enter__", method, ffi::METH_NOARGS, c"__enter__($self, /)\n--\n\nAcquire it.")?;
    let method = ffi::PyMethodDefPointer { PyCFunctionFast: exit::<T> };
    define(class, c"__exit__", method, ffi::METH_FASTCALL, c"__exit__($self, /, *exc_info)\n--\n\nRelease it.")
}

pub(crate) fn define(
    class: &Bound<'_, PyType>,
    name: &'static CStr,
    method: ffi::PyMethodDefPointer,
    flags: c_int,
    doc: &'static CStr,
) -> PyResult<()> {
    let py = class.py();
    // The interpreter keeps the pointer for as long as the class lives, which for the package's classes is for ever.
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: method,
        ml_flags: flags,
        ml_doc: doc.as_ptr(),
    }));
    // SAFETY: the class is a type, and the definition names a function of the convention that the flags say.
    let descriptor = unsafe { ffi::PyDescr_NewMethod(class.as_type_ptr(), definition) };
    // SAFETY: a new reference, or null with an exception set.
    let descriptor = unsafe { Bound::from_owned_ptr_or_err(py, descriptor) }?;
    class.setattr(PyString::from_bytes(py, name.to_bytes())?, descriptor)
}

/// Runs what is not fast within `PyO3`; an error becomes the interpreter's present exception.
#[cold]
pub(crate) fn within<R>(body: impl FnOnce(Python<'_>) -> PyResult<R>) -> Option<R> {
    Python::attach(|py| {
        let result = catch_unwind(AssertUnwindSafe(|| body(py)))
            .unwrap_or_else(|_| Err(PyRuntimeError::new_err("a bug in procession: the native part panicked")));
        result.map_err(|error| error.restore(py)).ok()
    })
}

/// Makes `error` the interpreter's present exception. What to return then.
#[cold]
#[inline(never)]
pub(crate) fn raise(error: PyErr) -> *mut ffi::PyObject {
    within(|_| Err::<(), _>(error));
    std::ptr::null_mut()
}

/// A new reference to a singleton.
fn singleton(object: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: True, False and None live for ever.
    unsafe { ffi::Py_NewRef(object) }
}

pub(crate) fn truth(value: bool) -> *mut ffi::PyObject {
    // SAFETY: the interpreter runs: it called.
    singleton(if value { unsafe { ffi::Py_True() } } else { unsafe { ffi::Py_False() } })
}

pub(crate) fn none() -> *mut ffi::PyObject {
    // SAFETY: the interpreter runs: it called.
    singleton(unsafe { ffi::Py_None() })
}

/// The contents of the object that a method was called on.
///
/// # Safety
///
/// `object` points to an instance of the class or a subclass, which lives as long as the call.
pub(crate) unsafe fn contents<T: PyClass<Frozen = True> + Sync>(object: &*mut ffi::PyObject) -> &T {
    // SAFETY: the interpreter calls methods with its lock held.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: by the caller's word it is an object.
    let object = unsafe { Borrowed::from_ptr(py, *object) };
    // SAFETY: by the caller's word it is an instance.
    let object: Borrowed<'_, '_, T> = unsafe { object.cast_unchecked() };
    let this: *const T = object.get();
    // SAFETY: the contents live as long as the object, which the caller keeps for the call, and are never borrowed mutably.
    unsafe { &*this }
}

unsafe extern "C" fn acquire<T: Acquirable>(
    object: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    positional: ffi::Py_ssize_t,
    keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<T>(&object) };
    if positional == 0 && keywords.is_null() && this.core().is_ok_and(Acquire::try_acquire) {
        return truth(true);
    }
    // SAFETY: called as this is.
    unsafe { acquire_with_arguments(this, arguments, positional as usize, keywords) }
}

/// The rest of `acquire`, apart, so that the registers it needs are saved by it alone.
///
/// # Safety
///
/// The calling convention: positional arguments, then the values of the keywords; a tuple of their names, or null.
#[inline(never)]
unsafe fn acquire_with_arguments<T: Acquirable>(
    this: &T,
    arguments: *const *mut ffi::PyObject,
    positional: usize,
    keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let acquired = within(|py| {
        let keywords = if keywords.is_null() {
            None
        } else {
            // SAFETY: not null: a tuple, borrowed from the caller.
            Some(unsafe { Borrowed::from_ptr(py, keywords) }.cast::<PyTuple>()?.to_owned())
        };
        let count = positional + keywords.as_ref().map_or(0, PyTupleMethods::len);
        let pointers = if count == 0 {
            &[]
        } else {
            // SAFETY: by the caller's word so many are there.
            unsafe { slice::from_raw_parts(arguments, count) }
        };
        // SAFETY: borrowed from the caller for the time of the call.
        let values = pointers.iter().map(|&pointer| unsafe { Borrowed::from_ptr(py, pointer) }.to_owned());
        let values: Vec<Bound<'_, PyAny>> = values.collect();
        let [block, timeout] = parse(&values, positional, keywords.as_ref())?;
        let block = block.map_or(Ok(true), Bound::is_truthy)?;
        acquire::acquire(py, this.core()?, Truth(block), timeout)
    });
    acquired.map_or(std::ptr::null_mut(), truth)
}

/// The arguments by name: `block` and `timeout`, where they are given.
fn parse<'a, 'py>(
    values: &'a [Bound<'py, PyAny>],
    positional: usize,
    keywords: Option<&Bound<'py, PyTuple>>,
) -> PyResult<[Option<&'a Bound<'py, PyAny>>; 2]> {
    if positional > 2 {
        let text = format!("acquire() takes at most 2 positional arguments ({positional} given)");
        return Err(PyTypeError::new_err(text));
    }
    let mut found = [values[..positional].first(), values[..positional].get(1)];
    for (name, value) in keywords.into_iter().flatten().zip(&values[positional..]) {
        let name = name.cast::<PyString>()?.to_cow()?.into_owned();
        let Some(at) = ["block", "timeout"].iter().position(|&known| known == name) else {
            return Err(PyTypeError::new_err(format!("acquire() got an unexpected keyword argument '{name}'")));
        };
        if found[at].replace(value).is_some() {
            return Err(PyTypeError::new_err(format!("acquire() got multiple values for argument '{name}'")));
        }
    }
    Ok(found)
}

unsafe extern "C" fn enter<T: Acquirable>(object: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<T>(&object) };
    if this.core().is_ok_and(Acquire::try_acquire) {
        return truth(true);
    }
    // SAFETY: without any arguments.
    unsafe { acquire_with_arguments(this, std::ptr::null(), 0, std::ptr::null_mut()) }
}

unsafe extern "C" fn release<T: Acquirable>(
    object: *mut ffi::PyObject,
    arguments: *mut *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    if count != 0 {
        return raise(PyTypeError::new_err(format!("release() takes no arguments ({count} given)")));
    }
    // SAFETY: called as this is.
    unsafe { exit::<T>(object, arguments, count) }
}

/// `__exit__`, whose arguments don't matter.
unsafe extern "C" fn exit<T: Acquirable>(
    object: *mut ffi::PyObject,
    _: *mut *mut ffi::PyObject,
    _: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<T>(&object) };
    match this.core().and_then(Acquire::release) {
        Ok(()) => none(),
        Err(error) => raise(error),
    }
}
