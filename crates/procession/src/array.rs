//! An array in shared memory, with a lock.

use std::{
    fmt, io,
    marker::PhantomData,
    ops::{Deref, RangeBounds},
    time::Duration,
};

use procession_core::{
    process::ProcessId,
    sync::{self, Acquired, ConditionError, Wait, Waited},
};
use serde::{Deserialize, Serialize};

use crate::{
    IndexError, RawArray,
    sync::{AcquireTimeoutError, Common, Guard, Handed, PlainData, Recovered, Sealed, TryAcquireError, note},
};

/// An array that processes have in common, with a lock: of a fixed length, each element plain data.
///
/// Each method takes the lock, which is reentrant: what is done under [`acquire`](Self::acquire) belongs together.
///
/// # The death of a holder
///
/// A process that is killed while it writes leaves each element of 1, 2, 4 or 8 bytes either old or new. Of larger
/// elements, and of ranges, a part may be written. Single accesses go on after a death; the next
/// to call [`acquire`](Self::acquire) (or its kin) is told of it by [`Recovered`], even if others had the array meanwhile.
///
/// # Examples
///
/// ```
/// use procession::{Array, Process};
///
/// fn square(numbers: Array<i64>, from: usize, to: usize) {
///     let numbers = numbers.acquire().unwrap();
///     for index in from..to {
///         let number = numbers.get(index).unwrap();
///         numbers.set(index, number * number).unwrap();
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let numbers = Array::from_slice(&[1, 2, 3, 4])?;
///     let first = Process::spawn(square, (numbers.clone(), 0, 2))?;
///     let second = Process::spawn(square, (numbers.clone(), 2, 4))?;
///     first.join()?;
///     second.join()?;
///     assert_eq!(numbers.to_vec(), [1, 4, 9, 16]);
///     Ok(())
/// }
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "T: PlainData")]
pub struct Array<T> {
    lock: Common<Handed<sync::RLock>>,
    raw: RawArray<T>,
}

impl<T> Clone for Array<T> {
    /// Another handle to the same array.
    fn clone(&self) -> Self {
        Self { lock: self.lock.clone(), raw: self.raw.clone() }
    }
}

impl<T: PlainData> Array<T> {
    /// An array of so many elements, all zero. Memory for it is secured.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn zeroed(length: usize) -> io::Result<Self> {
        RawArray::zeroed(length).and_then(Self::with_lock)
    }

    /// An array with these elements.
    ///
    /// # Errors
    ///
    /// As [`zeroed`](Self::zeroed).
    pub fn from_slice(elements: &[T]) -> io::Result<Self> {
        RawArray::from_slice(elements).and_then(Self::with_lock)
    }

    fn with_lock(raw: RawArray<T>) -> io::Result<Self> {
        Ok(Self { lock: Common::new(Handed(sync::RLock::create()?)), raw })
    }

    /// Acquires the lock for more than one access. Waits while another thread or process holds it; the calling thread may
    /// acquire it again.
    ///
    /// # Errors
    ///
    /// [`Recovered`], with the guard in it, if a process died that held it, at any time since the last call that told so.
    #[doc(alias = "get_lock")]
    #[doc(alias = "lock")]
    pub fn acquire(&self) -> Result<ArrayGuard<'_, T>, Recovered<ArrayGuard<'_, T>>> {
        let (guard, how) = self.wait_for_lock();
        guard.told(how)
    }

    /// As [`acquire`](Self::acquire), if that needs no waiting.
    ///
    /// # Errors
    ///
    /// [`TryAcquireError`].
    pub fn try_acquire(&self) -> Result<ArrayGuard<'_, T>, TryAcquireError<ArrayGuard<'_, T>>> {
        let how = self.lock.try_acquire_or_recover()?;
        Ok(self.guard().told(how)?)
    }

    /// As [`acquire`](Self::acquire), but waits so long at most.
    ///
    /// # Errors
    ///
    /// [`AcquireTimeoutError`].
    pub fn acquire_timeout(
        &self,
        timeout: Duration,
    ) -> Result<ArrayGuard<'_, T>, AcquireTimeoutError<ArrayGuard<'_, T>>> {
        let how = self.lock.acquire(&mut Wait::timeout(timeout))?;
        Ok(self.guard().told(how)?)
    }

    fn guard(&self) -> ArrayGuard<'_, T> {
        ArrayGuard { array: self, not_send: PhantomData }
    }

    fn wait_for_lock(&self) -> (ArrayGuard<'_, T>, Acquired) {
        loop {
            // Without an end and a say in signals, it only ends with the lock.
            if let Ok(how) = self.lock.acquire(&mut Wait::forever()) {
                return (self.guard(), how);
            }
        }
    }

    /// For a single access. If a process died, the next to call `acquire` is to hear of it.
    fn held(&self) -> ArrayGuard<'_, T> {
        let (guard, how) = self.wait_for_lock();
        if let Acquired::Recovered(owner) = how {
            note("array", owner);
            guard.set_died(owner.to_bits());
        }
        guard
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// An element.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn get(&self, index: usize) -> Result<T, IndexError> {
        self.held().get(index)
    }

    /// Sets an element.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn set(&self, index: usize, element: T) -> Result<(), IndexError> {
        self.held().set(index, element)
    }

    /// Changes an element with the lock held, and returns what `change` returns. If that panics, the element stays as it
    /// was.
    ///
    /// # Errors
    ///
    /// [`IndexError`]; `change` was not called then.
    ///
    /// ```
    /// let counts = procession::Array::<u32>::zeroed(26)?;
    /// for letter in b"abba" {
    ///     counts.update((letter - b'a').into(), |count| *count += 1)?;
    /// }
    /// assert_eq!(counts.read(..2)?, [2, 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn update<R>(&self, index: usize, change: impl FnOnce(&mut T) -> R) -> Result<R, IndexError> {
        let held = self.held();
        let mut element = held.get(index)?;
        let result = change(&mut element);
        held.set(index, element)?;
        Ok(result)
    }

    /// Copies of the elements of a range.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn read(&self, range: impl RangeBounds<usize>) -> Result<Vec<T>, IndexError> {
        self.held().read(range)
    }

    /// Copies elements from `start` on into a slice.
    ///
    /// # Errors
    ///
    /// [`IndexError`], if there are not as many.
    pub fn read_into(&self, start: usize, elements: &mut [T]) -> Result<(), IndexError> {
        self.held().read_into(start, elements)
    }

    /// Copies a slice to where `start` is.
    ///
    /// # Errors
    ///
    /// [`IndexError`], if there is no room for all of it; then nothing is written.
    pub fn write(&self, start: usize, elements: &[T]) -> Result<(), IndexError> {
        self.held().write(start, elements)
    }

    /// Copies of all elements, of one moment.
    pub fn to_vec(&self) -> Vec<T> {
        self.held().to_vec()
    }

    /// Copies of all elements, of one moment, one after the other.
    pub fn iter(&self) -> std::vec::IntoIter<T> {
        self.to_vec().into_iter()
    }

    /// The array without the lock.
    pub fn raw(&self) -> &RawArray<T> {
        &self.raw
    }
}

