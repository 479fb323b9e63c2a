//! `Connection`, the pairs of them, and waiting for many.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    mem::MaybeUninit,
    os::fd::RawFd,
    slice,
    sync::atomic::{AtomicBool, Ordering},
};

use procession_core::{
    channel::{self, AuthenticationError, ConnectionError, Handshake, HandshakeError},
    sync::{Wait, WaitError},
};
use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyBufferError, PyEOFError, PyOSError, PyTypeError, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyTuple, PyType},
};

use crate::{
    apart::{self, Received},
    late::Late,
    pickling,
    wait::{Timeout, block},
};

/// Up to this length a message is sent, and received if it is there, without giving up the interpreter's lock: that would
/// take longer than the system call does.
const SMALL: usize = 64 * 1024;

/// One end of a pipe or socket over which objects and bytes are sent and received.
#[pyclass(frozen, subclass, dict, weakref, module = "procession.connection")]
#[derive(Debug)]
pub(crate) struct Connection(Late<End>);

#[derive(Debug)]
struct End {
    core: channel::Connection,
    readable: AtomicBool,
    writable: bool,
}

impl End {
    fn new(core: channel::Connection, readable: bool, writable: bool) -> Self {
        Self { core, readable: AtomicBool::new(readable), writable }
    }

    fn readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Late::new())
    }

    #[pyo3(signature = (handle, readable = true, writable = true))]
    fn __init__(&self, handle: &Bound<'_, PyAny>, readable: bool, writable: bool) -> PyResult<()> {
        // What has no __index__ is a TypeError, as it is for `range()`.
        let handle: i64 = handle.call_method0("__index__")?.extract()?;
        let number = RawFd::try_from(handle).ok().filter(|&number| number >= 0);
        let number = number.ok_or_else(|| PyValueError::new_err("invalid handle"))?;
        if !readable && !writable {
            return Err(PyValueError::new_err("at least one of `readable` and `writable` must be True"));
        }
        self.0.set(End::new(channel::Connection::from_number(number), readable, writable))
    }

    /// Send an object, which is pickled.
    fn send(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let end = self.sender()?;
        if !end.core.keeps_packets() {
            return pickling::with_pickle(obj, |parts| transmit(py, end, parts, false))?;
        }
        pickling::with_pickle_apart(obj, |parts, apart| transmit(py, end, parts, apart))?
    }

    /// Receive an object. `EOFError` if the other end was closed and nothing is left to receive.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let end = self.receiver()?;
        let (mut incoming, length) = announced(py, end)?;
        if incoming.is_apart() {
            return receive_apart(py, end, incoming, length);
        }
        if let Some(message) = incoming.whole() {
            return pickling::loads(py, message);
        }
        pickling::loads_bytes(&receive_bytes(py, end, incoming, length)?)
    }

    /// Send the bytes of an object that has a buffer, from offset on, size of them or all.
    #[pyo3(signature = (buf, offset = 0, size = None))]
    fn send_bytes(&self, py: Python<'_>, buf: &Bound<'_, PyAny>, offset: isize, size: Option<isize>) -> PyResult<()> {
        let end = self.sender()?;
        let buffer = PyUntypedBuffer::get(buf)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer must be C-contiguous: send bytes(buf) instead"));
        }
        let bytes = bytes_of(&buffer);
        let Ok(offset) = usize::try_from(offset) else {
            return Err(PyValueError::new_err("offset is negative"));
        };
        let Some(rest) = bytes.get(offset..) else {
            return Err(PyValueError::new_err("buffer length < offset"));
        };
        let message = match size.map(usize::try_from) {
            None => rest,
            Some(Err(_)) => return Err(PyValueError::new_err("size is negative")),
            Some(Ok(size)) => rest.get(..size).ok_or_else(|| PyValueError::new_err("buffer length < offset + size"))?,
        };
        transmit(py, end, &[message], false)
    }

    /// Receive the bytes of a message. `OSError` if it has more than maxlength; nothing can be received afterwards.
    #[pyo3(signature = (maxlength = None))]
    fn recv_bytes<'py>(&self, py: Python<'py>, maxlength: Option<i64>) -> PyResult<Bound<'py, PyBytes>> {
        let end = self.receiver()?;
        let most = match maxlength.map(usize::try_from) {
            None => None,
            Some(Ok(most)) => Some(most),
            Some(Err(_)) => return Err(PyValueError::new_err("negative maxlength")),
        };
        take(py, end, most)
    }

    /// Receive the bytes of a message into an object that has a writable buffer, from offset on; return how many they are.
    ///
    /// `BufferTooShort`, with the message as its argument, if there are too many.
    #[pyo3(signature = (buf, offset = 0))]
    fn recv_bytes_into(&self, py: Python<'_>, buf: &Bound<'_, PyAny>, offset: isize) -> PyResult<usize> {
        let end = self.receiver()?;
        let buffer = PyUntypedBuffer::get(buf)?;
        if buffer.readonly() {
            return Err(PyTypeError::new_err("a read-write bytes-like object is needed to receive into"));
        }
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer must be C-contiguous"));
        }
        let Ok(offset) = usize::try_from(offset) else {
            return Err(PyValueError::new_err("negative offset"));
        };
        if offset > buffer.len_bytes() {
            return Err(PyValueError::new_err("offset too large"));
        }
        let (mut incoming, length) = announced(py, end)?;
        if incoming.is_apart() {
            let message = in_one(py, end, incoming, length)?;
            let bytes = message.as_bytes();
            if buffer.len_bytes() - offset < bytes.len() {
                return Err(buffer_too_short(message));
            }
            // SAFETY: the offset is within the buffer.
            let place = unsafe { buffer.buf_ptr().cast::<u8>().add(offset) };
            // SAFETY: the message fits behind the offset, and the bytes of a `bytes` object lie nowhere else.
            unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            return Ok(bytes.len());
        }
        if buffer.len_bytes() - offset < length {
            let message = receive_bytes(py, end, incoming, length)?;
            return Err(buffer_too_short(message));
        }
        if length > 0 {
            // SAFETY: the offset is within the buffer.
            let start = unsafe { buffer.buf_ptr().cast::<MaybeUninit<u8>>().add(offset) };
            // SAFETY: at least `length` writable bytes follow; the exporter keeps them in place while `buffer` lives. Only
            // the kernel, or a copy, writes to them.
            let space = unsafe { slice::from_raw_parts_mut(start, length) };
            receive_into(py, end, &mut incoming, space)?;
        }
        Ok(length)
    }

    /// Whether there is something to receive, or the end: at once, or within timeout seconds (None: whatever it takes).
    #[pyo3(signature = (timeout = Timeout::NOW), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Timeout) -> PyResult<bool> {
        let end = self.receiver()?;
        if timeout.is_zero() {
            return end
                .core
                .poll(&mut Wait::timeout(std::time::Duration::ZERO))
                .map_err(|error| raised(py, end, error));
        }
        Ok(blocking(py, end, timeout, |wait| end.core.poll(wait))?.unwrap_or(false))
    }

    /// The number of the descriptor.
    fn fileno(&self) -> PyResult<RawFd> {
        self.0.get()?.core.number().ok_or_else(closed)
    }

    /// Close it. Nothing happens if it is closed.
    fn close(&self) -> PyResult<()> {
        self.0.get()?.core.close().map_err(|error| os_error(&error))
    }

    /// Close it for this object only, and return the descriptor.
    fn _detach(&self) -> PyResult<RawFd> {
        self.0.get()?.core.detach().ok_or_else(closed)
    }

    /// Whether it is closed.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.0.get()?.core.number().is_none())
    }

    /// Whether it can receive.
    #[getter]
    fn readable(&self) -> PyResult<bool> {
        Ok(self.0.get()?.readable())
    }

    /// Whether it can send.
    #[getter]
    fn writable(&self) -> PyResult<bool> {
        Ok(self.0.get()?.writable)
    }

    #[getter(_handle)]
    fn handle(&self) -> PyResult<Option<RawFd>> {
        Ok(self.0.get()?.core.number())
    }

    /// None gives the descriptor up without closing it; a number puts another in its place, or opens it again.
    #[setter(_handle)]
    fn set_handle(&self, handle: Option<RawFd>) -> PyResult<()> {
        let core = &self.0.get()?.core;
        match handle {
            None => drop(core.detach()),
            Some(number) if number >= 0 => core.replace_number(number),
            Some(_) => return Err(PyValueError::new_err("invalid handle")),
        }
        Ok(())
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, _exc_info: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close()
    }
}

