//! A value that is replaced as a whole, whoever dies in between.
//!
//! Up to one word it is that word. Larger ones have a count of how often they were replaced, and two places; the count's parity
//! tells which of them is the present one:
//!
//! | step of the writer                | a reader, or a survivor, sees |
//! |-----------------------------------|-------------------------------|
//! | before                            | count n, the place of n       |
//! | the new value goes to the other place | count n, the place of n   |
//! | count n + 1 is stored             | the new value, in the other place |
//!
//! So a writer that is killed leaves the value of before, and the next one writes to the same other place again. It is the
//! way of the ring's positions (`channel/published.rs`), for any number of bytes.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    BlockHandle, Bytes,
    words::{self, WORD},
};
use crate::loom::{AtomicU64, Ordering, fence};

/// Bytes in shared memory that change as a whole: nobody ever sees half of a change, neither while it is made nor after its
/// maker was killed.
///
/// One at a time may [`store`](Self::store), which a lock has to see to. Anybody may [`load`](Self::load) at any time.
///
/// ```
/// use procession_core::memory::Cell;
///
/// let cell = Cell::allocate(11)?;
/// cell.store(b"hello world");
/// let mut read = [0; 11];
/// cell.load(&mut read);
/// assert_eq!(&read, b"hello world");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Cell {
    bytes: Bytes,
    length: usize,
}

/// How many bytes of shared memory a value of so many takes; `None` if there are no such values.
fn room(length: usize) -> Option<usize> {
    if length <= WORD {
        return Some(WORD);
    }
    length.checked_next_multiple_of(WORD)?.checked_mul(2)?.checked_add(WORD)
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no value has so many bytes")
}

/// Replaces the value. `words` has [`room`] for it.
fn store(words: &[AtomicU64], bytes: &[u8]) {
    if bytes.len() <= WORD {
        let mut word = [0; WORD];
        word[..bytes.len()].copy_from_slice(bytes);
        words[0].store(u64::from_ne_bytes(word), Ordering::Release);
        return;
    }
    let (count, places) = (&words[0], &words[1..]);
    let next = count.load(Ordering::Relaxed).wrapping_add(1);
    // Who sees a word of what is written now sees the present count, and not the one before it.
    fence(Ordering::Release);
    words::copy_in(place(places, next), 0, bytes);
    count.store(next, Ordering::Release);
}