impl<T: PlainData> IntoIterator for &Array<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

/// An [`Array`] whose lock is held; dropping it releases the lock. It has the methods of [`RawArray`].
///
/// It stays in its thread, which the lock belongs to.
///
/// ```
/// let array = procession::Array::from_slice(&[5, 1])?;
/// let held = array.acquire().unwrap();
/// let (one, two) = (held.get(0)?, held.get(1)?);
/// held.write(0, &[two, one])?;
/// drop(held);
/// assert_eq!(array.to_vec(), [1, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it releases the lock"]
pub struct ArrayGuard<'a, T: PlainData> {
    array: &'a Array<T>,
    not_send: PhantomData<*const ()>,
}

impl<T: PlainData> ArrayGuard<'_, T> {
    /// Itself, or itself in a `Recovered` if a process died with the lock now or before.
    fn told(self, how: Acquired) -> Result<Self, Recovered<Self>> {
        let before = self.died();
        if before.is_some() {
            self.set_died(0);
        }
        if let Acquired::Recovered(owner) = how {
            note("array", owner);
            return Err(Recovered::new(self, owner));
        }
        match before {
            None => Ok(self),
            Some(owner) => Err(Recovered::new(self, owner)),
        }
    }

    /// Who died with the lock when it was not told.
    fn died(&self) -> Option<ProcessId> {
        ProcessId::from_bits(self.array.raw.own_word())
    }

    fn set_died(&self, bits: u64) {
        self.array.raw.set_own_word(bits);
    }
}

impl<T: PlainData> Deref for ArrayGuard<'_, T> {
    type Target = RawArray<T>;

    fn deref(&self) -> &RawArray<T> {
        &self.array.raw
    }
}

impl<T: PlainData> Drop for ArrayGuard<'_, T> {
    fn drop(&mut self) {
        // Not held by a forked child, which has a copy of the guard.
        let _ = self.array.lock.release();
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for ArrayGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.array.raw.fmt(f)
    }
}

impl<T: PlainData> Guard for ArrayGuard<'_, T> {}

