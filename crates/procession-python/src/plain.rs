//! Plain data as pickles, written and read here.
//!
//! Most messages are numbers, texts, and small dictionaries, lists and tuples of them. Their pickles are easily
//! written, and read, without the machinery of a pickler: no state, no memo, no call from Python's to C's world and
//! back. What is written are proper pickles, of protocol 4 and without frames and memo, which any unpickler reads.
//!
//! Only the very types are plain: not their subclasses, which may say how they are pickled. A container that is met
//! twice would have to be the same object afterwards: it, and whatever is larger than [`NODES`], is left to the
//! pickler, whose memo then also pays. Numbers have no part in that: no pickler remembers them. So there may be any number of
//! them, and those of a tuple may be written as they come ([`Numbers`]).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

use pyo3::{
    exceptions::PyMemoryError,
    ffi,
    prelude::*,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};

/// What plain pickles begin with. The picklers write another protocol, so the two are easily told apart.
const BEGIN: [u8; 2] = [0x80, 4];
const STOP: u8 = b'.';
/// At most so many objects, containers included, are plain, not counting numbers in lists and tuples of numbers.
const NODES: usize = 64;
/// Longer texts in containers may be worth a memo.
const LONG: usize = 256;

/// A pickle in pieces: some bytes, and for a text or `bytes` object its contents and a full stop.
#[derive(Debug)]
pub(crate) struct Plain<'a> {
    head: Head,
    body: &'a [u8],
}

#[derive(Debug)]
enum Head {
    Short([u8; 16], usize),
    Long(Vec<u8>),
}

impl<'a> Plain<'a> {
    /// The pickle of an object; `None` if it is not plain.
    #[inline]
    pub(crate) fn of(object: &'a Bound<'_, PyAny>) -> Option<Self> {
        if let Some(scalar) = Scalar::of(object) {
            let mut head = [0; 16];
            head[..2].copy_from_slice(&BEGIN);
            let mut length = 2 + scalar.length;
            head[2..length].copy_from_slice(scalar.head());
            let body = scalar.body.unwrap_or_default();
            if body.is_empty() {
                head[length] = STOP;
                length += 1;
            }
            return Some(Self { head: Head::Short(head, length), body });
        }
        if !is_container(object) {
            return None;
        }
        let mut writer = Writer { out: Vec::with_capacity(256), seen: [std::ptr::null_mut(); NODES], nodes: 0 };
        writer.out.extend_from_slice(&BEGIN);
        writer.write(object)?;
        writer.out.push(STOP);
        Some(Self { head: Head::Long(writer.out), body: b"" })
    }

    /// The pieces, one after another.
    #[inline]
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        let head = match &self.head {
            Head::Short(bytes, length) => &bytes[..*length],
            Head::Long(bytes) => bytes,
        };
        [head, self.body, if self.body.is_empty() { b"" } else { &[STOP] }]
    }
}

fn is_container(object: &Bound<'_, PyAny>) -> bool {
    object.is_exact_instance_of::<PyDict>()
        || object.is_exact_instance_of::<PyTuple>()
        || object.is_exact_instance_of::<PyList>()
}

/// An opcode with its argument, and the contents that follow it.
struct Scalar<'a> {
    head: [u8; 10],
    length: usize,
    body: Option<&'a [u8]>,
}

impl<'a> Scalar<'a> {
    fn head(&self) -> &[u8] {
        &self.head[..self.length]
    }

