use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use super::*;
use crate::sync::testing::{in_child, kill};

fn pass(barrier: &Barrier, mut wait: Wait<'_>) -> Result<u32, BarrierError> {
    match barrier.wait(false, &mut wait)? {
        Passage::Passed(index) => Ok(index),
        Passage::Act(turn) => turn.finish(),
    }
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn all_pass_together_many_times() {
    const PARTIES: usize = 4;
    let (barrier, inside) = (Barrier::create(PARTIES as u32).unwrap(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..PARTIES {
            scope.spawn(|| {
                for round in 1..=500 {
                    inside.fetch_add(1, SeqCst);
                    let index = pass(&barrier, Wait::forever()).unwrap();
                    assert!(inside.load(SeqCst) >= round * PARTIES);
                    assert!((index as usize) < PARTIES);
                    pass(&barrier, Wait::forever()).unwrap();
                }
            });
        }
    });
    assert_eq!((barrier.waiting(), barrier.is_broken(), barrier.parties()), (0, false, 4));
}

#[test]
fn no_party_is_refused_and_one_passes_alone() {
    assert!(Barrier::create(0).is_err());
    let barrier = Barrier::create(1).unwrap();
    assert_eq!(pass(&barrier, Wait::forever()), Ok(0));
}

#[test]
fn a_timeout_breaks_it_for_all_until_it_is_reset() {
    let barrier = Barrier::create(3).unwrap();
    thread::scope(|scope| {
        let patient = scope.spawn(|| pass(&barrier, Wait::forever()));
        until(|| barrier.waiting() == 1);
        assert_eq!(pass(&barrier, Wait::timeout(Duration::from_millis(10))), Err(BarrierError::Broken));
        assert_eq!(patient.join().unwrap(), Err(BarrierError::Broken));
    });
    assert!(barrier.is_broken());
    assert_eq!(pass(&barrier, Wait::forever()), Err(BarrierError::Broken));
    barrier.reset();
    assert_eq!((barrier.is_broken(), barrier.waiting()), (false, 0));
}

#[test]
fn a_reset_turns_away_who_waits() {
    let barrier = Barrier::create(2).unwrap();
    barrier.reset();
    assert_eq!(generation(barrier.0.load()), 0);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pass(&barrier, Wait::forever()));
        until(|| barrier.waiting() == 1);
        barrier.reset();
        assert_eq!(waiter.join().unwrap(), Err(BarrierError::Broken));
    });
    assert!(!barrier.is_broken());
}

#[test]
fn the_last_acts_while_the_others_wait() {
    let (barrier, acted) = (Barrier::create(2).unwrap(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 1..=50 {
                    if let Passage::Act(turn) = barrier.wait(true, &mut Wait::forever()).unwrap() {
                        acted.fetch_add(1, SeqCst);
                        assert_eq!(turn.finish(), Ok(1));
                    }
                    assert!(acted.load(SeqCst) >= round);
                }
            });
        }
    });
    assert_eq!(acted.into_inner(), 50);
}

#[test]
fn an_action_that_fails_breaks_it() {
    let barrier = Barrier::create(2).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pass(&barrier, Wait::forever()));
        until(|| barrier.waiting() == 1);
        let Ok(Passage::Act(turn)) = barrier.wait(true, &mut Wait::forever()) else { panic!("not the last") };
        drop(turn);
        assert_eq!(waiter.join().unwrap(), Err(BarrierError::Broken));
    });
    assert!(barrier.is_broken());
}

#[test]
fn how_generations_ended_is_remembered() {
    let barrier = Barrier::create(1).unwrap();
    let state = &barrier.0;
    // Generation 1 ends badly, 0 and 2 to 9 well.
    pass(&barrier, Wait::forever()).unwrap();
    barrier.abort();
    assert!(state.end(state.load(), true));
    for _ in 2..10 {
        pass(&barrier, Wait::forever()).unwrap();
    }
    let outcome = |mine| state.outcome(mine, state.load());
    assert_eq!(outcome(0), Some(Ok(())));
    assert_eq!(outcome(1), Some(Err(BarrierError::Broken)));
    assert_eq!(outcome(9), Some(Ok(())));
    assert_eq!(outcome(10), None);
    for _ in 0..HISTORY {
        pass(&barrier, Wait::forever()).unwrap();
    }
    assert_eq!(outcome(9), Some(Err(BarrierError::Broken)));
    assert_eq!(outcome(13), Some(Ok(())));
}

#[test]
fn the_generations_go_round() {
    let barrier = Barrier::create(1).unwrap();
    barrier.0.word.store(u64::from(GENERATIONS - 1) << GENERATION_AT, Ordering::Relaxed);
    pass(&barrier, Wait::forever()).unwrap();
    assert_eq!(generation(barrier.0.load()), 0);
    assert_eq!(barrier.0.outcome(GENERATIONS - 1, barrier.0.load()), Some(Ok(())));
}

/// B2 of PROTOCOL.md.
#[test]
fn a_killed_waiter_blocks_nobody() {
    let barrier = Barrier::create(2).unwrap();
    let child = in_child(|| {}, || pass(&barrier, Wait::forever()));
    until(|| barrier.waiting() == 1);
    kill(child);
    assert_eq!(pass(&barrier, Wait::timeout(Duration::from_secs(30))), Ok(1));
    assert_eq!(barrier.waiting(), 0);
}

/// B3: killed in the midst of its action.
#[test]
fn a_killed_actor_breaks_it() {
    let barrier = Barrier::create(2).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pass(&barrier, Wait::forever()));
        until(|| barrier.waiting() == 1);
        let child = in_child(|| std::mem::forget(barrier.wait(true, &mut Wait::forever())), || {});
        assert_eq!(barrier.waiting(), 2);
        kill(child);
        assert_eq!(waiter.join().unwrap(), Err(BarrierError::Broken));
    });
    assert!(barrier.is_broken());
    // The next action is not hindered by what the dead left.
    barrier.reset();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pass(&barrier, Wait::forever()));
        until(|| barrier.waiting() == 1);
        let Ok(Passage::Act(turn)) = barrier.wait(true, &mut Wait::forever()) else { panic!("not the last") };
        assert_eq!(turn.finish(), Ok(1));
        assert_eq!(waiter.join().unwrap(), Ok(0));
    });
}

/// B4.
#[test]
fn an_interrupted_waiter_has_not_arrived() {
    let barrier = Barrier::create(2).unwrap();
    let mut on_signal = || false;
    assert_eq!(pass(&barrier, Wait::forever().on_signal(&mut on_signal)), Err(BarrierError::Interrupted));
    assert_eq!((barrier.waiting(), barrier.is_broken()), (0, false));
}
