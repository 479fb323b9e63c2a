//! Shared values and arrays with their lock: each access acquires it, reads or writes, and releases it.
//!
//! In Python that is four calls for each access, which take several times as long as all that they do. Here it is one, in
//! the interpreter's own calling conventions (see [`method`](crate::method)). A number in shared memory is read and written
//! where it is, without its ctypes object; whatever is not a plain number goes through that object.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, c_int, c_void},
    ptr, slice,
};

use pyo3::{
    Borrowed, PyClassInitializer, PyTraverseError, PyVisit,
    exceptions::{PyAttributeError, PyTypeError, PyValueError},
    ffi,
    prelude::*,
    types::{PyDict, PyList, PySlice, PyString, PyTuple, PyType},
};

use crate::{
    acquire::{self, Acquire, Truth},
    late::Late,
    lock::Lock,
    method::{self, Acquirable, contents, raise, within},
    numbers::Numbers,
    rlock::RLock,
};

/// The lock of a value.
#[derive(Debug)]
enum Guard {
    RLock(Py<RLock>),
    Lock(Py<Lock>),
    /// Whatever else has `acquire()` and `release()`.
    Other(Py<PyAny>),
}

#[derive(Debug)]
struct Parts {
    object: Py<PyAny>,
    guard: Guard,
    /// The object's memory, if it is a number, or an array of numbers, that lies in memory not its own.
    numbers: Option<Numbers>,
}

impl Parts {
    /// Acquires the lock if that is possible without waiting or calling Python.
    #[inline]
    fn try_acquire(&self) -> bool {
        match &self.guard {
            Guard::RLock(lock) => lock.get().core().is_ok_and(Acquire::try_acquire),
            Guard::Lock(lock) => lock.get().core().is_ok_and(Acquire::try_acquire),
            Guard::Other(_) => false,
        }
    }

    #[cold]
    fn acquire(&self, py: Python<'_>) -> PyResult<()> {
        match &self.guard {
            Guard::RLock(lock) => acquire::acquire(py, lock.get().core()?, Truth(true), None).map(drop),
            Guard::Lock(lock) => acquire::acquire(py, lock.get().core()?, Truth(true), None).map(drop),
            Guard::Other(lock) => lock.call_method0(py, "acquire").map(drop),
        }
    }

    #[inline]
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        match &self.guard {
            Guard::RLock(lock) => Acquire::release(lock.get().core()?),
            Guard::Lock(lock) => Acquire::release(lock.get().core()?),
            Guard::Other(lock) => lock.call_method0(py, "release").map(drop),
        }
    }

    fn lock<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        match &self.guard {
            Guard::RLock(lock) => lock.bind(py).as_any(),
            Guard::Lock(lock) => lock.bind(py).as_any(),
            Guard::Other(lock) => lock.bind(py),
        }
    }

    /// Does something with the lock held. An error of the release hides one of what was done, as in `try ... finally`.
    #[inline]
    fn with<R>(&self, py: Python<'_>, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
        if !self.try_acquire() {
            self.acquire(py)?;
        }
        let result = work();
        self.release(py)?;
        result
    }
}

/// The native part of `procession.sharedctypes.SynchronizedBase`.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Synchronized(Late<Parts>);

impl Synchronized {
    fn parts(&self) -> PyResult<&Parts> {
        self.0.get()
    }
}

