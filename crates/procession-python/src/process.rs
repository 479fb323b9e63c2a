//! Starting processes and noticing their end.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
};

use procession_core::process::{self, Exit, Received, Sentinel};
use pyo3::{
    exceptions::{PyImportError, PyValueError},
    prelude::*,
    types::{PyBytes, PyTuple},
};

use crate::wait::{Timeout, block};

/// What a process is said to have exited with if that can't be known.
const UNKNOWN: i32 = 255;

/// A started process: waits for it, signals it, knows how it ended.
#[pyclass(module = "procession._core", frozen)]
#[derive(Debug)]
pub(crate) struct Child(Mutex<Option<Arc<Sentinel>>>);

impl Child {
    fn sentinel(&self) -> PyResult<Arc<Sentinel>> {
        let sentinel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sentinel.clone().ok_or_else(|| PyValueError::new_err("process object is closed"))
    }
}

#[pymethods]
impl Child {
    /// The child that has this pid. For a process that somebody else started and reaps, its pidfd is given too, and taken.
    #[new]
    #[pyo3(signature = (pid, pidfd = None))]
    fn new(pid: u32, pidfd: Option<RawFd>) -> PyResult<Self> {
        let sentinel = match pidfd {
            None => Sentinel::open(pid)?,
            Some(pidfd) => Sentinel::from_pidfd(pid, owned(pidfd)?),
        };
        Ok(Self(Mutex::new(Some(Arc::new(sentinel)))))
    }

    #[getter]
    fn pid(&self) -> PyResult<u32> {
        Ok(self.sentinel()?.pid())
    }

    /// The descriptor that becomes readable when the process ends.
    #[getter(sentinel)]
    fn get_sentinel(&self) -> PyResult<RawFd> {
        Ok(self.sentinel()?.as_fd().as_raw_fd())
    }

    /// Waits for the end; returns whether it came in time.
    #[pyo3(signature = (timeout = Timeout::FOREVER))]
    fn wait(&self, py: Python<'_>, timeout: Timeout) -> PyResult<bool> {
        let sentinel = self.sentinel()?;
        if timeout.is_zero() || sentinel.has_ended() {
            return Ok(sentinel.has_ended());
        }
        Ok(block(py, timeout, |wait| sentinel.wait(wait))?.is_some())
    }

    /// None while it runs; -N if signal N ended it; 255 if it isn't known, as somebody else reaped it.
    ///
    /// The interpreter's lock is held, so that no other thread can fork while the answer is being stored.
    fn exit_code(&self) -> PyResult<Option<i32>> {
        Ok(self.sentinel()?.exit()?.map(|exit| match exit {
            Exit::Code(code) => code,
            Exit::Signal(signal) => -signal,
            Exit::Unknown => UNKNOWN,
        }))
    }

    /// Sends a signal. `ProcessLookupError` if the process has ended.
    fn send_signal(&self, signal: i32) -> PyResult<()> {
        Ok(self.sentinel()?.send_signal(signal)?)
    }

    /// Closes the sentinel, once no thread waits for it any more.
    fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Whether this kernel has what nothing here works without.
///
/// # Errors
///
/// `ImportError`: the package then lets the standard one stand in.
pub(crate) fn check_kernel() -> PyResult<()> {
    match Sentinel::open(std::process::id()) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported || error.kind() == io::ErrorKind::PermissionDenied => {
            let text = format!("pidfd_open is needed: Linux 5.3 or newer, and a sandbox that allows it ({error})");
            Err(PyImportError::new_err(text))
        }
        // No descriptor may be left; that will show where it matters.
        _ => Ok(()),
    }
}

/// The tie of this process to another, kept for good.
static FOLLOWING: Mutex<Vec<process::Following>> = Mutex::new(Vec::new());

/// The descriptor that children inherit and that tells them the end of this process.
#[pyfunction]
pub(crate) fn life_sentinel() -> PyResult<RawFd> {
    Ok(process::life_sentinel()?.as_raw_fd())
}

/// Has this process killed when the one whose life sentinel is given ends.
#[pyfunction]
pub(crate) fn follow(sentinel: RawFd) -> PyResult<()> {
    let following = process::follow(borrowed(sentinel)?)?;
    // A forked child never gets here with the lock held: forks, too, need the interpreter's lock.
    FOLLOWING.lock().unwrap_or_else(PoisonError::into_inner).push(following);
    Ok(())
}

