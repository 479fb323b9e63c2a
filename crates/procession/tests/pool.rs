//! Pools of worker processes: what they do.

use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::sleep,
    time::{Duration, Instant},
};

use procession::{
    Handle, Lock, Pool, StartMethod, TaskError,
    pool::{GetError, PoolError, SubmitError},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

procession::test_support!();

fn add(a: u32, b: u32) -> u32 {
    a + b
}

fn square(n: u64) -> u64 {
    n * n
}

fn nap(ms: u64) -> u64 {
    sleep(Duration::from_millis(ms));
    ms
}

#[test]
fn a_stream_of_a_terminated_pool_ends_with_an_error() {
    for in_order in [true, false] {
        let pool = Pool::new(1).unwrap();
        let nap = |n: u64| sleep(Duration::from_secs(600 * n));
        let stream = if in_order { pool.imap(nap, 0..) } else { pool.imap_unordered(nap, 0..) };
        let mut stream = stream.unwrap();
        stream.next().unwrap().unwrap();
        pool.terminate();
        let last = stream.next();
        assert!(matches!(last, Some(Err(TaskError::Terminated))), "{last:?}");
        assert!(stream.next().is_none());
    }
}

#[test]
fn calls_and_maps_are_done() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.apply(add, (1, 2)).unwrap(), 3);
    pool.apply(|| (), ()).unwrap();
    let squares: Vec<_> = (0..1000).map(square).collect();
    assert_eq!(pool.map(square, 0..1000).unwrap(), squares);
    assert_eq!(pool.map_async(square, 0..1000).unwrap().get().unwrap(), squares);
    // Of unknown length.
    assert_eq!(pool.map(square, (0..2000).filter(|n| n % 2 == 0)).unwrap().len(), 1000);
    for size in [1, 7, 1000, 5000] {
        assert_eq!(pool.options().chunk_size(size).map(square, 0..1000).unwrap(), squares);
        let streamed: Result<Vec<_>, _> = pool.options().chunk_size(size).imap(square, 0..1000).unwrap().collect();
        assert_eq!(streamed.unwrap(), squares);
        let unordered: Result<HashSet<_>, _> =
            pool.options().chunk_size(size).imap_unordered(square, 0..1000).unwrap().collect();
        assert_eq!(unordered.unwrap(), squares.iter().copied().collect());
    }
    assert_eq!(pool.starmap(add, [(1, 2), (3, 4)]).unwrap(), [3, 7]);
    assert_eq!(pool.starmap_async(add, [(1, 2), (3, 4)]).unwrap().get().unwrap(), [3, 7]);
    assert!(pool.map(square, []).unwrap().is_empty());
    assert!(pool.map_async(square, []).unwrap().ready());
    assert_eq!(pool.imap(square, []).unwrap().count(), 0);
}

#[test]
fn many_threads_call_at_once() {
    let pool = Pool::new(2).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..200 {
                    assert_eq!(pool.apply(add, (thread, n)).unwrap(), thread + n);
                }
            });
        }
    });
    assert_eq!(pool.statistics().tasks_done, 1600);
}

#[test]
fn ten_thousand_calls_are_under_way_at_once() {
    let pool = Pool::new(2).unwrap();
    let results: Vec<_> = (0..10_000).map(|n| pool.apply_async(add, (n, 1)).unwrap()).collect();
    for (n, result) in (0..).zip(results) {
        assert_eq!(result.get().unwrap(), n + 1);
    }
}

#[test]
fn large_arguments_and_results_pass() {
    let pool = Pool::new(2).unwrap();
    let large = vec![7_u8; 32 << 20];
    let back = pool.apply(|bytes: Vec<u8>| bytes.into_iter().map(|byte| byte + 1).collect::<Vec<u8>>(), (large,));
    assert!(back.unwrap().iter().all(|&byte| byte == 8));
    // Much more than is let into the rings at once.
    let sums = pool.options().chunk_size(1).map(|text: String| text.len(), (0..64).map(|_| "x".repeat(1 << 20)));
    assert_eq!(sums.unwrap(), [1 << 20; 64]);
}

