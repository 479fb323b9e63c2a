//! `Queue`: what `Queue`, `JoinableQueue` and `SimpleQueue` of the package are derived from.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, RawFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use procession_core::{
    channel::{self, Lost, Message, PutError, TakeError},
    memory::{Claimed, Unsent},
};
use pyo3::{
    buffer::PyBuffer,
    exceptions::{PyMemoryError, PyOSError, PyRuntimeWarning, PyValueError},
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyList, PyTuple},
};

use crate::{
    handle,
    laden::{self, Load},
    late::Late,
    pickling, plain,
    wait::{Timeout, block},
};

/// Messages up to here are copied without the help of the interpreter's memory.
const SMALL: usize = 512;
/// From here on the interpreter's lock is released while a message is copied.
const LARGE: usize = 1 << 16;
/// How long a call that is not to wait waits for another thread or process that is in the midst of a put or a get.
const PATIENCE: Duration = Duration::from_secs(1);
/// A batch is put when it has so many messages, or so many bytes.
const BATCH: (usize, usize) = (256, 1 << 18);

/// The native part of the queues.
#[pyclass(frozen, subclass, module = "procession._core")]
#[derive(Debug)]
pub struct Queue {
    native: Late<channel::Queue>,
    /// By `close()`, in this process.
    closed: AtomicBool,
    /// Whether something was put through this object.
    used: AtomicBool,
}

/// How long to wait, from the arguments `block` and `timeout`. `None`: not at all.
fn limit(block: bool, timeout: Timeout) -> Option<Timeout> {
    (block && !timeout.is_zero()).then_some(timeout)
}

#[cold]
fn exception(py: Python<'_>, class: &'static PyOnceLock<Py<PyAny>>, name: &'static str) -> PyErr {
    match class.import(py, "queue", name).and_then(PyAnyMethods::call0) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

fn full(py: Python<'_>) -> PyErr {
    static FULL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    exception(py, &FULL, "Full")
}

fn empty(py: Python<'_>) -> PyErr {
    static EMPTY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    exception(py, &EMPTY, "Empty")
}

#[cold]
fn lacking(error: io::Error) -> PyErr {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => {
            PyMemoryError::new_err("no memory for the message: take messages out of the queue, or give it a maxsize")
        }
        _ => error.into(),
    }
}

#[cold]
fn put_error(py: Python<'_>, error: PutError) -> PyErr {
    match error {
        PutError::Full | PutError::Busy | PutError::Wait(_) => full(py),
        PutError::Memory(error) => lacking(error),
        other @ (PutError::Damaged | PutError::Descriptors(_)) => PyOSError::new_err(other.to_string()),
    }
}

#[cold]
fn take_error(py: Python<'_>, error: TakeError) -> PyErr {
    match error {
        TakeError::Empty | TakeError::Busy | TakeError::Wait(_) => empty(py),
        TakeError::Read(error) => lacking(error),
        damaged @ TakeError::Damaged => PyOSError::new_err(damaged.to_string()),
    }
}

/// A message that was taken.
enum Taken {
    /// It is in the caller's buffer.
    Small(usize),
    /// The same, and blocks came with it.
    Laden(usize, Vec<Claimed>),
    /// Its pickle, and blocks that came with it.
    Pickle(Py<PyBytes>, Vec<Claimed>),
    /// Itself.
    Bytes(Py<PyBytes>),
}

