//! Pools whose workers die, in every way and at every time.

use std::{
    panic::panic_any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::sleep,
    time::Duration,
};

use procession::{AsyncResult, Exit, Lock, Pool, StartMethod, TaskError};

use crate::support::{
    until,
    workers::{die, kill_pid, line, lost, runs, square, stuck, told},
};

fn overflow(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 512]);
    if room[0] == u64::MAX {
        return 0;
    }
    overflow(depth + 1) + room[(depth % 512) as usize]
}

#[test]
fn workers_that_are_killed_at_any_moment_are_replaced() {
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let pool = Pool::builder().workers(2).start_method(method).build().unwrap();
        let pids = pool.statistics().pids;
        let (mut done, mut gone) = (0, 0);
        let (pool, stop) = (&pool, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for round in 0..40_u64 {
                    // Taking a task, in it, or sending the result: each takes a microsecond or less.
                    sleep(Duration::from_micros(137 * round));
                    for pid in pool.statistics().pids.into_iter().take(1 + (round % 2) as usize) {
                        kill_pid(pid);
                    }
                    // A pool whose workers always die before they are ready gives up.
                    let done = pool.statistics().tasks_done;
                    until(|| pool.statistics().tasks_done > done + 50);
                }
                stop.store(true, Ordering::Relaxed);
            });
            while !stop.load(Ordering::Relaxed) {
                for (n, result) in (0..).zip(pool.imap(square, 0..500).unwrap()) {
                    match result {
                        Ok(value) => {
                            assert_eq!(value, square(n));
                            done += 1;
                        }
                        Err(error) => {
                            assert_eq!(lost(error), Exit::Signal(libc::SIGKILL));
                            gone += 1;
                        }
                    }
                }
            }
        });
        assert!(done > 0 && gone <= 60, "{done} done, {gone} lost");
        assert_eq!(pool.map(square, 0..100).unwrap()[99], 9801);
        for pid in pids {
            until(|| !runs(pid));
        }
        pool.join();
    }
}

#[test]
fn all_workers_at_once_may_be_killed() {
    let pool = Pool::new(3).unwrap();
    let gate = Lock::new(()).unwrap();
    let held = gate.acquire().unwrap();
    let waiting = |gate: Lock<()>, n: u64| {
        drop(gate.acquire());
        n
    };
    let results: Vec<_> = (0..6).map(|n| pool.apply_async(waiting, (gate.clone(), n)).unwrap()).collect();
    until(|| pool.statistics().at_work == 3);
    for pid in pool.statistics().pids {
        kill_pid(pid);
    }
    until(|| pool.statistics().at_work == 3 && pool.statistics().queued == 0);
    drop(held);
    let outcomes: Vec<_> = results.into_iter().map(procession::AsyncResult::get).collect();
    assert_eq!(outcomes.iter().filter(|it| it.is_err()).count(), 3);
    assert_eq!(pool.statistics().pids.len(), 3);
}

#[test]
fn task_kills_its_worker() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(lost(pool.apply(die, (libc::SIGKILL,)).unwrap_err()), Exit::Signal(libc::SIGKILL));
    assert_eq!(lost(pool.apply(die, (libc::SIGTERM,)).unwrap_err()), Exit::Signal(libc::SIGTERM));
    let overflowed = lost(pool.apply(overflow, (0,)).unwrap_err());
    assert!(matches!(overflowed, Exit::Signal(libc::SIGABRT | libc::SIGSEGV)), "{overflowed:?}");
    let error = pool.apply(die, (libc::SIGKILL,)).unwrap_err();
    assert!(error.to_string().contains("signal 9"), "{error}");
    // No other task is lost with one that dies.
    let results: Vec<_> = (0..200)
        .map(|n| {
            let call = |n: u64| {
                if n.is_multiple_of(50) {
                    die(libc::SIGKILL);
                }
                n
            };
            pool.apply_async(call, (n,)).unwrap()
        })
        .collect();
    for (n, result) in (0..).zip(results) {
        match result.get() {
            Ok(same) => assert_eq!(same, n),
            Err(error) => {
                assert_eq!(lost(error), Exit::Signal(libc::SIGKILL));
                assert_eq!(n % 50, 0);
            }
        }
    }
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

