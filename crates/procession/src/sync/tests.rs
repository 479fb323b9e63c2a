use std::{sync::mpsc, thread, time::Duration};

use super::*;
use crate::{
    DecodeError, Message, Value,
    handover::Reach,
    message::{Encoded, decode, encode},
};

/// As another process would get it.
fn pass<T: Message>(value: &T) -> T {
    try_as(value).unwrap()
}

fn try_as<T: Message, U: Message>(value: &T) -> Result<U, DecodeError> {
    let mut room = Vec::new();
    let Encoded { bytes, descriptors } = encode(value, &mut room, Reach::Related).unwrap();
    decode(bytes, descriptors, Reach::Related)
}

const SOON: Duration = Duration::from_millis(20);

#[test]
fn what_is_passed_is_the_same_lock() {
    let lock = Lock::new([1_u64; 40]).unwrap();
    let other = pass(&lock);
    let mut guard = lock.acquire().unwrap();
    assert!(matches!(other.try_acquire(), Err(TryAcquireError::WouldBlock)));
    guard[39] = 7;
    assert_eq!(other.peek()[39], 1);
    drop(guard);
    assert_eq!(other.acquire().unwrap()[39], 7);
}

#[test]
fn everything_is_passed_within_one_message_and_with_one_descriptor() {
    let all = (
        (Lock::new(5_u8).unwrap(), Lock::new(()).unwrap(), RLock::new().unwrap()),
        (Semaphore::new(3).unwrap(), BoundedSemaphore::new(4).unwrap()),
        (Condition::new().unwrap(), Event::new().unwrap(), Barrier::new(2).unwrap(), Value::new(2.5).unwrap()),
    );
    let mut room = Vec::new();
    let Encoded { bytes, descriptors } = encode(&all, &mut room, Reach::Related).unwrap();
    // Those of an arena; when that is full they may be of two.
    assert!(descriptors.len() <= 2, "{}", descriptors.len());
    let mut passed = all.clone(); // for its type
    passed.clone_from(&decode(bytes, descriptors, Reach::Related).unwrap());
    let ((byte, bare, recursive), (semaphore, bounded), (_, event, barrier, value)) = passed;
    assert_eq!((byte.peek(), value.get(), semaphore.value(), bounded.maximum(), barrier.parties()), (5, 2.5, 3, 4, 2));
    let (_bare, _recursive) = (bare.acquire().unwrap(), recursive.acquire().unwrap());
    assert!(all.0.1.is_locked() && all.0.2.is_mine());
    all.2.1.set();
    assert!(event.wait_timeout(SOON));
}

#[test]
fn other_types_and_other_machines_are_refused() {
    let lock = Lock::new(5_u64).unwrap();
    assert!(matches!(try_as::<_, Lock<u32>>(&lock), Err(DecodeError::Deserialize(_))));
    assert!(try_as::<_, RLock>(&Value::new([1_u8; 9000]).unwrap()).is_err());
    assert!(encode(&lock, &mut Vec::new(), Reach::Remote).is_err());
    let mut room = Vec::new();
    let bytes = encode(&lock, &mut room, Reach::Related).unwrap().bytes;
    assert!(matches!(decode::<Lock<u64>>(bytes, Vec::new(), Reach::Related), Err(DecodeError::Descriptor(_))));
}

#[test]
fn a_guard_writes_back_what_was_changed() {
    let lock = Lock::new(1).unwrap();
    let mut guard = lock.acquire().unwrap();
    *guard = 2;
    guard.discard();
    assert_eq!(lock.peek(), 1);
    let mut guard = lock.acquire().unwrap();
    *guard = 3;
    guard.commit();
    assert_eq!((lock.peek(), lock.is_locked()), (3, true));
    *guard = 4;
    guard.leave_acquired();
    assert_eq!((lock.peek(), lock.owner()), (4, Some(std::process::id())));
    lock.release().unwrap();
    assert_eq!(lock.release(), Err(NotHeld));
}

#[test]
fn a_panic_leaves_the_value_of_before() {
    let lock = Lock::new([1_u32, 2]).unwrap();
    let panicked = thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut guard = lock.acquire().unwrap();
            guard[0] = 10;
            panic!("in the midst of a change");
        });
        changing.join().is_err()
    });
    assert!(panicked);
    assert_eq!(*lock.acquire().unwrap(), [1, 2]);
}

#[test]
fn a_guard_of_a_lock_that_was_released_does_not_disturb_the_next() {
    let lock = Lock::new(1).unwrap();
    let mut stale = lock.acquire().unwrap();
    *stale = 5;
    lock.release().unwrap();
    thread::scope(|scope| {
        let (held, hold) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let lock = &lock;
        scope.spawn(move || {
            let guard = lock.acquire().unwrap();
            held.send(()).unwrap();
            let _ = ended.recv();
            drop(guard);
        });
        hold.recv().unwrap();
        let condition = Condition::new().unwrap();
        assert_eq!(condition.notify_all(&stale), Err(NotHeld));
        assert!(matches!(condition.wait(&mut stale), Err(ConditionError::NotHeld)));
        drop(stale);
        assert_eq!((lock.is_locked(), lock.peek()), (true, 1));
        drop(end);
    });
}

