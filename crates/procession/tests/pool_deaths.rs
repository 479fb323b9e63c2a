//! Pools whose workers die, in every way and at every time.

use std::{
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use procession::{Exit, Lock, Pool, Process, StartMethod, TaskError};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

procession::test_support!();

fn square(n: u64) -> u64 {
    n * n
}

fn kill(pid: u32) {
    // It may have ended already.
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
}

fn die(by: i32) {
    // SAFETY: sends a signal to this process.
    #[allow(unsafe_code)]
    unsafe {
        libc::raise(by)
    };
}

fn lost(error: TaskError) -> Exit {
    match error {
        TaskError::WorkerLost { exit, .. } => exit,
        other => panic!("not a lost worker: {other:?}"),
    }
}

/// Until something is so.
fn wait_until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < end, "it never came to be");
        sleep(Duration::from_millis(5));
    }
}

fn runs(pid: u32) -> bool {
    // A zombie has ended, whoever is to reap it.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

fn overflow(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 512]);
    if room[0] == u64::MAX {
        return 0;
    }
    overflow(depth + 1) + room[(depth % 512) as usize]
}

#[test]
fn a_task_is_told_how_its_worker_ended() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(lost(pool.apply(die, (libc::SIGKILL,)).unwrap_err()), Exit::Signal(libc::SIGKILL));
    assert_eq!(lost(pool.apply(die, (libc::SIGTERM,)).unwrap_err()), Exit::Signal(libc::SIGTERM));
    let exit = |code: i32| -> u8 { std::process::exit(code) };
    assert_eq!(lost(pool.apply(exit, (7,)).unwrap_err()), Exit::Code(7));
    assert_eq!(lost(pool.apply(exit, (0,)).unwrap_err()), Exit::Code(0));
    let abort = || -> u8 { std::process::abort() };
    assert_eq!(lost(pool.apply(abort, ()).unwrap_err()), Exit::Signal(libc::SIGABRT));
    let overflowed = lost(pool.apply(overflow, (0,)).unwrap_err());
    assert!(matches!(overflowed, Exit::Signal(libc::SIGABRT | libc::SIGSEGV)), "{overflowed:?}");
    let error = pool.apply(die, (libc::SIGKILL,)).unwrap_err();
    assert!(error.to_string().contains("signal 9"), "{error}");
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

#[test]
fn no_other_task_is_lost_with_a_worker() {
    let pool = Pool::new(2).unwrap();
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
    // In a map it stands for the whole, in a stream for its item, or each of its chunk.
    let deadly = |n: u64| {
        if n == 33 {
            die(libc::SIGKILL);
        }
        n
    };
    lost(pool.map(deadly, 0..100).unwrap_err());
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
                        kill(pid);
                    }
                    // A pool whose workers always die before they are ready gives up.
                    let done = pool.statistics().tasks_done;
                    wait_until(|| pool.statistics().tasks_done > done + 50);
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
            wait_until(|| !runs(pid));
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
    wait_until(|| pool.statistics().at_work == 3);
    for pid in pool.statistics().pids {
        kill(pid);
    }
    wait_until(|| pool.statistics().at_work == 3 && pool.statistics().queued == 0);
    drop(held);
    let outcomes: Vec<_> = results.into_iter().map(procession::AsyncResult::get).collect();
    assert_eq!(outcomes.iter().filter(|it| it.is_err()).count(), 3);
    assert_eq!(pool.statistics().pids.len(), 3);
}

#[test]
fn an_initializer_that_fails_ends_the_waiting() {
    let panicking = Pool::builder().workers(2).initializer(|| panic!("not today"), ()).build().unwrap();
    let error = panicking.apply(square, (1,)).unwrap_err();
    assert!(matches!(&error, TaskError::NoWorkers(_)), "{error:?}");
    assert!(error.to_string().contains("code 1"), "{error}");
    // Now, and whenever.
    assert!(matches!(panicking.map(square, 0..10), Err(TaskError::NoWorkers(_))));
    assert!(panicking.imap(square, 0..10).unwrap().all(|it| matches!(it, Err(TaskError::NoWorkers(_)))));
    panicking.join();

    let killed = Pool::builder().workers(1).initializer(die, (libc::SIGKILL,)).build().unwrap();
    let results: Vec<_> = (0..5).map(|n| killed.apply_async(square, (n,)).unwrap()).collect();
    for result in results {
        assert!(matches!(result.get(), Err(TaskError::NoWorkers(_))));
    }
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

#[test]
fn a_task_has_its_time_and_no_more() {
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

/// A process with a pool of two workers at a task without end. Tells their pids, and never ends by itself.
fn parent(mut out: procession::Handle<std::fs::File>, method: StartMethod) {
    let pool = Pool::builder().workers(2).start_method(method).build().unwrap();
    let stuck: Vec<_> = (0..3).map(|_| pool.apply_async(|| sleep(Duration::from_secs(600)), ()).unwrap()).collect();
    let pids = pool.statistics().pids;
    writeln!(out.0, "{} {}", pids[0], pids[1]).unwrap();
    drop(out);
    for result in stuck {
        result.get().unwrap();
    }
}

#[test]
fn no_worker_outlives_its_parent() {
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = std::fs::File::from(std::os::fd::OwnedFd::from(writer));
        let child = Process::spawn(parent, (procession::Handle(writer.try_clone().unwrap()), method)).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2);
        assert!(pids.iter().all(|&pid| runs(pid)));
        kill(child.pid());
        for pid in pids {
            wait_until(|| !runs(pid));
        }
    }
}

/// A program of its own, in a process group of its own: a map that takes a while.
#[test]
#[ignore = "run by another test"]
fn interrupted_program() {
    let pool = Pool::new(2).unwrap();
    // Both workers are at it.
    let held = pool.map_async(|_: u8| std::process::id(), [0, 1]).unwrap();
    held.get().unwrap();
    println!("pids {:?}", pool.statistics().pids);
    let result = pool.options().chunk_size(1).map(
        |_: u8| {
            sleep(Duration::from_millis(300));
            std::process::id()
        },
        [0, 1, 2, 3],
    );
    println!("map {}", result.is_ok());
}

/// Starts that program. Returns it, what it prints from now on, and the pids of its workers.
fn interrupted() -> (std::process::Child, std::process::ChildStdout, Vec<u32>) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--ignored", "--exact", "interrupted_program", "--nocapture", "--test-threads=1"]);
    let mut child = program.process_group(0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut seen = String::new();
    let list = loop {
        if let Some((list, _)) = seen.split_once("pids [").and_then(|(_, rest)| rest.split_once(']')) {
            break list;
        }
        let mut bytes = [0; 256];
        let count = output.read(&mut bytes).unwrap();
        assert!(count > 0, "it ended: {seen}");
        seen.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    };
    let pids = list.split(", ").map(|pid| pid.parse().unwrap()).collect();
    (child, output, pids)
}

#[test]
fn workers_take_no_notice_of_an_interrupt() {
    let (mut child, mut output, pids) = interrupted();
    for &pid in &pids {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::INT).unwrap();
    }
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("map true"), "{rest}");
    assert!(child.wait().unwrap().success());
    assert!(!pids.into_iter().any(runs));
}

#[test]
fn an_interrupt_of_the_parent_ends_its_workers() {
    let (mut child, _output, pids) = interrupted();
    // As a terminal does.
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
    for pid in pids {
        wait_until(|| !runs(pid));
    }
}
