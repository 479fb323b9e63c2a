//! Queues of values.

use std::{
    cell::Cell,
    fmt, io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use procession_core::{
    channel::{self, TakeError},
    sync::Wait,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    Message,
    handover::{Claimed, Lent, Loading},
    message::is_buffer,
};

mod codec;
mod error;
#[cfg(feature = "tokio")]
mod tokio;

pub use error::{
    GetError, GetManyError, GetTimeoutError, PutError, PutFailure, PutManyError, PutTimeoutError, TryGetError,
    TryPutError,
};
pub use procession_core::channel::TooManyDone;

use codec::{Batch, Stop, Taken, encoded, taken};
use error::{Ungot, Unput};

/// As many values are put together at most, and about as many bytes of them.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 16;
/// How long a call that does not wait has patience with a process that is in the middle of putting or getting. It is over
/// in microseconds, unless that one was stopped.
const PATIENCE: Duration = Duration::from_millis(50);

/// A queue of values: any number of processes put, any number of processes get, first in, first out.
///
/// Clones are the same queue, and a queue is a message itself: send it to a process as an argument, or through another
/// queue. A value is written to shared memory when it is put, and stays there whatever becomes of the process that put it; there is
/// no thread behind it, and nothing to be flushed or closed. A process that is killed while it puts or gets leaves the
/// queue usable: the value it was at is in it, or not.
///
/// Putting and getting a small value takes a fraction of a microsecond and no system call. Byte buffers (`Vec<u8>`, `String`, a
/// `Vec` of numbers) are copied in and out as a whole; see [`Plain`](crate::Plain) for those inside of other values, and
/// [`Buffer`](crate::Buffer) for large ones, which the receiver has without a copy.
///
/// ```
/// use procession::{Process, Queue};
///
/// fn square(numbers: Queue<u64>, squares: Queue<(u64, u64)>) {
///     while let Ok(number) = numbers.get() {
///         if number == 0 {
///             break;
///         }
///         squares.put((number, number * number)).unwrap();
///     }
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (numbers, squares) = (Queue::new()?, Queue::new()?);
///     let child = Process::spawn(square, (numbers.clone(), squares.clone()))?;
///     numbers.put_many(1..=10)?;
///     for number in 1..=10 {
///         assert_eq!(squares.get()?, (number, number * number));
///     }
///     numbers.put(0)?;
///     child.join()?;
///     Ok(())
/// }
/// ```
pub struct Queue<T> {
    queue: channel::Queue,
    of: PhantomData<fn(T) -> T>,
}

/// What went through a queue so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// How many values were ever put.
    pub put: u64,
    /// How many values were ever got.
    pub got: u64,
}

impl<T> Queue<T> {
    /// A queue for any number of values: as many as there is memory for.
    ///
    /// # Errors
    ///
    /// Descriptors (a queue has four) or memory are lacking.
    #[doc(alias = "unbounded")]
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: channel::Queue::create_with_courier(None)?, of: PhantomData })
    }

    /// A queue for at most so many values. Putting one more waits until one is got.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`io::ErrorKind::InvalidInput`] for no values at all.
    pub fn bounded(capacity: usize) -> io::Result<Self> {
        if capacity == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a queue has room for one value at least"));
        }
        Ok(Self { queue: channel::Queue::create_with_courier(Some(capacity as u64))?, of: PhantomData })
    }

    /// How many values are in it: exact, as of a moment during the call.
    pub fn len(&self) -> usize {
        self.queue.len() as usize
    }

    /// Whether no value is in it.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether it holds as many values as it may.
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// How many values it may hold; `None` if any number.
    pub fn capacity(&self) -> Option<usize> {
        self.queue.bound().map(|bound| bound as usize)
    }

    /// What went through it so far, in all processes.
    pub fn statistics(&self) -> Statistics {
        // In this order the first is never ahead of the second.
        let got = self.queue.ring().get_count();
        Statistics { put: self.queue.ring().put_count(), got }
    }

    pub(crate) fn core(&self) -> &channel::Queue {
        &self.queue
    }
}