#[test]
fn a_time_that_is_up_is_told() {
    let (lock, rlock) = (Lock::new(()).unwrap(), RLock::new().unwrap());
    let (semaphore, event) = (Semaphore::new(0).unwrap(), Event::new().unwrap());
    let (_held, _rheld) = (lock.acquire().unwrap(), rlock.acquire().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(matches!(lock.acquire_timeout(SOON), Err(AcquireTimeoutError::TimedOut)));
            assert!(matches!(rlock.acquire_timeout(SOON), Err(AcquireTimeoutError::TimedOut)));
            assert!(matches!(rlock.try_acquire(), Err(TryAcquireError::WouldBlock)));
            assert_eq!(rlock.release(), Err(NotOwner));
        });
    });
    assert!(matches!(semaphore.acquire_timeout(SOON), Err(AcquireTimeoutError::TimedOut)));
    assert!(matches!(semaphore.try_acquire(), Err(TryAcquireError::WouldBlock)));
    assert!(!event.wait_timeout(SOON));
    let barrier = Barrier::new(2).unwrap();
    assert_eq!(barrier.wait_timeout(SOON), Err(BrokenBarrier));
    assert_eq!(barrier.wait(), Err(BrokenBarrier));
    barrier.reset();
    assert!(!barrier.is_broken());
}

#[test]
fn a_condition_is_waited_for_with_any_guard() {
    let (condition, lock, rlock) = (Condition::new().unwrap(), Lock::new(0).unwrap(), RLock::new().unwrap());
    let mut guard = lock.acquire().unwrap();
    assert!(!condition.wait_timeout(&mut guard, SOON).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut guard = lock.acquire().unwrap();
            *guard += 1;
            assert_eq!(condition.notify(&guard, 5), Ok(1));
        });
        *guard = 10;
        condition.wait_for(&mut guard, |value| **value != 10).unwrap();
    });
    assert_eq!(*guard, 11, "the change was written back before, and the other's read after the wait");
    assert!(!condition.wait_for_timeout(&mut guard, SOON, |value| **value == 12).unwrap());
    drop(guard);

    let outer = rlock.acquire().unwrap();
    let mut inner = rlock.acquire().unwrap();
    let condition = Condition::new().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let guard = rlock.acquire().unwrap();
            condition.notify_all(&guard).unwrap();
        });
        condition.wait(&mut inner).unwrap();
    });
    assert_eq!(rlock.depth(), 2);
    drop((inner, outer));
}

#[test]
fn permits_are_released_by_themselves_or_by_others() {
    let semaphore = BoundedSemaphore::new(2).unwrap();
    let one = semaphore.acquire().unwrap();
    semaphore.try_acquire().unwrap().forget();
    assert_eq!(semaphore.value(), 0);
    drop(one);
    semaphore.release().unwrap();
    assert_eq!(semaphore.release(), Err(AtMaximum));
    assert!(Semaphore::new(u32::MAX).is_err());
}

#[test]
fn the_last_to_arrive_acts_and_a_panic_there_breaks_the_barrier() {
    let barrier = Barrier::new(2).unwrap();
    let acted = std::sync::atomic::AtomicU32::new(0);
    let act = || {
        acted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| barrier.wait_with(act).unwrap());
        assert_eq!(barrier.wait_with(act).unwrap() + other.join().unwrap(), 1);
    });
    assert_eq!(acted.into_inner(), 1);
    thread::scope(|scope| {
        let first = scope.spawn(|| barrier.wait_with(|| panic!("an action that fails")));
        while barrier.waiting() == 0 {
            thread::yield_now();
        }
        let second = scope.spawn(|| barrier.wait_with(|| panic!("an action that fails")));
        assert_eq!(first.join().unwrap(), Err(BrokenBarrier));
        assert!(second.join().is_err());
    });
    assert!(barrier.is_broken());
    assert!(Barrier::new(0).is_err());
}

#[test]
fn a_value_is_used_under_its_lock() {
    let value = Value::new(5_i16).unwrap();
    let other = pass(&value);
    other.set(6);
    assert_eq!((value.replace(7), value.update(|value| *value + 1), value.get()), (6, 8, 7));
    let guard = value.acquire().unwrap();
    assert_eq!(other.peek(), 7);
    assert!(other.as_lock().try_acquire().is_err());
    drop(guard);
}

#[test]
fn all_of_them_are_used_by_any_thread_and_cheap_to_clone() {
    fn common<T: Send + Sync + Clone + Message + std::fmt::Debug>() {}
    common::<Lock>();
    common::<Lock<[u64; 3]>>();
    common::<RLock>();
    common::<Semaphore>();
    common::<BoundedSemaphore>();
    common::<Condition>();
    common::<Event>();
    common::<Barrier>();
    common::<Value<f32>>();
    common::<crate::RawValue<f32>>();
    common::<crate::Array<f32>>();
    common::<crate::RawArray<f32>>();
    common::<crate::SharedMemory>();
}
