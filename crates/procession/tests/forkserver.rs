//! Children of the fork server.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use procession::{
    Child, Exit, Handle, JoinError, Process, StartError, StartMethod, Stdio, active_children, current_process,
    forkserver, parent_process, process::Builder,
};
use procession_core::{process::Sentinel, sync::Wait};

procession::test_support!();

fn builder() -> Builder {
    Process::builder().start_method(StartMethod::Forkserver)
}

/// Where tests run as threads of one process, they have one server in common, so they go one by one and begin without it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    forkserver::set_preload(|| {});
    if let Some(server) = forkserver::pid() {
        kill(server);
    }
    alone
}

#[allow(unsafe_code)]
fn mask_interrupts(how: libc::c_int) {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set of this function's own.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGINT) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn sleep_for_ever() {
    loop {
        std::thread::park();
    }
}

#[test]
fn children_are_copies_of_the_server() {
    let _alone = alone();
    forkserver::ensure_running().unwrap();
    let server = forkserver::pid().unwrap();
    let child = builder().spawn(std::os::unix::process::parent_id, ()).unwrap();
    assert_eq!(child.join().unwrap(), server);
    // To the program they are its own.
    let child =
        builder().spawn(|| (parent_process().unwrap().pid(), parent_process().unwrap().is_alive()), ()).unwrap();
    assert_eq!(child.join().unwrap(), (std::process::id(), true));
    let mut names: Vec<_> =
        (0..3).map(|_| builder().spawn(|| current_process().name().to_string(), ()).unwrap().join().unwrap()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3);
}

static PREPARED: AtomicU32 = AtomicU32::new(0);

#[test]
fn what_was_prepared_is_there_in_all() {
    let _alone = alone();
    forkserver::set_preload(|| PREPARED.store(std::process::id(), Ordering::Relaxed));
    for _ in 0..2 {
        let child = builder().spawn(|| PREPARED.load(Ordering::Relaxed), ()).unwrap();
        assert_eq!(child.join().unwrap(), forkserver::pid().unwrap());
    }
    assert_eq!(PREPARED.load(Ordering::Relaxed), 0);
}

#[test]
fn a_preload_that_panics_is_done_without() {
    let _alone = alone();
    forkserver::set_preload(|| panic!("can't prepare"));
    assert_eq!(builder().spawn(|| 5, ()).unwrap().join().unwrap(), 5);
}