#[test]
fn a_panic_fails_its_task_with_message_and_place() {
    let pool = Pool::new(1).unwrap();
    let pid = pool.apply(std::process::id, ()).unwrap();
    let line = line!() + 1;
    let error = pool.apply(|n: u32| -> u32 { panic!("{n} is too many") }, (7,)).unwrap_err();
    let TaskError::Panicked(panic) = error else { panic!("{error:?}") };
    assert_eq!(panic.message, "7 is too many");
    let location = panic.location.unwrap();
    assert_eq!((location.line, location.file.ends_with("pool.rs")), (line, true));
    assert_eq!(pool.apply(std::process::id, ()).unwrap(), pid, "the worker goes on");

    let failing = |n: u64| if n.is_multiple_of(10) { panic!("ten") } else { n };
    let error = pool.map(failing, 0..100).unwrap_err();
    assert!(matches!(&error, TaskError::Panicked(panic) if panic.message == "ten"), "{error:?}");
    // In a stream, each has its own.
    for size in [1, 7] {
        let all: Vec<_> = pool.options().chunk_size(size).imap(failing, 0..100).unwrap().collect();
        assert_eq!(all.len(), 100);
        for (n, result) in (0..).zip(all) {
            match result {
                Ok(same) => assert_eq!(same, n),
                Err(TaskError::Panicked(_)) => assert!(n % 10 == 0),
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

/// Can be sent, but not back.
#[derive(Debug, Deserialize)]
struct OneWay(u8);

impl Serialize for OneWay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            0 => Err(serde::ser::Error::custom("not this one")),
            1 => panic!("nor this one"),
            n => n.serialize(serializer),
        }
    }
}

/// Can be written, but not read.
#[derive(Debug, Serialize)]
struct Unreadable(u8);

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Err(serde::de::Error::custom("unreadable")),
            1 => panic!("quite unreadable"),
            n => Ok(Self(n)),
        }
    }
}

#[test]
fn what_cannot_be_sent_or_read_fails_alone() {
    let pool = Pool::new(1).unwrap();
    assert!(matches!(pool.apply(OneWay, (0,)).unwrap_err(), TaskError::Unsendable(_)));
    assert!(matches!(pool.apply(OneWay, (1,)).unwrap_err(), TaskError::Panicked(_)));
    assert_eq!(pool.apply(OneWay, (2,)).unwrap().0, 2);
    let refused = pool.apply(|it: OneWay| it.0, (OneWay(0),)).unwrap_err();
    assert!(matches!(refused, TaskError::Submit(SubmitError::Encode(_))), "{refused:?}");
    assert!(matches!(pool.apply(|it: Unreadable| it.0, (Unreadable(0),)).unwrap_err(), TaskError::Arguments(_)));
    assert!(matches!(pool.apply(|it: Unreadable| it.0, (Unreadable(1),)).unwrap_err(), TaskError::Panicked(_)));
    assert!(matches!(pool.apply(Unreadable, (0,)).unwrap_err(), TaskError::Decode(_)));
    assert!(matches!(pool.map_async(|it: OneWay| it.0, [OneWay(2), OneWay(0)]), Err(SubmitError::Encode(_))));
    for size in [1, 2] {
        let items = [2, 2, 0, 2, 2].map(OneWay);
        let all: Vec<_> = pool.options().chunk_size(size).imap(|it: OneWay| it.0, items).unwrap().collect();
        assert_eq!(all.len(), 5);
        assert!(matches!(&all[2], Err(TaskError::Submit(SubmitError::Encode(_)))), "{all:?}");
        assert_eq!(all.iter().filter(|it| it.is_err()).count(), size);
    }
    // Nothing is left of any of it.
    pool.join();
}

