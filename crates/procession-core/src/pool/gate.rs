//! Whether tasks go into the ring by themselves, or by way of the parent's drawer.
//!
//! | state | tasks that are submitted | who changes it |
//! |-------|--------------------------|----------------|
//! | open | go into the ring; who puts one there looks at the gate once more | who begins to order, under the engine's lock: closed |
//! | closed | go into the drawer, under the engine's lock | who has put the last of the drawer into the ring, under that lock: open |
//!
//! Who closes it looks into the ring after that, who puts a task into the ring looks at the gate after that, and both
//! with a sequentially consistent fence in between. So no task stays in the ring that neither of them knows of.

use crate::loom::{AtomicU32, Ordering, fence};

/// The gate; open at first.
#[derive(Debug)]
pub(super) struct Gate(AtomicU32);

impl Gate {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Tasks go into the drawer from now on, but for those that others are just putting into the ring.
    pub(super) fn close(&self) {
        self.0.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// After a task was put into the ring: whether that may have been overlooked by who closed the gate meanwhile. What was
    /// written before the gate was closed can be seen then.
    pub(super) fn was_closed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_closed()
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::sync::{Arc, Mutex};

    use super::*;
    use crate::loom::AtomicU64;

    struct Pool {
        gate: Gate,
        ring: AtomicU64,
        drawer: Mutex<u64>,
    }

    impl Pool {
        fn rearrange(&self, drawer: &mut u64) {
            self.gate.close();
            // As the ring does: whether it is empty is looked at first, by a plain load.
            if self.ring.load(Ordering::Acquire) > 0 {
                *drawer += self.ring.swap(0, Ordering::AcqRel);
            }
        }

        fn submit(&self) {
            if !self.gate.is_closed() {
                self.ring.fetch_add(1, Ordering::AcqRel);
                if self.gate.was_closed() {
                    self.rearrange(&mut self.drawer.lock().unwrap());
                }
                return;
            }
            let mut drawer = self.drawer.lock().unwrap();
            *drawer += 1;
            if !self.gate.is_closed() {
                self.rearrange(&mut drawer);
            }
        }
    }

    /// Two submit while the gate is closed: all is in the drawer then.
    #[test]
    fn nothing_stays_in_the_ring_when_the_gate_is_closed() {
        crate::loom::check(3, || {
            let pool = Arc::new(Pool { gate: Gate::new(), ring: AtomicU64::new(0), drawer: Mutex::new(0) });
            let submitters: Vec<_> = (0..2)
                .map(|_| {
                    let pool = pool.clone();
                    loom::thread::spawn(move || pool.submit())
                })
                .collect();
            pool.rearrange(&mut pool.drawer.lock().unwrap());
            for submitter in submitters {
                submitter.join().unwrap();
            }
            assert_eq!(pool.ring.load(Ordering::SeqCst), 0);
            assert_eq!(*pool.drawer.lock().unwrap(), 2);
        });
    }

    /// One submits while the drawer is emptied and the gate opened: the task is in the ring, or in the drawer of a closed gate.
    #[test]
    fn nothing_stays_in_the_drawer_when_the_gate_is_opened() {
        crate::loom::check(3, || {
            let pool = Arc::new(Pool { gate: Gate::new(), ring: AtomicU64::new(0), drawer: Mutex::new(1) });
            pool.gate.close();
            let submitter = {
                let pool = pool.clone();
                loom::thread::spawn(move || pool.submit())
            };
            {
                let mut drawer = pool.drawer.lock().unwrap();
                pool.ring.fetch_add(std::mem::take(&mut *drawer), Ordering::AcqRel);
                pool.gate.open();
            }
            submitter.join().unwrap();
            let (in_ring, in_drawer) = (pool.ring.load(Ordering::SeqCst), *pool.drawer.lock().unwrap());
            assert_eq!(in_ring + in_drawer, 2);
            assert!(in_drawer == 0 || pool.gate.is_closed());
        });
    }
}