impl Connection {
    /// The native part.
    pub(crate) fn core(&self) -> PyResult<&channel::Connection> {
        Ok(&self.0.get()?.core)
    }

    fn sender(&self) -> PyResult<&End> {
        let end = self.0.get()?;
        if end.core.number().is_none() {
            return Err(closed());
        }
        if !end.writable {
            return Err(PyOSError::new_err("connection is read-only"));
        }
        Ok(end)
    }

    fn receiver(&self) -> PyResult<&End> {
        let end = self.0.get()?;
        if end.core.number().is_none() {
            return Err(closed());
        }
        if !end.readable() {
            return Err(PyOSError::new_err("connection is write-only"));
        }
        Ok(end)
    }

    /// Goes through a handshake. `None` if the time is over.
    pub(crate) fn authenticate(
        &self,
        py: Python<'_>,
        handshake: Handshake,
        timeout: Timeout,
    ) -> PyResult<Option<Result<(), AuthenticationError>>> {
        self.sender()?;
        let end = self.receiver()?;
        let run = |wait: &mut Wait<'_>| match handshake.run(&end.core, wait) {
            Ok(()) => Ok(Ok(())),
            Err(HandshakeError::Authentication(error)) => Ok(Err(error)),
            Err(HandshakeError::Connection(error)) => Err(error),
        };
        blocking(py, end, timeout, run)
    }
}