#[test]
fn what_has_descriptors_goes_both_ways() {
    let pool = Pool::new(2).unwrap();
    let lock = Lock::new(0_u64).unwrap();
    let adding = |lock: Lock<u64>, n: u64| *lock.acquire().unwrap() += n;
    pool.starmap(adding, (0..100).map(|n| (lock.clone(), n))).unwrap();
    assert_eq!(*lock.acquire().unwrap(), 4950);

    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = pool
        .apply(
            |Handle(mut file): Handle<File>| {
                file.write_all(b"from the worker").unwrap();
                Handle(file)
            },
            (Handle(File::from(std::os::fd::OwnedFd::from(writer))),),
        )
        .unwrap();
    writer.0.try_clone().unwrap().write_all(b", and from here").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the worker, and from here");
}

static PREPARED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn each_worker_runs_the_initializer_with_what_it_is_given() {
    let count = Lock::new(0_u32).unwrap();
    let pool = Pool::builder()
        .workers(3)
        .max_tasks_per_child(2)
        .initializer(
            |count: Lock<u32>, value: usize| {
                *count.acquire().unwrap() += 1;
                PREPARED.store(value, Ordering::Relaxed);
            },
            (count.clone(), 77),
        )
        .build()
        .unwrap();
    for _ in 0..20 {
        assert_eq!(pool.apply(|| PREPARED.load(Ordering::Relaxed), ()).unwrap(), 77);
    }
    pool.join();
    assert_eq!(PREPARED.load(Ordering::Relaxed), 0, "not in this process");
    let count = *count.acquire().unwrap();
    assert!(count >= 10, "20 tasks by workers that do two each, and {count} workers");
}

#[test]
fn workers_are_replaced_after_their_tasks() {
    let pool = Pool::builder().workers(2).max_tasks_per_child(5).build().unwrap();
    let pids = pool.options().chunk_size(1).map(|_: u32| std::process::id(), 0..200).unwrap();
    let mut tasks_of = std::collections::HashMap::new();
    for pid in pids {
        *tasks_of.entry(pid).or_insert(0) += 1;
    }
    assert!(tasks_of.values().all(|&tasks| tasks <= 5), "{tasks_of:?}");
    assert!(tasks_of.len() >= 40);
    pool.join();
    assert_eq!(pool.statistics().tasks_done, 200);
}

#[test]
fn a_result_is_waited_for_as_one_likes() {
    let pool = Pool::new(1).unwrap();
    let gate = Lock::new(()).unwrap();
    let held = gate.acquire().unwrap();
    let result = pool.apply_async(|gate: Lock<()>| drop(gate.acquire().unwrap()), (gate.clone(),)).unwrap();
    assert!(!result.ready());
    assert_eq!(result.successful(), None);
    assert!(!result.wait_timeout(Duration::from_millis(20)));
    let Err(GetError::TimedOut(result)) = result.get_timeout(Duration::from_millis(20)) else { panic!("too soon") };
    drop(held);
    result.wait();
    assert!(result.ready());
    assert_eq!(result.successful(), Some(true));
    result.get_timeout(Duration::ZERO).unwrap();

    let failed = pool.apply_async(|| panic!("no"), ()).map(|result: procession::AsyncResult<()>| result).unwrap();
    failed.wait();
    assert_eq!(failed.successful(), Some(false));
    assert!(matches!(failed.get_timeout(Duration::ZERO), Err(GetError::Failed(TaskError::Panicked(_)))));
}

#[test]
fn callbacks_are_called_once_each() {
    let pool = Pool::new(2).unwrap();
    let (sender, receiver) = mpsc::channel();
    let mut results = Vec::new();
    for n in 0..100_u64 {
        let (good, bad) = (sender.clone(), sender.clone());
        let result = pool.apply_async_with(
            |n: u64| if n.is_multiple_of(2) { n } else { panic!("odd") },
            (n,),
            move |n| good.send(Some(*n)).unwrap(),
            move |error| {
                assert!(matches!(error, TaskError::Panicked(_)));
                bad.send(None).unwrap();
            },
        );
        results.push(result.unwrap());
    }
    for (n, result) in (0_u64..).zip(results) {
        assert_eq!(result.get().ok(), n.is_multiple_of(2).then_some(n));
    }
    // All were called before their results were given out.
    let called: Vec<_> = receiver.try_iter().collect();
    assert_eq!(called.len(), 100);
    assert_eq!(called.iter().flatten().sum::<u64>(), (0..100).step_by(2).sum());

    let (sender, receiver) = mpsc::channel();
    let (good, bad) = (sender.clone(), sender);
    let send_length = move |all: &Vec<u64>| good.send(all.len()).unwrap();
    // The handle is not needed.
    drop(pool.map_async_with(square, 0..500, send_length, move |_| bad.send(0).unwrap()).unwrap());
    assert_eq!(receiver.recv().unwrap(), 500);
}