/// Lets this process outlive those it was to follow.
#[pyfunction]
pub(crate) fn unfollow() {
    FOLLOWING.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// The user's code is over: unless it has `failed`, what this process has taken from queues that are joined, and not dealt with, is
/// not lost by its end.
#[pyfunction]
pub(crate) fn hand_on(failed: bool) {
    procession_core::channel::hand_on(failed);
}

/// Waits until a descriptor is readable; returns whether it came to that in time.
#[pyfunction]
#[pyo3(signature = (fd, timeout = Timeout::FOREVER))]
pub(crate) fn wait_readable(py: Python<'_>, fd: RawFd, timeout: Timeout) -> PyResult<bool> {
    let fd = borrowed(fd)?;
    Ok(block(py, timeout, |wait| process::wait_readable(fd, wait))?.is_some())
}

/// Starts a program that gets stdin, stdout, stderr and the descriptors listed; returns its pid.
#[pyfunction]
#[pyo3(signature = (path, args, fds, env = None))]
pub(crate) fn spawnv_passfds(
    path: Vec<u8>,
    args: Vec<Vec<u8>>,
    fds: Vec<RawFd>,
    env: Option<Vec<Vec<u8>>>,
) -> PyResult<u32> {
    let path = CString::new(path)?;
    let args = c_strings(args)?;
    let env = env.map(c_strings).transpose()?;
    // With the interpreter's lock held: `os.environ` changes the environment that is handed on.
    let started = process::spawn(&path, &args, env.as_deref(), &fds);
    // Named as Python does it, so that the message says which program it was.
    started.map_err(|error| named(error, &path))
}

fn c_strings(strings: Vec<Vec<u8>>) -> PyResult<Vec<CString>> {
    Ok(strings.into_iter().map(CString::new).collect::<Result<_, _>>()?)
}

fn named(error: io::Error, path: &CString) -> PyErr {
    let Some(number) = error.raw_os_error() else { return error.into() };
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
    // With a number, OSError makes itself the right subclass.
    pyo3::exceptions::PyOSError::new_err((number, text, path.to_string_lossy().into_owned()))
}

/// Two connected Unix sockets that keep messages apart.
#[pyfunction]
pub(crate) fn message_sockets() -> PyResult<(RawFd, RawFd)> {
    let (one, other) = process::message_sockets()?;
    Ok((one.into_raw_fd(), other.into_raw_fd()))
}

/// Sends a message with descriptors over a Unix socket.
#[pyfunction]
pub(crate) fn send_with_descriptors(
    py: Python<'_>,
    socket: RawFd,
    message: &Bound<'_, PyBytes>,
    fds: Vec<RawFd>,
) -> PyResult<()> {
    let socket = borrowed(socket)?;
    let fds = fds.into_iter().map(borrowed).collect::<PyResult<Vec<_>>>()?;
    let message = message.as_bytes();
    match block(py, Timeout::FOREVER, |wait| process::send(socket, message, &fds, wait))? {
        Some(sent) => Ok(sent?),
        None => unreachable!("a wait without end does not end"),
    }
}

/// Receives a message with descriptors from a Unix socket: `(bytes, descriptors)`; at the end of the connection without any.
#[pyfunction]
pub(crate) fn receive_with_descriptors(
    py: Python<'_>,
    socket: RawFd,
    limit: usize,
) -> PyResult<(Bound<'_, PyBytes>, Bound<'_, PyTuple>)> {
    let socket = borrowed(socket)?;
    match block(py, Timeout::FOREVER, |wait| process::receive(socket, limit, wait))? {
        Some(received) => {
            let Received { bytes, descriptors } = received?;
            let descriptors =
                PyTuple::new(py, descriptors.into_iter().map(IntoRawFd::into_raw_fd).collect::<Vec<_>>())?;
            Ok((PyBytes::new(py, &bytes), descriptors))
        }
        None => unreachable!("a wait without end does not end"),
    }
}

fn checked(fd: RawFd) -> PyResult<RawFd> {
    if fd < 0 { Err(PyValueError::new_err("invalid file descriptor: it must not be negative")) } else { Ok(fd) }
}

/// A descriptor that Python code lends for the call.
fn borrowed(fd: RawFd) -> PyResult<BorrowedFd<'static>> {
    let fd = checked(fd)?;
    // SAFETY: it is not -1; a caller that closes it meanwhile gets an error of the kernel.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// A descriptor that Python code hands over.
fn owned(fd: RawFd) -> PyResult<OwnedFd> {
    let fd = checked(fd)?;
    // SAFETY: it is not -1, and the caller gives it up.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