#[test]
fn task_exits_its_worker() {
    let pool = Pool::new(2).unwrap();
    let exit = |code: i32| -> u8 { std::process::exit(code) };
    assert_eq!(lost(pool.apply(exit, (7,)).unwrap_err()), Exit::Code(7));
    assert_eq!(lost(pool.apply(exit, (0,)).unwrap_err()), Exit::Code(0));
    let abort = || -> u8 { std::process::abort() };
    assert_eq!(lost(pool.apply(abort, ()).unwrap_err()), Exit::Signal(libc::SIGABRT));
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

/// What an exception is to Python. A `panic!` is looked at in tests/pool.rs; here are stranger ones.
#[test]
fn task_panics() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("while it is thrown away");
        }
    }
    let pool = Pool::new(1).unwrap();
    let worker = pool.statistics().pids;
    let panicked = |result: Result<u8, TaskError>| match result {
        Err(TaskError::Panicked(panic)) => panic.message,
        other => panic!("{other:?}"),
    };
    panicked(pool.apply(|| -> u8 { panic_any(5_u64) }, ()));
    panicked(pool.apply(|| -> u8 { std::panic::resume_unwind(Box::new(())) }, ()));
    // What is dropped while a panic unwinds must not panic: the runtime aborts the process.
    let twice = || -> u8 {
        let _bomb = Bomb;
        panic!("once")
    };
    assert_eq!(pool.statistics().pids, worker);
    assert_eq!(lost(pool.apply(twice, ()).unwrap_err()), Exit::Signal(libc::SIGABRT));
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

/// A message that panics itself when it is thrown away.
#[test]
fn panic_panics_when_it_is_dropped() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("while it is thrown away");
        }
    }
    let pool = Pool::new(1).unwrap();
    let error = pool.apply(|| -> u8 { panic_any(Bomb) }, ()).unwrap_err();
    assert!(matches!(error, TaskError::Panicked(_) | TaskError::WorkerLost { .. }), "{error:?}");
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

fn deadly(n: u64) -> u64 {
    if n == 33 {
        die(libc::SIGKILL);
    }
    n
}

#[test]
fn map_loses_a_worker() {
    let pool = Pool::new(2).unwrap();
    lost(pool.map(deadly, 0..100).unwrap_err());
    assert_eq!(pool.map(deadly, 0..10).unwrap().len(), 10);
}

#[test]
fn stream_loses_a_worker() {
    let pool = Pool::new(2).unwrap();
    for (size, others) in [(1, 0), (10, 9), (30, 29)] {
        let all: Vec<_> = pool.options().chunk_size(size).imap(deadly, 0..100).unwrap().collect();
        assert_eq!(all.len(), 100);
        assert_eq!(all.iter().filter(|it| it.is_err()).count(), 1 + others);
        assert!(all[33].is_err());
    }
    // A last chunk that is shorter.
    let all: Vec<_> = pool.options().chunk_size(30).imap(deadly, 30..40).unwrap().collect();
    assert_eq!(all.len(), 10);
}

#[test]
fn worker_killed_while_it_waits() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..5 {
        pool.map(square, 0..10).unwrap();
        pool.statistics().pids.into_iter().for_each(kill_pid);
        // No task was in anybody's hands, or one may just have been taken by one that dies.
        match pool.apply(square, (5,)) {
            Ok(result) => assert_eq!(result, 25),
            Err(error) => drop(lost(error)),
        }
    }
    assert_eq!(pool.map(square, 0..10).unwrap()[9], 81);
}

#[test]
fn worker_killed_at_start() {
    let count = Lock::new(0_u32).unwrap();
    let deadly_twice = |count: Lock<u32>| {
        let number = {
            let mut count = count.acquire().unwrap();
            *count += 1;
            *count
        };
        if number <= 2 {
            die(libc::SIGKILL);
        }
    };
    let pool = Pool::builder().workers(2).initializer(deadly_twice, (count.clone(),)).build().unwrap();
    assert_eq!(pool.map(square, 0..10).unwrap()[9], 81);
    until(|| *count.acquire().unwrap() == 4);
}

#[test]
fn initializer_keeps_dying() {
    let killed = Pool::builder().workers(1).initializer(die, (libc::SIGKILL,)).build().unwrap();
    let results: Vec<_> = (0..5).map(|n| killed.apply_async(square, (n,)).unwrap()).collect();
    for result in results {
        let error = result.get().unwrap_err();
        assert!(matches!(error, TaskError::NoWorkers(_)), "{error:?}");
        assert!(error.to_string().contains("signal 9"), "{error}");
    }
    killed.join();
}

