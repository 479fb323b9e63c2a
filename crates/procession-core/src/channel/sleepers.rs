//! Who sleeps until a count changes.
//!
//! A count of sleepers tells whoever changes the word whether a wake (a system call) is worth while. A sleeper that is
//! killed leaves the count too high, never too low: that costs spare wakes until the next change that wakes nobody
//! puts it right (PROTOCOL.md, "A sleeper is killed").
//!
//! The word:
//!
//! | bits  | meaning |
//! |-------|---------|
//! | 0-19  | how many sleep, or are about to, or were killed while they did |
//! | 20-31 | how many times that was put right, so that who came before does not take itself out of a later count |
//! | 32-63 | how many ever came, so that a newcomer is never mistaken for a dead one |

use std::time::Duration;

use crate::{
    kills::point,
    loom::{AtomicU64, Ordering, fence},
    sync::{Wait, WaitError},
    sys::futex,
};

const COMING: u64 = (1 << 32) + 1;
const COUNT: u64 = RIGHTED - 1;
const RIGHTED: u64 = 1 << 20;
const TIMES_RIGHTED: u64 = (1 << 32) - RIGHTED;

/// The word with nobody counted.
fn put_right(present: u64) -> u64 {
    // Without a carry into the upper half.
    let times = present.wrapping_add(RIGHTED) & TIMES_RIGHTED;
    present & !(TIMES_RIGHTED | COUNT) | times
}

/// The sleepers on one word.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct Sleepers(AtomicU64);

impl Sleepers {
    /// Sleeps while `word` is `seen`, for a slice at most. `seen` was loaded, and found not to be what is waited for,
    /// before this call.
    pub(super) fn sleep(
        &self,
        word: &AtomicU64,
        seen: u64,
        wait: &mut Wait<'_>,
        slice: Duration,
    ) -> Result<(), WaitError> {
        let times = self.0.fetch_add(COMING, Ordering::AcqRel) & TIMES_RIGHTED;
        // Pairs with the fence in `wake`: either the change is seen here, or the sleeper there.
        fence(Ordering::SeqCst);
        point("sleepers: counted, not asleep");
        let slept = if word.load(Ordering::Relaxed) == seen { wait.park(word, seen as u32, slice) } else { Ok(()) };
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |present| {
            // If it has been put right in the meantime, those counted now are others.
            (present & TIMES_RIGHTED == times && present & COUNT != 0).then(|| present - 1)
        });
        slept
    }

    /// To be taken by whoever is going to change the word, before the change, and handed to [`wake`](Self::wake).
    #[inline]
    pub(super) fn before(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Wakes at most `count` sleepers, after `word` was changed. Who changed nothing gives `u64::MAX` for `before`.
    #[inline]
    pub(super) fn wake(&self, word: &AtomicU64, before: u64, count: u64) {
        fence(Ordering::SeqCst);
        let now = self.0.load(Ordering::Relaxed);
        if now & COUNT != 0 {
            self.wake_slowly(word, before, now, count);
        }
    }

    #[cold]
    fn wake_slowly(&self, word: &AtomicU64, before: u64, now: u64, count: u64) {
        let woken = futex::wake(word, u32::try_from(count).unwrap_or(u32::MAX));
        // Nobody came since before the change, so whoever was counted had loaded the former value: it does not fall
        // asleep any more, and nobody was found asleep. Those that are counted are dead, or awake anyway.
        if woken == 0 && now == before {
            let _ = self.0.compare_exchange(now, put_right(now), Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// How many are counted.
    #[cfg(all(test, not(loom)))]
    pub(super) fn counted(&self) -> u64 {
        self.0.load(Ordering::Acquire) & COUNT
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_count_a_dead_sleeper_left_is_put_right() {
        let (sleepers, word) = (Sleepers::default(), AtomicU64::new(0));
        sleepers.0.fetch_add(COMING, Ordering::Relaxed);
        assert_eq!(sleepers.counted(), 1);
        let before = sleepers.before();
        word.store(1, Ordering::Release);
        sleepers.wake(&word, before, 1);
        assert_eq!(sleepers.counted(), 0);
    }

    #[test]
    fn who_was_put_out_of_the_count_does_not_take_a_newcomer_out() {
        let (sleepers, word) = (Sleepers::default(), AtomicU64::new(0));
        let mut interrupted = || {
            // Awake, but still counted, while a waker puts the count right and another sleeper comes.
            let before = sleepers.before();
            sleepers.wake(&word, before, 1);
            sleepers.0.fetch_add(COMING, Ordering::Relaxed);
            false
        };
        let mut wait = Wait::forever().on_signal(&mut interrupted);
        assert_eq!(sleepers.sleep(&word, 0, &mut wait, Duration::from_millis(1)), Err(WaitError::Interrupted));
        assert_eq!(sleepers.counted(), 1, "the newcomer sleeps, and has to be woken");
    }

    #[test]
    fn putting_right_for_the_last_time_leaves_the_arrivals_alone() {
        let all = u64::MAX << 32 | TIMES_RIGHTED | 3;
        assert_eq!(put_right(all), u64::MAX << 32);
    }

    #[test]
    fn a_newcomer_is_not_taken_for_a_dead_one() {
        let (sleepers, word) = (Sleepers::default(), AtomicU64::new(0));
        let before = sleepers.before();
        sleepers.0.fetch_add(COMING, Ordering::Relaxed);
        word.store(1, Ordering::Release);
        sleepers.wake(&word, before, 1);
        assert_eq!(sleepers.counted(), 1);
    }

    #[test]
    fn a_sleeper_leaves_when_its_time_is_up() {
        let (sleepers, word) = (Sleepers::default(), AtomicU64::new(0));
        let mut wait = Wait::timeout(Duration::from_millis(5));
        while sleepers.sleep(&word, 0, &mut wait, Duration::from_secs(1)) != Err(WaitError::TimedOut) {}
        assert_eq!(sleepers.counted(), 0);
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    /// Two changes, one sleeper waiting for the second: a lost wake is a deadlock of the model.
    fn two_changes(sleepers: Sleepers) {
        let shared = Arc::new((sleepers, AtomicU64::new(0)));
        let sleeper = {
            let shared = shared.clone();
            thread::spawn(move || {
                loop {
                    let seen = shared.1.load(Ordering::Acquire);
                    if seen == 2 {
                        break;
                    }
                    shared.0.sleep(&shared.1, seen, &mut Wait::forever(), Duration::MAX).unwrap();
                }
            })
        };
        for count in 1..=2 {
            let before = shared.0.before();
            shared.1.store(count, Ordering::Release);
            shared.0.wake(&shared.1, before, 1);
        }
        sleeper.join().unwrap();
    }

    #[test]
    fn no_wake_is_lost() {
        loom::model(|| two_changes(Sleepers::default()));
    }

    /// A dead sleeper is counted from the start: putting the count right must not hide the living one.
    #[test]
    fn putting_the_count_right_loses_nobody() {
        loom::model(|| {
            let sleepers = Sleepers::default();
            sleepers.0.fetch_add(COMING, Ordering::Relaxed);
            two_changes(sleepers);
        });
    }
}
