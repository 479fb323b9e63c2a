//! Room for the bytes of a message, which a thread keeps from one to the next.

use std::cell::Cell;

/// As much room as a thread keeps.
const KEPT: usize = 1 << 20;

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The thread's room, with whatever was there last. It is taken out, since what encodes and decodes values is the
/// program's code, too, and may send and receive others.
#[inline]
pub(crate) fn take() -> Vec<u8> {
    // A thread at its end has no place any more to keep anything.
    ROOM.try_with(Cell::take).unwrap_or_default()
}

/// For the next message, unless it is so much that it would be a waste.
#[inline]
pub(crate) fn keep(room: Vec<u8>) {
    if room.capacity() <= KEPT {
        let _ = ROOM.try_with(|kept| kept.set(room));
    }
}

/// Calls `act` with the thread's room.
#[inline]
pub(crate) fn with<R>(act: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut room = take();
    let result = act(&mut room);
    keep(room);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_unless_it_is_much() {
        with(|room| room.extend([1; 1000]));
        let place = with(|room| {
            // Who comes here meanwhile has another one.
            assert!(take().is_empty());
            assert_eq!(room.len(), 1000);
            room.as_ptr().addr()
        });
        let again = take();
        assert_eq!(again.as_ptr().addr(), place);
        keep(Vec::with_capacity(KEPT + 1));
        assert_eq!(take().capacity(), 0);
    }

    #[test]
    fn a_thread_at_its_end_has_room_all_the_same() {
        struct Last;
        impl Drop for Last {
            fn drop(&mut self) {
                with(|room| room.push(1));
            }
        }
        thread_local! {
            static LAST: Last = const { Last };
        }
        let thread = std::thread::spawn(|| {
            LAST.with(|_| {});
            keep(Vec::with_capacity(10));
        });
        thread.join().unwrap();
    }
}
