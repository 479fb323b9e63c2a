use loom::{sync::Arc, thread};

use super::*;
use crate::loom::check;

fn barrier(parties: u32) -> Arc<BarrierState> {
    Arc::new(BarrierState {
        word: AtomicU64::new(0),
        parties: AtomicU32::new(parties),
        _reserved: AtomicU32::new(0),
        actor: LockWord::new(),
        history: std::array::from_fn(|_| AtomicU64::new(0)),
    })
}

/// What was written before the barrier is seen behind it, round after round.
#[test]
fn two_pass_twice() {
    check(3, || {
        let shared = Arc::new((barrier(2), [AtomicU32::new(0), AtomicU32::new(0)]));
        let run = |me: usize, shared: &(Arc<BarrierState>, [AtomicU32; 2])| {
            for round in 1..=2 {
                shared.1[me].store(round, Ordering::Relaxed);
                shared.0.arrive(false, &mut Wait::forever()).unwrap();
                assert!(shared.1[1 - me].load(Ordering::Relaxed) >= round);
            }
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || run(1, &shared))
        };
        run(0, &shared);
        other.join().unwrap();
        assert_eq!(generation(shared.0.load()), 2);
    });
}

/// An abort and an arrival at the same time: whoever waits learns of it.
#[test]
fn an_abort_turns_everybody_away() {
    check(3, || {
        let shared = barrier(2);
        let waiter = {
            let shared = shared.clone();
            thread::spawn(move || shared.arrive(false, &mut Wait::forever()).map(drop))
        };
        shared.abort();
        assert_eq!(waiter.join().unwrap(), Err(BarrierError::Broken));
    });
}

/// Two want to act for one generation, and one for the next: each generation has one actor.
#[test]
fn one_acts_for_all() {
    check(3, || {
        let shared = Arc::new((barrier(1), AtomicU32::new(0)));
        let act = |shared: &(Arc<BarrierState>, AtomicU32)| {
            let arrived = shared.0.arrive(true, &mut Wait::forever()).unwrap();
            assert_eq!(shared.1.fetch_add(1, Ordering::Relaxed), 0);
            shared.1.fetch_sub(1, Ordering::Relaxed);
            let turn = Turn { state: &shared.0, index: arrived.index, word: arrived.acting.unwrap() };
            turn.finish().unwrap();
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || act(&shared))
        };
        act(&shared);
        other.join().unwrap();
        assert_eq!(generation(shared.0.load()), 2);
    });
}
