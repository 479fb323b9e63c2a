//! Lines of managers: requests and replies over shared memory, beside the connection that was authenticated.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use procession_core::{
    channel::{self, Asking, Attended, ConnectionError, Lines, Pace, Pending, Serving},
    process::{self, Unshared},
    sync::Wait,
};
use pyo3::{
    exceptions::{PyBrokenPipeError, PyEOFError, PyOSError, PyRuntimeError},
    intern,
    prelude::*,
    types::{PyBytes, PyDict, PyTuple},
};

use crate::{
    apart,
    connection::{Connection, plain, unless_over},
    late::Late,
    wait::{Timeout, block},
};

/// What belongs to a line beside its shared memory.
#[derive(Debug)]
struct Socket {
    connection: Py<Connection>,
    /// A forked child's copy would hide the death of this process from the other side.
    unshared: Mutex<Option<Unshared>>,
    generation: u32,
}

impl Socket {
    fn new(connection: &Bound<'_, Connection>) -> PyResult<Self> {
        let number = connection.get().core()?.number().unwrap_or(-1);
        Ok(Self {
            connection: connection.clone().unbind(),
            unshared: Mutex::new(Some(Unshared::new(number))),
            generation: process::generation(),
        })
    }

    fn core(&self) -> Result<&channel::Connection, ConnectionError> {
        if self.generation != process::generation() {
            return Err(ConnectionError::Closed);
        }
        self.connection.get().core().map_err(|_| ConnectionError::Closed)
    }

    fn close(&self) {
        self.unshared.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Ok(core) = self.core() {
            core.hang_up();
            // Nobody is left to hear of an error.
            let _ = core.close();
        }
    }
}

const GONE: &str = "the manager's process is gone, or has closed the connection";

fn raised(error: ConnectionError) -> PyErr {
    match error {
        ConnectionError::Ended => PyEOFError::new_err(GONE),
        ConnectionError::BadLength => PyOSError::new_err("the shared memory of a manager's line is damaged"),
        error => plain(error),
    }
}

/// The client's side of a line, for one thread.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub(crate) struct Line(Late<Client>);

#[derive(Debug)]
struct Client {
    socket: Socket,
    /// With room for a reply. A call of the same thread in the middle of another finds it locked.
    asking: Mutex<(Asking, Vec<u8>)>,
    busy: AtomicBool,
    closed: AtomicBool,
}

#[pymethods]
impl Line {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(Late::new())
    }

    /// Send a message over the connection, and with it the shared memory of a line. The line is of use if the server says so.
    fn __init__(
        &self,
        py: Python<'_>,
        connection: &Bound<'_, Connection>,
        message: &Bound<'_, PyBytes>,
    ) -> PyResult<()> {
        let asking = Asking::create()?;
        let core = connection.get().core()?;
        let bytes = message.as_bytes();
        block(py, Timeout::FOREVER, |wait| unless_over(core.send_with(bytes, &[asking.as_fd()], wait)))?
            .transpose()
            .map_err(plain)?;
        self.0.set(Client {
            socket: Socket::new(connection)?,
            asking: Mutex::new((asking, Vec::new())),
            busy: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Send a request; returns the reply.
    ///
    /// If it is cut short, the line is closed: whatever comes next would be the reply to this request.
    fn exchange<'py>(&self, request: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, client) = (request.py(), self.0.get()?);
        let mut received = apart::with_mark(request, |parts| client.exchange(py, parts))??;
        let reply = apart::loads_marked(py, &mut received);
        client.keep(received);
        reply
    }

    /// Close it.
    fn close(&self) -> PyResult<()> {
        let client = self.0.get()?;
        client.closed.store(true, Relaxed);
        client.socket.close();
        Ok(())
    }

    /// Whether it waits for a reply.
    #[getter]
    fn busy(&self) -> PyResult<bool> {
        Ok(self.0.get()?.busy.load(Relaxed))
    }

    /// Whether it is closed.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.0.get()?.closed.load(Relaxed))
    }
}

impl Client {
    fn exchange(&self, py: Python<'_>, parts: &[&[u8]]) -> PyResult<Vec<u8>> {
        let Ok(mut asking) = self.asking.try_lock() else {
            return Err(PyRuntimeError::new_err("the line is in use: each thread has one of its own"));
        };
        self.busy.store(true, Relaxed);
        let mut reply = std::mem::take(&mut asking.1);
        let asking = &mut asking.0;
        let exchanged = block(py, Timeout::FOREVER, |wait| {
            unless_over(self.socket.core().and_then(|connection| {
                asking.send(connection, parts, wait)?;
                asking.receive(connection, &mut reply, wait)
            }))
        });
        // As over a socket, it makes a difference whether the server ever began with the request.
        let raised = |error| match error {
            ConnectionError::Ended if !asking.was_taken() => {
                PyBrokenPipeError::new_err((libc::EPIPE, format!("Broken pipe: {GONE}")))
            }
            error => raised(error),
        };
        match exchanged.and_then(|done| done.unwrap_or(Ok(())).map_err(raised)) {
            Ok(()) => {
                self.busy.store(false, Relaxed);
                Ok(reply)
            }
            Err(error) => {
                self.closed.store(true, Relaxed);
                self.socket.close();
                Err(error)
            }
        }
    }

