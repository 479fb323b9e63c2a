//! Handing shared objects to other processes: as bytes and a descriptor.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use procession_core::memory::BlockHandle;
use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};

/// What `_share()` returns: the state, and descriptors that stay ours.
pub(crate) type SharedState<'py> = (Bound<'py, PyBytes>, (RawFd,));

/// The answer of `_share()`.
pub(crate) fn share<'py>(py: Python<'py>, handle: BlockHandle, fd: &impl AsFd) -> SharedState<'py> {
    (PyBytes::new(py, &handle.to_bytes()), (fd.as_fd().as_raw_fd(),))
}

/// The arguments of `_attach()`. The descriptor is the callee's from now on.
///
/// # Errors
///
/// `ValueError` for a state that is not from [`share`].
pub(crate) fn taken(state: &[u8], (fd,): (RawFd,)) -> PyResult<(BlockHandle, OwnedFd)> {
    // First, so that it is closed whatever is wrong with the state.
    let fd = owned(fd)?;
    let handle = BlockHandle::from_bytes(state);
    Ok((handle.ok_or_else(|| PyValueError::new_err("not the state of a shared object"))?, fd))
}

/// A descriptor that a caller gives away.
///
/// # Errors
///
/// `ValueError` for what can't be one.
#[allow(unsafe_code)]
pub(crate) fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("not a file descriptor"));
    }
    // SAFETY: by the contract of `_attach` the caller gives the descriptor away.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
