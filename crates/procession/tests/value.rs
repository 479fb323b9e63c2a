//! Shared values and arrays between real processes, some of which are killed.

mod support;

use procession::{AcquireTimeoutError, Array, Event, RawArray, RawValue, Recovered, TryAcquireError, Value, zerocopy};
use support::{LONG, kill, start, until, wait_for_the_end};

procession::test_support!();

#[derive(Clone, Copy, Debug, PartialEq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[zerocopy(crate = "procession::zerocopy")]
#[repr(C)]
struct Point {
    x: f64,
    y: f64,
    times: u64,
}

#[test]
fn processes_change_a_value_together() {
    fn move_it(point: Value<Point>) {
        for _ in 0..1000 {
            point.update(|point| {
                point.x += 0.5;
                point.y -= 0.5;
                point.times += 1;
            });
            let Point { x, y, times } = point.peek();
            assert_eq!((x, y), (times as f64 / 2.0, -(times as f64) / 2.0), "what is read is always whole");
        }
    }
    let point = Value::new(Point { x: 0.0, y: 0.0, times: 0 }).unwrap();
    let moving: Vec<_> = (0..3).map(|_| start(move_it, (point.clone(),))).collect();
    for child in moving {
        child.join().unwrap();
    }
    assert_eq!(point.get(), Point { x: 1500.0, y: -1500.0, times: 3000 });
}

#[test]
fn a_value_survives_whoever_changes_it() {
    fn change(value: Value<[u32; 300]>, changes: Event) {
        value.update(|numbers| {
            numbers[..150].fill(9);
            wait_for_the_end(&changes)
        });
    }
    let (value, changes) = (Value::new([4; 300]).unwrap(), Event::new().unwrap());
    let child = start(change, (value.clone(), changes.clone()));
    changes.wait();
    assert_eq!(value.peek(), [4; 300]);
    let dead = kill(child);
    assert_eq!(value.get(), [4; 300]);
    assert!(value.acquire().is_ok());

    let child = start(change, (value.clone(), Event::new().unwrap()));
    until(|| value.as_lock().is_locked());
    let second = kill(child);
    assert_ne!(dead, second);
    assert_eq!(value.acquire().unwrap_err().owner(), second);
    value.set([5; 300]);
    assert_eq!(value.replace([6; 300]), [5; 300]);
}

#[test]
fn a_raw_value_is_seen_by_others_at_once() {
    fn count(progress: RawValue<u64>, go_on: RawValue<u8>) {
        while go_on.get() != 0 {
            progress.set(progress.get() + 1);
        }
    }
    let (progress, go_on) = (RawValue::new(0).unwrap(), RawValue::new(1).unwrap());
    let child = start(count, (progress.clone(), go_on.clone()));
    until(|| progress.get() > 1000);
    go_on.set(0);
    child.join().unwrap();
}

#[test]
fn processes_fill_an_array_of_their_own_segment() {
    fn fill(array: Array<u32>, part: usize, parts: usize) {
        let length = array.len() / parts;
        let numbers: Vec<u32> = (part * length..(part + 1) * length).map(|index| index as u32).collect();
        array.write(part * length, &numbers).unwrap();
    }
    let array = Array::zeroed(1_000_000).unwrap();
    let filling: Vec<_> = (0..4).map(|part| start(fill, (array.clone(), part, 4))).collect();
    for child in filling {
        child.join().unwrap();
    }
    assert!(array.iter().eq(0..1_000_000));
}

#[test]
fn what_is_done_under_the_lock_of_an_array_belongs_together() {
    fn transfer(accounts: Array<i64>) {
        for round in 0..500 {
            let accounts = accounts.acquire().unwrap();
            let (from, to) = (round % accounts.len(), round * 7 % accounts.len());
            accounts.set(from, accounts.get(from).unwrap() - 1).unwrap();
            accounts.set(to, accounts.get(to).unwrap() + 1).unwrap();
        }
    }
    let accounts = Array::from_slice(&[100; 10]).unwrap();
    let transferring: Vec<_> = (0..3).map(|_| start(transfer, (accounts.clone(),))).collect();
    for _ in 0..200 {
        assert_eq!(accounts.iter().sum::<i64>(), 1000);
    }
    for child in transferring {
        child.join().unwrap();
    }
    assert_eq!(accounts.iter().sum::<i64>(), 1000);
}

/// The death is told to who locks the array, even if somebody else has read it meanwhile.
#[test]
fn the_death_of_an_arrays_holder_is_not_lost() {
    fn change(array: Array<u16>, changes: Event) {
        let held = array.acquire().unwrap_or_else(Recovered::into_inner);
        held.set(0, 1).unwrap();
        wait_for_the_end(&changes)
    }
    let array = Array::zeroed(2).unwrap();
    let killed_in_a_change = || {
        let changes = Event::new().unwrap();
        let child = start(change, (array.clone(), changes.clone()));
        changes.wait();
        assert!(matches!(array.try_acquire(), Err(TryAcquireError::WouldBlock)));
        kill(child)
    };
    let dead = killed_in_a_change();
    assert_eq!(array.get(0), Ok(1));
    assert_eq!(array.to_vec(), [1, 0]);
    assert_eq!(array.acquire().unwrap_err().owner(), dead);
    assert!(array.acquire().is_ok());

    let dead = killed_in_a_change();
    match array.acquire_timeout(LONG) {
        Err(AcquireTimeoutError::Recovered(told)) => assert_eq!(told.owner(), dead),
        other => panic!("{other:?}"),
    }
    assert!(array.try_acquire().is_ok());
}

#[test]
fn a_raw_array_is_written_by_many() {
    fn mark(array: RawArray<u8>, number: u8) {
        for index in (usize::from(number)..array.len()).step_by(4) {
            array.set(index, number + 1).unwrap();
        }
    }
    let array = RawArray::zeroed(1000).unwrap();
    let marking: Vec<_> = (0..4).map(|number| start(mark, (array.clone(), number))).collect();
    for child in marking {
        child.join().unwrap();
    }
    // Neighbours of one word, written by four processes, did not disturb each other.
    assert!(array.iter().enumerate().all(|(index, element)| usize::from(element) == index % 4 + 1));
}