#[test]
fn initializer_keeps_failing() {
    let panicking = Pool::builder().workers(2).initializer(|| panic!("not today"), ()).build().unwrap();
    let error = panicking.apply(square, (1,)).unwrap_err();
    assert!(matches!(&error, TaskError::NoWorkers(_)), "{error:?}");
    assert!(error.to_string().contains("code 1"), "{error}");
    // Now, and whenever.
    assert!(matches!(panicking.map(square, 0..10), Err(TaskError::NoWorkers(_))));
    assert!(panicking.imap(square, 0..10).unwrap().all(|it| matches!(it, Err(TaskError::NoWorkers(_)))));
    panicking.join();
}

#[test]
fn an_initializer_that_fails_now_and_then_does_not_matter() {
    let count = Lock::new(0_u32).unwrap();
    let moody = |count: Lock<u32>| {
        let mut count = count.acquire().unwrap();
        *count += 1;
        let fails = *count % 2 == 1;
        drop(count);
        assert!(!fails, "every other time");
    };
    let pool = Pool::builder().workers(2).max_tasks_per_child(3).initializer(moody, (count,)).build().unwrap();
    assert_eq!(pool.options().chunk_size(1).map(square, 0..40).unwrap().len(), 40);
}

/// The thread that calls callbacks is the one that learns of deaths: it does so while a callback waits.
#[test]
fn callback_waits_for_a_dead_worker() {
    let pool = Arc::new(Pool::new(1).unwrap());
    let (sender, receiver) = mpsc::channel();
    let within = pool.clone();
    let waits = move |_: &u64| {
        let one = within.apply(die, (libc::SIGKILL,)).map_err(lost);
        let other = within.apply_async(die, (libc::SIGKILL,)).unwrap().get().map_err(lost);
        let stream = within.imap(deadly, 32..35).unwrap().map(Result::ok).collect::<Vec<_>>();
        // One that has a callback of its own.
        let (inner, told) = mpsc::channel();
        let last = within.apply_async_with(square, (4,), move |n| inner.send(*n).unwrap(), |_| ()).unwrap();
        sender.send((one, other, stream, last.get().unwrap(), told.recv().unwrap())).unwrap();
    };
    let _result = pool.apply_async_with(square, (2,), waits, |_| ()).unwrap();
    let killed = Err(Exit::Signal(libc::SIGKILL));
    assert_eq!(receiver.recv().unwrap(), (killed, killed, vec![Some(32), None, Some(34)], 16, 16));
}

#[test]
fn close_after_a_death() {
    let pool = Pool::new(2).unwrap();
    let results: Vec<_> = (30..40).map(|n| pool.apply_async(deadly, (n,)).unwrap()).collect();
    pool.close();
    pool.join();
    assert_eq!(results.into_iter().filter(AsyncResult::ready).filter_map(|it| it.get().err()).count(), 1);
    assert!(pool.statistics().pids.is_empty());
}

#[test]
fn each_task_its_own_worker() {
    let pool = Pool::builder().workers(2).max_tasks_per_child(1).build().unwrap();
    let pids = pool.options().chunk_size(1).map(|_: u32| std::process::id(), 0..100).unwrap();
    assert_eq!(pids.iter().collect::<std::collections::BTreeSet<_>>().len(), 100);
    pool.join();
}

/// How a worker may be beyond the reach of SIGTERM: it is killed when it has had its time to end.
fn terminate(get_stuck: fn(u32)) {
    let pool = Pool::new(2).unwrap();
    let (mut reader, writer) = line();
    let result = pool.apply_async(stuck, (writer,)).unwrap();
    let pid = told(&mut reader, 1)[0];
    get_stuck(pid);
    pool.terminate();
    assert!(!runs(pid));
    assert!(matches!(result.get(), Err(TaskError::Terminated)));
    pool.join();
}

#[test]
fn terminate_with_a_stuck_worker() {
    terminate(|_| ());
}

#[test]
fn terminate_with_a_stopped_worker() {
    terminate(|pid| {
        // SAFETY: signals a worker that was not waited for.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGSTOP) };
    });
}

#[test]
fn terminate_while_others_wait() {
    let pool = Pool::new(2).unwrap();
    let (pool, nap) = (&pool, || sleep(Duration::from_secs(600)));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(move || pool.apply(nap, ()))).collect();
        let streaming = scope.spawn(move || pool.imap(|_: u8| sleep(Duration::from_secs(600)), 0..9).unwrap().next());
        until(|| pool.statistics().at_work == 2);
        pool.terminate();
        for thread in waiting {
            let error = thread.join().unwrap().unwrap_err();
            assert!(matches!(error, TaskError::Terminated | TaskError::Submit(_)), "{error:?}");
        }
        assert!(matches!(streaming.join().unwrap(), Some(Err(TaskError::Terminated))));
    });
}
