//! Tasks that have had their time, are not wanted any more, or are tried again.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use procession::{Exit, Lock, Pool, TaskError};

use crate::support::{
    until,
    workers::{die, line, runs, square, stuck, told},
};

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

#[test]
fn time_limit_of_one_task() {
    let pool = Pool::builder().workers(2).task_timeout(Duration::from_secs(600)).build().unwrap();
    let nap = |ms: u64| {
        sleep(Duration::from_millis(ms));
        ms
    };
    let brief = pool.options().timeout(Duration::from_millis(300));
    let late = brief.apply_async(nap, (600_000,)).unwrap();
    let unlimited = pool.apply_async(nap, (900,)).unwrap();
    let limit_of = |error: TaskError| match error {
        TaskError::TimedOut { limit, .. } => limit,
        other => panic!("{other:?}"),
    };
    assert_eq!(limit_of(late.get().unwrap_err()), Duration::from_millis(300));
    assert_eq!(unlimited.get().unwrap(), 900);
    // Of a stream, each item has its time; of a map, too, unless it is said how large chunks are.
    let all: Vec<_> = brief.imap(nap, [1, 600_000, 2]).unwrap().collect();
    assert_eq!(all.iter().map(|it| it.as_ref().ok().copied()).collect::<Vec<_>>(), [Some(1), None, Some(2)]);
    limit_of(brief.map(nap, [1, 2, 600_000]).unwrap_err());
    assert_eq!(brief.map(nap, [100; 12]).unwrap().len(), 12);
}

#[test]
fn time_limit_ignores_signals() {
    let pool = Pool::new(1).unwrap();
    let (mut reader, writer) = line();
    let late = pool.options().timeout(Duration::from_secs(1)).apply_async(stuck, (writer,)).unwrap();
    let pid = told(&mut reader, 1)[0];
    assert!(matches!(late.get(), Err(TaskError::TimedOut { pid: known, .. }) if known == pid));
    until(|| !runs(pid));
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

#[test]
fn cancel_a_running_task() {
    let pool = Pool::new(1).unwrap();
    let (mut reader, writer) = line();
    let (sender, receiver) = std::sync::mpsc::channel();
    let hear = move |error: &TaskError| sender.send(matches!(error, TaskError::Cancelled)).unwrap();
    let running = pool.apply_async_with(stuck, (writer,), |()| (), hear).unwrap();
    let queued = pool.apply_async(square, (2,)).unwrap();
    let kept = pool.apply_async(square, (3,)).unwrap();
    let pid = told(&mut reader, 1)[0];
    assert!(queued.cancel());
    assert!(running.cancel());
    assert!(running.is_cancelled() && queued.is_cancelled() && !kept.is_cancelled());
    assert!(matches!(running.get(), Err(TaskError::Cancelled)));
    assert!(matches!(queued.get(), Err(TaskError::Cancelled)));
    assert!(receiver.recv().unwrap());
    assert_eq!(kept.get().unwrap(), 9);
    until(|| !runs(pid));
    let done = pool.apply_async(square, (4,)).unwrap();
    done.wait();
    assert!(!done.cancel());
    assert_eq!(done.get().unwrap(), 16);
    // In a forked or other process there is nothing to cancel; a terminated pool has nothing under way.
    let late = pool.apply_async(|| sleep(Duration::from_secs(600)), ()).unwrap();
    pool.terminate();
    assert!(!late.cancel());
    assert!(matches!(late.get(), Err(TaskError::Terminated)));
}

#[test]
fn cancel_takes_no_other_task() {
    let pool = Pool::new(3).unwrap();
    for round in 0..12 {
        let nap = || sleep(Duration::from_secs(600));
        let mut unwanted: Vec<_> = (0..2).map(|_| pool.apply_async(nap, ()).unwrap()).collect();
        let wanted: Vec<_> = (0..50).map(|n| pool.apply_async(square, (n,)).unwrap()).collect();
        unwanted.push(pool.apply_async(nap, ()).unwrap());
        sleep(Duration::from_micros(300 * round));
        for result in &unwanted {
            assert!(result.cancel());
        }
        for (n, result) in (0..).zip(wanted) {
            assert_eq!(result.get().unwrap(), square(n));
        }
        for result in unwanted {
            assert!(matches!(result.get(), Err(TaskError::Cancelled)));
        }
    }
}

#[test]
fn cancel_a_stream() {
    let pool = Pool::new(2).unwrap();
    let nap = |ms: u64| {
        sleep(Duration::from_millis(ms));
        ms
    };
    let mut stream = pool.imap(nap, [0, 600_000].into_iter().chain(0..)).unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), 0);
    assert!(stream.cancel());
    assert!(stream.any(|it| matches!(it, Err(TaskError::Cancelled))));
    assert!(stream.next().is_none());
    assert!(!pool.map_async(square, 0..0).unwrap().cancel());
    let map = pool.map_async(nap, [600_000; 20]).unwrap();
    assert!(map.cancel());
    assert!(matches!(map.get(), Err(TaskError::Cancelled)));
    assert_eq!(pool.map(square, 0..100).unwrap()[99], 9801);
}

#[test]
fn task_kills_worker_after_worker() {
    let pool = Pool::new(2).unwrap();
    let error = pool.options().retries(2).apply(die, (libc::SIGKILL,)).unwrap_err();
    assert!(error.to_string().ends_with("as 2 others did before"), "{error}");
    match error {
        TaskError::WorkerLost { exit, attempts, .. } => assert_eq!((exit, attempts), (Exit::Signal(libc::SIGKILL), 3)),
        other => panic!("{other:?}"),
    }
    // What a task answers is not tried again.
    let count = Lock::new(0_u32).unwrap();
    let panics = |count: Lock<u32>| {
        *count.acquire().unwrap() += 1;
        panic!("no");
    };
    let panicked: Result<(), _> = pool.options().retries(5).apply(panics, (count.clone(),));
    assert!(matches!(panicked, Err(TaskError::Panicked(_))));
    assert_eq!(*count.acquire().unwrap(), 1);
}

#[test]
fn retry_succeeds() {
    let deaths = Lock::new(0_u32).unwrap();
    // Kills its worker unless five have died already.
    let deadly = |deaths: Lock<u32>, n: u64| {
        let mut count = deaths.acquire().unwrap();
        if n.is_multiple_of(10) && *count < 5 {
            *count += 1;
            drop(count);
            die(libc::SIGKILL);
        }
        n
    };
    let pool = Pool::builder().workers(2).retries(5).build().unwrap();
    let items = (0..50).map(|n| (deaths.clone(), n));
    assert!(pool.options().chunk_size(3).starmap(deadly, items).unwrap().into_iter().eq(0..50));
    assert_eq!(*deaths.acquire().unwrap(), 5);
    // The pool's own number is not that of each call.
    assert!(matches!(
        pool.options().retries(0).apply(die, (libc::SIGTERM,)),
        Err(TaskError::WorkerLost { attempts: 1, .. })
    ));
}
