//! Objects to bytes and back.
//!
//! What is pickled is what the package's `ForkingPickler` would write: the same registered reducers, looked up as they
//! are now. But no pickler is made per object. Plain data is written by `plain.rs`; everything else goes through
//! picklers that are kept, each with a place to write to that hands its bytes on without a copy.
#![allow(unsafe_code)]

use std::{
    mem::MaybeUninit,
    ptr, slice,
    sync::{Mutex, PoisonError},
};

use procession_core::memory::{Travelling, Unsent, Way};
use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyKeyError, PyMemoryError},
    ffi,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyList},
};

use crate::{
    apart,
    connection::bytes_of,
    plain::{self, Plain},
};

/// The protocol of the picklers: the one that writes large buffers without copying them first. Both sides run the same
/// Python, so there is no older one to think of.
const PROTOCOL: u8 = 5;
/// Idle picklers beyond this are dropped.
const KEPT: usize = 8;
/// A pickler that wrote more is not used again: it keeps the room for all that it had to remember, and clearing that
/// takes time.
const LARGE: usize = 1 << 16;
/// A smaller buffer is a part of the pickle: to copy it takes no longer than to deal with it apart.
const LEAST_APART: usize = 1 << 14;

/// Pickles an object and calls `put` with the pieces of the pickle, valid during the call.
///
/// # Errors
///
/// The outer one is the pickler's.
pub(crate) fn with_pickle<R>(
    object: &Bound<'_, PyAny>,
    put: impl FnOnce(&[&[u8]]) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    if let Some(plain) = Plain::of(object) {
        return Ok(put(&plain.parts()));
    }
    with_arrays(Way::Sent, || {
        let (chunks, _) = pickle(object, &IDLE)?;
        Ok(match &chunks[..] {
            [chunk] => put(&[chunk.bytes(object.py())]),
            chunks => put(&chunks.iter().map(|chunk| chunk.bytes(object.py())).collect::<Vec<_>>()),
        })
    })
}

/// Calls what pickles and sends a message. Shared arrays of one that was not sent after all are not kept for its receiver.
///
/// # Errors
///
/// Those of `send`.
pub(crate) fn with_arrays<R>(way: Way, send: impl FnOnce() -> PyResult<PyResult<R>>) -> PyResult<PyResult<R>> {
    Travelling::with_message(way, send, |sent| matches!(sent, Ok(Ok(_))))
}

/// [`with_pickle`], with large buffers apart where the object has any: `put` is told whether it has. The pieces are those of
/// `apart.rs` then.
///
/// # Errors
///
/// The outer one is the pickler's.
pub(crate) fn with_pickle_apart<R>(
    object: &Bound<'_, PyAny>,
    put: impl FnOnce(&[&[u8]], bool) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    if let Some(plain) = Plain::of(object) {
        return Ok(put(&plain.parts(), false));
    }
    with_arrays(Way::Sent, || {
        let (chunks, buffers) = pickle(object, &IDLE_APART)?;
        let pieces = chunks.iter().map(|chunk| chunk.bytes(object.py())).collect::<Vec<_>>();
        Ok(if buffers.is_empty() {
            put(&pieces, false)
        } else {
            apart::with_parts(&pieces, &buffers, |parts| put(parts, true))
        })
    })
}

/// As [`with_pickle`], with large buffers apart: `put` gets the pieces of the pickle, and these buffers.
///
/// # Errors
///
/// The outer one is the pickler's.
pub(crate) fn with_buffers<R>(
    object: &Bound<'_, PyAny>,
    put: impl FnOnce(&[&[u8]], &[&[u8]]) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    match Plain::of(object) {
        Some(plain) => Ok(put(&plain.parts(), &[])),
        None => with_arrays(Way::Sent, || with_buffers_of_message(object, put)),
    }
}

