//! Locks and their kin, whose holders, waiters and users are killed.

use procession::{
    AcquireTimeoutError, Barrier, BoundedSemaphore, BrokenBarrier, Condition, ConditionError, Event, Lock, RLock,
    Recovered, Semaphore, TryAcquireError,
};

use crate::support::{LONG, SHORT, kill, start, until, wait_for_the_end};

const LARGE: usize = 512;

#[test]
fn lock_holder_killed() {
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
fn lock_waiter_killed() {
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
fn rlock_holder_killed() {
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
fn semaphore_holder_killed() {
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
fn condition_waiter_killed() {
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
fn event_waiter_killed() {
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
fn barrier_waiter_killed() {
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

/// A waiter that is notified takes the lock of a holder that is killed in the meantime, and is told.
#[test]
fn condition_holder_killed() {
    fn notify_and_hold(lock: Lock<u32>, condition: Condition, holds: Event) {
        let guard = lock.acquire().unwrap();
        condition.notify_all(&guard).unwrap();
        wait_for_the_end(&holds)
    }
    let (lock, condition, holds) = (Lock::new(0).unwrap(), Condition::new().unwrap(), Event::new().unwrap());
    let mut guard = lock.acquire().unwrap();
    let child = start(notify_and_hold, (lock.clone(), condition.clone(), holds.clone()));
    let killing = std::thread::spawn(move || {
        holds.wait();
        kill(child)
    });
    match condition.wait(&mut guard) {
        Err(ConditionError::Recovered(recovered)) => assert_eq!(recovered.owner(), killing.join().unwrap()),
        other => panic!("{other:?}"),
    }
    drop(guard);
    assert!(lock.acquire().is_ok(), "a recovery is told once");
}