#[test]
fn a_callback_that_panics_harms_nobody() {
    let pool = Pool::new(1).unwrap();
    let result = pool.apply_async_with(square, (4,), |_| panic!("in the callback"), |_| ()).unwrap();
    assert_eq!(result.get().unwrap(), 16);
    let (sender, receiver) = mpsc::channel();
    let _later = pool.apply_async_with(square, (5,), move |n| sender.send(*n).unwrap(), |_| ()).unwrap();
    assert_eq!(receiver.recv().unwrap(), 25);
    // One from which the pool itself is ended.
    let pool = Arc::new(pool);
    let (sender, receiver) = mpsc::channel();
    let within = pool.clone();
    let end = move |_: &u64| {
        within.terminate();
        within.join();
        sender.send(()).unwrap();
    };
    let _result = pool.apply_async_with(square, (6,), end, |_| ()).unwrap();
    receiver.recv().unwrap();
    assert!(matches!(pool.apply(square, (1,)), Err(TaskError::Submit(SubmitError::Closed))));
}

#[test]
fn a_stream_takes_no_more_than_its_window() {
    let pool = Pool::new(2).unwrap();
    let taken = AtomicUsize::new(0);
    let items = (0_u64..).inspect(|_| {
        taken.fetch_add(1, Ordering::Relaxed);
    });
    let mut given = 0;
    let mut results = pool.options().window(5).imap(square, items).unwrap();
    assert_eq!(taken.load(Ordering::Relaxed), 0, "nothing is taken before anything is asked for");
    while given < 500 {
        assert_eq!(results.next().unwrap().unwrap(), square(given));
        given += 1;
        let ahead = taken.load(Ordering::Relaxed) - given as usize;
        assert!(ahead <= 5, "{ahead} tasks are under way");
    }
    drop(results);
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);

    let taken = AtomicUsize::new(0);
    let items = (0_u64..).inspect(|_| {
        taken.fetch_add(1, Ordering::Relaxed);
    });
    let mut results = pool.options().window(3).chunk_size(10).imap_unordered(square, items).unwrap();
    for given in 1..500 {
        results.next().unwrap().unwrap();
        assert!(taken.load(Ordering::Relaxed) <= given + 10 + 30);
    }
}

#[test]
fn a_stream_whose_items_follow_from_its_results_goes_on() {
    let pool = Pool::new(2).unwrap();
    let (sender, receiver) = mpsc::channel();
    sender.send(1_u64).unwrap();
    sender.send(2).unwrap();
    // The iterator blocks when there are no more: a result that is there must not wait for it.
    let mut doubled = pool.options().window(2).imap(|n: u64| n * 2, receiver).unwrap();
    for _ in 0..20 {
        let n = doubled.next().unwrap().unwrap();
        sender.send(n).unwrap();
    }
    drop(sender);
    assert_eq!(doubled.count(), 2);
}

#[test]
fn what_is_dropped_half_way_is_forgotten() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..20 {
        drop(pool.apply_async(square, (2,)).unwrap());
        drop(pool.map_async(square, 0..100).unwrap());
        let mut stream = pool.imap(square, 0..).unwrap();
        stream.next().unwrap().unwrap();
        drop(stream);
        drop(pool.imap_unordered(square, 0..).unwrap());
    }
    assert_eq!(pool.apply(square, (5,)).unwrap(), 25);
    // Were anything still under way, this would not end.
    pool.join();
}