#[pymethods]
impl Synchronized {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Late::new())
    }

    /// Gives it its object and its lock. `form` is the `struct` format of the object's items if they are plain numbers,
    /// and its memory is not its own, so that it stays where it is. `native` says that the lock's methods are the native
    /// ones.
    #[pyo3(signature = (obj, lock, form=None, native=false))]
    fn _create(&self, obj: Bound<'_, PyAny>, lock: Bound<'_, PyAny>, form: Option<char>, native: bool) -> PyResult<()> {
        let numbers = form.map(|form| Numbers::of(&obj, form)).transpose()?.flatten();
        let guard = if !native {
            Guard::Other(lock.unbind())
        } else if let Ok(rlock) = lock.cast::<RLock>() {
            Guard::RLock(rlock.clone().unbind())
        } else {
            Guard::Lock(lock.cast_into::<Lock>()?.unbind())
        };
        self.0.set(Parts { object: obj.unbind(), guard, numbers })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(parts) = self.parts() else { return Ok(()) };
        visit.call(&parts.object)?;
        match &parts.guard {
            Guard::RLock(lock) => visit.call(lock),
            Guard::Lock(lock) => visit.call(lock),
            Guard::Other(lock) => visit.call(lock),
        }
    }

    #[getter]
    fn _obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.parts()?.object.clone_ref(py))
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.parts()?.lock(py).clone())
    }

    /// Gives a class derived from this one the hot methods for its own (see [`method::install`]).
    #[classmethod]
    fn _own_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
        install(class)
    }
}

/// A native array type's part of `procession.sharedctypes.SynchronizedArray`.
#[pyclass(frozen, subclass, extends = Synchronized, module = "procession._core")]
#[derive(Debug)]
pub struct SynchronizedArray;

#[pymethods]
impl SynchronizedArray {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Synchronized::new(args, kwargs)).add_subclass(Self)
    }

    fn __len__(slf: &Bound<'_, Self>) -> PyResult<usize> {
        slf.as_super().get().parts()?.object.bind(slf.py()).len()
    }

    fn __getitem__<'py>(slf: &Bound<'py, Self>, i: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let parts = slf.as_super().get().parts()?;
        parts.with(py, || {
            if let (Some(numbers), Ok(slice)) = (&parts.numbers, i.cast::<PySlice>())
                && let Some(range) = numbers.range(slice)?
            {
                return Ok(numbers.list(py, range)?.into_any());
            }
            parts.object.bind(py).get_item(i)
        })
    }

    fn __delitem__(_slf: &Bound<'_, Self>, _i: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(PyAttributeError::new_err("__delitem__: the length of an array is fixed"))
    }

    fn __setitem__(slf: &Bound<'_, Self>, i: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let parts = slf.as_super().get().parts()?;
        parts.with(py, || {
            if let (Some(numbers), Ok(slice), Ok(list)) = (&parts.numbers, i.cast::<PySlice>(), value.cast::<PyList>())
                && let Some(range) = numbers.range(slice)?
                && range.len() == list.len()
            {
                // Whatever an item that is no number of the right kind leads to, the ctypes object says it.
                return numbers.fill(range, list, |at, item| parts.object.bind(py).set_item(at, item));
            }
            parts.object.bind(py).set_item(i, value)
        })
    }
}

/// What the descriptor of an attribute of the object knows.
struct Attribute {
    /// Owned, for ever.
    name: *mut ffi::PyObject,
    /// Whether it is the number itself.
    is_number: bool,
}

/// A descriptor by which wrappers have an attribute of their object, with the lock held.
///
/// # Errors
///
/// `ValueError` for a name with a null character.
#[pyfunction]
pub fn synchronized_property<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let attribute = Attribute { name: PyString::intern(py, name).into_ptr(), is_number: name == "value" };
    let c_name = CString::new(name).map_err(|_| PyValueError::new_err("a name has no null characters"))?;
    // The interpreter keeps the pointers for as long as the descriptor lives, which is cached for ever.
    let definition = Box::leak(Box::new(ffi::PyGetSetDef {
        name: c_name.into_raw(),
        get: Some(get),
        set: Some(set),
        doc: c"An attribute of the object, with its lock held.".as_ptr(),
        closure: ptr::from_ref(Box::leak(Box::new(attribute))).cast_mut().cast(),
    }));
    // SAFETY: the class is a type, and the functions are for its instances and for the closure.
    let descriptor = unsafe { ffi::PyDescr_NewGetSet(py.get_type::<Synchronized>().as_type_ptr(), definition) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, descriptor) }
}

