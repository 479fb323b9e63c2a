use loom::{sync::Arc, thread};

use super::*;
use crate::loom::check;
use crate::sync::lock::LockWord;

struct Model {
    condition: ConditionState,
    lock: LockWord,
    /// What the waiters wait for.
    items: AtomicU32,
}

fn model() -> Arc<Model> {
    Arc::new(Model {
        condition: ConditionState {
            next: AtomicU64::new(0),
            used: AtomicU32::new(0),
            _reserved: AtomicU32::new(0),
            crowd: AtomicU64::new(0),
            slots: std::array::from_fn(|_| Slot::default()),
        },
        lock: LockWord::new(),
        items: AtomicU32::new(0),
    })
}

impl Model {
    fn lock(&self) {
        let _ = self.lock.acquire(ProcessId::current(), &mut Wait::forever()).unwrap();
    }

    fn put(&self, notify: usize) {
        self.lock();
        self.items.store(self.items.load(Ordering::Relaxed) + notify as u32, Ordering::Relaxed);
        self.condition.notify(notify);
        self.lock.release().unwrap();
    }

    fn get(&self) {
        self.lock();
        while self.items.load(Ordering::Relaxed) == 0 {
            let place = self.condition.enter(ProcessId::current());
            self.lock.release().unwrap();
            self.condition.sleep(place, &mut Wait::forever()).unwrap();
            self.lock();
        }
        self.items.store(self.items.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        self.lock.release().unwrap();
    }
}

/// Two waiters, notified one by one: a lost notification shows as a deadlock.
#[test]
fn no_notification_is_lost() {
    check(2, || {
        let shared = model();
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || shared.get())
            })
            .collect();
        shared.put(1);
        shared.put(1);
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(shared.condition.count(), 0);
    });
}

/// All slots taken by others: the waiter is one of the crowd.
#[test]
fn the_crowd_is_woken() {
    check(2, || {
        let shared = model();
        for slot in &shared.condition.slots {
            slot.process.store(ProcessId::current().to_bits(), Ordering::Relaxed);
            slot.word.store(NOTIFIED, Ordering::Relaxed);
        }
        let waiter = {
            let shared = shared.clone();
            thread::spawn(move || shared.get())
        };
        shared.put(1);
        waiter.join().unwrap();
        assert_eq!(shared.condition.count(), 0);
    });
}
