//! Messages whose large parts go in blocks of shared memory.
//!
//! A large object is pickled with its buffers out of band (pickle protocol 5). Each large part, a buffer or the pickle itself,
//! is copied once into a block that goes along with the message; the receiver's array is the block. What there is no block
//! for goes in the message. Such a message begins like this, all numbers little-endian:
//!
//! | bytes | meaning |
//! |-------|---------|
//! | 0-7   | [`MAGIC`]; no pickle begins so |
//! | 8-15  | how many parts: the pickle, then the buffers in the order in which they were met |
//! | 24 for each part | in which of the message's blocks, or [`INLINE`] in the message; from where on; how long |
#![allow(unsafe_code)]

use std::{borrow::Cow, ffi::c_int, time::Duration};

use procession_core::{
    channel::{Along, Ring},
    memory::{Claimed, Filled, HeldBlock},
};
use pyo3::{
    exceptions::{PyMemoryError, PyValueError},
    ffi,
    prelude::*,
    types::{PyByteArray, PyBytes, PyList},
};

use crate::{pickling, plain};

const MAGIC: [u8; 8] = *b"\x01prcbk\x00\x01";
/// In place of the number of a block.
const INLINE: u64 = u64::MAX;
const ENTRY: usize = 24;
/// Parts in the message and in a common block begin at multiples of this.
const ALIGNMENT: usize = 64;
/// A smaller part is not worth a block.
const WORTH: usize = 1 << 15;
/// More buffers than this share a block. Each of the others is freed when it is let go, whatever becomes of the rest.
const OF_THEIR_OWN: usize = 16;

/// Whether a message is such a one.
pub(crate) fn is_laden(message: &[u8]) -> bool {
    message.starts_with(&MAGIC)
}

/// Whether an object is worth it: one with buffers out of band, or a very large pickle.
pub(crate) fn is_worth_it(pickle: &[&[u8]], buffers: &[&[u8]]) -> bool {
    !buffers.is_empty() || length_of(pickle) >= LARGE
}

/// From here on a pickle goes in a block. Up to here the way through the ring is as fast.
const LARGE: usize = 1 << 20;

fn length_of(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// What gets blocks: [`Ring::fill`].
pub(crate) type Fill<'a> = dyn Fn(&[&[u8]], Duration) -> Option<Filled> + 'a;

/// A message that is about to be put.
pub(crate) struct Load<'a> {
    head: Vec<u8>,
    inline: Vec<&'a [u8]>,
    blocks: Vec<Filled>,
}

impl<'a> Load<'a> {
    /// Copies what is large into blocks of a ring. Takes as long as that, and waits at most `patience` for memory that is warm.
    pub(crate) fn new(fill: &Fill<'_>, pickle: &[&'a [u8]], buffers: &[&'a [u8]], patience: Duration) -> Self {
        let count = 1 + buffers.len();
        let mut load = Self { head: Vec::with_capacity(16 + ENTRY * count), inline: Vec::new(), blocks: Vec::new() };
        load.head.extend_from_slice(&MAGIC);
        load.head.extend_from_slice(&(count as u64).to_le_bytes());
        let mut end = 16 + ENTRY * count;
        let block = if length_of(pickle) >= WORTH { fill(pickle, patience) } else { None };
        load.part(block, pickle, &mut end);
        if buffers.len() <= OF_THEIR_OWN {
            for buffer in buffers {
                load.part(fill(&[buffer], patience), &[buffer], &mut end);
            }
        } else {
            load.together(fill, buffers, patience, &mut end);
        }
        load
    }

