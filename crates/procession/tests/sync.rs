//! Locks and their kin between real processes. For those that are killed, see tests/deaths.

mod support;

use procession::{Barrier, Condition, Event, Lock, RLock, Recovered, Semaphore};
use support::{SHORT, start, until};

procession::test_support!();

#[test]
fn processes_count_together_under_a_lock() {
    fn count(lock: Lock<[u64; 2]>) {
        for _ in 0..2000 {
            let mut numbers = lock.acquire().unwrap();
            let [one, two] = &mut *numbers;
            *one += 1;
            *two += 2;
        }
    }
    let lock = Lock::new([0; 2]).unwrap();
    let counting: Vec<_> = (0..4).map(|_| start(count, (lock.clone(),))).collect();
    for child in counting {
        child.join().unwrap();
    }
    assert_eq!(*lock.acquire().unwrap(), [8000, 16000]);
}

#[test]
fn one_process_releases_what_another_left_acquired() {
    fn leave(lock: Lock<u32>) {
        let mut number = lock.acquire().unwrap();
        *number = 5;
        number.leave_acquired();
        // It goes on: if it ended, the lock would be recovered.
        until(|| !lock.is_locked());
    }
    let lock = Lock::new(0).unwrap();
    let child = start(leave, (lock.clone(),));
    until(|| lock.peek() == 5);
    assert!(lock.is_locked());
    lock.release().unwrap();
    child.join().unwrap();
    assert_eq!(*lock.acquire().unwrap(), 5);
}

#[test]
fn an_rlock_belongs_to_a_thread_of_one_process() {
    fn try_it(lock: RLock) -> (bool, bool, u32) {
        let acquired = lock.try_acquire().is_ok();
        (acquired, lock.release().is_ok(), lock.depth())
    }
    let lock = RLock::new().unwrap();
    let (one, two) = (lock.acquire().unwrap(), lock.acquire().unwrap());
    assert_eq!(start(try_it, (lock.clone(),)).join().unwrap(), (false, false, 2));
    drop((one, two));
    assert_eq!(start(try_it, (lock.clone(),)).join().unwrap(), (true, false, 0));
}

#[test]
fn a_semaphore_signals_between_processes() {
    fn produce(semaphore: Semaphore) {
        for _ in 0..100 {
            semaphore.release().unwrap();
        }
    }
    let semaphore = Semaphore::new(0).unwrap();
    let child = start(produce, (semaphore.clone(),));
    for _ in 0..100 {
        semaphore.acquire().unwrap().forget();
    }
    child.join().unwrap();
    assert_eq!(semaphore.value(), 0);
}

#[test]
fn processes_take_turns_by_a_condition() {
    const TURNS: u64 = 300;
    fn take_turns(turn: Lock<u64>, changed: Condition, parity: u64) {
        let mut turn = turn.acquire().unwrap();
        while *turn < TURNS {
            changed.wait_for(&mut turn, |turn| **turn % 2 == parity || **turn >= TURNS).unwrap();
            *turn += 1;
            changed.notify(&turn, 1).unwrap();
        }
    }
    let (turn, changed) = (Lock::new(0).unwrap(), Condition::new().unwrap());
    let even = start(take_turns, (turn.clone(), changed.clone(), 0));
    let odd = start(take_turns, (turn.clone(), changed.clone(), 1));
    even.join().unwrap();
    odd.join().unwrap();
    assert!(turn.peek() >= TURNS);
}

#[test]
fn a_wait_that_is_over_has_the_lock() {
    fn hold(lock: Lock<()>, holds: Event) {
        let _guard = lock.acquire().unwrap();
        holds.set();
        std::thread::sleep(2 * SHORT);
    }
    let (lock, condition, holds) = (Lock::new(()).unwrap(), Condition::new().unwrap(), Event::new().unwrap());
    let mut guard = lock.acquire().unwrap();
    let child = start(hold, (lock.clone(), holds.clone()));
    assert!(!condition.wait_timeout(&mut guard, SHORT).unwrap());
    assert_eq!(lock.owner(), Some(std::process::id()));
    drop(guard);
    holds.wait();
    child.join().unwrap();
}

#[test]
fn the_parties_of_a_barrier_pass_together_and_one_acts() {
    fn arrive(barrier: Barrier, acted: Lock<u32>, rounds: u32) -> u32 {
        let mut places = 0;
        for round in 1..=rounds {
            places += barrier.wait_with(|| *acted.acquire().unwrap() += 1).unwrap();
            assert_eq!(acted.peek(), round, "the action comes before all pass");
            // Nobody begins the next round before all have looked.
            barrier.wait().unwrap();
        }
        places
    }
    let (barrier, acted) = (Barrier::new(3).unwrap(), Lock::new(0).unwrap());
    let parties: Vec<_> = (0..3).map(|_| start(arrive, (barrier.clone(), acted.clone(), 50))).collect();
    let places: u32 = parties.into_iter().map(|party| party.join().unwrap()).sum();
    assert_eq!((places, acted.peek()), ((1 + 2) * 50, 50));
}

/// A lock passes through a child to its child, and all have the same.
#[test]
fn a_lock_is_handed_on() {
    fn hand_on(lock: Lock<u32>, depth: u32) {
        *lock.acquire().unwrap_or_else(Recovered::into_inner) += 1;
        if depth != 0 {
            procession::Process::spawn(hand_on, (lock, depth - 1)).unwrap().join().unwrap();
        }
    }
    let lock = Lock::new(0).unwrap();
    procession::Process::spawn(hand_on, (lock.clone(), 2)).unwrap().join().unwrap();
    assert_eq!(*lock.acquire().unwrap(), 3);
}
