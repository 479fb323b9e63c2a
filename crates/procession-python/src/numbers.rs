//! Numbers in shared memory, as ctypes lays them out.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_long, c_longlong, c_short},
    mem::MaybeUninit,
    ops::Range,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use pyo3::{
    ffi,
    prelude::*,
    types::{PyList, PySlice},
};

/// What the bits of a number mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Signed,
    Unsigned,
    Float,
}

/// One number, as what it means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

const LARGEST_LONG: u64 = c_long::MAX as u64;

impl Number {
    /// A new reference to a Python number. Null, with an exception, if there is no memory.
    #[inline]
    pub(crate) fn to_object(self) -> *mut ffi::PyObject {
        match self {
            // Of the functions for integers that for `long` is the quickest.
            // SAFETY: the interpreter runs: it called.
            Self::Signed(number) => unsafe { ffi::PyLong_FromLong(number) },
            // SAFETY: as above.
            Self::Unsigned(number @ ..=LARGEST_LONG) => unsafe { ffi::PyLong_FromLong(number as c_long) },
            // SAFETY: as above.
            Self::Unsigned(number) => unsafe { ffi::PyLong_FromUnsignedLongLong(number) },
            // SAFETY: as above.
            Self::Float(number) => unsafe { ffi::PyFloat_FromDouble(number) },
        }
    }
}

/// So many numbers of one type, one after the other.
///
/// Others may write them at any time: each is read and written by one atomic access.
#[derive(Debug)]
pub(crate) struct Numbers {
    base: NonNull<u8>,
    count: usize,
    size: usize,
    kind: Kind,
}

// SAFETY: the pointer is to memory that is mapped as long as the ctypes object lives that it was got from, and which is touched
// by atomics only.
unsafe impl Send for Numbers {}
// SAFETY: as above.
unsafe impl Sync for Numbers {}

impl Numbers {
    /// The memory of a ctypes object whose items have this `struct` format. None if that is not a number's, or if the
    /// numbers do not lie where they can be accessed in one step.
    ///
    /// It is the caller's to see that the object's memory stays where it is, and to keep the object.
    ///
    /// # Errors
    ///
    /// `TypeError` or `BufferError` if the object has no memory to write to.
    pub(crate) fn of(object: &Bound<'_, PyAny>, form: char) -> PyResult<Option<Self>> {
        let (kind, size) = match form {
            'b' => (Kind::Signed, 1),
            'B' => (Kind::Unsigned, 1),
            'h' => (Kind::Signed, size_of::<c_short>()),
            'H' => (Kind::Unsigned, size_of::<c_short>()),
            'i' => (Kind::Signed, size_of::<c_int>()),
            'I' => (Kind::Unsigned, size_of::<c_int>()),
            'l' => (Kind::Signed, size_of::<c_long>()),
            'L' => (Kind::Unsigned, size_of::<c_long>()),
            'q' => (Kind::Signed, size_of::<c_longlong>()),
            'Q' => (Kind::Unsigned, size_of::<c_longlong>()),
            'f' => (Kind::Float, size_of::<f32>()),
            'd' => (Kind::Float, size_of::<f64>()),
            _ => return Ok(None),
        };
        let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
        // A single number has no shape, without which PyO3's own buffers can't do.
        let flags = ffi::PyBUF_WRITABLE;
        // SAFETY: an object, and room for the view.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) } != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: it was filled in, as there was no error.
        let mut view = unsafe { view.assume_init() };
        let (base, bytes) = (view.buf.cast::<u8>(), view.len as usize);
        // SAFETY: it was got above, and is not used any more.
        unsafe { ffi::PyBuffer_Release(&raw mut view) };
        Ok(NonNull::new(base).filter(|base| bytes % size == 0 && base.addr().get() % size == 0).map(|base| Self {
            base,
            count: bytes / size,
            size,
            kind,
        }))
    }