/// The descriptors of a pipe whose ends both send and receive.
#[pyfunction]
pub(crate) fn pipe() -> PyResult<(RawFd, RawFd)> {
    numbers(channel::pipe())
}

/// The descriptors of a pipe: the end that receives, the end that sends.
#[pyfunction]
pub(crate) fn one_way_pipe() -> PyResult<(RawFd, RawFd)> {
    numbers(channel::one_way_pipe())
}

fn numbers(ends: std::io::Result<(channel::Connection, channel::Connection)>) -> PyResult<(RawFd, RawFd)> {
    let (one, other) = ends.map_err(|error| os_error(&error))?;
    one.detach().zip(other.detach()).ok_or_else(closed)
}

/// The places, in a list of descriptors, of those from which something can be received. Waits until there is one, or
/// timeout seconds have passed.
#[pyfunction]
pub(crate) fn wait(py: Python<'_>, descriptors: Vec<RawFd>, timeout: Timeout) -> PyResult<Vec<usize>> {
    if timeout.is_zero() {
        return channel::wait(&descriptors, &mut Wait::timeout(std::time::Duration::ZERO)).map_err(plain);
    }
    let ready = block(py, timeout, |wait| unless_over(channel::wait(&descriptors, wait)))?;
    ready.unwrap_or(Ok(Vec::new())).map_err(plain)
}

/// Sends a message.
fn transmit(py: Python<'_>, end: &End, parts: &[&[u8]], apart: bool) -> PyResult<()> {
    let outgoing = if apart { end.core.sending_apart(parts) } else { end.core.sending(parts) };
    let mut outgoing = outgoing.map_err(|error| raised(py, end, error))?;
    let small = parts.iter().map(|part| part.len()).sum::<usize>() <= SMALL;
    if small && outgoing.try_finish().map_err(|error| raised(py, end, error))? {
        return Ok(());
    }
    blocking(py, end, Timeout::FOREVER, |wait| outgoing.finish(wait))?;
    Ok(())
}

/// The next message, with its length known.
fn announced<'a>(py: Python<'_>, end: &'a End) -> PyResult<(channel::Incoming<'a>, usize)> {
    let mut incoming = end.core.receiving().map_err(|error| raised(py, end, error))?;
    let length = match incoming.try_length().map_err(|error| raised(py, end, error))? {
        Some(length) => length,
        None => blocking(py, end, Timeout::FOREVER, |wait| incoming.length(wait))?.unwrap_or_default(),
    };
    Ok((incoming, length))
}

/// Receives a message of at most so many bytes.
fn take<'py>(py: Python<'py>, end: &End, most: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
    let (incoming, length) = announced(py, end)?;
    if incoming.is_apart() {
        let message = in_one(py, end, incoming, length)?;
        let fits = most.is_none_or(|most| message.as_bytes().len() <= most);
        return if fits { Ok(message) } else { Err(raised(py, end, ConnectionError::BadLength)) };
    }
    if most.is_some_and(|most| length > most) {
        return Err(raised(py, end, ConnectionError::BadLength));
    }
    receive_bytes(py, end, incoming, length)
}

