//! Locks and their kin between real processes, some of which are killed.

mod support;

use procession::{
    AcquireTimeoutError, Barrier, BoundedSemaphore, BrokenBarrier, Condition, ConditionError, Event, Lock, RLock,
    Recovered, Semaphore, TryAcquireError,
};
use support::{LONG, SHORT, kill, start, until, wait_for_the_end};

procession::test_support!();

const LARGE: usize = 512;

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
fn the_lock_of_a_killed_owner_is_recovered_with_the_value_of_before() {
    fn hold(lock: Lock<[u64; LARGE]>, holds: Event) {
        let mut numbers = lock.acquire().unwrap();
        numbers[1..].fill(7);
        wait_for_the_end(&holds)
    }
    let (lock, holds) = (Lock::new([3; LARGE]).unwrap(), Event::new().unwrap());
    let child = start(hold, (lock.clone(), holds.clone()));
    holds.wait();
    assert_eq!(lock.owner(), Some(child.pid()));
    assert!(matches!(lock.try_acquire(), Err(TryAcquireError::WouldBlock)));
    assert!(matches!(lock.acquire_timeout(SHORT), Err(AcquireTimeoutError::TimedOut)));
    let dead = kill(child);
    let recovered = lock.acquire().unwrap_err();
    assert_eq!(recovered.owner(), dead);
    assert!(recovered.to_string().contains(&dead.to_string()));
    let numbers = recovered.into_inner();
    assert_eq!(*numbers, [3; LARGE]);
    drop(numbers);
    assert!(lock.acquire().is_ok(), "a recovery is told once");
}

