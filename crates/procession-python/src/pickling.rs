//! Objects to bytes and back.
//!
//! What is pickled is what the package's `ForkingPickler` would write: the same registered reducers, looked up as they are
//! now. But no pickler is made per object. Plain scalars are written here, as the short pickles they are; everything else
//! goes through picklers that are kept, each with a place to write to that hands its bytes on without a copy.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_long},
    mem::MaybeUninit,
    ptr, slice,
    sync::{Mutex, PoisonError},
};

use pyo3::{
    buffer::PyBuffer,
    exceptions::PyKeyError,
    ffi,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyString},
};

/// The protocol of the picklers: the one that writes large buffers without copying them first. Both sides run the same
/// Python, so there is no older one to think of.
const PROTOCOL: u8 = 5;
/// Idle picklers beyond this are dropped.
const KEPT: usize = 8;
/// A pickler that wrote more is not used again: it keeps the room for all that it had to remember, and clearing that takes time.
const LARGE: usize = 1 << 16;

/// Pickles an object and calls `put` with the pieces of the pickle, valid during the call.
///
/// # Errors
///
/// The outer one is the pickler's.
pub(crate) fn with_pickle<R>(
    object: &Bound<'_, PyAny>,
    put: impl FnOnce(&[&[u8]]) -> PyResult<R>,
) -> PyResult<PyResult<R>> {
    if let Some(scalar) = Scalar::of(object) {
        return Ok(put(&[scalar.head(), scalar.body, if scalar.body.is_empty() { b"" } else { b"." }]));
    }
    let chunks = pickle(object)?;
    Ok(match &chunks[..] {
        [chunk] => put(&[chunk.bytes(object.py())]),
        chunks => put(&chunks.iter().map(|chunk| chunk.bytes(object.py())).collect::<Vec<_>>()),
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

/// A scalar as a pickle: a head, and for text and bytes the contents, followed by a full stop.
struct Scalar<'a> {
    head: [u8; 16],
    length: usize,
    body: &'a [u8],
}

impl<'a> Scalar<'a> {
    fn head(&self) -> &[u8] {
        &self.head[..self.length]
    }

    fn new(opcode: u8, argument: &[u8], body: Option<&'a [u8]>) -> Self {
        let mut head = [0; 16];
        head[..3].copy_from_slice(&[0x80, 4, opcode]);
        let mut length = 3 + argument.len();
        head[3..length].copy_from_slice(argument);
        let body = body.unwrap_or_default();
        // The full stop ends the head where no body follows.
        if body.is_empty() {
            head[length] = b'.';
            length += 1;
        }
        Self { head, length, body }
    }

    #[inline]
    fn of(object: &'a Bound<'_, PyAny>) -> Option<Self> {
        if object.is_exact_instance_of::<PyInt>() {
            Self::of_int(object)
        } else if object.is_exact_instance_of::<PyString>() {
            // Text with lone surrogates is no UTF-8; the pickler knows what to do then.
            let body = object.cast::<PyString>().ok()?.to_str().ok()?.as_bytes();
            Some(Self::sized(body, [0x8c, b'X', 0x8d]))
        } else if object.is_exact_instance_of::<PyBytes>() {
            let body = object.cast::<PyBytes>().ok()?.as_bytes();
            Some(Self::sized(body, [b'C', b'B', 0x8e]))
        } else if object.is_exact_instance_of::<PyFloat>() {
            let value = object.cast::<PyFloat>().ok()?.value();
            Some(Self::new(b'G', &value.to_be_bytes(), None))
        } else if object.is_none() {
            Some(Self::new(b'N', &[], None))
        } else if object.is_exact_instance_of::<PyBool>() {
            Some(Self::new(if object.cast::<PyBool>().ok()?.is_true() { 0x88 } else { 0x89 }, &[], None))
        } else {
            None
        }
    }

    #[inline]
    fn of_int(object: &Bound<'_, PyAny>) -> Option<Self> {
        let mut overflow: c_int = 0;
        // SAFETY: an int, attached.
        let value: i64 = unsafe { ffi::PyLong_AsLongLongAndOverflow(object.as_ptr(), &raw mut overflow) };
        if overflow != 0 {
            return None;
        }
        Some(if let Ok(byte) = u8::try_from(value) {
            Self::new(b'K', &[byte], None)
        } else if let Ok(short) = u16::try_from(value) {
            Self::new(b'M', &short.to_le_bytes(), None)
        } else if let Ok(word) = i32::try_from(value) {
            Self::new(b'J', &word.to_le_bytes(), None)
        } else {
            let mut argument = [8; 9];
            argument[1..].copy_from_slice(&value.to_le_bytes());
            Self::new(0x8a, &argument, None)
        })
    }

    /// With the opcode for a length of one byte, of four, or of eight.
    fn sized(body: &'a [u8], [short, usual, long]: [u8; 3]) -> Self {
        if let Ok(length) = u8::try_from(body.len()) {
            Self::new(short, &[length], Some(body))
        } else if let Ok(length) = u32::try_from(body.len()) {
            Self::new(usual, &length.to_le_bytes(), Some(body))
        } else {
            Self::new(long, &(body.len() as u64).to_le_bytes(), Some(body))
        }
    }
}

/// The scalar that a pickle stands for; `None` if it is none of those written here.
#[inline]
fn scalar<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let [0x80, 4, opcode, argument @ .., b'.'] = pickle else { return None };
    Some(match (opcode, argument) {
        (b'K', &[byte]) => int(py, c_long::from(byte)),
        (b'M', &[low, high]) => int(py, c_long::from(u16::from_le_bytes([low, high]))),
        (b'J', argument) => int(py, c_long::from(i32::from_le_bytes(argument.try_into().ok()?))),
        (0x8a, [8, argument @ ..]) => i64::from_le_bytes(argument.try_into().ok()?).into_pyobject(py).ok()?.into_any(),
        (b'G', argument) => PyFloat::new(py, f64::from_be_bytes(argument.try_into().ok()?)).into_any(),
        (b'N', []) => py.None().into_bound(py),
        (0x88 | 0x89, []) => PyBool::new(py, *opcode == 0x88).to_owned().into_any(),
        (0x8c, [length, body @ ..]) if usize::from(*length) == body.len() => text(py, body)?,
        (b'X', argument) => {
            let (length, body) = argument.split_first_chunk()?;
            (u32::from_le_bytes(*length) as usize == body.len()).then(|| text(py, body))??
        }
        (b'C', [length, body @ ..]) if usize::from(*length) == body.len() => PyBytes::new(py, body).into_any(),
        _ => return None,
    })
}

fn text<'py>(py: Python<'py>, body: &[u8]) -> Option<Bound<'py, PyAny>> {
    Some(PyString::new(py, std::str::from_utf8(body).ok()?).into_any())
}

