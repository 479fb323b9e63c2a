//! Copies between private bytes and words of shared memory.
//!
//! What is shared is touched by whole aligned words only, each an atomic: another process, or another thread of this one, may
//! write there at the same time. Then a copy of several words may be a mixture of old and new, but each word is one or the
//! other, and nothing is undefined. Bytes beside those that are written keep their value: the words at the edges are changed
//! by compare-and-swap.

use crate::loom::{AtomicU64, Ordering};

/// How many bytes a word has.
pub(super) const WORD: usize = size_of::<u64>();

/// An access beyond the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at {offset} do not lie within {size} bytes of shared memory")]
pub struct OutOfRange {
    /// Where the access was to begin.
    pub offset: usize,
    /// How many bytes it was for.
    pub length: usize,
    /// How many bytes there are.
    pub size: usize,
}

impl OutOfRange {
    /// `Ok` if `length` bytes at `offset` lie within `size` bytes.
    pub(super) fn check(offset: usize, length: usize, size: usize) -> Result<(), Self> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if inside { Ok(()) } else { Err(Self { offset, length, size }) }
    }
}

/// How many of `length` bytes at `offset` lie in a word that begins before them.
fn in_first_word(offset: usize, length: usize) -> usize {
    (offset.next_multiple_of(WORD) - offset).min(length)
}

/// Copies `bytes.len()` bytes at `offset` out of shared memory. In no order with anything else: that is the caller's
/// business.
///
/// # Panics
///
/// If they do not lie within the words.
pub(super) fn copy_out(words: &[AtomicU64], offset: usize, bytes: &mut [u8]) {
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed).to_ne_bytes();
    let (head, rest) = bytes.split_at_mut(in_first_word(offset, bytes.len()));
    if !head.is_empty() {
        head.copy_from_slice(&load(&words[offset / WORD])[offset % WORD..][..head.len()]);
    }
    let words = &words[(offset + head.len()) / WORD..];
    let (whole, tail) = rest.as_chunks_mut();
    let (full, words) = words.split_at(whole.len());
    for (chunk, word) in whole.iter_mut().zip(full) {
        *chunk = load(word);
    }
    if !tail.is_empty() {
        tail.copy_from_slice(&load(&words[0])[..tail.len()]);
    }
}

/// Copies bytes to `offset` in shared memory, in no order with anything else.
///
/// # Panics
///
/// If they do not lie within the words.
pub(super) fn copy_in(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    let (head, rest) = bytes.split_at(in_first_word(offset, bytes.len()));
    if !head.is_empty() {
        change(&words[offset / WORD], offset % WORD, head);
    }
    let words = &words[(offset + head.len()) / WORD..];
    let (whole, tail) = rest.as_chunks();
    let (full, words) = words.split_at(whole.len());
    for (chunk, word) in whole.iter().zip(full) {
        word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
    }
    if !tail.is_empty() {
        change(&words[0], 0, tail);
    }
}

/// Changes some of the bytes of a word, and leaves the others to whoever changes them meanwhile.
fn change(word: &AtomicU64, at: usize, bytes: &[u8]) {
    let mut before = word.load(Ordering::Relaxed);
    loop {
        let mut after = before.to_ne_bytes();
        after[at..at + bytes.len()].copy_from_slice(bytes);
        match word.compare_exchange_weak(before, u64::from_ne_bytes(after), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => before = now,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_written_and_read_as_in_a_vector(
            writes in prop::collection::vec((0..70_usize, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            (from, length) in (0..100_usize, 0..40_usize),
        ) {
            const SIZE: usize = 120;
            let words: Vec<_> = (0..SIZE / WORD).map(|_| AtomicU64::new(0)).collect();
            let mut model = vec![0; SIZE];
            for (offset, bytes) in writes {
                copy_in(&words, offset, &bytes);
                model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            let length = length.min(SIZE - from);
            let mut read = vec![0; length];
            copy_out(&words, from, &mut read);
            prop_assert_eq!(&read, &model[from..from + length]);
            let mut all = vec![0; SIZE];
            copy_out(&words, 0, &mut all);
            prop_assert_eq!(all, model);
        }
    }

    #[test]
    fn neighbours_in_a_word_do_not_disturb_each_other() {
        let words = [AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for at in 0..WORD {
                let words = &words;
                scope.spawn(move || {
                    for count in 0..=200 {
                        copy_in(words, at, &[count]);
                    }
                });
            }
        });
        assert_eq!(words[0].load(Ordering::Relaxed).to_ne_bytes(), [200; WORD]);
    }

    #[test]
    fn what_is_beyond_the_end_is_refused() {
        assert!(OutOfRange::check(3, 5, 8).is_ok());
        assert!(OutOfRange::check(8, 0, 8).is_ok());
        assert_eq!(OutOfRange::check(4, 5, 8), Err(OutOfRange { offset: 4, length: 5, size: 8 }));
        assert!(OutOfRange::check(usize::MAX, 1, 8).is_err());
    }
}