/// [`with_buffers`], as a part of what [`with_arrays`] calls.
///
/// # Errors
///
/// The outer one is the pickler's.
pub(crate) fn with_buffers_of_message<R>(
    object: &Bound<'_, PyAny>,
    put: impl FnOnce(&[&[u8]], &[&[u8]]) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    let (chunks, buffers) = pickle(object, &IDLE_APART)?;
    let buffers: Vec<&[u8]> = buffers.iter().map(bytes_of).collect();
    Ok(match &chunks[..] {
        [chunk] => put(&[chunk.bytes(object.py())], &buffers),
        chunks => put(&chunks.iter().map(|chunk| chunk.bytes(object.py())).collect::<Vec<_>>(), &buffers),
    })
}

/// The pickle of an object as one piece.
///
/// # Errors
///
/// The pickler's.
pub(crate) fn to_vec(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    with_pickle(object, |parts| Ok(parts.concat()))?
}

/// The pickle of an object as one piece, and what goes with it, to be sent later on.
///
/// # Errors
///
/// The pickler's.
pub(crate) fn to_send_later(object: &Bound<'_, PyAny>) -> PyResult<(Vec<u8>, Unsent)> {
    with_pickle(object, |parts| Ok((parts.concat(), Travelling::unsent())))?
}

/// The object of a pickle that is not in a `bytes` object.
///
/// # Errors
///
/// Whatever unpickling raises.
#[inline]
pub(crate) fn loads<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match plain::loads(py, pickle)? {
        Some(object) => Ok(object),
        None if pickle.len() < LARGE => loads_bytes(&PyBytes::new(py, pickle)),
        None => loads_in_place(py, pickle),
    }
}

/// The object of a large pickle, read where it is: a copy would be fresh memory, which costs more than the copying.
#[cold]
fn loads_in_place<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    in_place(py, pickle, |view| call(loads_function(py)?, view))
}

/// The object of a pickle whose buffers are apart.
///
/// # Errors
///
/// Whatever unpickling raises.
pub(crate) fn loads_with_buffers<'py>(
    py: Python<'py>,
    pickle: &[u8],
    buffers: &Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyAny>> {
    if buffers.is_empty() {
        return loads(py, pickle);
    }
    in_place(py, pickle, |view| {
        let keywords = PyDict::new(py);
        keywords.set_item(pyo3::intern!(py, "buffers"), buffers)?;
        loads_function(py)?.call((view,), Some(&keywords))
    })
}

/// Calls with a view of bytes that are only there meanwhile.
fn in_place<'py>(
    py: Python<'py>,
    pickle: &[u8],
    load: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let length = ffi::Py_ssize_t::try_from(pickle.len()).map_err(|_| PyMemoryError::new_err(()))?;
    // SAFETY: attached; the view is for reading, and is released below, before the memory can go.
    let view = unsafe { ffi::PyMemoryView_FromMemory(pickle.as_ptr().cast_mut().cast(), length, ffi::PyBUF_READ) };
    // SAFETY: a new reference, or null with an exception set.
    let view = unsafe { Bound::from_owned_ptr_or_err(py, view) }?;
    let object = load(&view);
    // Whoever has got hold of the view finds it closed. The unpickler, which alone knows it, has let it go.
    view.call_method0(pyo3::intern!(py, "release"))?;
    object
}

pub(crate) fn loads_function(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOADS.import(py, "_pickle", "loads")
}

/// The object of a pickle.
///
/// # Errors
///
/// Whatever unpickling raises.
pub(crate) fn loads_bytes<'py>(pickle: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
    call(loads_function(pickle.py())?, pickle)
}

/// The pickle of an object as the package writes it, for those who send it themselves.
#[pyfunction]
#[pyo3(name = "dumps")]
pub(crate) fn py_dumps<'py>(obj: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    with_pickle(obj, |parts| {
        Ok(match parts {
            [whole] => PyBytes::new(obj.py(), whole),
            parts => PyBytes::new(obj.py(), &parts.concat()),
        })
    })?
}

/// The object of a pickle in a `bytes` object.
#[pyfunction]
#[pyo3(name = "loads")]
pub(crate) fn py_loads<'py>(pickle: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
    match plain::loads(pickle.py(), pickle.as_bytes())? {
        Some(object) => Ok(object),
        None => loads_bytes(pickle),
    }
}

