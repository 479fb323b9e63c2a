use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use super::*;
use crate::sync::testing::{in_child, kill};

fn held() -> (Condition, RLock) {
    let lock = RLock::create().unwrap();
    assert!(lock.try_acquire());
    (Condition::create().unwrap(), lock)
}

/// Acquires the lock in a child and waits.
fn waiting_child(condition: &Condition, lock: &RLock) -> libc::pid_t {
    in_child(|| lock.acquire(&mut Wait::forever()), || condition.wait(lock, &mut Wait::forever()))
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Where the kernel has a process: 'S' if it sleeps.
fn is_asleep(pid: libc::pid_t) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S "))
}

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_millis(30))
}

#[test]
fn the_lock_must_be_held() {
    let (condition, lock) = held();
    lock.release().unwrap();
    assert_eq!(condition.wait(&lock, &mut soon()), Err(ConditionError::NotHeld));
    assert_eq!(condition.notify(&lock, 1), Err(ConditionError::NotHeld));
}

#[test]
fn a_timeout_gives_the_lock_back_as_deep_as_it_was() {
    let (condition, lock) = held();
    assert!(lock.try_acquire());
    let waited = condition.wait(&lock, &mut soon()).unwrap();
    assert_eq!(waited, Waited { outcome: Err(WaitError::TimedOut), lock: Acquired::Held });
    assert_eq!((lock.depth(), condition.waiters()), (2, 0));
    assert_eq!(condition.notify(&lock, 1), Ok(0));
}

#[test]
fn those_who_waited_longest_are_woken_first() {
    let (condition, lock) = (Condition::create().unwrap(), RLock::create().unwrap());
    let woken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..3 {
            let (condition, lock, woken) = (&condition, &lock, &woken);
            scope.spawn(move || {
                let _ = lock.acquire(&mut Wait::forever()).unwrap();
                assert_eq!(condition.wait(lock, &mut Wait::forever()).unwrap().outcome, Ok(()));
                assert_eq!(woken.fetch_add(1, SeqCst), number);
                lock.release().unwrap();
            });
            until(|| condition.waiters() == number + 1);
        }
        for number in 0..3 {
            let _ = lock.acquire(&mut Wait::forever()).unwrap();
            assert_eq!(condition.notify(&lock, 1), Ok(1));
            lock.release().unwrap();
            until(|| woken.load(SeqCst) == number + 1);
        }
    });
}

#[test]
fn all_are_woken_those_without_a_slot_too() {
    const WAITERS: usize = SLOTS + 8;
    let (condition, lock) = (Condition::create().unwrap(), Lock::create().unwrap());
    thread::scope(|scope| {
        for _ in 0..WAITERS {
            scope.spawn(|| {
                let _ = lock.acquire(&mut Wait::forever()).unwrap();
                assert_eq!(condition.wait(&lock, &mut Wait::forever()).unwrap().outcome, Ok(()));
                lock.release().unwrap();
            });
        }
        until(|| condition.waiters() == WAITERS);
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        assert_eq!(condition.notify(&lock, usize::MAX), Ok(WAITERS));
        assert_eq!(condition.waiters(), 0);
        lock.release().unwrap();
    });
}

#[test]
fn one_without_a_slot_can_time_out() {
    let (condition, lock) = held();
    for slot in &condition.0.slots {
        slot.process.store(ProcessId::current().to_bits(), Ordering::Relaxed);
        slot.word.store(WAITING, Ordering::Relaxed);
    }
    assert_eq!(condition.wait(&lock, &mut soon()).unwrap().outcome, Err(WaitError::TimedOut));
    assert_eq!(condition.0.crowd.load(Ordering::Relaxed), 0);
}

/// C1 of PROTOCOL.md.
#[test]
fn a_killed_waiter_gets_no_notification() {
    let (condition, lock) = (Condition::create().unwrap(), RLock::create().unwrap());
    let child = waiting_child(&condition, &lock);
    until(|| condition.waiters() == 1 && is_asleep(child));
    kill(child);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let _ = lock.acquire(&mut Wait::forever()).unwrap();
            condition.wait(&lock, &mut Wait::timeout(Duration::from_secs(30))).unwrap().outcome
        });
        until(|| condition.waiters() == 2);
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        assert_eq!(condition.notify(&lock, 1), Ok(1));
        lock.release().unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
    assert_eq!(condition.waiters(), 0);
}

/// C2: notified, then killed before it could act.
#[test]
fn the_notification_of_one_killed_goes_to_who_waited_then() {
    let (condition, lock) = (Condition::create().unwrap(), RLock::create().unwrap());
    let child = waiting_child(&condition, &lock);
    until(|| condition.waiters() == 1 && is_asleep(child));
    // SAFETY: a child of this test.
    unsafe { libc::kill(child, libc::SIGSTOP) };
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let _ = lock.acquire(&mut Wait::forever()).unwrap();
            let outcome = condition.wait(&lock, &mut Wait::timeout(Duration::from_secs(30))).unwrap().outcome;
            lock.release().unwrap();
            outcome
        });
        until(|| condition.waiters() == 2);
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        // The stopped child is the first in line.
        assert_eq!(condition.notify(&lock, 1), Ok(1));
        lock.release().unwrap();
        assert_eq!(condition.waiters(), 1);
        kill(child);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
    // C3: who comes later has no part in it.
    let child = waiting_child(&condition, &lock);
    until(|| condition.waiters() == 1 && is_asleep(child));
    // SAFETY: as above.
    unsafe { libc::kill(child, libc::SIGSTOP) };
    let _ = lock.acquire(&mut Wait::forever()).unwrap();
    assert_eq!(condition.notify(&lock, 1), Ok(1));
    kill(child);
    let late = condition.wait(&lock, &mut Wait::timeout(Duration::from_millis(60))).unwrap();
    assert_eq!(late.outcome, Err(WaitError::TimedOut));
}

/// C4.
#[test]
fn an_interrupted_waiter_passes_its_notification_on() {
    let (condition, lock) = held();
    let notified = AtomicUsize::new(0);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let _ = lock.acquire(&mut Wait::forever()).unwrap();
            assert_eq!(condition.wait(&lock, &mut Wait::timeout(Duration::from_secs(30))).unwrap().outcome, Ok(()));
            lock.release().unwrap();
        });
        let mut on_signal = || {
            if condition.waiters() < 2 {
                return true;
            }
            // What a notification between the signal and its handling comes to: this waiter was the first.
            if notified.fetch_add(1, SeqCst) == 0 {
                assert_eq!(condition.0.notify(1), 1);
            }
            false
        };
        let waited = condition.wait(&lock, &mut Wait::forever().on_signal(&mut on_signal));
        assert_eq!(waited.map(|waited| waited.outcome), Ok(Err(WaitError::Interrupted)));
        lock.release().unwrap();
        other.join().unwrap();
    });
}

/// C5.
#[test]
fn the_slots_of_the_dead_are_used_again() {
    let (condition, lock) = held();
    let dead = in_child(|| {}, || {});
    let id = ProcessId::of_pid(dead.cast_unsigned()).unwrap();
    kill(dead);
    for slot in &condition.0.slots {
        slot.process.store(id.to_bits(), Ordering::Relaxed);
        slot.word.store(WAITING, Ordering::Relaxed);
    }
    assert!(matches!(condition.0.enter(ProcessId::current()), Place::Slot(..)));
    assert_eq!(condition.0.crowd.load(Ordering::Relaxed), 0);
    drop(lock);
}