impl<T: Message> Queue<T> {
    /// Puts a value. Waits while the queue is full, for ever if need be.
    ///
    /// # Errors
    ///
    /// The value can't be sent, or memory is lacking. It is in the error.
    #[inline]
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_ref(&value).map_err(|reason| PutError::new(value, reason))
    }

    /// [`put`](Self::put) of a value that the caller keeps.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let queue = procession::Queue::new()?;
    /// let mut buffer = vec![0_u8; 100_000];
    /// for round in 0..3 {
    ///     buffer.fill(round);
    ///     queue.put_ref(&buffer)?;
    /// }
    /// assert_eq!(queue.get()?[99_999], 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn put_ref(&self, value: &T) -> Result<(), PutFailure> {
        loop {
            match self.put_within(value, &mut Wait::forever()) {
                Ok(()) => return Ok(()),
                Err(Unput::Failed(reason)) => return Err(reason),
                // Nothing ends a wait that has no end.
                Err(Unput::NoRoom) => {}
            }
        }
    }

    /// Puts a value if there is room.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let queue = procession::Queue::bounded(1)?;
    /// queue.try_put("first".to_string())?;
    /// let error = queue.try_put("second".to_string()).unwrap_err();
    /// assert!(error.is_full());
    /// assert_eq!(error.into_inner(), "second");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TryPutError::Full`], and as [`put`](Self::put). The value is in the error.
    pub fn try_put(&self, value: T) -> Result<(), TryPutError<T>> {
        match self.put_at_once(&value) {
            Ok(()) => Ok(()),
            Err(Unput::NoRoom) => Err(TryPutError::Full(value)),
            Err(Unput::Failed(reason)) => Err(PutError::new(value, reason).into()),
        }
    }

    /// [`put`](Self::put) that waits so long at most.
    ///
    /// # Errors
    ///
    /// [`PutTimeoutError::TimedOut`], and as [`put`](Self::put). The value is in the error.
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutTimeoutError<T>> {
        match self.put_within(&value, &mut Wait::timeout(timeout)) {
            Ok(()) => Ok(()),
            Err(Unput::NoRoom) => Err(PutTimeoutError::TimedOut(value)),
            Err(Unput::Failed(reason)) => Err(PutError::new(value, reason).into()),
        }
    }

    #[inline]
    fn put_within(&self, value: &T, wait: &mut Wait<'_>) -> Result<(), Unput> {
        let load = |bytes: &[u8]| self.load(bytes, PATIENCE);
        encoded(value, &load, |bytes, along| {
            if along.is_empty() {
                return Ok(self.queue.put(&[bytes], wait)?);
            }
            Ok(self.queue.put_along(&[bytes], along, wait)?)
        })
    }

    /// Copies a buffer to a block of the ring. Waits so long at most for one whose memory is warm.
    fn load(&self, bytes: &[u8], patience: Duration) -> Loading {
        self.queue.ring().fill(&[bytes], patience).map_or(Loading::Bytes, Loading::Block)
    }

    /// Without waiting, but for moments in which another producer is at work.
    fn put_at_once(&self, value: &T) -> Result<(), Unput> {
        let full = Cell::new(false);
        let load = |bytes: &[u8]| {
            // Not copied in vain.
            if self.is_full() {
                full.set(true);
                return Loading::Stop;
            }
            self.load(bytes, Duration::ZERO)
        };
        let put = encoded(value, &load, |bytes, along| {
            if along.is_empty() {
                match self.queue.try_put(&[bytes]) {
                    Err(channel::PutError::Busy) => {}
                    other => return Ok(other?),
                }
            }
            Ok(self.queue.put_now_along(&[bytes], along, &mut Wait::timeout(PATIENCE))?)
        });
        if full.get() { Err(Unput::NoRoom) } else { put }
    }

    /// Puts values one after another, many in one step where there is room. Waits while the queue is full. Values of
    /// others may come in between.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let queue = procession::Queue::new()?;
    /// queue.put_many(1..=1000_u32)?;
    /// assert_eq!(queue.try_iter().sum::<Result<u32, _>>()?, 500_500);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), for the first value that was not put. It is in the error, with those that had been taken from
    /// the iterator by then. What the iterator has not given out stays there: hand over [`by_ref`](Iterator::by_ref) of one to go on with it.
    pub fn put_many(&self, values: impl IntoIterator<Item = T>) -> Result<(), PutManyError<T>> {
        let mut values = values.into_iter().fuse();
        let mut batch = Batch::default();
        let mut gathered: Vec<T> = Vec::new();
        loop {
            // What stopped the last batch is the first of this one.
            let stop = Self::gather(&mut values, &mut gathered, &mut batch);
            if gathered.is_empty() {
                return Ok(());
            }
            let count = if is_buffer::<T>() { gathered.len() } else { batch.len() };
            if let Err((put, reason)) = self.put_gathered(&gathered[..count], &batch) {
                gathered.drain(..put);
                return Err(PutManyError::new(gathered, reason));
            }
            let rest = gathered.split_off(count);
            gathered = rest;
            let failed = match stop {
                None => continue,
                Some(Stop::Failed(error)) => Some(PutFailure::Encode(error)),
                Some(Stop::Alone) => self.put_ref(&gathered[0]).err(),
            };
            if let Some(reason) = failed {
                return Err(PutManyError::new(gathered, reason));
            }
            gathered.remove(0);
        }
    }

    /// Fills a batch; tells why the last of the gathered values is not in it.
    fn gather(values: &mut impl Iterator<Item = T>, gathered: &mut Vec<T>, batch: &mut Batch) -> Option<Stop> {
        batch.clear();
        while gathered.len() < BATCH && batch.size() < BATCH_BYTES {
            gathered.push(values.next()?);
            if !is_buffer::<T>()
                && let Some(value) = gathered.last()
                && let Err(stop) = batch.add(value)
            {
                return Some(stop);
            }
        }
        None
    }

    /// Puts the values of a batch; if not all, tells how many were put.
    fn put_gathered(&self, values: &[T], batch: &Batch) -> Result<(), (usize, PutFailure)> {
        let mut put = 0;
        while put < values.len() {
            let step = if is_buffer::<T>() {
                // Their bytes are where they are: to gather them would be one copy more.
                self.put_ref(&values[put]).map(|()| 1)
            } else {
                let messages: Vec<[&[u8]; 1]> = batch.messages(put).map(|bytes| [bytes]).collect();
                let messages: Vec<&[&[u8]]> = messages.iter().map(<[_; 1]>::as_slice).collect();
                match self.queue.put_many(&messages, &mut Wait::forever()).map_err(Unput::from) {
                    Ok(count) => Ok(count as usize),
                    Err(Unput::NoRoom) => Ok(0),
                    Err(Unput::Failed(reason)) => Err(reason),
                }
            };
            put += step.map_err(|reason| (put, reason))?;
        }
        Ok(())
    }

    /// Gets the oldest value. Waits for one, for ever if need be.
    ///
    /// # Errors
    ///
    /// [`GetError`]: there was a message, but it can't be read.
    #[inline]
    pub fn get(&self) -> Result<T, GetError> {
        loop {
            match self.get_within(&mut Wait::forever()) {
                Ok(value) => return Ok(value),
                Err(Ungot::Failed(error)) => return Err(error),
                // Nothing ends a wait that has no end.
                Err(Ungot::Nothing) => {}
            }
        }
    }

    /// Gets the oldest value if there is one.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let queue = procession::Queue::new()?;
    /// assert!(queue.try_get().unwrap_err().is_empty());
    /// queue.put('x')?;
    /// assert_eq!(queue.try_get()?, 'x');
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TryGetError::Empty`], and as [`get`](Self::get).
    pub fn try_get(&self) -> Result<T, TryGetError> {
        self.get_at_once().map_err(|ungot| match ungot {
            Ungot::Nothing => TryGetError::Empty,
            Ungot::Failed(error) => error.into(),
        })
    }

    /// [`get`](Self::get) that waits so long at most.
    ///
    /// # Errors
    ///
    /// [`GetTimeoutError::TimedOut`], and as [`get`](Self::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetTimeoutError> {
        self.get_within(&mut Wait::timeout(timeout)).map_err(|ungot| match ungot {
            Ungot::Nothing => GetTimeoutError::TimedOut,
            Ungot::Failed(error) => error.into(),
        })
    }

    #[inline]
    fn get_within(&self, wait: &mut Wait<'_>) -> Result<T, Ungot> {
        taken(|read| Ok(self.queue.take_with(wait, read)?))
    }

    /// Without waiting, but for moments in which another consumer is at work.
    fn get_at_once(&self) -> Result<T, Ungot> {
        taken(|read| {
            match self.queue.try_take_with(&mut *read) {
                Err(TakeError::Busy) => {}
                other => return Ok(other?),
            }
            Ok(self.queue.take_now_with(&mut Wait::timeout(PATIENCE), read)?)
        })
    }

    /// Gets up to `most` values, as many as are there, in one step. Waits for the first.
    ///
    /// If this process dies before it has dealt with them, all of them are lost.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let queue = procession::Queue::new()?;
    /// queue.put_many(["a", "b", "c"].map(String::from))?;
    /// assert_eq!(queue.get_many(2)?, ["a", "b"]);
    /// assert_eq!(queue.get_many(2)?, ["c"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), for the first message that can't be read; the values of the others are in the error.
    pub fn get_many(&self, most: usize) -> Result<Vec<T>, GetManyError<T>> {
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut copies = Taken::new();
        let count = loop {
            let read = |message: &channel::Message<'_>| copies.add(message);
            match self.queue.take_many_with(most as u64, &mut Wait::forever(), read).map_err(Ungot::from) {
                Ok(count) => break count,
                Err(Ungot::Failed(error)) => return Err(GetManyError::new(Vec::new(), error)),
                // Nothing ends a wait that has no end.
                Err(Ungot::Nothing) => {}
            }
        };
        let (mut values, mut failed) = (Vec::with_capacity(count as usize), None);
        for value in copies.values(count) {
            match value {
                Ok(value) => values.push(value),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            None => Ok(values),
            Some(error) => Err(GetManyError::new(values, error.into())),
        }
    }

    /// Gets values for ever, waiting for each. It ends only with an error, and goes on after it.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter(self)
    }

    /// Gets values until there is none. Never waits.
    pub fn try_iter(&self) -> TryIter<'_, T> {
        TryIter(self)
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), of: PhantomData }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

/// A descriptor that is readable exactly while the queue is not empty, for [`wait`](crate::wait), `poll` and event loops.
/// Nothing is to be read from it but by getting values. Asking for it makes the queue a little dearer to use, for good.
impl<T> AsFd for Queue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.pollable()
    }
}

impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (ring, pollable) = self.queue.descriptors();
        let [producers, consumers] = self.queue.courier().ok_or_else(|| serde::ser::Error::custom("no courier"))?;
        // What tells its descriptors from all others: the random id of its memory.
        let id = u128::from_le_bytes(self.queue.ring().segment().id().to_bytes());
        let lent = |fd, which| Lent::shared(fd, id.wrapping_add(which));
        let descriptors = (lent(ring, 0), lent(pollable, 1), lent(producers, 2), lent(consumers, 3));
        (self.queue.bound(), descriptors).serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        type Descriptors = (Claimed, Claimed, Claimed, Claimed);
        let (bound, descriptors): (Option<u64>, Descriptors) = Deserialize::deserialize(deserializer)?;
        let (Claimed(ring), Claimed(pollable), Claimed(producers), Claimed(consumers)) = descriptors;
        let queue = channel::Queue::attach_with_courier(bound, ring, pollable, [producers, consumers]);
        queue.map(|queue| Self { queue, of: PhantomData }).map_err(de::Error::custom)
    }
}

/// The values of a queue, waited for. See [`Queue::iter`].
#[derive(Debug)]
pub struct Iter<'a, T>(&'a Queue<T>);

impl<T: Message> Iterator for Iter<'_, T> {
    type Item = Result<T, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.get())
    }
}

impl<'a, T: Message> IntoIterator for &'a Queue<T> {
    type Item = Result<T, GetError>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

/// The values that are in a queue. See [`Queue::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T>(&'a Queue<T>);

impl<T: Message> Iterator for TryIter<'_, T> {
    type Item = Result<T, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.0.try_get() {
            Ok(value) => Some(Ok(value)),
            Err(TryGetError::Empty) => None,
            Err(TryGetError::Failed(error)) => Some(Err(error)),
        }
    }
}