/// Copies a message out of the ring: a small one into `small`, another into an object of Python's. `whole`: whether a
/// `bytes` object may be taken out of its pickle at once.
fn copy_out(message: &Message<'_>, small: &mut [MaybeUninit<u8>; SMALL], whole: bool) -> io::Result<Taken> {
    let length = usize::try_from(message.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if length <= SMALL {
        message.copy_from(0, small)?;
        if message.has_blocks() {
            return Ok(Taken::Laden(length, message.take_blocks()));
        }
        return Ok(Taken::Small(length));
    }
    let mut beginning = [MaybeUninit::new(0); 16];
    message.copy_from(0, &mut beginning)?;
    let contents = if whole { plain::bytes_within(&initialized(&beginning), message.len()) } else { None };
    let (offset, length) = contents.unwrap_or((0, length));
    Python::attach(|py| {
        let (bytes, place) = pickling::new_bytes(py, length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if length <= LARGE {
            message.copy_from(offset, place)?;
        } else {
            py.detach(|| message.copy_from(offset, place))?;
        }
        let bytes = bytes.unbind();
        Ok(if contents.is_some() { Taken::Bytes(bytes) } else { Taken::Pickle(bytes, message.take_blocks()) })
    })
}

/// The bytes of an array that was initialized when it was made.
#[allow(unsafe_code)]
fn initialized(bytes: &[MaybeUninit<u8>; 16]) -> [u8; 16] {
    // SAFETY: the only caller made it of zeros.
    bytes.map(|byte| unsafe { byte.assume_init() })
}

/// The first bytes of the buffer, which `copy_out` filled.
#[allow(unsafe_code)]
fn filled(small: &[MaybeUninit<u8>; SMALL], length: usize) -> &[u8] {
    // SAFETY: `copy_out` initialized as many bytes as it says.
    unsafe { std::slice::from_raw_parts(small.as_ptr().cast(), length.min(SMALL)) }
}

impl Queue {
    #[inline]
    fn open(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().closed.load(Relaxed) { Err(Self::closed_error(slf)) } else { Ok(()) }
    }

    #[cold]
    fn closed_error(slf: &Bound<'_, Self>) -> PyErr {
        match slf.call_method0("_closed_error") {
            Ok(error) => PyErr::from_value(error),
            Err(_) => PyValueError::new_err("the queue is closed"),
        }
    }

    /// Puts the pieces of a message.
    #[inline]
    fn put_parts(&self, py: Python<'_>, parts: &[&[u8]], limit: Option<Timeout>) -> PyResult<()> {
        let queue = self.native.get()?;
        let small = parts.iter().map(|part| part.len()).sum::<usize>() <= LARGE;
        let put = if small { queue.try_put(parts) } else { Err(PutError::Busy) };
        self.used.store(true, Relaxed);
        match put {
            Ok(()) => Ok(()),
            Err(PutError::Busy) => Self::put_slowly(py, queue, parts, limit),
            Err(PutError::Full) if limit.is_some() => Self::put_slowly(py, queue, parts, limit),
            Err(error) => Err(put_error(py, error)),
        }
    }

    #[cold]
    fn put_slowly(py: Python<'_>, queue: &channel::Queue, parts: &[&[u8]], limit: Option<Timeout>) -> PyResult<()> {
        let put = block(py, limit.unwrap_or(Timeout::after(PATIENCE)), |wait| {
            let put = if limit.is_some() { queue.put(parts, wait) } else { queue.put_now(parts, wait) };
            match put {
                Err(PutError::Wait(error)) => Err(error),
                other => Ok(other),
            }
        })?;
        put.unwrap_or(Err(PutError::Full)).map_err(|error| put_error(py, error))
    }

    /// Puts a message whose large parts go in blocks.
    #[cold]
    fn put_laden(&self, py: Python<'_>, parts: &[&[u8]], buffers: &[&[u8]], limit: Option<Timeout>) -> PyResult<()> {
        let queue = self.native.get()?;
        self.used.store(true, Relaxed);
        if limit.is_none() && queue.is_full() {
            return Err(full(py));
        }
        let patience = if limit.is_some() { PATIENCE } else { Duration::ZERO };
        let load = py.detach(|| Load::new(&laden::of_ring(queue.ring()), parts, buffers, patience));
        let (parts, along) = (load.parts(), load.along());
        let put = block(py, limit.unwrap_or(Timeout::after(PATIENCE)), |wait| {
            let put = match limit {
                Some(_) => queue.put_along(&parts, along, wait),
                None => queue.put_now_along(&parts, along, wait),
            };
            match put {
                Err(PutError::Wait(error)) => Err(error),
                other => Ok(other),
            }
        })?;
        put.unwrap_or(Err(PutError::Full)).map_err(|error| put_error(py, error))
    }

    /// Takes a message into `small`, or into an object.
    #[inline]
    fn take(
        &self,
        py: Python<'_>,
        small: &mut [MaybeUninit<u8>; SMALL],
        limit: Option<Timeout>,
        whole: bool,
    ) -> PyResult<Taken> {
        let queue = self.native.get()?;
        // Who polls is told under a lock, which is not waited for with the interpreter's lock held.
        let taken = if queue.ring().doorbell() {
            Err(TakeError::Busy)
        } else {
            queue.try_take_with(|message| copy_out(message, small, whole))
        };
        match taken {
            Ok(taken) => Ok(taken),
            Err(TakeError::Busy) => Self::take_slowly(py, queue, small, limit, whole),
            Err(TakeError::Empty) if limit.is_some() => Self::take_slowly(py, queue, small, limit, whole),
            Err(error) => Err(take_error(py, error)),
        }
    }

    fn take_slowly(
        py: Python<'_>,
        queue: &channel::Queue,
        small: &mut [MaybeUninit<u8>; SMALL],
        limit: Option<Timeout>,
        whole: bool,
    ) -> PyResult<Taken> {
        let taken = block(py, limit.unwrap_or(Timeout::after(PATIENCE)), |wait| {
            let read = |message: &Message<'_>| copy_out(message, small, whole);
            let taken = if limit.is_some() { queue.take_with(wait, read) } else { queue.take_now_with(wait, read) };
            match taken {
                Err(TakeError::Wait(error)) => Err(error),
                other => Ok(other),
            }
        })?;
        taken.unwrap_or(Err(TakeError::Empty)).map_err(|error| take_error(py, error))
    }

    #[inline]
    fn put_object(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>, limit: Option<Timeout>) -> PyResult<()> {
        Self::open(slf)?;
        let this = slf.get();
        let put = |parts: &[&[u8]], buffers: &[&[u8]]| {
            if laden::is_worth_it(parts, buffers) {
                this.put_laden(slf.py(), parts, buffers, limit)
            } else {
                this.put_parts(slf.py(), parts, limit)
            }
        };
        match pickling::with_buffers(obj, put) {
            Ok(put) => put,
            // The class may want to know of it.
            Err(error) => slf.call_method1("_unpicklable", (error, obj)).map(drop),
        }
    }

    #[inline]
    fn get_object<'py>(slf: &Bound<'py, Self>, limit: Option<Timeout>) -> PyResult<Bound<'py, PyAny>> {
        Self::open(slf)?;
        let py = slf.py();
        let mut small = [MaybeUninit::uninit(); SMALL];
        match slf.get().take(py, &mut small, limit, true)? {
            Taken::Small(length) => pickling::loads(py, filled(&small, length)),
            Taken::Laden(length, blocks) => laden::loads(py, filled(&small, length), blocks),
            Taken::Pickle(pickle, blocks) => match pickle.bind(py) {
                pickle if laden::is_laden(pickle.as_bytes()) => laden::loads(py, pickle.as_bytes(), blocks),
                pickle => pickling::loads_bytes(pickle),
            },
            Taken::Bytes(bytes) => Ok(bytes.into_bound(py).into_any()),
        }
    }

    fn is_empty(py: Python<'_>, queue: &channel::Queue) -> bool {
        // As in `take`.
        queue.ring().is_empty() && (!queue.ring().doorbell() || py.detach(|| queue.is_empty()))
    }

    /// Puts pickles, and leaves those that could not be put.
    fn put_batch(&self, py: Python<'_>, pickles: &mut Vec<(Vec<u8>, Unsent)>, limit: Option<Timeout>) -> PyResult<()> {
        let queue = self.native.get()?;
        self.used.store(true, Relaxed);
        let mut put = 0;
        let result = block(py, limit.unwrap_or(Timeout::after(PATIENCE)), |wait| {
            let parts: Vec<[&[u8]; 1]> = pickles.iter().map(|(pickle, _)| [pickle.as_slice()]).collect();
            let messages: Vec<&[&[u8]]> = parts.iter().map(<[_; 1]>::as_slice).collect();
            while put < messages.len() {
                let rest = &messages[put..];
                let more = match limit {
                    Some(_) => queue.put_many(rest, wait),
                    None => queue.put_many_now(rest, wait),
                };
                match more {
                    Ok(count) => put += count as usize,
                    Err(PutError::Wait(error)) => return Err(error),
                    Err(error) => return Ok(Err(error)),
                }
            }
            Ok(Ok(()))
        });
        pickles.drain(..put).for_each(|(_, with_it)| with_it.sent());
        result?.unwrap_or(Err(PutError::Full)).map_err(|error| put_error(py, error))
    }
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { native: Late::new(), closed: AtomicBool::new(false), used: AtomicBool::new(false) }
    }

    /// Makes the queue: for `maxsize` messages, or without a bound if that is not positive.
    fn _create(&self, maxsize: i64) -> PyResult<()> {
        let bound = u64::try_from(maxsize).ok().filter(|&bound| bound > 0);
        self.native.set(channel::Queue::create(bound)?)
    }

    /// Makes it the same queue as another object is.
    fn _same_as(&self, other: &Bound<'_, Self>) -> PyResult<()> {
        self.native.set(other.get().native.get()?.clone())
    }

    fn _share<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, (RawFd, RawFd))> {
        let queue = self.native.get()?;
        let (ring, pollable) = queue.descriptors();
        let state = PyBytes::new(py, &queue.bound().unwrap_or(0).to_le_bytes());
        Ok((state, (ring.as_raw_fd(), pollable.as_raw_fd())))
    }

    fn _attach(&self, state: &[u8], fds: (RawFd, RawFd)) -> PyResult<()> {
        // First, so that they are closed whatever is wrong with the state.
        let (ring, pollable) = (handle::owned(fds.0), handle::owned(fds.1));
        let (ring, pollable) = (ring?, pollable?);
        let state = state.try_into().map_err(|_| PyValueError::new_err("not the state of a queue"))?;
        let bound = Some(u64::from_le_bytes(state)).filter(|&bound| bound > 0);
        self.native.set(channel::Queue::attach(bound, ring, pollable)?)
    }

    /// Put an object. While the queue is full, wait: as long as it takes if timeout is None, else that many seconds,
    /// then raise queue.Full; not at all if block is false.
    #[pyo3(
        signature = (obj, block=true, timeout=Timeout::FOREVER),
        text_signature = "($self, obj, block=True, timeout=None)"
    )]
    fn put(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>, block: bool, timeout: Timeout) -> PyResult<()> {
        Self::put_object(slf, obj, limit(block, timeout))
    }

    /// Put an object, or raise queue.Full.
    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::put_object(slf, obj, None)
    }

    /// Take the oldest object. While there is none, wait: as long as it takes if timeout is None, else that many
    /// seconds, then raise queue.Empty; not at all if block is false.
    #[pyo3(signature = (block=true, timeout=Timeout::FOREVER), text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(slf: &Bound<'py, Self>, block: bool, timeout: Timeout) -> PyResult<Bound<'py, PyAny>> {
        Self::get_object(slf, limit(block, timeout))
    }

    /// Take the oldest object, or raise queue.Empty.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::get_object(slf, None)
    }

    /// Put all objects of an iterable, in order, in batches: faster than one by one. The timeout is for each batch. If
    /// it raises, what was put before stays.
    #[pyo3(
        signature = (iterable, block=true, timeout=Timeout::FOREVER),
        text_signature = "($self, iterable, block=True, timeout=None)"
    )]
    fn put_many(slf: &Bound<'_, Self>, iterable: &Bound<'_, PyAny>, block: bool, timeout: Timeout) -> PyResult<()> {
        let (this, limit) = (slf.get(), limit(block, timeout));
        let mut pickles = Vec::new();
        let mut size = 0;
        for object in iterable.try_iter()? {
            Self::open(slf)?;
            // Those before are put in any case, as if they had been put one by one.
            let pickle = object.and_then(|object| match pickling::to_send_later(&object) {
                Ok(pickle) => Ok(Some(pickle)),
                Err(error) => slf.call_method1("_unpicklable", (error, object)).map(|_| None),
            });
            match pickle {
                Ok(Some(pickle)) => {
                    size += pickle.0.len();
                    pickles.push(pickle);
                }
                Ok(None) => {}
                Err(error) => {
                    this.put_batch(slf.py(), &mut pickles, limit)?;
                    return Err(error);
                }
            }
            if pickles.len() >= BATCH.0 || size >= BATCH.1 {
                this.put_batch(slf.py(), &mut pickles, limit)?;
                size = 0;
            }
        }
        Self::open(slf)?;
        this.put_batch(slf.py(), &mut pickles, limit)
    }

    /// Take the oldest objects, as many as are there but at most so many, as a list. Wait for the first as `get()` does.
    #[pyo3(
        signature = (most, block=true, timeout=Timeout::FOREVER),
        text_signature = "($self, most, block=True, timeout=None)"
    )]
    fn get_many<'py>(slf: &Bound<'py, Self>, most: i64, block: bool, timeout: Timeout) -> PyResult<Bound<'py, PyList>> {
        Self::open(slf)?;
        let most = u64::try_from(most).ok().filter(|&most| most > 0);
        let most = most.ok_or_else(|| PyValueError::new_err("get_many() takes at least one: most must be positive"))?;
        let (py, queue, limit) = (slf.py(), slf.get().native.get()?, limit(block, timeout));
        let mut pickles: Vec<(Vec<u8>, Vec<Claimed>)> = Vec::new();
        let taken = crate::wait::block(py, limit.unwrap_or(Timeout::after(PATIENCE)), |wait| {
            let mut size = 0;
            let read = |message: &Message<'_>| {
                // Not more at a time than memory allows for a moment.
                if size > 0 && size + message.len() > (64 << 20) {
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
                size += message.len();
                pickles.push((message.to_vec()?, message.take_blocks()));
                Ok(())
            };
            let taken = match limit {
                Some(_) => queue.take_many_with(most, wait, read),
                None => queue.take_many_now_with(most, wait, read),
            };
            match taken {
                Err(TakeError::Wait(error)) => Err(error),
                other => Ok(other),
            }
        })?;
        taken.unwrap_or(Err(TakeError::Empty)).map_err(|error| take_error(py, error))?;
        let objects = PyList::empty(py);
        for (pickle, blocks) in pickles {
            objects.append(laden::loads(py, &pickle, blocks)?)?;
        }
        Ok(objects)
    }

    /// How many objects are in the queue: exact, at the moment.
    fn qsize(&self) -> PyResult<u64> {
        Ok(self.native.get()?.len())
    }

    /// Whether the queue is empty at the moment.
    fn empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if this.closed.load(Relaxed) {
            // What that means differs with the class.
            return slf.call_method0("_closed_empty")?.extract();
        }
        Ok(Self::is_empty(slf.py(), this.native.get()?))
    }

    /// Whether the queue is full at the moment.
    fn full(&self) -> PyResult<bool> {
        Ok(self.native.get()?.is_full())
    }

    /// At most how many objects it holds; 0: without a bound.
    #[getter]
    fn _bound(&self) -> PyResult<u64> {
        Ok(self.native.get()?.bound().unwrap_or(0))
    }

    /// Refuses puts and gets through this object from now on.
    fn _close(&self) {
        self.closed.store(true, Relaxed);
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    #[getter]
    fn _used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// The descriptor that is readable while the queue is not empty.
    fn _pollable(&self, py: Python<'_>) -> PyResult<RawFd> {
        let queue = self.native.get()?;
        Ok(py.detach(|| queue.pollable().as_raw_fd()))
    }

    /// Waits until something is there; whether it is.
    #[pyo3(signature = (timeout=Timeout::FOREVER), text_signature = "($self, timeout=None)")]
    fn _poll(&self, py: Python<'_>, timeout: Timeout) -> PyResult<bool> {
        let queue = self.native.get()?;
        if !Self::is_empty(py, queue) {
            return Ok(true);
        }
        if timeout.is_zero() {
            return Ok(false);
        }
        Ok(block(py, timeout, |wait| queue.wait_filled(wait))?.is_some())
    }

    /// Puts what is already pickled.
    fn _put_bytes(&self, py: Python<'_>, pickle: &Bound<'_, PyAny>) -> PyResult<()> {
        let pickle = PyBuffer::<u8>::get(pickle)?.to_vec(py)?;
        self.put_parts(py, &[&pickle], Some(Timeout::FOREVER))
    }

    /// Takes the oldest object as its pickle.
    fn _get_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut small = [MaybeUninit::uninit(); SMALL];
        Ok(match self.take(py, &mut small, Some(Timeout::FOREVER), false)? {
            Taken::Small(length) => PyBytes::new(py, filled(&small, length)),
            Taken::Laden(length, blocks) => laden::usual(py, PyBytes::new(py, filled(&small, length)), blocks)?,
            Taken::Pickle(bytes, blocks) => laden::usual(py, bytes.into_bound(py), blocks)?,
            Taken::Bytes(bytes) => bytes.into_bound(py),
        })
    }

    /// How many objects were put for which `task_done()` was not called yet.
    #[getter]
    fn _unfinished(&self) -> PyResult<u64> {
        Ok(self.native.get()?.unfinished())
    }

    /// Say that an object that was taken is dealt with.
    fn _task_done(&self) -> PyResult<()> {
        self.native.get()?.task_done().map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Has the queue know which process has how many objects in its hands.
    fn _keep_holders(&self) -> PyResult<()> {
        self.native.get()?.keep_holders();
        Ok(())
    }

    /// Wait until `task_done()` was called for every object that was put, except those in the hands of processes that have died.
    fn _join(&self, py: Python<'_>) -> PyResult<()> {
        let queue = self.native.get()?;
        let mut lost = Vec::new();
        block(py, Timeout::FOREVER, |wait| queue.join(wait, |found| lost.push(found)))?;
        for Lost { messages, pids } in lost {
            let text = CString::new(format!(
                "a process ended with {messages} of the queue's objects in its hands, which count as dealt with (pid {pids:?})"
            ))?;
            PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)?;
        }
        Ok(())
    }
}