    fn new(opcode: u8, argument: &[u8], body: Option<&'a [u8]>) -> Self {
        let mut head = [opcode; 10];
        let length = 1 + argument.len();
        head[1..length].copy_from_slice(argument);
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
        } else if object.is_exact_instance_of::<PyFloat>() {
            let value = object.cast::<PyFloat>().ok()?.value();
            Some(Self::new(b'G', &value.to_be_bytes(), None))
        } else if object.is_none() {
            Some(Self::new(b'N', &[], None))
        } else if object.is_exact_instance_of::<PyBool>() {
            Some(Self::new(if object.cast::<PyBool>().ok()?.is_true() { 0x88 } else { 0x89 }, &[], None))
        } else if object.is_exact_instance_of::<PyBytes>() {
            let body = object.cast::<PyBytes>().ok()?.as_bytes();
            Some(Self::sized(body, [b'C', b'B', 0x8e]))
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

/// Writes containers. No Python code runs meanwhile, so none of them changes.
struct Writer {
    out: Vec<u8>,
    /// The containers met so far.
    seen: [*mut ffi::PyObject; NODES],
    nodes: usize,
}

impl Writer {
    fn write(&mut self, object: &Bound<'_, PyAny>) -> Option<()> {
        let node = self.nodes;
        if node == NODES {
            return None;
        }
        self.nodes += 1;
        if let Some(scalar) = Scalar::of(object) {
            self.out.extend_from_slice(scalar.head());
            if let Some(body) = scalar.body {
                if body.len() > LONG {
                    return None;
                }
                self.out.extend_from_slice(body);
            }
            return Some(());
        }
        if self.seen[..node].contains(&object.as_ptr()) {
            return None;
        }
        self.seen[node] = object.as_ptr();
        if let Ok(dict) = object.cast_exact::<PyDict>() {
            self.out.push(b'}');
            if !dict.is_empty() {
                self.out.push(b'(');
                for (key, value) in dict {
                    self.write(&key)?;
                    self.write(&value)?;
                }
                self.out.push(b'u');
            }
        } else if let Ok(list) = object.cast_exact::<PyList>() {
            self.out.push(b']');
            if !list.is_empty() {
                self.out.push(b'(');
                if list.len() > NODES {
                    self.numbers(&list.get_item(list.len() - 1).ok()?, list.iter())?;
                } else {
                    for item in list {
                        self.write(&item)?;
                    }
                }
                self.out.push(b'e');
            }
        } else if let Ok(tuple) = object.cast_exact::<PyTuple>() {
            match tuple.len() {
                0 => self.out.push(b')'),
                length => {
                    if length > 3 {
                        self.out.push(b'(');
                    }
                    if length > NODES {
                        self.numbers(&tuple.get_item(length - 1).ok()?, tuple.iter())?;
                    } else {
                        for item in tuple.iter_borrowed() {
                            self.write(&item)?;
                        }
                    }
                    self.out.push(match length {
                        1 => 0x85,
                        2 => 0x86,
                        3 => 0x87,
                        _ => b't',
                    });
                }
            }
        } else {
            return None;
        }
        Some(())
    }
}

impl Writer {
    /// All items of a long list or tuple, if they are numbers. The last one is looked at first: if it is none, that is soon known.
    fn numbers<'py>(
        &mut self,
        last: &Bound<'py, PyAny>,
        items: impl ExactSizeIterator<Item = Bound<'py, PyAny>>,
    ) -> Option<()> {
        let before = self.out.len();
        write_number(&mut self.out, last).then_some(())?;
        self.out.truncate(before);
        // As long as they can be. Where there is no memory, the pickler says so.
        self.out.try_reserve(LONGEST_NUMBER * items.len()).ok()?;
        for item in items {
            write_number(&mut self.out, &item).then_some(())?;
        }
        Some(())
    }
}

/// So many bytes a number takes, at most.
const LONGEST_NUMBER: usize = 10;

/// Writes a number, `None`, `True` or `False`. False if it is something else.
#[inline]
fn write_number(out: &mut Vec<u8>, object: &Bound<'_, PyAny>) -> bool {
    if object.is_exact_instance_of::<PyInt>() {
        let mut overflow: c_int = 0;
        // SAFETY: an int, attached.
        let value: i64 = unsafe { ffi::PyLong_AsLongLongAndOverflow(object.as_ptr(), &raw mut overflow) };
        if overflow != 0 {
            return false;
        }
        // In pieces of a known length, which are stored at once.
        if let Ok(byte) = u8::try_from(value) {
            out.extend_from_slice(&[b'K', byte]);
        } else if let Ok(short) = u16::try_from(value) {
            let [low, high] = short.to_le_bytes();
            out.extend_from_slice(&[b'M', low, high]);
        } else if let Ok(word) = i32::try_from(value) {
            let [b0, b1, b2, b3] = word.to_le_bytes();
            out.extend_from_slice(&[b'J', b0, b1, b2, b3]);
        } else {
            out.extend_from_slice(&[0x8a, 8]);
            out.extend_from_slice(&value.to_le_bytes());
        }
    } else if let Ok(float) = object.cast_exact::<PyFloat>() {
        out.push(b'G');
        out.extend_from_slice(&float.value().to_be_bytes());
    } else if object.is_none() {
        out.push(b'N');
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { 0x88 } else { 0x89 });
    } else {
        return false;
    }
    true
}