    /// A part that has a block of its own, or else goes in the message.
    fn part(&mut self, block: Option<Filled>, bytes: &[&'a [u8]], end: &mut usize) {
        let length = length_of(bytes);
        if let Some(block) = block {
            self.entry(self.blocks.len() as u64, 0, length);
            self.blocks.push(block);
            return;
        }
        let start = end.next_multiple_of(ALIGNMENT);
        self.inline.push(&PADDING[..start - *end]);
        self.inline.extend_from_slice(bytes);
        self.entry(INLINE, start, length);
        *end = start + length;
    }

    /// All buffers in one block.
    fn together(&mut self, fill: &Fill<'_>, buffers: &[&'a [u8]], patience: Duration, end: &mut usize) {
        let mut parts = Vec::with_capacity(2 * buffers.len());
        for buffer in buffers {
            parts.push(*buffer);
            parts.push(&PADDING[..buffer.len().next_multiple_of(ALIGNMENT) - buffer.len()]);
        }
        let Some(block) = fill(&parts, patience) else {
            for buffer in buffers {
                self.part(None, &[buffer], end);
            }
            return;
        };
        let mut start = 0;
        for buffer in buffers {
            self.entry(self.blocks.len() as u64, start, buffer.len());
            start += buffer.len().next_multiple_of(ALIGNMENT);
        }
        self.blocks.push(block);
    }

    fn entry(&mut self, block: u64, start: usize, length: usize) {
        for word in [block, start as u64, length as u64] {
            self.head.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// The pieces of the message, and the blocks, which go with it.
    pub(crate) fn into_parts(self) -> (Vec<Cow<'a, [u8]>>, Vec<Filled>) {
        let parts = std::iter::once(Cow::Owned(self.head)).chain(self.inline.into_iter().map(Cow::Borrowed)).collect();
        (parts, self.blocks)
    }

    /// The pieces of the message.
    pub(crate) fn parts(&self) -> Vec<&[u8]> {
        std::iter::once(self.head.as_slice()).chain(self.inline.iter().copied()).collect()
    }

    pub(crate) fn along(&self) -> Along<'_> {
        Along { blocks: &self.blocks, ..Along::default() }
    }
}

static PADDING: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// [`Ring::fill`] as [`Load::new`] takes it.
pub(crate) fn of_ring(ring: &Ring) -> impl Fn(&[&[u8]], Duration) -> Option<Filled> + '_ {
    |parts, patience| ring.fill(parts, patience)
}

/// The object of a message, with the blocks that came along.
///
/// # Errors
///
/// Whatever unpickling raises, and `ValueError` for a message that is none.
pub(crate) fn loads<'py>(py: Python<'py>, message: &[u8], blocks: Vec<Claimed>) -> PyResult<Bound<'py, PyAny>> {
    if !is_laden(message) {
        return pickling::loads(py, message);
    }
    let held = py.detach(|| blocks.into_iter().map(Claimed::hold).collect::<Result<Vec<_>, _>>())?;
    let mut cargo = Cargo { message, blocks: held.into_iter().map(Arrived::Untouched).collect() };
    let mut parts = parts_of(message).ok_or_else(damaged)?;
    let (block, start, length) = parts.next().ok_or_else(damaged)?;
    let buffers = PyList::empty(py);
    for part in parts {
        buffers.append(cargo.buffer(py, part)?)?;
    }
    let pickle = cargo.bytes(block, start, length)?;
    if buffers.is_empty()
        && let Some((from, length)) = plain::bytes_within(&pickle[..pickle.len().min(16)], pickle.len() as u64)
    {
        // One copy, from the block to the object.
        let (bytes, place) = pickling::new_bytes(py, length)?;
        let contents = &pickle[from as usize..from as usize + length];
        // SAFETY: as long as each other, and apart: the object is new.
        py.detach(|| unsafe { place.as_mut_ptr().copy_from_nonoverlapping(contents.as_ptr().cast(), length) });
        return Ok(bytes.into_any());
    }
    pickling::loads_with_buffers(py, pickle, &buffers)
}

/// A block that came with a message, before and after it was given to Python.
enum Arrived<'py> {
    Untouched(HeldBlock),
    Given(Bound<'py, Block>),
    Gone,
}

