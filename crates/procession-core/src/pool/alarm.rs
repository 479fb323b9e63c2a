//! When a worker has to ring the doorbell.
//!
//! Results are mostly read by whoever waits for them, and then nobody needs to be told. Where nobody reads, the parent
//! leaves word at which count of results it wants to be told: one for the next, if a callback waits for it; many, if it
//! is only to keep the ring short. The word:
//!
//! | value   | state | who changes it, and to what |
//! |---------|-------|-----------------------------|
//! | `NEVER` | a thread of the parent reads results, or has been told | that thread, when it stops: a count |
//! | a count | nobody reads | the worker that reaches it: `NEVER`, and it rings · the parent: `NEVER`, or a lower count |
//!
//! A worker counts its result and then looks at the alarm; the parent sets the alarm and then looks at the count. All
//! of it is sequentially consistent, so one of them sees what the other did.

use crate::loom::{AtomicU64, Ordering, fence};

/// What no count ever reaches.
const NEVER: u64 = u64::MAX;

/// The alarm: a word in shared memory.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Alarm(AtomicU64);

impl Alarm {
    #[cfg(test)]
    fn new() -> Self {
        Self(AtomicU64::new(NEVER))
    }

    /// The parent wants to be told when there are `count` results, or earlier if it had said so.
    pub(super) fn set(&self, count: u64) {
        let mut present = self.0.load(Ordering::Relaxed);
        while count < present {
            match self.0.compare_exchange(present, count, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => present = other,
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Nobody is to ring. Tells whether somebody was.
    pub(super) fn clear(&self) -> bool {
        self.0.swap(NEVER, Ordering::SeqCst) != NEVER
    }

    /// Whether to ring now that the count, read by `count`, includes one's own result. If so, nobody else is to.
    /// A large result is always worth it.
    pub(super) fn is_due(&self, count: impl FnOnce() -> u64, large: bool) -> bool {
        fence(Ordering::SeqCst);
        let alarm = self.0.load(Ordering::SeqCst);
        alarm != NEVER && (large || count() >= alarm) && self.clear()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_is_heard_once() {
        let alarm = Alarm::new();
        assert!(!alarm.is_due(|| 100, true));
        alarm.set(5);
        assert!(!alarm.is_due(|| 4, false));
        assert!(alarm.is_due(|| 5, false));
        assert!(!alarm.is_due(|| 6, false));
    }

    #[test]
    fn the_earliest_wish_counts() {
        let alarm = Alarm::new();
        alarm.set(50);
        alarm.set(60);
        alarm.set(40);
        assert!(!alarm.is_due(|| 39, false));
        assert!(alarm.is_due(|| 40, false));
        alarm.set(1000);
        assert!(alarm.is_due(|| 41, true));
        assert!(!alarm.clear());
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    /// Two workers send a result each while the parent goes to sleep: it sees both, or is told.
    #[test]
    fn no_result_is_slept_through() {
        // All orders with up to three forced switches: enough for any two of the three to meet in every way.
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new((Alarm::new(), AtomicU64::new(0), AtomicU64::new(0)));
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        shared.1.fetch_add(1, Ordering::Release);
                        if shared.0.is_due(|| shared.1.load(Ordering::Acquire), false) {
                            shared.2.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            shared.0.set(2);
            let rings_itself = shared.0.is_due(|| shared.1.load(Ordering::Acquire), false);
            for worker in workers {
                worker.join().unwrap();
            }
            let rings = shared.2.load(Ordering::SeqCst) + u64::from(rings_itself);
            assert_eq!(rings, 1, "told once, by whoever found both results there");
        });
    }
}
