//! A count and the words that belong to it, changed together by one store.
//!
//! The count is stored last, and its parity tells which of two slots holds the words:
//!
//! | step of the writer                        | a reader, or a survivor, sees |
//! |-------------------------------------------|-------------------------------|
//! | before                                    | count n, the slot of n        |
//! | the new words go to the other slot        | count n, the slot of n        |
//! | the new count is stored (n + an odd number) | the new count, the other slot |
//!
//! So a writer may be killed between any two instructions. The next one writes to the same other slot again.

use crate::{
    kills::point,
    loom::{AtomicU64, Ordering},
};

/// `N` words and a count. Written by the holder of a lock, read by anybody.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Published<const N: usize> {
    pub(super) count: AtomicU64,
    slots: [[AtomicU64; N]; 2],
}

impl<const N: usize> Default for Published<N> {
    fn default() -> Self {
        let slot = || std::array::from_fn(|_| AtomicU64::new(0));
        Self { count: AtomicU64::new(0), slots: [slot(), slot()] }
    }
}

impl<const N: usize> Published<N> {
    /// The count alone.
    #[inline]
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// The count and its words.
    #[inline]
    pub(super) fn read(&self) -> (u64, [u64; N]) {
        loop {
            let count = self.count.load(Ordering::Acquire);
            let words = self.slot(count).each_ref().map(|word| word.load(Ordering::Acquire));
            // The slot is written again only after a further count was stored. A word of that later writing would
            // have brought its count along (acquire), so an unchanged count vouches for the words.
            if self.count.load(Ordering::Relaxed) == count {
                return (count, words);
            }
        }
    }

    /// Publishes. Only for the holder of the lock; `count` differs from the present one by an odd number.
    #[inline]
    pub(super) fn publish(&self, count: u64, words: [u64; N]) {
        debug_assert_eq!(count.wrapping_sub(self.count()) % 2, 1, "the parity has to change");
        for (place, word) in self.slot(count).iter().zip(words) {
            place.store(word, Ordering::Release);
            point("ring: a word of the next state stored, not published");
        }
        self.count.store(count, Ordering::Release);
    }

    /// Changes one of the present words in place. Only for the holder of the lock, and where readers do not care
    /// which of both values they see.
    pub(super) fn amend(&self, index: usize, word: u64) {
        self.slot(self.count())[index].store(word, Ordering::Release);
    }

    fn slot(&self, count: u64) -> &[AtomicU64; N] {
        &self.slots[(count % 2) as usize]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_belong_to_their_count() {
        let published = Published::<2>::default();
        assert_eq!(published.read(), (0, [0, 0]));
        published.publish(1, [10, 100]);
        published.publish(4, [40, 400]);
        assert_eq!(published.read(), (4, [40, 400]));
        published.amend(1, 401);
        assert_eq!(published.read(), (4, [40, 401]));
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;

    #[test]
    fn a_reader_never_sees_words_of_another_count() {
        crate::loom::check(3, || {
            let published = Arc::new(Published::<2>::default());
            let writer = {
                let published = published.clone();
                thread::spawn(move || {
                    for count in [1, 2, 5] {
                        published.publish(count, [count * 10, count * 100]);
                    }
                })
            };
            for _ in 0..2 {
                let (count, words) = published.read();
                assert_eq!(words, [count * 10, count * 100]);
            }
            writer.join().unwrap();
        });
    }

    #[test]
    #[allow(unsafe_code)]
    fn what_was_written_before_publishing_is_there() {
        loom::model(|| {
            let shared = Arc::new((Published::<1>::default(), [UnsafeCell::new(0), UnsafeCell::new(0)]));
            let writer = {
                let shared = shared.clone();
                thread::spawn(move || {
                    for count in 1..=2_u64 {
                        // SAFETY: not published yet, so nobody looks; loom reports it otherwise.
                        shared.1[count as usize - 1].with_mut(|byte| unsafe { *byte = count });
                        shared.0.publish(count, [count]);
                    }
                })
            };
            let (_, [written]) = shared.0.read();
            for count in 1..=written {
                // SAFETY: published, never written again.
                shared.1[count as usize - 1].with(|byte| assert_eq!(unsafe { *byte }, count));
            }
            writer.join().unwrap();
        });
    }
}