fn int(py: Python<'_>, value: c_long) -> Bound<'_, PyAny> {
    // SAFETY: attached.
    let object = unsafe { ffi::PyLong_FromLong(value) };
    // SAFETY: a new reference; a null, if memory is out, is a panic.
    unsafe { Bound::from_owned_ptr(py, object) }
}

/// If the pickle that begins like this is one of a `bytes` object as written here: where its contents are, and how long.
pub(crate) fn bytes_within(beginning: &[u8], total: u64) -> Option<(u64, usize)> {
    let [0x80, 4, opcode @ (b'B' | 0x8e), argument @ ..] = beginning else { return None };
    let (offset, length) = match opcode {
        b'B' => (7, u64::from(u32::from_le_bytes(*argument.first_chunk()?))),
        _ => (11, u64::from_le_bytes(*argument.first_chunk()?)),
    };
    // The full stop is all that follows.
    (length.checked_add(offset + 1)? == total).then_some((offset, usize::try_from(length).ok()?))
}

/// The object of a pickle that is not in a `bytes` object.
///
/// # Errors
///
/// Whatever unpickling raises.
#[inline]
pub(crate) fn loads<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match scalar(py, pickle) {
        Some(object) => Ok(object),
        None => loads_bytes(&PyBytes::new(py, pickle)),
    }
}

/// The object of a pickle.
///
/// # Errors
///
/// Whatever unpickling raises.
pub(crate) fn loads_bytes<'py>(pickle: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    call(LOADS.import(pickle.py(), "_pickle", "loads")?, pickle)
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
    // SAFETY: the contents are `length` bytes, which nobody else looks at as yet; the caller keeps the object meanwhile.
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
struct Pickler {
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
    sink: Py<Sink>,
}

/// One is taken out while in use: pickling may run any Python code, which may come here again, fork, or be a thread
/// among others. Whoever touches the list is attached to the interpreter and does nothing else meanwhile, so no fork
/// finds it locked.
static IDLE: Mutex<Vec<Pickler>> = Mutex::new(Vec::new());

fn pickle(object: &Bound<'_, PyAny>) -> PyResult<Vec<Chunk>> {
    let py = object.py();
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let pickler = match idle {
        Some(pickler) => pickler,
        None => Pickler::new(py)?,
    };
    // One that failed is dropped: it may be anywhere in the midst of its work.
    call(pickler.dump.bind(py), object)?;
    let chunks = pickler.sink.get().take();
    if chunks.iter().map(|chunk| chunk.bytes(py).len()).sum::<usize>() <= LARGE {
        pickler.clear_memo.call0(py)?;
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(pickler);
        }
    }
    Ok(chunks)
}

impl Pickler {
    #[cold]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let sink = Bound::new(py, Sink(Mutex::new(Vec::new())))?;
        let pickler = py.import("_pickle")?.getattr("Pickler")?.call1((&sink, PROTOCOL))?;
        pickler.setattr("dispatch_table", LiveTable::new(py)?)?;
        Ok(Self {
            dump: pickler.getattr("dump")?.unbind(),
            clear_memo: pickler.getattr("clear_memo")?.unbind(),
            sink: sink.unbind(),
        })
    }
}

/// What a pickler wrote at a time. The contents of large `bytes` objects are written as that object.
#[derive(Debug)]
enum Chunk {
    Object(Py<PyBytes>),
    Copy(Vec<u8>),
}

impl Chunk {
    fn bytes<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        match self {
            Self::Object(bytes) => bytes.as_bytes(py),
            Self::Copy(bytes) => bytes,
        }
    }
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
            Ok(bytes) => Chunk::Object(bytes.clone().unbind()),
            // A bytearray or a view, which may change once the pickler has returned.
            Err(_) => Chunk::Copy(PyBuffer::<u8>::get(data)?.to_vec(data.py())?),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
        Ok(())
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
