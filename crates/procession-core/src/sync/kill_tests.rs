//! Killed at the points of the primitives. What wakes others and dies before it does so is made up for by their looking
//! again at the end of a slice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{Acquired, Barrier, Condition, Event, Lock, Passage, Semaphore, Wait, WaitError};
use crate::kills::KillTest;

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_millis(20))
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Something that a thread of this process waits for: started before a child comes, and over after it was there.
struct Waiting(Option<JoinHandle<()>>);

impl Waiting {
    fn over(&mut self) {
        self.0.take().unwrap().join().unwrap();
    }
}

#[test]
fn a_user_of_a_lock_is_killed_anywhere() {
    let lock = Lock::create().unwrap();
    let stop = AtomicBool::new(false);
    let use_it = || {
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        lock.release().unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                use_it();
                thread::sleep(Duration::from_micros(50));
            }
        });
        KillTest::new("a user of a lock").at_every_point_in_the_end(use_it, |_, _| use_it());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(lock.try_acquire());
}

#[test]
fn a_user_of_a_semaphore_is_killed_anywhere() {
    let semaphore = Semaphore::create(1, 1).unwrap();
    let use_it = || {
        let _ = semaphore.acquire(&mut Wait::forever()).unwrap();
        semaphore.release().unwrap();
    };
    let check = |_, _| {
        use_it();
        assert_eq!(semaphore.value(), 1, "a permit is lost or made up");
    };
    KillTest::new("a user of a semaphore").at_every_point(use_it, check);
}

#[test]
fn a_waiter_for_a_semaphore_is_killed_anywhere() {
    let semaphore = Semaphore::create(1, 1).unwrap();
    let check = |_, _| {
        semaphore.release().unwrap();
        assert_eq!(semaphore.acquire(&mut Wait::forever()), Ok(Acquired::Held));
        assert_eq!(semaphore.value(), 0);
    };
    assert!(semaphore.try_acquire());
    let wait = || assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
    KillTest::new("a waiter for a semaphore").at_every_point(wait, check);
}

#[test]
fn a_waiter_for_a_condition_is_killed_anywhere() {
    let (lock, condition) = (Lock::create().unwrap(), Condition::create().unwrap());
    let wait = || {
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        let _ = condition.wait(&lock, &mut soon()).unwrap();
        lock.release().unwrap();
    };
    let check = |_, _| {
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        assert_eq!(condition.notify(&lock, 1), Ok(0), "only the living are told");
        lock.release().unwrap();
    };
    KillTest::new("a waiter for a condition").at_every_point(wait, check);
}

#[test]
fn a_notifier_of_a_condition_is_killed_anywhere() {
    let shared = std::sync::Arc::new((Lock::create().unwrap(), Condition::create().unwrap()));
    let (lock, condition) = &*shared;
    let begin = || {
        let mine = shared.clone();
        let thread = thread::spawn(move || {
            let _ = mine.0.acquire(&mut Wait::forever()).unwrap();
            let _ = mine.1.wait(&mine.0, &mut Wait::forever()).unwrap();
            mine.0.release().unwrap();
        });
        until(|| condition.waiters() == 1 && lock.owner().is_none());
        Waiting(Some(thread))
    };
    let notify = || {
        let _ = lock.acquire(&mut Wait::forever()).unwrap();
        condition.notify(lock, 1).unwrap();
        lock.release().unwrap();
    };
    let mut waiting = begin();
    let check = |_, killed: bool| {
        if killed && condition.waiters() == 1 {
            // Not notified, or not yet awake.
            notify();
        }
        waiting.over();
        waiting = begin();
    };
    KillTest::new("a notifier of a condition").at_every_point(notify, check);
    notify();
    waiting.over();
}

#[test]
fn a_setter_of_an_event_is_killed_anywhere() {
    let event = std::sync::Arc::new(Event::create().unwrap());
    let begin = || {
        let mine = event.clone();
        Waiting(Some(thread::spawn(move || mine.wait(&mut Wait::forever()).unwrap())))
    };
    let mut waiting = begin();
    let check = |_, _| {
        // Setting it is what comes first, so it is done; nobody sets it again here.
        assert!(event.is_set());
        waiting.over();
        event.clear();
        waiting = begin();
    };
    KillTest::new("a setter of an event").at_every_point(|| event.set(), check);
    event.set();
    waiting.over();
}

#[test]
fn a_waiter_for_an_event_is_killed_anywhere() {
    let event = Event::create().unwrap();
    let check = |_, _| {
        event.set();
        event.wait(&mut Wait::forever()).unwrap();
        event.clear();
    };
    let wait = || assert_eq!(event.wait(&mut soon()), Err(WaitError::TimedOut));
    KillTest::new("a waiter for an event").at_every_point(wait, check);
}

#[test]
fn a_party_of_a_barrier_is_killed_anywhere() {
    let barrier = std::sync::Arc::new(Barrier::create(2).unwrap());
    let pass = |barrier: &Barrier| assert!(matches!(barrier.wait(false, &mut Wait::forever()), Ok(Passage::Passed(_))));
    let begin = || {
        let mine = barrier.clone();
        let thread = thread::spawn(move || pass(&mine));
        until(|| barrier.waiting() == 1);
        Waiting(Some(thread))
    };
    let mut waiting = begin();
    let check = |_, _| {
        // The last to arrive lets all pass before anything else, so the other one does.
        waiting.over();
        waiting = begin();
    };
    KillTest::new("a party of a barrier").at_every_point(|| pass(&barrier), check);
    pass(&barrier);
    waiting.over();
}