impl<T: PlainData> Sealed for ArrayGuard<'_, T> {
    fn wait(&mut self, condition: &sync::Condition, wait: &mut Wait<'_>) -> Result<Waited, ConditionError> {
        let waited = condition.wait(&**self.array.lock, wait)?;
        if let Acquired::Recovered(owner) = waited.lock {
            note("array", owner);
        }
        Ok(waited)
    }

    fn notify(&self, condition: &sync::Condition, count: usize) -> Result<usize, ConditionError> {
        condition.notify(&**self.array.lock, count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        DecodeError, Message,
        handover::Reach,
        message::{Encoded, decode, encode},
    };

    /// As another process would get it.
    fn pass<T: Message, U: Message>(value: &T) -> Result<U, DecodeError> {
        let mut room = Vec::new();
        let Encoded { bytes, descriptors } = encode(value, &mut room, Reach::Related).unwrap();
        decode(bytes, descriptors, Reach::Related)
    }

    /// What `array` and the model of it do is the same, for elements of any size.
    fn behaves_as_a_vector<T: PlainData + Copy + PartialEq + fmt::Debug>(
        length: usize,
        steps: Vec<(usize, usize, T)>,
    ) -> Result<(), TestCaseError> {
        let array = Array::<T>::zeroed(length).unwrap();
        let mut model = vec![T::new_zeroed(); length];
        for (start, count, element) in steps {
            let end = start + count;
            let expected = (end <= length).then(|| model[start..end].fill(element));
            prop_assert_eq!(array.write(start, &vec![element; count]).ok(), expected);
            prop_assert_eq!(array.read(start..end).ok(), model.get(start..end).map(<[T]>::to_vec));
            prop_assert_eq!(array.set(start, element).is_ok(), start < length);
            if let Some(place) = model.get_mut(start) {
                *place = element;
            }
            prop_assert_eq!(array.get(end).ok(), model.get(end).copied());
        }
        let other: Array<T> = pass(&array).unwrap();
        prop_assert_eq!(other.to_vec(), model.clone());
        prop_assert!(array.iter().eq(model));
        Ok(())
    }

    fn steps<T: Arbitrary>() -> impl Strategy<Value = Vec<(usize, usize, T)>> {
        prop::collection::vec((0..45_usize, 0..20_usize, any::<T>()), 0..20)
    }

    proptest! {
        #[test]
        fn bytes_are_as_in_a_vector(length in 0..50_usize, steps in steps::<u8>()) {
            behaves_as_a_vector(length, steps)?;
        }

        #[test]
        fn numbers_are_as_in_a_vector(length in 0..50_usize, steps in steps::<i32>()) {
            behaves_as_a_vector(length, steps)?;
        }

        #[test]
        fn odd_sizes_are_as_in_a_vector(length in 0..50_usize, steps in steps::<[u8; 3]>()) {
            behaves_as_a_vector(length, steps)?;
        }

        #[test]
        fn large_elements_are_as_in_a_vector(length in 0..50_usize, steps in steps::<[u64; 3]>()) {
            behaves_as_a_vector(length, steps)?;
        }
    }

    #[test]
    fn what_is_not_there_is_an_error_that_says_so() {
        let array = RawArray::from_slice(&[1_u16, 2, 3]).unwrap();
        assert_eq!(array.get(3), Err(IndexError { start: 3, end: 4, length: 3 }));
        assert_eq!(array.get(3).unwrap_err().to_string(), "3..4 is not within an array of 3");
        assert!(array.get(usize::MAX).is_err());
        assert!(array.write(2, &[1, 2]).is_err());
        assert_eq!(array.read(..).unwrap(), [1, 2, 3]);
        assert_eq!(array.read(1..=1).unwrap(), [2]);
        assert!(array.read(3..).unwrap().is_empty());
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = array.read(2..1);
        assert!(backwards.is_err());
        assert!(array.read(..=usize::MAX).is_err());
        assert!(array.read_into(1, &mut [0; 3]).is_err());
        assert!(RawArray::<u64>::zeroed(usize::MAX / 2).is_err());
        assert!(RawArray::<u64>::zeroed(1 << 58).is_err());
    }

    #[test]
    fn a_large_one_is_passed_too() {
        let array = Array::from_slice(&vec![7_u32; 1_000_000]).unwrap();
        let other: Array<u32> = pass(&array).unwrap();
        other.set(999_999, 8).unwrap();
        assert_eq!(array.read(999_998..).unwrap(), [7, 8]);
        assert_eq!(array.raw().as_ptr() as usize % 64, 0);
        assert!(pass::<_, Array<[u8; 7]>>(&array).is_err());
    }

    #[test]
    fn the_lock_is_reentrant_and_keeps_others_out() {
        let array = Array::from_slice(&[1_u8, 2]).unwrap();
        let guard = array.acquire().unwrap();
        array.update(0, |first| *first += 1).unwrap();
        assert_eq!(guard.get(0), Ok(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(matches!(array.try_acquire(), Err(TryAcquireError::WouldBlock)));
                let timed = array.acquire_timeout(Duration::from_millis(20));
                assert!(matches!(timed, Err(AcquireTimeoutError::TimedOut)));
                assert_eq!(array.raw().get(0), Ok(2));
            });
        });
        drop(guard);
        assert!(array.try_acquire().is_ok());
    }
}
