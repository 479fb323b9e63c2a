//! Files mapped through Python's own `mmap` objects, without a descriptor kept for each.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::PyType,
};
use rustix::mm::{MapFlags, ProtFlags};

/// `MAP_NORESERVE`, which the module `mmap` has from Python 3.13 on.
pub(crate) const MAP_NORESERVE: i32 = libc::MAP_NORESERVE;

/// Puts a file in the place of the anonymous memory of an `mmap.mmap`, which was made for it and which nobody has touched.
///
/// An `mmap` object that maps a file itself keeps a duplicate of the descriptor, open for as long as there is a view of it.
///
/// # Errors
///
/// `TypeError` if it is no `mmap.mmap`, `ValueError` for what can't be a descriptor; as mmap(2).
#[pyfunction]
pub fn map_file(mapping: &Bound<'_, PyAny>, fd: RawFd) -> PyResult<()> {
    static MMAP: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if !mapping.is_instance(MMAP.import(mapping.py(), "mmap", "mmap")?)? {
        return Err(PyTypeError::new_err("a file is mapped in the place of an mmap.mmap only"));
    }
    if fd < 0 {
        return Err(PyValueError::new_err("not a file descriptor"));
    }
    let view = PyUntypedBuffer::get(mapping)?;
    if view.readonly() || view.len_bytes() == 0 {
        return Err(PyValueError::new_err("the mapping is empty, or not to be written"));
    }
    // SAFETY: the caller keeps it open for the time of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the memory is the whole mapping of an object that only its maker has; the object unmaps what is there at its end.
    unsafe { rustix::mm::mmap(view.buf_ptr(), view.len_bytes(), protection, flags, fd, 0) }
        .map_err(std::io::Error::from)?;
    Ok(())
}