#[test]
fn an_iterator_that_panics_leaves_nothing_behind() {
    let pool = Pool::new(1).unwrap();
    let items = || (0..10_u64).inspect(|&n| assert!(n < 5, "no more items"));
    let call = std::panic::AssertUnwindSafe(|| pool.map_async(square, items()).is_ok());
    std::panic::catch_unwind(call).unwrap_err();
    let call = std::panic::AssertUnwindSafe(|| pool.imap(square, items()).unwrap().count());
    std::panic::catch_unwind(call).unwrap_err();
    pool.join();
}

#[test]
fn a_closed_pool_does_what_it_has_and_no_more() {
    let pool = Pool::new(2).unwrap();
    let results = pool.map_async(nap, [50, 0, 20]).unwrap();
    let mut stream = pool.imap(square, 0..10).unwrap();
    pool.close();
    assert!(matches!(pool.apply(add, (1, 1)), Err(TaskError::Submit(SubmitError::Closed))));
    assert!(matches!(pool.apply_async(add, (1, 1)), Err(SubmitError::Closed)));
    assert!(matches!(pool.map_async(square, 0..3), Err(SubmitError::Closed)));
    assert!(matches!(pool.imap(square, 0..3), Err(SubmitError::Closed)));
    // What was begun goes on.
    assert_eq!(stream.by_ref().map(Result::unwrap).sum::<u64>(), 285);
    pool.join();
    assert!(results.ready());
    assert_eq!(results.get().unwrap(), [50, 0, 20]);
    assert!(pool.statistics().pids.is_empty());
}

#[test]
fn a_terminated_pool_gives_up_what_it_has() {
    let pool = Pool::new(1).unwrap();
    let stuck = pool.apply_async(nap, (600_000,)).unwrap();
    let queued = pool.map_async(nap, [0, 600_000]).unwrap();
    let mut stream = pool.imap(nap, [600_000]).unwrap();
    let (sender, receiver) = mpsc::channel::<()>();
    let error = sender.clone();
    let called =
        pool.apply_async_with(nap, (600_000,), move |_| sender.send(()).unwrap(), move |_| error.send(()).unwrap());
    let called = called.unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stuck.get());
        sleep(Duration::from_millis(20));
        pool.terminate();
        assert!(matches!(waiting.join().unwrap(), Err(TaskError::Terminated)));
    });
    assert!(matches!(queued.get(), Err(TaskError::Terminated)));
    assert!(matches!(stream.next(), Some(Err(TaskError::Terminated))));
    assert!(stream.next().is_none());
    assert!(matches!(called.get(), Err(TaskError::Terminated)));
    assert!(receiver.recv().is_err(), "no callback is called, nor kept");
    pool.join();
}

#[test]
fn results_outlive_their_pool() {
    let pool = Pool::new(1).unwrap();
    let (done, stuck) = (pool.apply_async(add, (1, 2)).unwrap(), pool.apply_async(nap, (600_000,)).unwrap());
    done.wait();
    drop(pool);
    assert_eq!(done.get().unwrap(), 3);
    assert!(matches!(stuck.get(), Err(TaskError::Terminated)));
}

#[test]
fn two_pools_work_side_by_side() {
    let pools = [Pool::new(1).unwrap(), Pool::builder().workers(2).name("other").build().unwrap()];
    let results: Vec<_> = pools.iter().map(|pool| pool.map_async(square, 0..1000).unwrap()).collect();
    for result in results {
        assert_eq!(result.get().unwrap()[999], 998_001);
    }
    let name = pools[1].apply(|| procession::current_process().name().to_owned(), ()).unwrap();
    assert!(name.starts_with("other-"), "{name}");
}

#[test]
fn a_worker_may_have_a_pool_of_its_own() {
    let sum_of_squares = |n: u64| -> u64 { Pool::new(2).unwrap().map(square, 0..n).unwrap().iter().sum() };
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.map(sum_of_squares, [2, 3, 4]).unwrap(), [1, 5, 14]);
}

