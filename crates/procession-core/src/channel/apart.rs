//! The layout of a message that has its buffers apart: see `CONNECTION.md`, *Buffers apart*.

use std::ops::Range;

/// Buffers begin at multiples of this, if the message does: a cache line, which is as much as any number needs.
pub const ALIGNMENT: usize = 64;

const WORD: usize = size_of::<u64>();

/// What such a message begins with, before the pickle and the buffers.
pub fn table(pickle: usize, buffers: impl ExactSizeIterator<Item = usize>) -> Vec<u8> {
    [buffers.len(), pickle].into_iter().chain(buffers).flat_map(|length| (length as u64).to_ne_bytes()).collect()
}

/// Where the pickle is, and where each buffer is. `None` if it says that they are beyond the end.
pub fn places(message: &[u8]) -> Option<Vec<Range<usize>>> {
    let word = |number: usize| {
        let bytes = message.get(number.checked_mul(WORD)?..)?.first_chunk::<WORD>()?;
        usize::try_from(u64::from_ne_bytes(*bytes)).ok()
    };
    let count = word(0).filter(|&count| count <= message.len() / WORD)?;
    let mut end = WORD * (2 + count);
    let mut places = Vec::with_capacity(1 + count);
    for number in 0..=count {
        let start = if number == 0 { end } else { end.next_multiple_of(ALIGNMENT) };
        end = start.checked_add(word(1 + number)?).filter(|&end| end <= message.len())?;
        places.push(start..end);
    }
    Some(places)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100), count in 0_u64..5) {
            let mut message = count.to_ne_bytes().to_vec();
            message.extend(bytes);
            for place in places(&message).unwrap_or_default() {
                prop_assert!(place.start <= place.end && place.end <= message.len());
            }
        }

        #[test]
        fn what_was_laid_out_is_found(pickle in 0_usize..200, buffers in proptest::collection::vec(0_usize..200, 0..5)) {
            let mut message = table(pickle, buffers.iter().copied());
            let before = message.len();
            message.resize(before + pickle, 1);
            for length in &buffers {
                message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
                message.resize(message.len() + length, 2);
            }
            let found = places(&message).unwrap();
            prop_assert_eq!(&found[0], &(before..before + pickle));
            for (place, length) in found[1..].iter().zip(&buffers) {
                prop_assert_eq!(place.len(), *length);
                prop_assert_eq!(place.start % ALIGNMENT, 0);
                prop_assert!(message[place.clone()].iter().all(|&byte| byte == 2));
            }
            if !buffers.is_empty() || pickle > 0 {
                message.pop();
                prop_assert!(buffers.last() == Some(&0) || places(&message).is_none());
            }
        }
    }

    #[test]
    fn lengths_that_no_message_has_are_refused() {
        for words in [[u64::MAX, 0, 0], [1, u64::MAX, 0], [1, 0, u64::MAX], [0, 9, 0]] {
            let message: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
            assert_eq!(places(&message), None);
        }
    }
}