/// The pickle of a tuple of numbers that is written as they come. So none of them needs to be kept: for a large chunk of a range, say,
/// that would be most of the time it takes to send it.
#[derive(Debug)]
pub(crate) struct Numbers {
    out: Vec<u8>,
    count: usize,
}

impl Numbers {
    /// Of no items as yet.
    pub(crate) fn new() -> Self {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&BEGIN);
        out.push(b'(');
        Self { out, count: 0 }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Adds an item. False if it is no number.
    ///
    /// # Errors
    ///
    /// `MemoryError`
    #[inline]
    pub(crate) fn add(&mut self, item: &Bound<'_, PyAny>) -> PyResult<bool> {
        if self.out.capacity() - self.out.len() < LONGEST_NUMBER {
            self.out.try_reserve(LONGEST_NUMBER.max(self.out.len())).map_err(|_| PyMemoryError::new_err(()))?;
        }
        let added = write_number(&mut self.out, item);
        self.count += usize::from(added);
        Ok(added)
    }

    /// The pickle of the tuple.
    pub(crate) fn into_pickle(mut self) -> Vec<u8> {
        self.out.extend_from_slice(&[b't', STOP]);
        self.out
    }

    /// The items, as something else comes after them. They are equal, if not the same objects, which no pickle tells.
    pub(crate) fn into_items(self, py: Python<'_>) -> Vec<Bound<'_, PyAny>> {
        let mut reader = Reader { rest: &self.out[BEGIN.len() + 1..] };
        let mut items = Vec::with_capacity(self.count + 1);
        while let Some(opcode) = reader.byte() {
            items.extend(reader.scalar(py, opcode));
        }
        items
    }
}

/// The object of a plain pickle. `Ok(None)`: it is none, or one that is not written here; the unpickler knows.
///
/// # Errors
///
/// `MemoryError`, and what the interpreter says to a dictionary key that can't be one.
#[inline]
pub(crate) fn loads<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [0x80, 4, rest @ .., STOP] = pickle else { return Ok(None) };
    let mut reader = Reader { rest };
    // A single scalar is all there is, most often.
    let Some(first) = reader.byte() else { return Ok(None) };
    if let Some(object) = reader.scalar(py, first) {
        return Ok(reader.rest.is_empty().then_some(object));
    }
    if let Some(object) = flat(py, rest)? {
        return Ok(Some(object));
    }
    Reader { rest }.containers(py)
}

/// The list or tuple of a pickle that is nothing but numbers in one of these. They are counted first, so that each goes where it
/// belongs at once.
fn flat<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
    let (numbers, is_list) = match pickle {
        [b']', b'(', numbers @ .., b'e'] => (numbers, true),
        [b'(', numbers @ .., b't'] => (numbers, false),
        _ => return Ok(None),
    };
    let Some(count) = count_numbers(numbers) else { return Ok(None) };
    let length = count as ffi::Py_ssize_t;
    let (make, set) = if is_list {
        (ffi::PyList_New as unsafe extern "C" fn(_) -> _, ffi::PyList_SetItem as unsafe extern "C" fn(_, _, _) -> _)
    } else {
        (ffi::PyTuple_New as _, ffi::PyTuple_SetItem as _)
    };
    // SAFETY: attached.
    let sequence = unsafe { make(length) };
    // SAFETY: a new reference, or null with an exception set.
    let sequence = unsafe { Bound::from_owned_ptr_or_err(py, sequence) }?;
    let mut reader = Reader { rest: numbers };
    for place in 0..length {
        let number = reader.byte().and_then(|opcode| reader.scalar(py, opcode));
        // It was counted, so it is there.
        let number = number.unwrap_or_else(|| py.None().into_bound(py)).into_ptr();
        // SAFETY: the place is one of those the new object was made with, which takes the reference over; nobody else knows it.
        let status = unsafe { set(sequence.as_ptr(), place, number) };
        if status != 0 {
            return Err(PyErr::fetch(py));
        }
    }
    Ok(Some(sequence))
}

