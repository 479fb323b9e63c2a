use loom::{sync::Arc, thread};

use super::*;
use crate::loom::check;

fn semaphore(initial: u32) -> Arc<SemaphoreState> {
    let state = SemaphoreState {
        word: AtomicU64::new(0),
        initial: AtomicU32::new(0),
        maximum: AtomicU32::new(0),
        flags: AtomicU32::new(0),
        table: LockWord::new(),
        holders: std::array::from_fn(|_| Holder::default()),
    };
    state.set_up(initial, VALUE as u32);
    Arc::new(state)
}

/// Two waiters, two releases: nobody sleeps on.
#[test]
fn no_wake_is_lost() {
    check(2, || {
        let state = semaphore(0);
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let state = state.clone();
                thread::spawn(move || {
                    let _ = state.acquire(ProcessId::current(), &AtomicUsize::new(0), &mut Wait::forever()).unwrap();
                })
            })
            .collect();
        for _ in 0..2 {
            state.release(ProcessId::current(), &AtomicUsize::new(0)).unwrap();
        }
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(state.value(), 0);
    });
}

/// S4: while one gives back what a dead process held, another acquires and releases. The dead one's line says one too many
/// (S2), so that only the reckoning keeps it from being given back twice.
#[test]
fn giving_back_counts_no_permit_twice() {
    check(5, || {
        let state = semaphore(2);
        let [dead, living] = &state.holders;
        dead.process.store(1, Ordering::Relaxed);
        living.process.store(ProcessId::current().to_bits(), Ordering::Relaxed);
        dead.log();
        dead.log();
        state.take(0).unwrap();

        let other = {
            let state = state.clone();
            thread::spawn(move || {
                let (me, hint) = (ProcessId::current(), AtomicUsize::new(1));
                state.take_logged(me, &hint, 0).unwrap();
                state.release(me, &hint).unwrap();
                state.take_logged(me, &hint, 0).unwrap();
            })
        };
        let early = state.give_back(&[dead]);
        (0..early).for_each(|_| assert!(dead.strike()));
        other.join().unwrap();
        let late = state.give_back(&[dead]);
        assert_eq!(early + late, 1);
        assert_eq!((state.value(), state.flags.load(Ordering::Relaxed)), (1, 0));
    });
}