struct Cargo<'py, 'a> {
    message: &'a [u8],
    blocks: Vec<Arrived<'py>>,
}

impl<'py> Cargo<'py, '_> {
    fn bytes(&self, block: u64, start: usize, length: usize) -> PyResult<&[u8]> {
        let end = start.checked_add(length).ok_or_else(damaged)?;
        let whole = match usize::try_from(block).ok().and_then(|block| self.blocks.get(block)) {
            _ if block == INLINE => self.message,
            Some(Arrived::Untouched(block)) => block,
            _ => return Err(damaged()),
        };
        whole.get(start..end).ok_or_else(damaged)
    }

    /// A part as the buffer of an object.
    fn buffer(&mut self, py: Python<'py>, (block, start, length): (u64, usize, usize)) -> PyResult<Bound<'py, PyAny>> {
        if block == INLINE {
            return Ok(PyByteArray::new(py, self.bytes(block, start, length)?).into_any());
        }
        let place = usize::try_from(block).ok().and_then(|block| self.blocks.get_mut(block)).ok_or_else(damaged)?;
        let given = match std::mem::replace(place, Arrived::Gone) {
            Arrived::Untouched(block) => Bound::new(py, Block(block))?,
            Arrived::Given(block) => block,
            Arrived::Gone => return Err(damaged()),
        };
        let whole = given.get().0.len();
        *place = Arrived::Given(given.clone());
        let end = start.checked_add(length).filter(|&end| end <= whole).ok_or_else(damaged)?;
        // SAFETY: attached, and an object.
        let view = unsafe { ffi::PyMemoryView_FromObject(given.as_ptr()) };
        // SAFETY: a new reference, or null with an exception set.
        let view = unsafe { Bound::from_owned_ptr_or_err(py, view) }?;
        if (start, length) == (0, whole) {
            return Ok(view);
        }
        let range = pyo3::types::PySlice::new(py, start.cast_signed(), end.cast_signed(), 1);
        view.get_item(range)
    }
}

/// Where the parts are; `None` if the message is too short for what it says.
fn parts_of(message: &[u8]) -> Option<impl Iterator<Item = (u64, usize, usize)> + '_> {
    let (count, rest) = message.get(MAGIC.len()..)?.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(ENTRY)?;
    let word = |entry: &[u8], at: usize| entry[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    Some(rest.get(..length)?.chunks_exact(ENTRY).map(move |entry| {
        let [start, length] = [8, 16].map(|at| usize::try_from(word(entry, at)).unwrap_or(usize::MAX));
        (word(entry, 0), start, length)
    }))
}

#[cold]
fn damaged() -> PyErr {
    PyValueError::new_err("a message of the queue is not what it says")
}

/// Memory that came with a message: the buffer of the object that was in it.
#[pyclass(frozen, module = "procession._core")]
#[derive(Debug)]
struct Block(HeldBlock);

#[pymethods]
impl Block {
    /// Its memory, to read and write.
    ///
    /// # Safety
    ///
    /// As the buffer protocol says: `view` may be filled.
    unsafe fn __getbuffer__(slf: &Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let block = &slf.get().0;
        let length = ffi::Py_ssize_t::try_from(block.len()).map_err(|_| PyMemoryError::new_err(()))?;
        // SAFETY: attached; the memory lives as long as the object, of which the view keeps a reference.
        let result = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), block.as_ptr().cast(), length, 0, flags) };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A pickle of the usual kind, of a message that may be one of these.
///
/// # Errors
///
/// As [`loads`], and what pickling raises.
pub(crate) fn usual<'py>(
    py: Python<'py>,
    message: Bound<'py, PyBytes>,
    blocks: Vec<Claimed>,
) -> PyResult<Bound<'py, PyBytes>> {
    if !is_laden(message.as_bytes()) {
        return Ok(message);
    }
    pickling::py_dumps(&loads(py, message.as_bytes(), blocks)?)
}
