use super::*;
use crate::sync::testing::{in_child, kill};

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_millis(30))
}

#[test]
fn permits_are_counted() {
    let semaphore = Semaphore::create(2, 3).unwrap();
    assert_eq!(semaphore.acquire(&mut Wait::forever()), Ok(Acquired::Held));
    assert!(semaphore.try_acquire());
    assert!(!semaphore.try_acquire());
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
    assert_eq!((semaphore.value(), semaphore.held()), (0, 2));
    for _ in 0..3 {
        semaphore.release().unwrap();
    }
    assert_eq!(semaphore.release(), Err(AtMaximum));
    assert_eq!((semaphore.value(), semaphore.maximum()), (3, 3));
}

#[test]
fn values_out_of_range_are_refused() {
    assert!(Semaphore::create(2, 1).is_err());
    assert!(Semaphore::create(0, Semaphore::MAXIMUM + 1).is_err());
    let semaphore = Semaphore::create(Semaphore::MAXIMUM, Semaphore::MAXIMUM).unwrap();
    assert_eq!(semaphore.release(), Err(AtMaximum));
    assert_eq!(semaphore.value(), Semaphore::MAXIMUM);
}

#[test]
fn every_waiter_gets_one() {
    let semaphore = Semaphore::create(0, Semaphore::MAXIMUM).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let _ = semaphore.acquire(&mut Wait::forever()).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..4000 {
                    semaphore.release().unwrap();
                }
            });
        }
    });
    assert_eq!(semaphore.value(), 0);
}

/// S1 of PROTOCOL.md.
#[test]
fn what_a_killed_process_held_is_given_back() {
    let semaphore = Semaphore::create(3, 3).unwrap();
    let child = in_child(|| assert!(semaphore.try_acquire() && semaphore.try_acquire()), || {});
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
    kill(child);
    let got = semaphore.acquire(&mut Wait::timeout(Duration::from_secs(30)));
    assert!(matches!(got, Ok(Acquired::Recovered(dead)) if dead.pid() == child.cast_unsigned()), "{got:?}");
    assert_eq!(semaphore.value(), 1);
    semaphore.release().unwrap();
    semaphore.release().unwrap();
    assert_eq!(semaphore.release(), Err(AtMaximum));
}

/// S2: logged, and died before the permit was taken.
#[test]
fn a_permit_that_was_only_logged_is_not_made_up() {
    let semaphore = Semaphore::create(1, Semaphore::MAXIMUM).unwrap();
    let child = in_child(|| semaphore.state.holder(ProcessId::current(), &semaphore.hint).unwrap().log(), || {});
    kill(child);
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
    semaphore.release().unwrap();
    assert_eq!(semaphore.value(), 1);
}

/// S3: released, and died before the log was struck.
#[test]
fn a_permit_that_was_released_is_not_given_back_again() {
    let semaphore = Semaphore::create(1, Semaphore::MAXIMUM).unwrap();
    let child = in_child(
        || {
            assert!(semaphore.try_acquire());
            semaphore.release().unwrap();
            semaphore.state.holder(ProcessId::current(), &semaphore.hint).unwrap().log();
        },
        || {},
    );
    kill(child);
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
}

/// S5.
#[test]
fn a_semaphore_for_signalling_gets_no_permits_from_the_dead() {
    // The child produces, the parent consumes: "free places".
    let places = Semaphore::create(2, Semaphore::MAXIMUM).unwrap();
    let child = in_child(|| assert!(places.try_acquire() && places.try_acquire()), || {});
    places.release().unwrap();
    assert!(places.try_acquire());
    kill(child);
    assert_eq!(places.acquire(&mut soon()), Err(WaitError::TimedOut));
    // One that began empty.
    let ready = Semaphore::create(0, Semaphore::MAXIMUM).unwrap();
    let child = in_child(
        || {
            ready.release().unwrap();
            assert!(ready.try_acquire());
        },
        || {},
    );
    kill(child);
    assert_eq!(ready.acquire(&mut soon()), Err(WaitError::TimedOut));
}

#[test]
fn a_forked_childs_permits_are_its_own() {
    let semaphore = Semaphore::create(2, 2).unwrap();
    assert!(semaphore.try_acquire());
    let child = in_child(
        || {
            assert_eq!(semaphore.held(), 0);
            assert!(semaphore.try_acquire());
        },
        || {},
    );
    assert_eq!(semaphore.held(), 1);
    kill(child);
    assert!(matches!(semaphore.acquire(&mut soon()), Ok(Acquired::Recovered(_))));
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
}

/// S6.
#[test]
fn without_a_place_in_the_log_nothing_is_recovered() {
    let semaphore = Semaphore::create(2, 2).unwrap();
    semaphore.state.take(0).unwrap();
    let me = ProcessId::current().to_bits();
    for holder in &semaphore.state.holders {
        holder.process.store(me ^ 1 << 40, Ordering::Relaxed);
        holder.permits.store(1, Ordering::Relaxed);
    }
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.state.flags.load(Ordering::Relaxed), OVERFLOWED);
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
    semaphore.release().unwrap();
    assert_eq!(semaphore.value(), 1);
}

#[test]
fn lines_left_over_from_the_dead_are_reused_when_all_permits_are_there() {
    let semaphore = Semaphore::create(1, 1).unwrap();
    let me = ProcessId::current().to_bits();
    for holder in &semaphore.state.holders {
        holder.process.store(me ^ 1 << 40, Ordering::Relaxed);
        holder.permits.store(1, Ordering::Relaxed);
    }
    assert!(semaphore.try_acquire());
    assert_eq!((semaphore.held(), semaphore.state.flags.load(Ordering::Relaxed)), (1, 0));
    assert_eq!(semaphore.acquire(&mut soon()), Err(WaitError::TimedOut));
}

#[test]
fn the_places_of_the_dead_are_used_again() {
    let semaphore = Semaphore::create(1, 1).unwrap();
    for _ in 0..HOLDERS + 5 {
        let child = in_child(
            || {
                assert!(semaphore.try_acquire());
                semaphore.release().unwrap();
            },
            || {},
        );
        kill(child);
    }
    assert_eq!(semaphore.state.flags.load(Ordering::Relaxed), 0);
}

#[test]
fn a_killed_waiter_blocks_nobody() {
    let semaphore = Semaphore::create(1, 1).unwrap();
    assert!(semaphore.try_acquire());
    let child = in_child(|| {}, || semaphore.acquire(&mut Wait::forever()));
    while semaphore.state.word.load(Ordering::Relaxed) & CONTENDED == 0 {
        std::thread::yield_now();
    }
    kill(child);
    semaphore.release().unwrap();
    assert!(semaphore.try_acquire());
    assert_eq!(semaphore.state.word.load(Ordering::Relaxed) & CONTENDED, 0);
}
