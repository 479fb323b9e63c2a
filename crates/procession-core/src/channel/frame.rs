//! The framing of messages: a length before each. See `CONNECTION.md`, *Frame*.

/// A length field has at most this many bytes.
pub(crate) const LONGEST: usize = 12;

/// The largest length of a body that can be announced. Nothing larger fits an address space, with what is around it.
const MAX_BODY: u64 = 1 << 56;

/// What a length field begins with whose message has its buffers apart.
const APART: i32 = -2;

/// The length field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Header {
    /// For a body of `length` bytes.
    pub(crate) fn new(length: usize, apart: bool) -> Self {
        let mut bytes = [0; LONGEST];
        let len = if apart {
            bytes[..4].copy_from_slice(&APART.to_be_bytes());
            bytes[4..].copy_from_slice(&(length as u64).to_be_bytes());
            12
        } else if let Ok(short) = i32::try_from(length) {
            bytes[..4].copy_from_slice(&short.to_be_bytes());
            4
        } else {
            bytes[..4].copy_from_slice(&(-1i32).to_be_bytes());
            bytes[4..].copy_from_slice(&(length as u64).to_be_bytes());
            12
        };
        Self { bytes, len }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What the first bytes of a message say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// So many bytes in all are needed to know the length.
    Incomplete(usize),
    /// The header has `header` bytes, the body `length`.
    Complete {
        /// Length of the length field.
        header: usize,
        /// Length of the body.
        length: usize,
        /// Whether the body has its buffers apart.
        apart: bool,
    },
}

/// Reads the length field at the beginning of `bytes`. `None` if no peer may send such a one: only one at the other end of
/// `packets` has messages with buffers apart.
pub(crate) fn decode(bytes: &[u8], packets: bool) -> Option<Decoded> {
    let Some((short, rest)) = bytes.split_first_chunk::<4>() else {
        return Some(Decoded::Incomplete(4));
    };
    match i32::from_be_bytes(*short) {
        first if first == -1 || first == APART && packets => {
            let Some(long) = rest.first_chunk::<8>() else {
                return Some(Decoded::Incomplete(12));
            };
            let length = u64::from_be_bytes(*long);
            let complete = Decoded::Complete { header: 12, length: length as usize, apart: first == APART };
            (length <= MAX_BODY).then_some(complete)
        }
        short => usize::try_from(short).ok().map(|length| Decoded::Complete { header: 4, length, apart: false }),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_length_comes_back(length in 0..=MAX_BODY, apart in any::<bool>()) {
            let header = Header::new(length as usize, apart);
            let bytes = header.as_bytes();
            prop_assert_eq!(decode(bytes, true), Some(Decoded::Complete { header: bytes.len(), length: length as usize, apart }));
            // With a part of it, exactly what is missing is asked for.
            for some in 0..bytes.len() {
                let needed = if some < 4 { 4 } else { 12 };
                prop_assert_eq!(decode(&bytes[..some], true), Some(Decoded::Incomplete(needed)));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            if let Some(Decoded::Complete { header, length, .. }) = decode(&bytes, true) {
                prop_assert!(header <= bytes.len());
                prop_assert!(length as u64 <= MAX_BODY);
            }
        }
    }

    #[test]
    fn the_boundary_of_the_short_form() {
        assert_eq!(Header::new(0x7fff_ffff, false).as_bytes(), [0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(Header::new(0x8000_0000, false).as_bytes(), [255, 255, 255, 255, 0, 0, 0, 0, 0x80, 0, 0, 0]);
    }

    #[test]
    fn lengths_no_peer_may_send_are_refused() {
        assert_eq!(decode(&(-2i32).to_be_bytes(), false), None);
        assert_eq!(decode(&(-3i32).to_be_bytes(), true), None);
        assert_eq!(decode(&i32::MIN.to_be_bytes(), true), None);
        assert_eq!(decode(&[255; 12], true), None);
    }
}