#[test]
fn a_server_with_threads_is_refused() {
    let _alone = alone();
    forkserver::set_preload(|| {
        std::thread::spawn(sleep_for_ever);
    });
    match builder().spawn(|| (), ()) {
        Err(StartError::Server(why)) => assert!(why.contains("2 threads"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptors_and_large_values_go_both_ways() {
    let _alone = alone();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = builder()
        .spawn(
            |Handle(mut file): Handle<File>, bytes: Vec<u8>| {
                file.write_all(b"from the child").unwrap();
                (Handle(file), bytes.len(), bytes)
            },
            (Handle(File::from(OwnedFd::from(writer))), vec![7; 200_000]),
        )
        .unwrap();
    let (Handle(mut writer), length, bytes) = child.join().unwrap();
    assert_eq!((length, bytes), (200_000, vec![7; 200_000]));
    writer.write_all(b", and after it").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the child, and after it");
}

#[test]
fn ends_are_told() {
    let _alone = alone();
    let child = builder().spawn(|| std::process::exit(7), ()).unwrap();
    assert!(matches!(Child::<()>::join(child), Err(JoinError::Exited(7))));
    let child = builder().spawn(sleep_for_ever, ()).unwrap();
    assert!(child.is_alive());
    assert_eq!((child.exit(), child.exit_code()), (None, None));
    assert_eq!(child.wait_timeout(Duration::from_millis(10)), None);
    child.terminate().unwrap();
    assert_eq!(child.wait(), Exit::Signal(libc::SIGTERM));
    assert_eq!(child.exit_code(), Some(-libc::SIGTERM));
    assert!(matches!(child.join(), Err(JoinError::Killed(libc::SIGTERM))));
    let child = builder().spawn(|| -> () { panic!("no") }, ()).unwrap();
    assert_eq!(child.wait(), Exit::Code(101));
    match child.join() {
        Err(JoinError::Panicked(panic)) => assert_eq!(panic.message, "no"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_set_up_is_set_up() {
    let _alone = alone();
    let directory = std::env::temp_dir();
    let child = builder()
        .name("forked")
        .env("PROCESSION_TEST", "value")
        .env_remove("PATH")
        .current_dir(&directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn(
            || {
                let line = std::io::stdin().lines().next().unwrap().unwrap();
                // Without a line's end, it is to be flushed at the end.
                print!("{line}");
                let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
                (comm, std::env::var_os("PROCESSION_TEST"), std::env::var_os("PATH"), std::env::current_dir().unwrap())
            },
            (),
        );
    let mut child = child.unwrap();
    writeln!(child.take_stdin().unwrap(), "there and back").unwrap();
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "there and back");
    let (comm, variable, path, at) = child.join_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!((comm.as_str(), variable.unwrap(), path), ("forked\n", "value".into(), None));
    assert_eq!(at, directory.canonicalize().unwrap());
    assert!(matches!(child.join_timeout(Duration::ZERO), Err(JoinError::Taken)));
}

#[test]
fn a_killed_server_is_started_anew() {
    let _alone = alone();
    let child = builder().spawn(sleep_for_ever, ()).unwrap();
    let first = forkserver::pid().unwrap();
    kill(first);
    // Its children go on.
    assert!(child.is_alive());
    assert_eq!(builder().spawn(|| 5, ()).unwrap().join().unwrap(), 5);
    assert_ne!(forkserver::pid().unwrap(), first);
    // How they end, nobody knows.
    child.kill().unwrap();
    assert_eq!(child.wait(), Exit::Unknown);
    assert!(matches!(child.join(), Err(JoinError::Unknown)));
}

#[test]
fn a_result_arrives_without_the_server() {
    let _alone = alone();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let read = |Handle(mut file): Handle<File>| {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let child = builder().spawn(read, (Handle(File::from(OwnedFd::from(reader))),)).unwrap();
    kill(forkserver::pid().unwrap());
    writer.write_all(b"late").unwrap();
    drop(writer);
    assert_eq!(child.join().unwrap(), "late");
}

#[test]
fn servers_killed_again_and_again_lose_nothing() {
    let _alone = alone();
    for round in 0..30_u32 {
        forkserver::ensure_running().unwrap();
        let server = forkserver::pid().unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(u64::from(round) * 20));
            kill(server);
        });
        assert_eq!(builder().spawn(|n: u32| n, (round,)).unwrap().join().unwrap(), round);
        killer.join().unwrap();
    }
}

/// Kills a process and waits until it is dead.
fn kill(pid: u32) {
    // It may be gone already.
    if let Ok(process) = Sentinel::open(pid) {
        let _ = process.send_signal(libc::SIGKILL);
        process.wait(&mut Wait::forever()).unwrap();
    }
}

#[test]
fn children_can_be_interrupted_whatever_was_blocked_when_the_server_was_started() {
    let _alone = alone();
    mask_interrupts(libc::SIG_BLOCK);
    forkserver::ensure_running().unwrap();
    let blocked = builder().spawn(sleep_for_ever, ()).unwrap();
    mask_interrupts(libc::SIG_UNBLOCK);
    let child = builder().spawn(sleep_for_ever, ()).unwrap();
    child.interrupt().unwrap();
    assert_eq!(child.wait(), Exit::Signal(libc::SIGINT));
    blocked.interrupt().unwrap();
    assert_eq!(blocked.wait_timeout(Duration::from_millis(50)), None);
    blocked.kill().unwrap();
    // It is not for the server.
    let server = Sentinel::open(forkserver::pid().unwrap()).unwrap();
    server.send_signal(libc::SIGINT).unwrap();
    assert!(server.wait(&mut Wait::timeout(Duration::from_millis(50))).is_err());
}

#[test]
fn the_server_ends_with_the_process_that_started_it() {
    let _alone = alone();
    // The child starts a server of its own and a child through that, tells of both, and is killed.
    let (reader, writer) = std::io::pipe().unwrap();
    let child = Process::spawn(
        |Handle(mut told): Handle<File>| {
            let daemonic = builder().daemon(true).spawn(sleep_for_ever, ()).unwrap();
            let server = forkserver::pid().unwrap();
            assert_eq!(parent_of(daemonic.pid()), server);
            writeln!(told, "{server} {}", daemonic.pid()).unwrap();
            drop(told);
            sleep_for_ever();
        },
        (Handle(File::from(OwnedFd::from(writer))),),
    )
    .unwrap();
    let pids = std::io::read_to_string(reader).unwrap();
    let sentinels: Vec<_> = pids.split_whitespace().map(|pid| Sentinel::open(pid.parse().unwrap()).unwrap()).collect();
    assert_eq!(sentinels.len(), 2);
    assert!(sentinels.iter().all(|sentinel| !sentinel.has_ended()));
    child.kill().unwrap();
    for sentinel in sentinels {
        sentinel.wait(&mut Wait::forever()).unwrap();
    }
}

#[test]
fn children_of_children_have_servers_of_their_own() {
    let _alone = alone();
    let child = builder()
        .spawn(
            || {
                let inner = builder().spawn(|| parent_process().unwrap().pid(), ()).unwrap();
                (forkserver::pid(), inner.join().unwrap() == std::process::id())
            },
            (),
        )
        .unwrap();
    let (server, is_parent) = child.join().unwrap();
    assert!(is_parent);
    assert_ne!(server, forkserver::pid());
}

#[test]
fn nothing_is_left_open() {
    let _alone = alone();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    builder().spawn(|| (), ()).unwrap().join().unwrap();
    let before = descriptors();
    for _ in 0..10 {
        builder().spawn(|| (), ()).unwrap().join().unwrap();
        drop(builder().spawn(|| (), ()).unwrap());
    }
    while !active_children().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(descriptors(), before);
    // Standard streams, the parent's sentinel, the socket, the folder that is being read: nothing of the server's, nor of siblings.
    let sibling = builder().spawn(sleep_for_ever, ()).unwrap();
    let open = builder().spawn(|| std::fs::read_dir("/proc/self/fd").unwrap().count(), ()).unwrap().join().unwrap();
    sibling.kill().unwrap();
    sibling.wait();
    let spawned = Process::spawn(|| std::fs::read_dir("/proc/self/fd").unwrap().count(), ()).unwrap().join().unwrap();
    assert_eq!((open, spawned), (6, 6));
}