/// As `loads()`, of what this thread has pickled for the message that it is making, to see what the receiver will get. Shared arrays
/// are on their way to that one nonetheless.
#[pyfunction]
pub(crate) fn reread<'py>(pickle: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
    Travelling::with_arrived(Travelling::of_message(), || py_loads(pickle))
}

/// A `bytes` object to be filled: all of it, before anybody else gets it.
///
/// # Errors
///
/// `MemoryError`
pub(crate) fn new_bytes(py: Python<'_>, length: usize) -> PyResult<(Bound<'_, PyBytes>, &mut [MaybeUninit<u8>])> {
    let length_or_most = ffi::Py_ssize_t::try_from(length).unwrap_or(ffi::Py_ssize_t::MAX);
    // SAFETY: attached; null asks for uninitialized contents.
    let bytes = unsafe { ffi::PyBytes_FromStringAndSize(ptr::null(), length_or_most) };
    // SAFETY: a new reference, or null with an exception set.
    let bytes = unsafe { Bound::from_owned_ptr_or_err(py, bytes) }?;
    // SAFETY: that function makes nothing else.
    let bytes: Bound<'_, PyBytes> = unsafe { bytes.cast_into_unchecked() };
    // SAFETY: it is a bytes object.
    let start = unsafe { ffi::PyBytes_AsString(bytes.as_ptr()) };
    // SAFETY: the contents are `length` bytes, which nobody else looks at as yet; the caller keeps the object
    // meanwhile.
    let contents = unsafe { slice::from_raw_parts_mut(start.cast(), length) };
    Ok((bytes, contents))
}

/// Calls with one argument, by the shortest way the stable interface has.
#[inline]
fn call<'py>(function: &Bound<'py, PyAny>, argument: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let end = ptr::null_mut::<ffi::PyObject>();
    // SAFETY: attached; borrowed references, the list ended by a null.
    let result = unsafe { ffi::PyObject_CallFunctionObjArgs(function.as_ptr(), argument.as_ptr(), end) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(function.py(), result) }
}

// The picklers that are kept

/// A pickler that nobody uses at the moment.
#[derive(Debug)]
struct Pickler {
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
    sink: Py<Sink>,
    aside: Option<Py<Aside>>,
}

/// One is taken out while in use: pickling may run any Python code, which may come here again, fork, or be a thread
/// among others. Whoever touches the list is attached to the interpreter and does nothing else meanwhile, so no fork
/// finds it locked.
static IDLE: Mutex<Vec<Pickler>> = Mutex::new(Vec::new());
/// Those that leave large buffers apart.
static IDLE_APART: Mutex<Vec<Pickler>> = Mutex::new(Vec::new());

fn pickle(
    object: &Bound<'_, PyAny>,
    kept: &'static Mutex<Vec<Pickler>>,
) -> PyResult<(Vec<Chunk>, Vec<PyUntypedBuffer>)> {
    let py = object.py();
    let idle = kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let pickler = match idle {
        Some(pickler) => pickler,
        None => Pickler::new(py, std::ptr::eq(kept, &raw const IDLE_APART))?,
    };
    // One that failed is dropped: it may be anywhere in the midst of its work.
    call(pickler.dump.bind(py), object)?;
    let chunks = pickler.sink.get().take();
    let buffers = pickler.aside.as_ref().map(|aside| aside.get().take()).unwrap_or_default();
    if chunks.iter().map(|chunk| chunk.bytes(py).len()).sum::<usize>() <= LARGE {
        pickler.clear_memo.call0(py)?;
        let mut idle = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(pickler);
        }
    }
    Ok((chunks, buffers))
}

