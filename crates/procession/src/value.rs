//! A value in shared memory.

use std::{fmt, io, marker::PhantomData};

use procession_core::memory::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::sync::{Common, Handed, Lock, LockGuard, PlainData, Recovered};

/// A value that processes have in common, with a lock.
///
/// Each access takes the lock. A process that dies in the midst of one leaves the value of before, so the others
/// simply go on; who wants to hear of the death uses [`acquire`](Self::acquire).
///
/// ```
/// use procession::{Process, Value};
///
/// fn add(total: Value<f64>, amount: f64) {
///     total.update(|total| *total += amount);
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let total = Value::new(0.5)?;
///     Process::spawn(add, (total.clone(), 2.0))?.join()?;
///     assert_eq!(total.get(), 2.5);
///     Ok(())
/// }
/// ```
#[derive(Serialize, Deserialize)]
#[serde(bound = "T: PlainData")]
pub struct Value<T>(Lock<T>);

impl<T> Clone for Value<T> {
    /// Another handle to the same value.
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: PlainData> Value<T> {
    /// A value in shared memory.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn new(value: T) -> io::Result<Self> {
        Lock::new(value).map(Self)
    }

    /// The value. Waits while another holds the lock.
    pub fn get(&self) -> T {
        self.held().into_value()
    }

    /// The value as it was set last, without waiting for the lock. It is a whole value, but somebody may be about to
    /// change it.
    pub fn peek(&self) -> T {
        self.0.peek()
    }

    /// Sets the value. Waits while another holds the lock.
    pub fn set(&self, value: T) {
        *self.held() = value;
    }

    /// Sets the value and returns the one of before.
    pub fn replace(&self, value: T) -> T {
        std::mem::replace(&mut *self.held(), value)
    }

    /// Changes the value with the lock held, and returns what `change` returns. If that panics, the value stays as it was.
    ///
    /// ```
    /// let value = procession::Value::new(5_i32)?;
    /// let before = value.update(|value| {
    ///     *value *= 2;
    ///     *value / 2
    /// });
    /// assert_eq!((before, value.get()), (5, 10));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.held())
    }

    /// Acquires the lock for more than one access. Until the guard is dropped, the other methods, in this thread too,
    /// wait (but for [`peek`](Self::peek)).
    ///
    /// # Errors
    ///
    /// [`Recovered`], with the guard in it, if a process died that held it.
    #[doc(alias = "get_lock")]
    #[doc(alias = "lock")]
    pub fn acquire(&self) -> Result<LockGuard<'_, T>, Recovered<LockGuard<'_, T>>> {
        self.0.acquire()
    }

    /// The lock with its value, for attempts and timeouts, and for a [`Condition`](crate::Condition).
    pub fn as_lock(&self) -> &Lock<T> {
        &self.0
    }

    fn held(&self) -> LockGuard<'_, T> {
        // The value is whole, whoever died.
        self.acquire().unwrap_or_else(Recovered::into_inner)
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.peek()).finish()
    }
}

/// A value that processes have in common, without a lock.
///
/// Values of up to 8 bytes are set in one step. A larger one may be read half old and half new while it is set.
///
/// ```
/// let progress = procession::RawValue::new(0_u64)?;
/// progress.set(progress.get() + 1); // fine if only one process sets it
/// assert_eq!(progress.get(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Serialize)]
#[serde(transparent, bound = "")]
pub struct RawValue<T> {
    bytes: Common<Handed<Bytes>>,
    value: PhantomData<fn(T) -> T>,
}

impl<'de, T: PlainData> Deserialize<'de> for RawValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Common::<Handed<Bytes>>::deserialize(deserializer)?;
        if bytes.len() != size_of::<T>() {
            return Err(de::Error::custom("the value is of another type"));
        }
        Ok(Self { bytes, value: PhantomData })
    }
}

impl<T> Clone for RawValue<T> {
    /// Another handle to the same value.
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), value: PhantomData }
    }
}

/// What holds for a value that has as many bytes as its type.
const FITS: &str = "as long as its type";

impl<T: PlainData> RawValue<T> {
    /// A value in shared memory.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn new(value: T) -> io::Result<Self> {
        let raw = Self { bytes: Common::new(Handed(Bytes::allocate(size_of::<T>())?)), value: PhantomData };
        raw.set(value);
        Ok(raw)
    }

    /// The value.
    pub fn get(&self) -> T {
        let mut value = T::new_zeroed();
        self.bytes.read(0, value.as_mut_bytes()).expect(FITS);
        value
    }

    /// Sets the value.
    pub fn set(&self, value: T) {
        self.bytes.write(0, value.as_bytes()).expect(FITS);
    }
}

impl<T: PlainData + fmt::Debug> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawValue").field(&self.get()).finish()
    }
}
