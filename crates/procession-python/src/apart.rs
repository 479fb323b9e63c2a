//! Pickles whose large buffers lie apart, as one message: see `CONNECTION.md` of the core, "Buffers apart".
#![allow(unsafe_code)]

use std::{
    alloc::{self, Layout},
    ffi::c_int,
    mem::MaybeUninit,
    ops::Range,
    ptr::NonNull,
    slice,
};

use procession_core::channel::apart::{self, ALIGNMENT};
use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyMemoryError, PyValueError},
    ffi,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyList, PyMemoryView, PySlice},
};

use crate::{connection::bytes_of, pickling};

const PADDING: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// The parts of a message: the table, the pickle in its pieces, the buffers.
pub(crate) fn with_parts<R>(pickle: &[&[u8]], buffers: &[PyUntypedBuffer], put: impl FnOnce(&[&[u8]]) -> R) -> R {
    let pickle_length = pickle.iter().map(|piece| piece.len()).sum();
    let table = apart::table(pickle_length, buffers.iter().map(PyUntypedBuffer::len_bytes));
    let mut end = table.len() + pickle_length;
    let mut parts = Vec::with_capacity(1 + pickle.len() + 2 * buffers.len());
    parts.push(table.as_slice());
    parts.extend_from_slice(pickle);
    for buffer in buffers {
        parts.push(&PADDING[..end.next_multiple_of(ALIGNMENT) - end]);
        let bytes = bytes_of(buffer);
        parts.push(bytes);
        end = end.next_multiple_of(ALIGNMENT) + bytes.len();
    }
    put(&parts)
}

/// What a message with its buffers apart begins with where nothing beside it says that it is one. No pickle begins so.
const MARK: [u8; ALIGNMENT] = {
    let mut mark = [0; ALIGNMENT];
    let (_, rest) = mark.split_at_mut(1);
    let (text, _) = rest.split_at_mut(13);
    text.copy_from_slice(b"buffers apart");
    mark
};

/// Pickles an object and calls `put` with the pieces of a message for [`loads_marked`].
///
/// # Errors
///
/// The outer one is the pickler's.
pub(crate) fn with_mark<R>(object: &Bound<'_, PyAny>, put: impl FnOnce(&[&[u8]]) -> R) -> PyResult<R> {
    pickling::with_pickle_apart(object, |parts, apart| {
        Ok(if apart { put(&[&[&MARK[..]], parts].concat()) } else { put(parts) })
    })?
}

/// The object of a message of [`with_mark`], whose memory it may take from the vector.
///
/// # Errors
///
/// `ValueError` if it is no such message; whatever unpickling raises.
pub(crate) fn loads_marked<'py>(py: Python<'py>, message: &mut Vec<u8>) -> PyResult<Bound<'py, PyAny>> {
    if message.starts_with(&MARK) {
        loads(py, Received::within(std::mem::take(message)))
    } else {
        pickling::loads(py, message)
    }
}

/// The memory of a message. The objects in it use its buffers where they are, so it lives as long as the last of them.
#[pyclass(frozen, module = "procession._core")]
#[derive(Debug)]
pub struct Received {
    start: NonNull<u8>,
    length: usize,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    /// Allocated so, at the start.
    Alone(Layout),
    /// The start lies in it.
    Vector(#[expect(dead_code, reason = "only kept")] Vec<u8>),
}

// SAFETY: plain memory, owned by this; who writes to it through views does so as with any buffer of Python's.
unsafe impl Send for Received {}
// SAFETY: as above.
unsafe impl Sync for Received {}

impl Received {
    /// Memory for a message, all of which `fill` fills.
    ///
    /// # Errors
    ///
    /// `MemoryError`, and those of `fill`.
    pub(crate) fn filled(length: usize, fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> PyResult<()>) -> PyResult<Self> {
        if length == 0 {
            return Err(damaged());
        }
        let none = || PyMemoryError::new_err("no memory for the message");
        let layout = Layout::from_size_align(length, ALIGNMENT).map_err(|_| none())?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc::alloc(layout) }).ok_or_else(none)?;
        let received = Self { start, length, memory: Memory::Alone(layout) };
        // SAFETY: so many bytes were allocated there, which nobody else knows of.
        fill(unsafe { slice::from_raw_parts_mut(start.as_ptr().cast(), length) })?;
        Ok(received)
    }

    /// What follows the mark.
    fn within(mut message: Vec<u8>) -> Self {
        let after = &mut message[ALIGNMENT..];
        let (start, length) = (NonNull::from(&mut *after).cast(), after.len());
        Self { start, length, memory: Memory::Vector(message) }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Memory::Alone(layout) = self.memory {
            // SAFETY: allocated with this layout; views hold a reference to the object, so none is left.
            unsafe { alloc::dealloc(self.start.as_ptr(), layout) };
        }
    }
}

#[pymethods]
impl Received {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let length = this.length as ffi::Py_ssize_t;
        let start = this.start.as_ptr().cast();
        // SAFETY: `view` is the caller's to be filled; the memory is there while the object lives, to which the view gets a
        // reference.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, length, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// The object of a message.
///
/// # Errors
///
/// `ValueError` if it is no such message; whatever unpickling raises.
pub(crate) fn loads(py: Python<'_>, message: Received) -> PyResult<Bound<'_, PyAny>> {
    let (pickle, buffers) = parts(py, message)?;
    let keywords = PyDict::new(py);
    keywords.set_item(pyo3::intern!(py, "buffers"), buffers)?;
    pickling::loads_function(py)?.call((pickle,), Some(&keywords))
}

/// A message as one pickle with all buffers in it. Nothing is unpickled for that.
///
/// # Errors
///
/// `ValueError` if it is no such message.
#[cold]
pub(crate) fn in_one(py: Python<'_>, message: Received) -> PyResult<Bound<'_, PyBytes>> {
    static IN_ONE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let function = IN_ONE.import(py, "procession.in_one", "in_one")?;
    Ok(function.call1(parts(py, message)?)?.cast_into()?)
}

/// The pickle of a message, and its buffers.
fn parts(py: Python<'_>, message: Received) -> PyResult<(Bound<'_, PyAny>, Bound<'_, PyList>)> {
    // SAFETY: all of them are initialized, which `filled` has seen to, and no view of them exists as yet.
    let bytes = unsafe { slice::from_raw_parts(message.start.as_ptr(), message.length) };
    let places = apart::places(bytes).ok_or_else(damaged)?;
    let whole = PyMemoryView::from(&Bound::new(py, message)?.into_any())?;
    let part = |place: &Range<usize>| whole.get_item(PySlice::new(py, place.start as isize, place.end as isize, 1));
    let (pickle, buffers) = places.split_first().ok_or_else(damaged)?;
    let buffers = PyList::new(py, buffers.iter().map(part).collect::<PyResult<Vec<_>>>()?)?;
    Ok((part(pickle)?, buffers))
}

fn damaged() -> PyErr {
    PyValueError::new_err("the message is damaged")
}
