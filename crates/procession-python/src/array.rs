//! The memory of shared arrays.
#![allow(unsafe_code)]

use std::{
    ffi::c_int,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};

use procession_core::memory::{SegmentId, Travelling, Way, Whereabouts, sweep};
use pyo3::{
    exceptions::{PyBufferError, PyMemoryError, PyValueError},
    ffi,
    prelude::*,
    types::PyBytes,
};

use crate::handle;

/// Memory that all processes have which were sent it: a writable buffer of bytes, all zero at first.
#[pyclass(frozen, weakref, module = "procession._core")]
#[derive(Debug)]
pub struct ArrayMemory(Option<Travelling>);

fn raised(error: io::Error) -> PyErr {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => {
            PyMemoryError::new_err("there is not enough memory for the shared array")
        }
        _ => error.into(),
    }
}

impl ArrayMemory {
    fn memory(&self) -> PyResult<&Travelling> {
        self.0.as_ref().ok_or_else(|| PyValueError::new_err("the memory was let go of"))
    }
}

#[pymethods]
impl ArrayMemory {
    /// New memory of at least so many bytes.
    #[new]
    fn new(py: Python<'_>, length: usize) -> PyResult<Self> {
        Ok(Self(Some(py.detach(|| Travelling::allocate(length)).map_err(raised)?)))
    }

    /// The memory behind a descriptor, which is taken over.
    #[staticmethod]
    fn attach(fd: RawFd) -> PyResult<Self> {
        Ok(Self(Some(Travelling::attach(handle::owned(fd)?).map_err(raised)?)))
    }

    /// The memory that `send()` of another process tells of.
    #[staticmethod]
    fn fetch(py: Python<'_>, id: [u8; 16], pid: u32, number: RawFd, lent: bool) -> PyResult<Self> {
        let way = if lent { Way::Lent } else { Way::Sent };
        let whereabouts = Whereabouts { id: SegmentId::from_bytes(id), pid, number, way };
        Ok(Self(Some(py.detach(|| Travelling::fetch(whereabouts)).map_err(raised)?)))
    }

    /// Keeps the memory until one process more has fetched it, unless it is lent; returns the arguments for that.
    fn send<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, u32, RawFd, bool)> {
        let sent = self.memory()?.send();
        Ok((PyBytes::new(py, &sent.id.to_bytes()), sent.pid, sent.number, sent.way == Way::Lent))
    }

    /// Waits until all that this process has sent was fetched, at most so many seconds; whether it was.
    #[staticmethod]
    fn linger(py: Python<'_>, timeout: f64) -> bool {
        py.detach(|| Travelling::linger(Duration::try_from_secs_f64(timeout).unwrap_or(Duration::ZERO)))
    }

    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.memory()?.as_fd().as_raw_fd())
    }

    /// The address of the first byte.
    #[getter]
    fn address(&self) -> PyResult<usize> {
        Ok(self.memory()?.as_ptr().as_ptr() as usize)
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.memory()?.len())
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let memory = slf.get().memory()?;
        let length = ffi::Py_ssize_t::try_from(memory.len()).map_err(|_| PyBufferError::new_err("too large"))?;
        let start = memory.as_ptr().as_ptr().cast();
        // SAFETY: `view` is the caller's to be filled; the memory stays mapped while the object lives, to which the view
        // gets a reference.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, length, 0, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

impl Drop for ArrayMemory {
    fn drop(&mut self) {
        // First, so that what has arrived goes with its last user here.
        drop(self.0.take());
        sweep();
    }
}
