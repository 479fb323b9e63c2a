//! Waiting a little for room in the window, so that a large message need not be spilled.
//!
//! The spill is there for a backlog that nobody takes. Where a consumer is at work all the time, and only a little slower
//! than the producer, it would cost both of them ten times what a copy through the warm window costs, and for good, as
//! each message that is spilled has the next one spilled. So a large message that would be spilled waits, but never
//! longer than half of what spilling it costs. If the consumers are what all wait for, no time is lost by that.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    layout::{PREFIX, SPILL_HEAD, SPILL_TAIL, WINDOW, WINDOW_HEAD, WINDOW_TAIL},
    ring::Ring,
};
use crate::sync::{Wait, one_core};

/// From here on a message is large: a switch of processes is cheap beside the copy.
const LARGE: u64 = 1 << 14;
/// How many looks are made before the processor is offered to others.
const LOOKS: u32 = 16;

/// What of the longest wait is tried, in 64ths: all of it as long as that is of use. Half of it after each time in vain;
/// once in so many times it is tried again.
static SHARE: AtomicU32 = AtomicU32::new(WHOLE);
static TIMES: AtomicU32 = AtomicU32::new(0);
const WHOLE: u32 = 64;
const PROBE_EVERY: u32 = 64;

/// Half of what spilling costs: a microsecond or two for each fresh page, and as much again to read it and give it back.
fn worth(length: u64) -> Duration {
    Duration::from_nanos(length / 4)
}

impl Ring {
    /// Waits until the window has room for the message, if that seems to be worth while. It may not have any afterwards.
    #[inline]
    pub(super) fn wait_for_window(&self, message: &[&[u8]], wait: &Wait<'_>) {
        let length = message.iter().fold(PREFIX, |sum, part| sum + part.len() as u64);
        if (LARGE..WINDOW).contains(&length) && self.is_crowded(length) {
            self.wait_for_room_of(length, wait);
        }
    }

    /// Whether the message would go to the spill now.
    fn is_crowded(&self, length: u64) -> bool {
        let header = self.map().header();
        let (_, tail) = header.producers.tail.read();
        let (_, head) = header.consumers.head.read();
        let used = tail[WINDOW_TAIL].wrapping_sub(head[WINDOW_HEAD]);
        tail[SPILL_TAIL] != head[SPILL_HEAD] || length > WINDOW.saturating_sub(used)
    }

    #[cold]
    fn wait_for_room_of(&self, length: u64, wait: &Wait<'_>) {
        let share = SHARE.load(Relaxed);
        let probe = TIMES.fetch_add(1, Relaxed).is_multiple_of(PROBE_EVERY);
        let limit = worth(length) * if probe { WHOLE } else { share } / WHOLE;
        let Ok(limit) = wait.remaining(limit) else { return };
        if one_core() || limit.is_zero() {
            return;
        }
        let (began, taken) = (Instant::now(), self.get_count());
        let mut looks = 0;
        let useful = loop {
            if !self.is_crowded(length) {
                break true;
            }
            if began.elapsed() >= limit {
                // Messages are taken: the spill is empty the sooner for it.
                break self.get_count() != taken;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                std::thread::yield_now();
            }
            for _ in 0..16 {
                crate::loom::hint::spin_loop();
            }
        };
        SHARE.store(if useful { WHOLE } else { share / 2 }, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn put(ring: &Ring, length: usize) {
        let _delivered = ring.put(&[&vec![7; length]], None, &mut Wait::forever()).unwrap();
    }

    fn take(ring: &Ring) {
        let _taken = ring.take_with(&mut Wait::forever(), |_| Ok(())).unwrap();
    }

    #[test]
    fn a_ring_is_crowded_while_a_message_would_be_spilled() {
        let ring = Ring::create("test").unwrap();
        let half = WINDOW / 2;
        assert!(!ring.is_crowded(half));
        put(&ring, half as usize);
        assert!(ring.is_crowded(half), "there is no room for the length that precedes it");
        assert!(!ring.is_crowded(half / 2));
        put(&ring, half as usize);
        take(&ring);
        assert!(ring.is_crowded(LARGE), "the second message is in the spill");
        take(&ring);
        assert!(!ring.is_crowded(half));
    }
}