    /// Keeps the room of a reply for the next one, unless it is much.
    fn keep(&self, reply: Vec<u8>) {
        if reply.capacity() <= KEPT
            && let Ok(mut asking) = self.asking.try_lock()
        {
            asking.1 = reply;
        }
    }
}

/// Receive a message, and the descriptor that came with it, if one did.
#[pyfunction]
pub(crate) fn receive_offer<'py>(
    py: Python<'py>,
    connection: &Bound<'py, Connection>,
) -> PyResult<(Bound<'py, PyBytes>, Option<RawFd>)> {
    let core = connection.get().core()?;
    let received = block(py, Timeout::FOREVER, |wait| unless_over(core.receive_with(wait)))?;
    let (bytes, descriptors) = received.unwrap_or(Err(ConnectionError::Ended)).map_err(plain)?;
    let descriptor = descriptors.into_iter().next().map(IntoRawFd::into_raw_fd);
    Ok((PyBytes::new(py, &bytes), descriptor))
}

/// The server's side of a line.
///
/// What a request is replied with is said by `link.answer(request, attended)`: the message, or None if that may take long
/// and `attended` is true, or False to end the line. `link.failed(exception)` gives the message for a request that can't be
/// unpickled, `link.unsendable(message, exception)` that for a message that can't be pickled, and `link.undelivered()` is
/// called if the client ended without having read the last reply.
#[pyclass(frozen, module = "procession._core")]
#[derive(Debug)]
pub(crate) struct ServedLine(Arc<Served>);

#[derive(Debug)]
struct Served {
    socket: Socket,
    serving: Serving,
    link: Py<PyAny>,
    /// The method `answer` of the link.
    answer: Py<PyAny>,
    /// A request that an attendant took and left to the line's own thread.
    left: Mutex<Option<Py<PyAny>>>,
}

impl Attended for Served {
    fn serving(&self) -> &Serving {
        &self.serving
    }

    fn connection(&self) -> Result<&channel::Connection, ConnectionError> {
        self.socket.core()
    }
}

/// What is made of a request.
enum Outcome<'py> {
    Message(Bound<'py, PyAny>),
    TakesLong,
    End,
}

impl Served {
    fn request<'py>(
        &self,
        py: Python<'py>,
        message: &mut Vec<u8>,
    ) -> PyResult<Result<Bound<'py, PyAny>, Bound<'py, PyAny>>> {
        match apart::loads_marked(py, message) {
            Ok(request) => Ok(Ok(request)),
            Err(error) => Ok(Err(self.link.bind(py).call_method1(intern!(py, "failed"), (error,))?)),
        }
    }

    fn outcome<'py>(&self, request: &Bound<'py, PyAny>, attended: bool) -> PyResult<Outcome<'py>> {
        let message = self.answer.bind(request.py()).call1((request, attended))?;
        Ok(if message.is_none() {
            Outcome::TakesLong
        } else if message.is_exact_instance_of::<PyTuple>() {
            Outcome::Message(message)
        } else {
            Outcome::End
        })
    }

    /// The message as bytes, or another one that says why there are none.
    fn pickled<R>(&self, message: &Bound<'_, PyAny>, mut send: impl FnMut(&[&[u8]]) -> R) -> PyResult<R> {
        match apart::with_mark(message, |parts| send(parts)) {
            Ok(sent) => Ok(sent),
            Err(error) => {
                let instead = {
                    let link = self.link.bind(message.py());
                    link.call_method1(intern!(message.py(), "unsendable"), (message, error))?
                };
                apart::with_mark(&instead, |parts| send(parts))
            }
        }
    }

    /// The client has ended.
    fn ended(&self, py: Python<'_>) -> PyResult<()> {
        if self.serving.is_unread() {
            self.link.bind(py).call_method0(intern!(py, "undelivered"))?;
        }
        Ok(())
    }

    /// What an attendant does for the line, if there is something.
    fn attend(&self, py: Python<'_>, buffer: &mut Vec<u8>) -> PyResult<()> {
        let Some(pending) = Pending::of(self) else { return Ok(()) };
        if !pending.take(buffer) {
            return Ok(());
        }
        let message = match self.request(py, buffer)? {
            Ok(request) => match self.outcome(&request, true)? {
                Outcome::Message(message) => message,
                Outcome::TakesLong => {
                    *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.unbind());
                    // If the client is gone, the line's own thread finds out as well.
                    let _ = pending.refuse();
                    return Ok(());
                }
                Outcome::End => {
                    self.socket.close();
                    return Ok(());
                }
            },
            Err(message) => message,
        };
        let mut pending = Some(pending);
        self.pickled(&message, |parts| {
            if let Some(pending) = pending.take() {
                let _ = pending.answer(parts);
            }
        })
    }
}