impl Pickler {
    #[cold]
    fn new(py: Python<'_>, apart: bool) -> PyResult<Self> {
        let sink = Bound::new(py, Sink(Mutex::new(Vec::new())))?;
        let aside = apart.then(|| Bound::new(py, Aside(Mutex::new(Vec::new())))).transpose()?;
        // The third argument has to do with Python 2.
        let class = py.import("_pickle")?.getattr("Pickler")?;
        let pickler = class.call1((&sink, PROTOCOL, true, aside.as_ref()))?;
        pickler.setattr("dispatch_table", LiveTable::new(py)?)?;
        Ok(Self {
            dump: pickler.getattr("dump")?.unbind(),
            clear_memo: pickler.getattr("clear_memo")?.unbind(),
            sink: sink.unbind(),
            aside: aside.map(Bound::unbind),
        })
    }
}

/// What a pickler wrote at a time. The contents of large `bytes` objects are written as that object.
#[derive(Debug)]
struct Chunk(Py<PyBytes>);

impl Chunk {
    fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        self.0.as_bytes(py)
    }
}

/// The contents of a bytearray, an array or a view, which may change once the pickler has returned.
fn copy_of(data: &Bound<'_, PyAny>) -> PyResult<Py<PyBytes>> {
    // SAFETY: attached, and an object.
    let bytes = unsafe { ffi::PyBytes_FromObject(data.as_ptr()) };
    // SAFETY: a new reference, or null with an exception set.
    let bytes = unsafe { Bound::from_owned_ptr_or_err(data.py(), bytes) }?;
    Ok(bytes.cast_into()?.unbind())
}

/// The file that a pickler writes to.
#[pyclass(frozen, module = "procession._core")]
#[derive(Debug)]
struct Sink(Mutex<Vec<Chunk>>);

impl Sink {
    fn take(&self) -> Vec<Chunk> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Sink {
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let chunk = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => Chunk(bytes.clone().unbind()),
            Err(_) => Chunk(copy_of(data)?),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        Ok(())
    }
}

/// The buffers that a pickler leaves apart.
#[pyclass(frozen, module = "procession._core")]
#[derive(Debug)]
struct Aside(Mutex<Vec<PyUntypedBuffer>>);

impl Aside {
    fn take(&self) -> Vec<PyUntypedBuffer> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Aside {
    /// Whether a buffer is to be a part of the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        // An array without dimensions has no shape, which is refused here; the pickler takes it.
        let Ok(buffer) = PyUntypedBuffer::get(buffer) else {
            return Ok(true);
        };
        let whole = buffer.is_c_contiguous() || buffer.is_fortran_contiguous();
        if !whole || buffer.len_bytes() < LEAST_APART {
            return Ok(true);
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        Ok(false)
    }
}

/// The reducers of `ForkingPickler` and of `copyreg`, as they are when an object is pickled.
#[pyclass(frozen, mapping, module = "procession._core")]
#[derive(Debug)]
struct LiveTable {
    extra: Py<PyDict>,
    standard: Py<PyDict>,
    know_sockets: Py<PyAny>,
}

impl LiveTable {
    fn new(py: Python<'_>) -> PyResult<Self> {
        let reduction = py.import("procession.reduction")?;
        let class = reduction.getattr("ForkingPickler")?;
        Ok(Self {
            extra: class.getattr("_extra_reducers")?.cast_into()?.unbind(),
            standard: class.getattr("_copyreg_dispatch_table")?.cast_into()?.unbind(),
            know_sockets: reduction.getattr("_know_sockets")?.unbind(),
        })
    }

    fn find<'py>(&self, kind: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.extra.bind(kind.py()).get_item(kind)? {
            Some(reducer) => Ok(Some(reducer)),
            None => self.standard.bind(kind.py()).get_item(kind),
        }
    }
}

#[pymethods]
impl LiveTable {
    fn __getitem__<'py>(&self, kind: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(reducer) = self.find(kind)? {
            return Ok(reducer);
        }
        // The reducer of sockets is registered when the first socket comes along.
        if kind.getattr("__module__").is_ok_and(|module| module.eq("socket").unwrap_or(false)) {
            self.know_sockets.call0(kind.py())?;
            if let Some(reducer) = self.find(kind)? {
                return Ok(reducer);
            }
        }
        Err(PyKeyError::new_err(kind.clone().unbind()))
    }
}