unsafe extern "C" fn get(object: *mut ffi::PyObject, closure: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    // SAFETY: the closure is that of the definition, which lives for ever.
    let attribute = unsafe { &*closure.cast::<Attribute>() };
    if let Ok(parts) = this.parts()
        && let Some(number) = &parts.numbers
        && attribute.is_number
        && parts.try_acquire()
    {
        let loaded = number.load(0);
        // SAFETY: the interpreter calls with its lock held.
        let py = unsafe { Python::assume_attached() };
        return match parts.release(py) {
            Ok(()) => loaded.to_object(),
            Err(error) => raise(error),
        };
    }
    let got = within(|py| {
        let parts = this.parts()?;
        // SAFETY: a string, kept for ever.
        let name = unsafe { Borrowed::from_ptr(py, attribute.name) };
        let name = name.cast::<PyString>()?;
        parts.with(py, || parts.object.bind(py).getattr(name).map(Bound::unbind))
    });
    got.map_or(ptr::null_mut(), Py::into_ptr)
}

unsafe extern "C" fn set(object: *mut ffi::PyObject, value: *mut ffi::PyObject, closure: *mut c_void) -> c_int {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    // SAFETY: the closure is that of the definition, which lives for ever.
    let attribute = unsafe { &*closure.cast::<Attribute>() };
    if let Ok(parts) = this.parts()
        && let Some(number) = &parts.numbers
        && attribute.is_number
        && !value.is_null()
        // SAFETY: not null: an object, borrowed from the caller.
        && let Some(taken) = unsafe { number.take(value) }
        && parts.try_acquire()
    {
        number.store(0, taken);
        // SAFETY: the interpreter calls with its lock held.
        let py = unsafe { Python::assume_attached() };
        return match parts.release(py) {
            Ok(()) => 0,
            Err(error) => {
                raise(error);
                -1
            }
        };
    }
    let done = within(|py| {
        let parts = this.parts()?;
        // SAFETY: a string, kept for ever.
        let name = unsafe { Borrowed::from_ptr(py, attribute.name) };
        let name = name.cast::<PyString>()?;
        if value.is_null() {
            return Err(PyAttributeError::new_err(format!("'{}' can't be deleted", name.to_cow()?)));
        }
        // SAFETY: not null: an object, borrowed from the caller.
        let value = unsafe { Borrowed::from_ptr(py, value) };
        parts.with(py, || parts.object.bind(py).setattr(name, value))
    });
    if done.is_some() { 0 } else { -1 }
}

/// Puts `get_lock`, `acquire`, `release`, `__enter__` and `__exit__` on a class derived from the native one.
///
/// # Errors
///
/// `TypeError` if it is not.
fn install(class: &Bound<'_, PyType>) -> PyResult<()> {
    if !class.is_subclass_of::<Synchronized>()? {
        return Err(PyTypeError::new_err("the class is not derived from the native one"));
    }
    let get_lock_of = ffi::PyMethodDefPointer { PyCFunction: get_lock };
    method::define(class, c"get_lock", get_lock_of, ffi::METH_NOARGS, c"get_lock($self, /)\n--\n\nThe lock.")?;
    let acquire_of = ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: acquire };
    method::define(
        class,
        c"acquire",
        acquire_of,
        ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        c"Acquire the lock: with the arguments of the lock's own method, and with its answer.",
    )?;
    let release_of = ffi::PyMethodDefPointer { PyCFunctionFast: release };
    method::define(
        class,
        c"release",
        release_of,
        ffi::METH_FASTCALL,
        c"Release the lock: with the arguments of the lock's own method, and with its answer.",
    )?;
    let enter_of = ffi::PyMethodDefPointer { PyCFunction: enter };
    method::define(class, c"__enter__", enter_of, ffi::METH_NOARGS, c"__enter__($self, /)\n--\n\nAcquire the lock.")?;
    let exit_of = ffi::PyMethodDefPointer { PyCFunctionFast: exit };
    method::define(
        class,
        c"__exit__",
        exit_of,
        ffi::METH_FASTCALL,
        c"__exit__($self, /, *exc_info)\n--\n\nRelease the lock.",
    )
}

