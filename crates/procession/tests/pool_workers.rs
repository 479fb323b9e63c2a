//! What pools do with their workers: more and fewer of them, on certain CPUs, with memory of their own, and what they leave;
//! and in which order and in how large pieces they get tasks.

mod support;

use std::{
    cell::Cell,
    collections::BTreeSet,
    thread::sleep,
    time::{Duration, Instant},
};

use procession::{Event, Lock, Pool, Queue, StartMethod, TaskError, cpu_count, pool::PoolError};
use support::{
    until,
    workers::{die, square},
};

procession::test_support!();

thread_local! {
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

fn see(n: u64) -> u64 {
    SEEN.set(SEEN.get() + 1);
    n
}

#[test]
fn workers_leave_what_they_have() {
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let builder = Pool::builder().workers(3).start_method(method).initializer(|| SEEN.set(1000), ());
        let pool = builder.worker_exit(|| (std::process::id(), SEEN.get())).build().unwrap();
        let pids = pool.statistics().pids;
        assert!(pool.exit_results::<(u32, u64)>().is_empty());
        pool.options().chunk_size(1).map(see, 0..60).unwrap();
        pool.join();
        let left: Vec<_> = pool.exit_results::<(u32, u64)>().into_iter().map(Result::unwrap).collect();
        assert_eq!(left.iter().map(|(pid, _)| *pid).collect::<BTreeSet<_>>(), pids.into_iter().collect());
        assert_eq!(left.iter().map(|(_, seen)| seen).sum::<u64>(), 3060);
        assert!(pool.exit_results::<(u32, u64)>().is_empty(), "each is told once");
    }
}

#[test]
fn workers_that_are_replaced_leave_something_and_those_that_die_do_not() {
    let pool = Pool::builder().workers(1).max_tasks_per_child(2).worker_exit(|| SEEN.get()).build().unwrap();
    pool.options().chunk_size(1).map(see, 0..5).unwrap();
    pool.apply(die, (libc::SIGKILL,)).unwrap_err();
    pool.apply(see, (7,)).unwrap();
    pool.join();
    let left: Vec<_> = pool.exit_results::<u64>().into_iter().map(Result::unwrap).collect();
    // The one that died had done one task, and one was begun after it.
    assert_eq!(left, [2, 2, 1]);

    let terminated = Pool::builder().workers(1).worker_exit(|| SEEN.get()).build().unwrap();
    terminated.apply(see, (1,)).unwrap();
    terminated.terminate();
    assert!(terminated.exit_results::<u64>().is_empty());
}

#[test]
fn what_a_worker_can_not_leave_is_an_error() {
    let pool = Pool::builder().workers(1).worker_exit(|| -> u8 { panic!("too late") }).build().unwrap();
    pool.apply(square, (1,)).unwrap();
    pool.join();
    match &pool.exit_results::<u8>()[..] {
        [Err(TaskError::Panicked(panic))] => assert_eq!(panic.message, "too late"),
        other => panic!("{other:?}"),
    }
    let pool = Pool::builder().workers(2).worker_exit(|| Lock::new(0_u8).unwrap()).build().unwrap();
    pool.join();
    let left = pool.exit_results::<Lock<u8>>();
    assert!(matches!(&left[..], [Err(TaskError::Unsendable(_)), Err(TaskError::Unsendable(_))]), "{left:?}");
    let pool = Pool::builder().workers(1).worker_exit(|| 5_u64).build().unwrap();
    pool.join();
    assert!(matches!(&pool.exit_results::<String>()[..], [Err(TaskError::Decode(_))]));
}

#[test]
fn pools_grow_and_shrink() {
    let pool = Pool::new(1).unwrap();
    pool.grow(2).unwrap();
    assert_eq!((pool.statistics().workers, pool.statistics().pids.len()), (3, 3));
    // All three have to be there for this to end.
    let (gate, count) = (Event::new().unwrap(), Lock::new(0_u32).unwrap());
    let meet = |gate: Event, count: Lock<u32>| {
        *count.acquire().unwrap() += 1;
        gate.wait();
    };
    let meeting: Vec<_> = (0..3).map(|_| pool.apply_async(meet, (gate.clone(), count.clone())).unwrap()).collect();
    until(|| *count.acquire().unwrap() == 3);
    pool.shrink(2).unwrap();
    assert_eq!(pool.statistics().workers, 1);
    gate.set();
    for result in meeting {
        result.get().unwrap();
    }
    until(|| pool.statistics().pids.len() == 1);
    assert!(matches!(pool.shrink(1), Err(PoolError::NoWorkers)));
    assert_eq!(pool.map(square, 0..100).unwrap()[99], 9801);
    pool.grow(1).unwrap();
    assert_eq!(pool.statistics().pids.len(), 2);
    pool.join();
    // Nothing is started any more.
    pool.grow(1).unwrap();
    assert!(pool.statistics().pids.is_empty());
}

