//! Tasks that have had their time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use procession::{Pool, TaskError};

use crate::support::workers::square;

#[test]
fn time_limit() {
    let limit = Duration::from_millis(400);
    let pool = Pool::builder().workers(2).task_timeout(limit).build().unwrap();
    assert_eq!(pool.task_timeout(), Some(limit));
    let nap = |ms: u64| {
        sleep(Duration::from_millis(ms));
        ms
    };
    let began = Instant::now();
    let results: Vec<_> = [0, 600_000, 1, 600_000, 2, 3].map(|ms| pool.apply_async(nap, (ms,)).unwrap()).into();
    for result in results {
        match result.get() {
            Ok(ms) => assert!(ms < 10),
            Err(TaskError::TimedOut { limit: known, .. }) => assert_eq!(known, limit),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(began.elapsed() >= limit);
    // One that nobody waits for, with a callback.
    let (sender, receiver) = std::sync::mpsc::channel();
    let timed_out = move |error: &TaskError| sender.send(matches!(error, TaskError::TimedOut { .. })).unwrap();
    let _result = pool.apply_async_with(nap, (600_000,), |_| (), timed_out).unwrap();
    assert!(receiver.recv().unwrap());
    // Idle for longer than that, and still of use.
    sleep(limit * 2);
    assert_eq!(pool.map(square, 0..10).unwrap()[9], 81);
}

#[test]
fn no_limit_is_too_long_or_too_short() {
    let endless = Pool::builder().workers(1).task_timeout(Duration::MAX).build().unwrap();
    assert_eq!(endless.apply(square, (3,)).unwrap(), 9);
    endless.join();
    let none = Pool::builder().workers(1).task_timeout(Duration::ZERO).build().unwrap();
    let nap = || sleep(Duration::from_secs(600));
    assert!(matches!(none.apply(nap, ()), Err(TaskError::TimedOut { .. })));
}

#[test]
fn a_timeout_never_hits_the_task_after() {
    // Tasks that take just about as long as they may. It is long enough for any other, on a busy machine, too.
    let pool = Pool::builder().workers(8).task_timeout(Duration::from_millis(400)).build().unwrap();
    let nap = |us: u64| sleep(Duration::from_micros(us));
    let results: Vec<_> = (0..32)
        .flat_map(|n| {
            let edge = pool.apply_async(nap, (399_000 + n * 60,)).unwrap();
            [(false, edge), (true, pool.apply_async(nap, (0,)).unwrap())]
        })
        .collect();
    for (quick, result) in results {
        match result.get() {
            Ok(()) => {}
            Err(TaskError::TimedOut { .. }) => assert!(!quick, "a task that took no time has timed out"),
            Err(other) => panic!("{other:?}"),
        }
    }
}