/// Reads the value.
fn load(words: &[AtomicU64], bytes: &mut [u8]) {
    if bytes.len() <= WORD {
        let word = words[0].load(Ordering::Acquire).to_ne_bytes();
        bytes.copy_from_slice(&word[..bytes.len()]);
        return;
    }
    let (count, places) = (&words[0], &words[1..]);
    loop {
        let before = count.load(Ordering::Acquire);
        words::copy_out(place(places, before), 0, bytes);
        // The place is written again only after a further count was stored, which a word of that writing brings along.
        fence(Ordering::Acquire);
        if count.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

fn place(places: &[AtomicU64], count: u64) -> &[AtomicU64] {
    let (even, odd) = places.split_at(places.len() / 2);
    if count.is_multiple_of(2) { even } else { odd }
}

impl Cell {
    /// A value of so many bytes, all zero.
    ///
    /// # Errors
    ///
    /// If memory or descriptors are lacking.
    pub fn allocate(length: usize) -> io::Result<Self> {
        let room = room(length).ok_or_else(too_large)?;
        Ok(Self { bytes: Bytes::allocate(room)?, length })
    }

    /// What to send to another process, along with the length and the descriptor ([`AsFd`]).
    pub fn hand_over(&self) -> BlockHandle {
        self.bytes.hand_over()
    }

    /// The value of another process.
    ///
    /// # Errors
    ///
    /// As [`Bytes::attach`].
    pub fn attach(handle: BlockHandle, fd: OwnedFd, length: usize) -> io::Result<Self> {
        let room = room(length).ok_or_else(too_large)?;
        Ok(Self { bytes: Bytes::attach(handle, fd, room)?, length })
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads the value that was stored last. While others store again and again it may take several tries.
    ///
    /// # Panics
    ///
    /// If the length is another.
    pub fn load(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.length, "a value is read as a whole");
        load(self.bytes.words(), bytes);
    }

    /// Replaces the value. Only for one at a time, in all processes: if two do it at once, what is left may be a mixture.
    ///
    /// # Panics
    ///
    /// If the length is another.
    pub fn store(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.length, "a value is replaced as a whole");
        store(self.bytes.words(), bytes);
    }
}

impl AsFd for Cell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bytes.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sync::testing::{in_child, kill};

    #[test]
    fn values_of_all_sizes_are_read_as_they_were_stored() {
        for length in [0, 1, 7, 8, 9, 16, 100, 10_000] {
            let cell = Cell::allocate(length).unwrap();
            let fd = cell.as_fd().try_clone_to_owned().unwrap();
            let other = Cell::attach(cell.hand_over(), fd, length).unwrap();
            let mut read = vec![1; length];
            other.load(&mut read);
            assert_eq!(read, vec![0; length]);
            for round in 1..5_u8 {
                let stored: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(round)).collect();
                cell.store(&stored);
                other.load(&mut read);
                assert_eq!(read, stored);
            }
        }
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        let cell = Cell::allocate(100).unwrap();
        let attach = |length| Cell::attach(cell.hand_over(), cell.as_fd().try_clone_to_owned().unwrap(), length);
        assert!(attach(100).is_ok());
        assert!(attach(1 << 20).is_err());
        assert!(attach(usize::MAX).is_err());
        assert!(Cell::allocate(usize::MAX - 3).is_err());
    }

    #[test]
    fn who_reads_while_others_write_sees_whole_values() {
        let cell = Cell::allocate(400).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..20_000_u32 {
                    cell.store(&[round as u8; 400]);
                }
            });
            for _ in 0..2000 {
                let mut read = [0; 400];
                cell.load(&mut read);
                assert_eq!(read, [read[0]; 400]);
            }
        });
    }

    #[test]
    fn a_writer_killed_at_any_moment_leaves_a_whole_value() {
        const LENGTH: usize = 6000;
        let cell = Cell::allocate(LENGTH).unwrap();
        for round in 0..40 {
            let child = in_child(
                || {},
                || {
                    for value in 0_u8.. {
                        cell.store(&[value; LENGTH]);
                        if value == u8::MAX {
                            std::thread::yield_now();
                        }
                    }
                },
            );
            std::thread::sleep(Duration::from_micros(137 * round));
            kill(child);
            let mut left = [0; LENGTH];
            cell.load(&mut left);
            assert_eq!(left, [left[0]; LENGTH]);
            cell.store(&[7; LENGTH]);
            cell.load(&mut left);
            assert_eq!(left, [7; LENGTH]);
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::loom::check;

    const LENGTH: usize = 2 * WORD;

    fn cell() -> Arc<Vec<AtomicU64>> {
        Arc::new((0..room(LENGTH).unwrap() / WORD).map(|_| AtomicU64::new(0)).collect())
    }

    fn loaded(words: &[AtomicU64]) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        load(words, &mut bytes);
        bytes
    }

    #[test]
    fn a_reader_sees_one_value_or_the_other() {
        check(3, || {
            let words = cell();
            let writer = {
                let words = words.clone();
                thread::spawn(move || {
                    for value in 1..=3 {
                        store(&words, &[value; LENGTH]);
                    }
                })
            };
            let mut last = 0;
            for _ in 0..2 {
                let read = loaded(&words);
                assert_eq!(read, [read[0]; LENGTH]);
                assert!(read[0] >= last);
                last = read[0];
            }
            writer.join().unwrap();
            assert_eq!(loaded(&words), [3; LENGTH]);
        });
    }

    /// A writer that got no further than the words of the other place, as one that was killed.
    #[test]
    fn half_a_change_is_not_seen_and_does_not_disturb_the_next() {
        check(3, || {
            let words = cell();
            store(&words, &[1; LENGTH]);
            words::copy_in(place(&words[1..], 2), 0, &[9; WORD]);
            assert_eq!(loaded(&words), [1; LENGTH]);
            let writer = {
                let words = words.clone();
                thread::spawn(move || store(&words, &[2; LENGTH]))
            };
            let read = loaded(&words);
            assert!(read == [1; LENGTH] || read == [2; LENGTH]);
            writer.join().unwrap();
            assert_eq!(loaded(&words), [2; LENGTH]);
        });
    }
}