#[test]
fn workers_run_on_their_cpus() {
    let mine = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| mine.is_set(*cpu)).collect();
    let pool = Pool::builder().workers(2).cpu_ids([[cpus[0]]]).build().unwrap();
    assert!(pool.options().chunk_size(1).map(|_: u8| cpu_count(), 0..20).unwrap().into_iter().all(|count| count == 1));
    let pool = Pool::builder().workers(1).cpu_ids([cpus.clone(), vec![cpus[0]]]).build().unwrap();
    assert_eq!(pool.apply(cpu_count, ()).unwrap(), cpus.len());
    assert!(matches!(Pool::builder().cpu_ids([vec![], vec![0]]).build(), Err(PoolError::Cpu(None))));
    let beyond = Pool::builder().cpu_ids([[cpus[0], 100_000]]).build();
    assert!(matches!(beyond, Err(PoolError::Cpu(Some(100_000)))));
}

#[test]
fn workers_with_much_memory_are_replaced() {
    let pool = Pool::builder().workers(1).max_memory_per_child(100 << 20).build().unwrap();
    let grow = |length: usize| {
        std::mem::forget(std::hint::black_box(vec![1_u8; length]));
        std::process::id()
    };
    let first = pool.apply(grow, (1000,)).unwrap();
    assert_eq!(pool.apply(grow, (150 << 20,)).unwrap(), first);
    let next = pool.apply(grow, (1000,)).unwrap();
    assert_ne!(next, first);
    assert_eq!(pool.apply(grow, (1000,)).unwrap(), next);
}

#[test]
fn tasks_of_a_higher_priority_come_first() {
    let pool = Pool::new(1).unwrap();
    let (gate, order) = (Event::new().unwrap(), Queue::new().unwrap());
    let hold = |gate: Event| gate.wait();
    let note = |order: Queue<i32>, priority: i32| order.put(priority).unwrap();
    let held = pool.apply_async(hold, (gate.clone(),)).unwrap();
    until(|| pool.statistics().at_work == 1);
    let results: Vec<_> = [0, -1, 5, 0, 5, 2, -1, 0, 7]
        .map(|priority| pool.options().priority(priority).apply_async(note, (order.clone(), priority)).unwrap())
        .into();
    gate.set();
    held.get().unwrap();
    for result in results {
        result.get().unwrap();
    }
    assert_eq!(order.get_many(9).unwrap(), [7, 5, 5, 2, 0, 0, 0, -1, -1]);
}

#[test]
fn chunks_follow_from_the_time_that_items_take() {
    let pool = Pool::new(2).unwrap();
    let auto = pool.options().auto_chunks();
    assert_eq!(auto.map(square, 0..30_000).unwrap(), (0..30_000).map(square).collect::<Vec<_>>());
    assert_eq!(auto.starmap(|a: u64, b: u64| a * b, (0..3000).map(|n| (n, 2))).unwrap()[2999], 5998);
    assert!(auto.map(square, std::iter::empty()).unwrap().is_empty());
    // Without a known end, and without any.
    let even = (0..30_000).filter(|n| n % 2 == 0);
    assert_eq!(auto.map(square, even).unwrap().len(), 15_000);
    let some: Vec<_> = auto.imap(square, 0..).unwrap().take(5000).map(Result::unwrap).collect();
    assert!(some.into_iter().eq((0..5000).map(square)));
    let mut all: Vec<_> = auto.imap_unordered(square, 0..20_000).unwrap().map(Result::unwrap).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq((0..20_000).map(square)));
    // Slow items go one by one, so that one of them can be waited for.
    let nap = |ms: u64| sleep(Duration::from_millis(ms));
    let began = Instant::now();
    assert!(auto.imap(nap, [20, 20, 600_000]).unwrap().next().unwrap().is_ok());
    assert!(began.elapsed() >= Duration::from_millis(20));
    let done = pool.statistics().tasks_done;
    assert!(done < 20_000, "{done} tasks: chunks never grew");
    // A worker that dies takes its chunk with it, however large, and each item is told of.
    let deadly = |n: u64| {
        if n == 7000 {
            die(libc::SIGKILL);
        }
        n
    };
    let all: Vec<_> = auto.imap(deadly, 0..10_000).unwrap().collect();
    assert_eq!(all.len(), 10_000);
    assert!(all[7000].is_err() && all[0].is_ok());
    assert!(matches!(auto.map(deadly, 0..10_000), Err(TaskError::WorkerLost { .. })));
}