/// Receives the body of a message, straight to where it stays.
fn receive_bytes<'py>(
    py: Python<'py>,
    end: &End,
    mut incoming: channel::Incoming<'_>,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let (bytes, body) = pickling::new_bytes(py, length)?;
    if length > 0 {
        receive_into(py, end, &mut incoming, body)?;
    }
    Ok(bytes)
}

/// Receives the object of a message that has its buffers apart.
fn receive_apart<'py>(
    py: Python<'py>,
    end: &End,
    mut incoming: channel::Incoming<'_>,
    length: usize,
) -> PyResult<Bound<'py, PyAny>> {
    apart::loads(py, received(py, end, &mut incoming, length)?)
}

/// Such a message as one pickle, for who receives the bytes of an object that was sent.
#[cold]
fn in_one<'py>(
    py: Python<'py>,
    end: &End,
    mut incoming: channel::Incoming<'_>,
    length: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    apart::in_one(py, received(py, end, &mut incoming, length)?)
}

fn received(py: Python<'_>, end: &End, incoming: &mut channel::Incoming<'_>, length: usize) -> PyResult<Received> {
    Received::filled(length, |body| receive_into(py, end, incoming, body))
}

fn receive_into(
    py: Python<'_>,
    end: &End,
    incoming: &mut channel::Incoming<'_>,
    body: &mut [MaybeUninit<u8>],
) -> PyResult<()> {
    if body.len() <= SMALL && incoming.try_finish(body).map_err(|error| raised(py, end, error))? {
        return Ok(());
    }
    blocking(py, end, Timeout::FOREVER, |wait| incoming.finish(body, wait))?;
    Ok(())
}

/// Through the chokepoint. `None` if the time is over.
fn blocking<R: Send>(
    py: Python<'_>,
    end: &End,
    timeout: Timeout,
    call: impl Send + FnOnce(&mut Wait<'_>) -> Result<R, ConnectionError>,
) -> PyResult<Option<R>> {
    let result = block(py, timeout, |wait| unless_over(call(wait)))?;
    result.transpose().map_err(|error| raised(py, end, error))
}

/// Takes the end of a wait out of the other errors: the chokepoint deals with it.
pub(crate) fn unless_over<R>(result: Result<R, ConnectionError>) -> Result<Result<R, ConnectionError>, WaitError> {
    match result {
        Err(ConnectionError::Wait(over)) => Err(over),
        result => Ok(result),
    }
}

/// The exception for an error, and what follows from it for the connection.
fn raised(py: Python<'_>, end: &End, error: ConnectionError) -> PyErr {
    if matches!(error, ConnectionError::BadLength) {
        // Where the next message begins is not known any more.
        if end.writable {
            end.readable.store(false, Ordering::Relaxed);
        } else if let Err(error) = end.core.close() {
            os_error(&error).write_unraisable(py, None);
        }
    }
    plain(error)
}

pub(crate) fn plain(error: ConnectionError) -> PyErr {
    match error {
        ConnectionError::Ended => PyEOFError::new_err(()),
        ConnectionError::Io(error) => os_error(&error),
        error => PyOSError::new_err(error.to_string()),
    }
}

fn closed() -> PyErr {
    PyOSError::new_err(ConnectionError::Closed.to_string())
}

/// An `OSError` with the number, which makes it the subclass for that number.
pub(crate) fn os_error(error: &std::io::Error) -> PyErr {
    let Some(number) = error.raw_os_error() else {
        return PyOSError::new_err(error.to_string());
    };
    // SAFETY: returns a string that stays valid until this thread's next call.
    let text = unsafe { libc::strerror(number) };
    // SAFETY: it ends with a null, and is copied at once.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    PyOSError::new_err((number, text))
}

fn buffer_too_short(message: Bound<'_, PyBytes>) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(message.py(), "procession.context", "BufferTooShort") {
        Ok(class) => PyErr::from_type(class.clone(), (message.unbind(),)),
        Err(error) => error,
    }
}

/// The bytes of a contiguous buffer.
pub(crate) fn bytes_of(buffer: &PyUntypedBuffer) -> &[u8] {
    let length = buffer.len_bytes();
    if length == 0 {
        return &[];
    }
    // SAFETY: the exporter keeps so many bytes in place while the buffer lives. They may change meanwhile, as with any
    // write to a file; nothing but the kernel reads them.
    unsafe { slice::from_raw_parts(buffer.buf_ptr().cast(), length) }
}