/// The guard writes back half a megabyte again and again; killed at whatever moment, it leaves a whole value.
#[test]
fn no_kill_tears_a_value() {
    fn change(lock: Lock<[u64; LARGE]>, began: Event) {
        for round in 1.. {
            let mut numbers = lock.acquire().unwrap();
            numbers.fill(round);
            drop(numbers);
            began.set();
        }
    }
    let lock = Lock::new([0; LARGE]).unwrap();
    let (mut recovered, mut rounds) = (0, 0);
    // Until some of the kills have hit the holder of the lock, which is nearly always the case.
    while rounds < 25 || recovered == 0 {
        let began = Event::new().unwrap();
        let child = start(change, (lock.clone(), began.clone()));
        began.wait();
        std::thread::sleep(std::time::Duration::from_micros(rounds * 53));
        let dead = kill(child);
        let numbers = lock.acquire().unwrap_or_else(|told| {
            assert_eq!(told.owner(), dead);
            recovered += 1;
            told.into_inner()
        });
        assert_eq!(*numbers, [numbers[0]; LARGE], "after {rounds} rounds");
        assert_ne!(numbers[0], 0);
        rounds += 1;
    }
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
fn a_killed_waiter_is_no_hindrance() {
    fn wait(lock: Lock<u32>, about_to: Event) {
        about_to.set();
        *lock.acquire().unwrap() += 1;
    }
    let (lock, about_to) = (Lock::new(0).unwrap(), Event::new().unwrap());
    let guard = lock.acquire().unwrap();
    let killed = start(wait, (lock.clone(), about_to.clone()));
    let waits = start(wait, (lock.clone(), Event::new().unwrap()));
    about_to.wait();
    std::thread::sleep(SHORT);
    kill(killed);
    drop(guard);
    waits.join().unwrap();
    assert_eq!(*lock.acquire().unwrap(), 1);
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
fn the_rlock_of_a_killed_owner_is_recovered_at_depth_one() {
    fn hold(lock: RLock, holds: Event) {
        let (_one, _two) = (lock.acquire().unwrap(), lock.acquire().unwrap());
        wait_for_the_end(&holds)
    }
    let (lock, holds) = (RLock::new().unwrap(), Event::new().unwrap());
    let child = start(hold, (lock.clone(), holds.clone()));
    holds.wait();
    let dead = kill(child);
    match lock.acquire_timeout(LONG) {
        Err(AcquireTimeoutError::Recovered(recovered)) => {
            assert_eq!((recovered.owner(), lock.depth(), lock.is_mine()), (dead, 1, true));
        }
        other => panic!("{other:?}"),
    }
    assert!(!lock.is_locked());
}

#[test]
fn the_permits_of_a_killed_process_come_back() {
    fn hold(semaphore: Semaphore, bounded: BoundedSemaphore, holds: Event) {
        let _permits = (semaphore.acquire().unwrap(), semaphore.acquire().unwrap(), bounded.acquire().unwrap());
        wait_for_the_end(&holds)
    }
    let (semaphore, bounded) = (Semaphore::new(2).unwrap(), BoundedSemaphore::new(1).unwrap());
    let holds = Event::new().unwrap();
    let child = start(hold, (semaphore.clone(), bounded.clone(), holds.clone()));
    holds.wait();
    assert!(semaphore.try_acquire().is_err());
    assert!(matches!(bounded.acquire_timeout(SHORT), Err(AcquireTimeoutError::TimedOut)));
    let dead = kill(child);
    let one = semaphore.acquire().unwrap_err();
    assert_eq!(one.owner(), dead);
    let two = semaphore.acquire_timeout(LONG).unwrap();
    assert!(bounded.acquire().is_err_and(|recovered| recovered.owner() == dead));
    drop((one, two));
    assert_eq!((semaphore.value(), bounded.value()), (2, 1));
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
fn a_notification_goes_to_the_living_and_a_dead_notifiers_lock_is_recovered() {
    fn wait(lock: Lock<u32>, condition: Condition) -> u32 {
        let mut guard = lock.acquire().unwrap();
        match condition.wait(&mut guard) {
            Err(ConditionError::Recovered(recovered)) => recovered.owner(),
            other => panic!("{other:?}"),
        }
    }
    fn notify(lock: Lock<u32>, condition: Condition, notified: Event) {
        let guard = lock.acquire().unwrap();
        assert_eq!(condition.notify(&guard, 1).unwrap(), 1);
        wait_for_the_end(&notified)
    }
    let (lock, condition, notified) = (Lock::new(0).unwrap(), Condition::new().unwrap(), Event::new().unwrap());
    let first = start(wait, (lock.clone(), condition.clone()));
    until(|| condition.waiters() == 1);
    let second = start(wait, (lock.clone(), condition.clone()));
    until(|| condition.waiters() == 2);
    kill(first);
    let notifier = start(notify, (lock.clone(), condition.clone(), notified.clone()));
    notified.wait();
    let dead = kill(notifier);
    assert_eq!(second.join().unwrap(), dead);
    assert_eq!(condition.waiters(), 0);
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
fn a_dead_waiter_for_an_event_is_no_hindrance() {
    fn wait(event: Event, about_to: Event) -> bool {
        about_to.set();
        event.wait_timeout(LONG)
    }
    let event = Event::new().unwrap();
    let begin = || {
        let about_to = Event::new().unwrap();
        let child = start(wait, (event.clone(), about_to.clone()));
        about_to.wait();
        child
    };
    let (killed, waits) = (begin(), begin());
    kill(killed);
    event.set();
    assert!(waits.join().unwrap());
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

#[test]
fn the_death_of_who_acts_breaks_the_barrier() {
    fn act(barrier: Barrier, acts: Event) {
        let _ = barrier.wait_with(|| wait_for_the_end(&acts));
    }
    fn arrive(barrier: Barrier) -> bool {
        barrier.wait() == Err(BrokenBarrier)
    }
    let (barrier, acts) = (Barrier::new(2).unwrap(), Event::new().unwrap());
    let waits = start(arrive, (barrier.clone(),));
    until(|| barrier.waiting() == 1);
    let acting = start(act, (barrier.clone(), acts.clone()));
    acts.wait();
    kill(acting);
    assert!(waits.join().unwrap());
    assert!(barrier.is_broken());
    barrier.reset();
    let waits = start(arrive, (barrier.clone(),));
    barrier.wait().unwrap();
    assert!(!waits.join().unwrap());
}

#[test]
fn a_killed_party_has_arrived() {
    fn arrive(barrier: Barrier) {
        let _ = barrier.wait();
    }
    let barrier = Barrier::new(2).unwrap();
    let child = start(arrive, (barrier.clone(),));
    until(|| barrier.waiting() == 1);
    kill(child);
    assert_eq!(barrier.wait_timeout(LONG), Ok(1));
}

/// Users of a lock, a semaphore and a condition are killed wherever they are, again and again: nobody hangs, no permit is
/// lost or made up, and the value stays whole.
#[test]
fn a_hundred_killed_users_leave_everything_in_order() {
    fn use_them(lock: Lock<[u64; 20]>, semaphore: BoundedSemaphore, condition: Condition, round: u64) {
        for _ in 0.. {
            let _permit = semaphore.acquire().unwrap_or_else(Recovered::into_inner);
            let mut numbers = lock.acquire().unwrap_or_else(Recovered::into_inner);
            assert_eq!(*numbers, [numbers[0]; 20]);
            let next = numbers[0] + 1;
            numbers.iter_mut().for_each(|number| *number = next);
            if (next + round).is_multiple_of(3) {
                let _ = condition.wait_timeout(&mut numbers, SHORT / 50);
            } else {
                let _ = condition.notify(&numbers, 1);
            }
        }
    }
    let (lock, condition) = (Lock::new([0; 20]).unwrap(), Condition::new().unwrap());
    let semaphore = BoundedSemaphore::new(2).unwrap();
    let begin = |round| start(use_them, (lock.clone(), semaphore.clone(), condition.clone(), round));
    let mut users: Vec<_> = (0..3).map(begin).collect();
    for round in 0..100 {
        std::thread::sleep(std::time::Duration::from_micros(271 * (round % 13)));
        assert!(users[0].is_alive(), "none of them failed");
        kill(users.remove(0));
        users.push(begin(round));
    }
    let before = lock.peek()[0];
    until(|| lock.peek()[0] > before + 10);
    for user in users {
        assert!(user.is_alive());
        kill(user);
    }
    let numbers = lock.acquire().unwrap_or_else(Recovered::into_inner);
    assert_eq!(*numbers, [numbers[0]; 20]);
    let permits = [(); 2].map(|()| match semaphore.acquire_timeout(LONG) {
        Ok(permit) => permit,
        Err(AcquireTimeoutError::Recovered(recovered)) => recovered.into_inner(),
        Err(error) => panic!("{error}"),
    });
    assert!(matches!(semaphore.try_acquire(), Err(TryAcquireError::WouldBlock)));
    drop(permits);
    assert_eq!(semaphore.value(), 2);
    assert_eq!(condition.notify_all(&numbers), Ok(0));
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