#[pymethods]
impl ServedLine {
    #[new]
    fn new(connection: &Bound<'_, Connection>, memory: RawFd, link: &Bound<'_, PyAny>) -> PyResult<Self> {
        let serving = Serving::attach(owned(memory)?)?;
        let socket = Socket::new(connection)?;
        let answer = link.getattr("answer")?.unbind();
        let link = link.clone().unbind();
        Ok(Self(Arc::new(Served { socket, serving, link, answer, left: Mutex::new(None) })))
    }

    /// Serve the client until it ends, in the thread that belongs to it.
    fn serve(&self, py: Python<'_>, attendance: Option<&Bound<'_, Attendance>>) -> PyResult<()> {
        let line = &self.0;
        let attendance = attendance.map(|attendance| &*attendance.get().0);
        let (mut buffer, mut pace) = (Vec::new(), Pace::default());
        // How many requests have to come, one after another, that an attendant could have done, until it gets the line.
        let mut wild = 0_u32;
        loop {
            let received = py.detach(|| {
                if let Some(attendance) = attendance
                    && wild == 0
                {
                    attendance.leave(line, &mut pace);
                }
                line.serving.receive(line.socket.core()?, &mut buffer, &mut Wait::forever())
            });
            match received {
                Ok(()) => {}
                Err(ConnectionError::Ended | ConnectionError::Closed) => return line.ended(py),
                Err(error) => return Err(raised(error)),
            }
            let left = line.left.lock().unwrap_or_else(PoisonError::into_inner).take();
            let request = match left {
                Some(request) => {
                    wild = WILD;
                    Ok(request.into_bound(py))
                }
                None => line.request(py, &mut buffer)?,
            };
            let message = match request {
                Err(message) => message,
                Ok(request) => {
                    let mut outcome = Outcome::TakesLong;
                    if wild < WILD {
                        outcome = line.outcome(&request, true)?;
                    }
                    if matches!(outcome, Outcome::TakesLong) {
                        wild = WILD;
                        outcome = line.outcome(&request, false)?;
                    }
                    match outcome {
                        Outcome::Message(message) => message,
                        Outcome::TakesLong | Outcome::End => return Ok(()),
                    }
                }
            };
            wild = wild.saturating_sub(1);
            let connection = line.socket.core().map_err(raised)?;
            match line.pickled(&message, |parts| send(py, &line.serving, connection, parts))? {
                Ok(()) => {}
                Err(ConnectionError::Ended | ConnectionError::Closed) => return line.ended(py),
                Err(error) => return Err(raised(error)),
            }
            if buffer.capacity() > KEPT {
                buffer = Vec::new();
            }
        }
    }
}

/// After a request that may take long, so many are done by the line's own thread before an attendant gets the line.
const WILD: u32 = 32;

fn send(
    py: Python<'_>,
    serving: &Serving,
    connection: &channel::Connection,
    parts: &[&[u8]],
) -> Result<(), ConnectionError> {
    if parts.iter().map(|part| part.len()).sum::<usize>() <= SMALL {
        // There is nothing to wait for: one piece, and a ring.
        return serving.send(connection, parts, &mut Wait::forever());
    }
    py.detach(|| serving.send(connection, parts, &mut Wait::forever()))
}

/// Room for messages of up to this is kept: fresh memory costs more than the copying.
const KEPT: usize = 2 << 20;

/// A message of no more than this is never sent in pieces.
const SMALL: usize = 4096;

fn owned(descriptor: RawFd) -> PyResult<OwnedFd> {
    if descriptor < 0 {
        return Err(PyOSError::new_err("invalid file descriptor"));
    }
    // SAFETY: it is not -1, and the caller gives it up.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The lines that one thread serves, while they are busy.
#[pyclass(frozen, module = "procession._core")]
#[derive(Debug)]
pub(crate) struct Attendance(Arc<channel::Attendance<Served>>);

#[pymethods]
impl Attendance {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    /// Attend, for as long as the process runs.
    fn run(&self, py: Python<'_>) {
        if !self.0.enter() {
            return;
        }
        let (mut lines, mut buffer) = (Lines::default(), Vec::new());
        while py.detach(|| self.0.wait(&mut lines, &mut Wait::forever())).is_ok() {
            let mut busy = true;
            while busy {
                busy = false;
                for line in lines.iter().filter(|line| line.serving.is_asked()) {
                    busy |= line.serving.is_watched();
                    if let Err(error) = line.attend(py, &mut buffer) {
                        // As an exception that ends the line's own thread would.
                        error.write_unraisable(py, None);
                        line.socket.close();
                    }
                }
            }
        }
    }
}