    fn at(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.count, "there are {} numbers, not one at {index}", self.count);
        // SAFETY: it is one of the numbers.
        unsafe { self.base.add(index * self.size) }
    }

    /// The number at an index.
    #[inline]
    pub(crate) fn load(&self, index: usize) -> Number {
        let place = self.at(index).as_ptr();
        let bits = match self.size {
            // SAFETY: so many bytes are there, aligned, and accessed by atomics only; this and the following.
            1 => u64::from(unsafe { AtomicU8::from_ptr(place) }.load(Ordering::Relaxed)),
            // SAFETY: as above.
            2 => u64::from(unsafe { AtomicU16::from_ptr(place.cast()) }.load(Ordering::Relaxed)),
            // SAFETY: as above.
            4 => u64::from(unsafe { AtomicU32::from_ptr(place.cast()) }.load(Ordering::Relaxed)),
            // SAFETY: as above.
            _ => unsafe { AtomicU64::from_ptr(place.cast()) }.load(Ordering::Relaxed),
        };
        match (self.kind, self.size) {
            (Kind::Unsigned, _) => Number::Unsigned(bits),
            (Kind::Signed, size) => {
                let above = 64 - 8 * size as u32;
                Number::Signed((bits << above) as i64 >> above)
            }
            (Kind::Float, 4) => Number::Float(f64::from(f32::from_bits(bits as u32))),
            (Kind::Float, _) => Number::Float(f64::from_bits(bits)),
        }
    }

    /// Stores what [`take`](Self::take) returned.
    #[inline]
    pub(crate) fn store(&self, index: usize, bits: u64) {
        let place = self.at(index).as_ptr();
        match self.size {
            // SAFETY: so many bytes are there, aligned, and accessed by atomics only; this and the following.
            1 => unsafe { AtomicU8::from_ptr(place) }.store(bits as u8, Ordering::Relaxed),
            // SAFETY: as above.
            2 => unsafe { AtomicU16::from_ptr(place.cast()) }.store(bits as u16, Ordering::Relaxed),
            // SAFETY: as above.
            4 => unsafe { AtomicU32::from_ptr(place.cast()) }.store(bits as u32, Ordering::Relaxed),
            // SAFETY: as above.
            _ => unsafe { AtomicU64::from_ptr(place.cast()) }.store(bits, Ordering::Relaxed),
        }
    }

    /// The bits of a Python number, as ctypes would store it: an int cut to size. None, and no exception, for what ctypes
    /// has to look at.
    ///
    /// # Safety
    ///
    /// `object` points to an object, and the interpreter's lock is held.
    #[inline]
    pub(crate) unsafe fn take(&self, object: *mut ffi::PyObject) -> Option<u64> {
        if self.kind == Kind::Float {
            // SAFETY: by the caller's word it is an object.
            let number = if unsafe { ffi::PyFloat_CheckExact(object) } != 0 {
                // SAFETY: it is a float.
                unsafe { ffi::PyFloat_AsDouble(object) }
            // SAFETY: by the caller's word it is an object.
            } else if unsafe { ffi::PyLong_CheckExact(object) } != 0 {
                // SAFETY: it is an int.
                let number = unsafe { ffi::PyLong_AsDouble(object) };
                // Those too large for a float say so by this number, and by an exception, which ctypes will raise itself.
                if number.to_bits() == (-1.0f64).to_bits() {
                    // SAFETY: the interpreter's lock is held.
                    unsafe { ffi::PyErr_Clear() };
                    return None;
                }
                number
            } else {
                return None;
            };
            return Some(if self.size == 4 { u64::from((number as f32).to_bits()) } else { number.to_bits() });
        }
        // SAFETY: by the caller's word it is an object.
        if unsafe { ffi::PyLong_CheckExact(object) } == 0 {
            return None;
        }
        // SAFETY: it is an int; of these no value is an error.
        Some(unsafe { ffi::PyLong_AsUnsignedLongLongMask(object) })
    }

    /// The indices of a slice, if it has no step.
    ///
    /// # Errors
    ///
    /// What the slice's own limits raise when asked for their number.
    pub(crate) fn range(&self, slice: &Bound<'_, PySlice>) -> PyResult<Option<Range<usize>>> {
        let found = slice.indices(self.count as isize)?;
        let start = found.start as usize;
        Ok((found.step == 1).then_some(start..start + found.slicelength))
    }

    /// The numbers of a range that [`range`](Self::range) returned.
    ///
    /// # Errors
    ///
    /// `MemoryError`.
    pub(crate) fn list<'py>(&self, py: Python<'py>, range: Range<usize>) -> PyResult<Bound<'py, PyList>> {
        // SAFETY: the interpreter's lock is held.
        let list = unsafe { ffi::PyList_New(range.len() as ffi::Py_ssize_t) };
        // SAFETY: a new reference, or null with an exception set.
        let list = unsafe { Bound::from_owned_ptr_or_err(py, list) }?;
        for (place, index) in range.enumerate() {
            let number = self.load(index).to_object();
            if number.is_null() {
                return Err(PyErr::fetch(py));
            }
            // SAFETY: the place is in the list, which nobody else has as yet, and takes the reference.
            unsafe { ffi::PyList_SetItem(list.as_ptr(), place as ffi::Py_ssize_t, number) };
        }
        Ok(list.cast_into()?)
    }

    /// Stores a list's items in a range of the same length, one after the other; those that [`take`](Self::take) does not
    /// know through `other`.
    ///
    /// # Errors
    ///
    /// What `other` raises; the items before are stored then.
    pub(crate) fn fill(
        &self,
        range: Range<usize>,
        list: &Bound<'_, PyList>,
        other: impl Fn(usize, &Bound<'_, PyAny>) -> PyResult<()>,
    ) -> PyResult<()> {
        for (place, index) in range.enumerate() {
            // Looked for each time: `other` may run anything, which may change the list.
            let item = list.get_item(place)?;
            // SAFETY: an object, and the interpreter's lock is held.
            match unsafe { self.take(item.as_ptr()) } {
                Some(bits) => self.store(index, bits),
                None => other(index, &item)?,
            }
        }
        Ok(())
    }
}