#[test]
fn workers_come_from_the_fork_server_as_well() {
    let pool = Pool::builder().workers(2).start_method(StartMethod::Forkserver).build().unwrap();
    assert_eq!(pool.map(square, 0..100).unwrap()[99], 9801);
    let lost = pool.apply(|| std::process::abort(), ()).map(|(): ()| ()).unwrap_err();
    assert!(matches!(lost, TaskError::WorkerLost { exit: procession::Exit::Signal(libc::SIGABRT), .. }), "{lost:?}");
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

#[test]
fn statistics_tell_what_is_going_on() {
    let pool = Pool::new(2).unwrap();
    let gate = Lock::new(()).unwrap();
    let held = gate.acquire().unwrap();
    let waiting = |gate: Lock<()>| drop(gate.acquire().unwrap());
    let results: Vec<_> = (0..5).map(|_| pool.apply_async(waiting, (gate.clone(),)).unwrap()).collect();
    let until = Instant::now() + Duration::from_secs(60);
    while pool.statistics().at_work < 2 && Instant::now() < until {
        sleep(Duration::from_millis(5));
    }
    let statistics = pool.statistics();
    assert_eq!((statistics.workers, statistics.at_work, statistics.queued, statistics.tasks_done), (2, 2, 3, 0));
    let pids: HashSet<_> = statistics.pids.into_iter().collect();
    drop(held);
    for result in results {
        result.get().unwrap();
    }
    assert!(pids.contains(&pool.apply(std::process::id, ()).unwrap()));
    assert_eq!(pool.statistics().queued, 0);
}

#[test]
fn bad_settings_are_errors() {
    assert!(matches!(Pool::new(0), Err(PoolError::NoWorkers)));
    let refused = Pool::builder().workers(1).initializer(|_: OneWay| (), (OneWay(0),)).build();
    assert!(matches!(refused, Err(PoolError::Encode(_))), "{refused:?}");
}

/// In a process of its own: other tests open descriptors, too.
fn open_and_end_pools() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(Pool::new(1).unwrap());
    let before = descriptors();
    for n in 0..200 {
        let pool = Pool::new(1).unwrap();
        assert_eq!(pool.apply(add, (n, 1)).unwrap(), n + 1);
        if n % 2 == 0 {
            pool.join();
        }
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn pools_leave_no_descriptors_behind() {
    procession::Process::spawn(open_and_end_pools, ()).unwrap().join().unwrap();
}

#[test]
fn a_forked_child_can_do_nothing_with_it_and_no_harm() {
    let pool = Pool::new(1).unwrap();
    let (done, stuck) = (pool.apply_async(add, (1, 2)).unwrap(), pool.apply_async(nap, (600_000,)).unwrap());
    done.wait();
    let stream = pool.imap(square, 0..10).unwrap();
    // SAFETY: the child uses the allocator, which glibc allows after a fork, and exits.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let forked = |error: TaskError| matches!(error, TaskError::Submit(SubmitError::Forked));
        let refused = pool.apply(add, (1, 2)).is_err_and(forked)
            && pool.map(square, 0..3).is_err_and(forked)
            && matches!(pool.imap(square, 0..3), Err(SubmitError::Forked))
            && stuck.ready()
            && stuck.get().is_err_and(forked)
            && stream.count() == 0;
        pool.close();
        pool.terminate();
        pool.join();
        drop((done, pool));
        // SAFETY: ends the child.
        #[allow(unsafe_code)]
        unsafe {
            libc::_exit(i32::from(!refused))
        };
    }
    let mut status = 0;
    // SAFETY: waits for the child.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!((waited, status), (pid, 0));
    assert_eq!(done.get().unwrap(), 3);
    assert_eq!(pool.statistics().pids.len(), 1);
    assert!(matches!(stuck.get_timeout(Duration::ZERO), Err(GetError::TimedOut(_))));
    drop(stream);
}