unsafe extern "C" fn get_lock(object: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    // SAFETY: the interpreter calls with its lock held.
    let py = unsafe { Python::assume_attached() };
    match this.parts() {
        Ok(parts) => parts.lock(py).clone().into_ptr(),
        Err(error) => raise(error),
    }
}

unsafe extern "C" fn enter(object: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    if this.parts().is_ok_and(Parts::try_acquire) {
        return method::truth(true);
    }
    let entered = within(|py| this.parts()?.lock(py).call_method0("__enter__").map(Bound::unbind));
    entered.map_or(ptr::null_mut(), Py::into_ptr)
}

unsafe extern "C" fn acquire(
    object: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    if count == 0 && keywords.is_null() && this.parts().is_ok_and(Parts::try_acquire) {
        return method::truth(true);
    }
    // SAFETY: called as this is.
    unsafe { call(this, "acquire", arguments, count, keywords) }
}

unsafe extern "C" fn release(
    object: *mut ffi::PyObject,
    arguments: *mut *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    if count == 0
        && let Some(released) = release_native(this)
    {
        return released;
    }
    // SAFETY: called as this is; there are no keywords.
    unsafe { call(this, "release", arguments.cast_const(), count, ptr::null_mut()) }
}

unsafe extern "C" fn exit(
    object: *mut ffi::PyObject,
    arguments: *mut *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: the descriptor checks the type of the object.
    let this = unsafe { contents::<Synchronized>(&object) };
    if let Some(released) = release_native(this) {
        return released;
    }
    // SAFETY: called as this is; there are no keywords.
    unsafe { call(this, "__exit__", arguments.cast_const(), count, ptr::null_mut()) }
}

/// Releases the lock if that is a native one. What to return then.
#[inline]
fn release_native(this: &Synchronized) -> Option<*mut ffi::PyObject> {
    let parts = this.parts().ok().filter(|parts| !matches!(parts.guard, Guard::Other(_)))?;
    // SAFETY: the interpreter calls with its lock held.
    let py = unsafe { Python::assume_attached() };
    Some(match parts.release(py) {
        Ok(()) => method::none(),
        Err(error) => raise(error),
    })
}

/// Calls a method of the lock.
///
/// # Safety
///
/// The calling convention: positional arguments, then the values of the keywords; a tuple of their names, or null.
unsafe fn call(
    this: &Synchronized,
    name: &str,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let answer = within(|py| {
        let keywords = if keywords.is_null() {
            None
        } else {
            // SAFETY: not null: a tuple, borrowed from the caller.
            Some(unsafe { Borrowed::from_ptr(py, keywords) }.cast::<PyTuple>()?.to_owned())
        };
        let all = count as usize + keywords.as_ref().map_or(0, PyTupleMethods::len);
        let pointers = if all == 0 {
            &[]
        } else {
            // SAFETY: by the caller's word so many are there.
            unsafe { slice::from_raw_parts(arguments, all) }
        };
        // SAFETY: borrowed from the caller for the time of the call.
        let values = pointers.iter().map(|&pointer| unsafe { Borrowed::from_ptr(py, pointer) }.to_owned());
        let values: Vec<Bound<'_, PyAny>> = values.collect();
        let (positional, named) = values.split_at(count as usize);
        let named_arguments = PyDict::new(py);
        for (name, value) in keywords.iter().flatten().zip(named) {
            named_arguments.set_item(name, value)?;
        }
        let method = this.parts()?.lock(py).getattr(name)?;
        method.call(PyTuple::new(py, positional)?, Some(&named_arguments)).map(Bound::unbind)
    });
    answer.map_or(ptr::null_mut(), Py::into_ptr)
}
