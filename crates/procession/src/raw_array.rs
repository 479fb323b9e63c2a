//! An array in shared memory, without a lock.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Bound, RangeBounds},
};

use procession_core::memory::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::sync::{Common, Handed, PlainData};

/// Before the elements is a line for an [`Array`](crate::Array)'s own use, so that the elements are aligned to it as well.
const FIRST: usize = 64;

/// An index or a range that an array does not have: the standard package's `IndexError`.
///
/// ```
/// let error = procession::Array::<u8>::zeroed(5)?.read(3..7).unwrap_err();
/// assert_eq!(error.to_string(), "3..7 is not within an array of 5");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{start}..{end} is not within an array of {length}")]
pub struct IndexError {
    /// The first index that was asked for.
    pub start: usize,
    /// The one after the last.
    pub end: usize,
    /// How long the array is.
    pub length: usize,
}

/// An array that processes have in common, without a lock: of a fixed length, each element plain data.
///
/// Elements of 1, 2, 4 and 8 bytes are read and written in one step each. Larger ones, and ranges, may be read half old and
/// half new while others write them; where that matters there is [`Array`](crate::Array).
///
/// ```
/// use procession::RawArray;
///
/// let array = RawArray::from_slice(&[1.0, 2.0, 3.0])?;
/// array.set(1, 2.5)?;
/// assert_eq!(array.read(1..)?, [2.5, 3.0]);
/// assert!(array.get(3).is_err());
/// assert_eq!(array.iter().sum::<f64>(), 6.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Serialize)]
#[serde(transparent, bound = "")]
pub struct RawArray<T> {
    bytes: Common<Handed<Bytes>>,
    element: PhantomData<fn(T) -> T>,
}

impl<'de, T: PlainData> Deserialize<'de> for RawArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Common::<Handed<Bytes>>::deserialize(deserializer)?;
        let fits = bytes.len().checked_sub(FIRST).is_some_and(|length| length.is_multiple_of(size_of::<T>().max(1)));
        if fits {
            Ok(Self { bytes, element: PhantomData })
        } else {
            Err(de::Error::custom("the array is of another type"))
        }
    }
}

impl<T> Clone for RawArray<T> {
    /// Another handle to the same array.
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), element: PhantomData }
    }
}

impl<T: PlainData> RawArray<T> {
    const SIZE: usize = {
        assert!(size_of::<T>() != 0, "the elements of an array have one byte at least");
        size_of::<T>()
    };

    /// An array of so many elements, all zero. Memory for it is secured.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn zeroed(length: usize) -> io::Result<Self> {
        let size = length.checked_mul(Self::SIZE).and_then(|size| size.checked_add(FIRST));
        let size = size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no array is so long"))?;
        Ok(Self { bytes: Common::new(Handed(Bytes::allocate(size)?)), element: PhantomData })
    }

    /// An array with these elements.
    ///
    /// # Errors
    ///
    /// As [`zeroed`](Self::zeroed).
    pub fn from_slice(elements: &[T]) -> io::Result<Self> {
        let array = Self::zeroed(elements.len())?;
        array.bytes.write(FIRST, elements.as_bytes()).map_err(io::Error::other)?;
        Ok(array)
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        (self.bytes.len() - FIRST) / Self::SIZE
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in shared memory so many elements are.
    fn place(&self, start: usize, count: usize) -> Result<usize, IndexError> {
        let (end, length) = (start.saturating_add(count), self.len());
        if end <= length { Ok(FIRST + start * Self::SIZE) } else { Err(IndexError { start, end, length }) }
    }

    /// An element.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn get(&self, index: usize) -> Result<T, IndexError> {
        let mut element = T::new_zeroed();
        self.copy_out(self.place(index, 1)?, element.as_mut_bytes());
        Ok(element)
    }

    /// Sets an element.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn set(&self, index: usize, element: T) -> Result<(), IndexError> {
        self.write(index, std::slice::from_ref(&element))
    }

    /// Copies of the elements of a range.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    ///
    /// # Panics
    ///
    /// If memory is lacking for them, as with any `Vec`.
    pub fn read(&self, range: impl RangeBounds<usize>) -> Result<Vec<T>, IndexError> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        let count = end.checked_sub(start).ok_or(IndexError { start, end, length: self.len() })?;
        let place = self.place(start, count)?;
        let mut elements = T::new_vec_zeroed(count).unwrap_or_else(|_| panic!("no memory for {count} elements"));
        self.copy_out(place, elements.as_mut_slice().as_mut_bytes());
        Ok(elements)
    }

    /// Copies elements from `start` on into a slice.
    ///
    /// # Errors
    ///
    /// [`IndexError`], if there are not as many.
    pub fn read_into(&self, start: usize, elements: &mut [T]) -> Result<(), IndexError> {
        self.copy_out(self.place(start, elements.len())?, elements.as_mut_bytes());
        Ok(())
    }

    /// Copies a slice to where `start` is.
    ///
    /// # Errors
    ///
    /// [`IndexError`], if there is no room for all of it; then nothing is written.
    pub fn write(&self, start: usize, elements: &[T]) -> Result<(), IndexError> {
        let place = self.place(start, elements.len())?;
        self.bytes.write(place, elements.as_bytes()).expect("within, as was checked");
        Ok(())
    }

    /// Copies of all elements.
    pub fn to_vec(&self) -> Vec<T> {
        self.read(..).expect("all that it has")
    }

    /// The elements one after the other, each read when its turn comes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + DoubleEndedIterator {
        (0..self.len()).map(|index| self.get(index).expect("an index that it has"))
    }

    /// The first element in shared memory, aligned to 64 bytes; valid while this handle or a clone of it lives. For those
    /// who know what they do: any process may write there at any time.
    pub fn as_ptr(&self) -> *mut T {
        self.bytes.as_ptr().as_ptr().wrapping_add(FIRST).cast()
    }

    /// The word in the line before the elements: an [`Array`](crate::Array)'s own. Zero at first.
    pub(crate) fn own_word(&self) -> u64 {
        let mut word = [0; 8];
        self.copy_out(0, &mut word);
        u64::from_ne_bytes(word)
    }

    /// Sets that word.
    pub(crate) fn set_own_word(&self, word: u64) {
        self.bytes.write(0, &word.to_ne_bytes()).expect("in the line before the elements");
    }

    fn copy_out(&self, place: usize, bytes: &mut [u8]) {
        self.bytes.read(place, bytes).expect("within, as was checked");
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