/// How many numbers these are; `None` if they are something else as well.
fn count_numbers(mut pickle: &[u8]) -> Option<usize> {
    let mut count = 0;
    while let [opcode, rest @ ..] = pickle {
        let argument = match opcode {
            b'N' | 0x88 | 0x89 => 0,
            b'K' => 1,
            b'M' => 2,
            b'J' => 4,
            b'G' => 8,
            0x8a if rest.first() == Some(&8) => 9,
            _ => return None,
        };
        pickle = rest.get(argument..)?;
        count += 1;
    }
    Some(count)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.rest.split_off_first().copied()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        self.rest.split_off(..length)
    }

    /// The scalar of an opcode that was just read; `None` if it is not one of those written here.
    #[inline]
    fn scalar<'py>(&mut self, py: Python<'py>, opcode: u8) -> Option<Bound<'py, PyAny>> {
        Some(match opcode {
            b'K' => int(py, c_long::from(self.byte()?)),
            b'M' => int(py, c_long::from(u16::from_le_bytes(self.array()?))),
            b'J' => int(py, c_long::from(i32::from_le_bytes(self.array()?))),
            0x8a if self.byte()? == 8 => int(py, i64::from_le_bytes(self.array()?)),
            b'G' => PyFloat::new(py, f64::from_be_bytes(self.array()?)).into_any(),
            b'N' => py.None().into_bound(py),
            0x88 | 0x89 => PyBool::new(py, opcode == 0x88).to_owned().into_any(),
            0x8c => {
                let length = self.byte()?;
                text(py, self.bytes(length.into())?)?
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                text(py, self.bytes(length as usize)?)?
            }
            b'C' => {
                let length = self.byte()?;
                PyBytes::new(py, self.bytes(length.into())?).into_any()
            }
            b'B' => {
                let length = u32::from_le_bytes(self.array()?);
                PyBytes::new(py, self.bytes(length as usize)?).into_any()
            }
            _ => return None,
        })
    }

    fn containers<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut stack: Vec<Bound<'py, PyAny>> = Vec::with_capacity(16);
        let mut marks: Vec<usize> = Vec::with_capacity(8);
        while let Some(opcode) = self.byte() {
            let object = match opcode {
                b'(' => {
                    marks.push(stack.len());
                    continue;
                }
                b'}' => PyDict::new(py).into_any(),
                b']' => PyList::empty(py).into_any(),
                b')' => PyTuple::empty(py).into_any(),
                b'u' | b'e' => {
                    let Some(mark) = marks.pop().filter(|&mark| mark > 0 && mark <= stack.len()) else {
                        return Ok(None);
                    };
                    let (below, items) = stack.split_at(mark);
                    let container = &below[mark - 1];
                    if opcode == b'u' {
                        let Ok(dict) = container.cast_exact::<PyDict>() else { return Ok(None) };
                        for item in items.chunks_exact(2) {
                            dict.set_item(&item[0], &item[1])?;
                        }
                    } else {
                        let Ok(list) = container.cast_exact::<PyList>() else { return Ok(None) };
                        for item in items {
                            list.append(item)?;
                        }
                    }
                    stack.truncate(mark);
                    continue;
                }
                b't' | 0x85..=0x87 => {
                    let mark =
                        if opcode == b't' { marks.pop() } else { stack.len().checked_sub(usize::from(opcode - 0x84)) };
                    let Some(mark) = mark.filter(|&mark| mark <= stack.len()) else { return Ok(None) };
                    let tuple = PyTuple::new(py, stack.drain(mark..))?;
                    tuple.into_any()
                }
                _ => match self.scalar(py, opcode) {
                    Some(object) => object,
                    None => return Ok(None),
                },
            };
            stack.push(object);
        }
        // One object is left of a pickle that is right.
        let object = stack.pop();
        Ok(object.filter(|_| stack.is_empty()))
    }
}

fn text<'py>(py: Python<'py>, body: &[u8]) -> Option<Bound<'py, PyAny>> {
    Some(PyString::new(py, std::str::from_utf8(body).ok()?).into_any())
}

#[inline]
fn int(py: Python<'_>, value: c_long) -> Bound<'_, PyAny> {
    // SAFETY: attached.
    let object = unsafe { ffi::PyLong_FromLong(value) };
    // SAFETY: a new reference; a null, if memory is out, is a panic.
    unsafe { Bound::from_owned_ptr(py, object) }
}

/// If the pickle that begins like this is one of a large `bytes` object: where its contents are, and how long.
pub(crate) fn bytes_within(beginning: &[u8], total: u64) -> Option<(u64, usize)> {
    let [0x80, 4, opcode @ (b'B' | 0x8e), argument @ ..] = beginning else { return None };
    let (offset, length) = match opcode {
        b'B' => (7, u64::from(u32::from_le_bytes(*argument.first_chunk()?))),
        _ => (11, u64::from_le_bytes(*argument.first_chunk()?)),
    };
    // The full stop is all that follows.
    (length.checked_add(offset + 1)? == total).then_some((offset, usize::try_from(length).ok()?))
}
