//! Programs that end, or are killed, with processes at work.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use procession::{Handle, Pool, Process, StartMethod};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::{
    until,
    workers::{kill_pid, line, runs, stuck, told},
};

/// A process with a pool of two workers at a task without end. Tells their pids, and never ends by itself.
fn parent(mut out: Handle<File>, method: StartMethod) {
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
fn program_killed_with_busy_workers() {
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let child = Process::spawn(parent, (Handle(writer.try_clone().unwrap()), method)).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2);
        assert!(pids.iter().all(|&pid| runs(pid)));
        kill_pid(child.pid());
        for pid in pids {
            until(|| !runs(pid));
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
    program.args(["--ignored", "--exact", "programs::interrupted_program", "--nocapture", "--test-threads=1"]);
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
fn ctrl_c() {
    let (mut child, _output, pids) = interrupted();
    // As a terminal does.
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
    for pid in pids {
        until(|| !runs(pid));
    }
}

/// A program that ends without a word to its pool or its daemon, whose process takes no notice of SIGTERM.
#[test]
#[ignore = "run by other tests"]
fn program_that_forgets() {
    let out = Handle(File::options().write(true).open("/dev/stdout").unwrap());
    if std::env::var("FORGETS").unwrap() == "pool" {
        let pool: &Pool = Box::leak(Box::new(Pool::new(1).unwrap()));
        std::mem::forget(pool.apply_async(stuck, (out,)).unwrap());
    } else {
        std::mem::forget(Process::builder().daemon(true).spawn(stuck, (out,)).unwrap());
    }
    std::io::stdin().read_exact(&mut [0]).unwrap();
    std::process::exit(3);
}

fn end_of_a_program_that_forgets(what: &str) {
    for killed in [false, true] {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--ignored", "--exact", "programs::program_that_forgets", "--nocapture", "--test-threads=1"]);
        program.env("FORGETS", what).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = program.spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let pid = told(&mut output, 1)[0];
        if killed {
            child.kill().unwrap();
        } else {
            child.stdin.take().unwrap().write_all(b"x").unwrap();
        }
        assert_eq!(child.wait().unwrap().code(), (!killed).then_some(3));
        until(|| !runs(pid));
    }
}

#[test]
fn exit_with_a_busy_pool() {
    end_of_a_program_that_forgets("pool");
}

#[test]
fn exit_with_a_stuck_child() {
    end_of_a_program_that_forgets("daemon");
}

/// Root, worker of its pool, worker of that one's pool, and a process of that.
#[test]
fn tree_dies_with_its_root() {
    fn root(out: Handle<File>) {
        Pool::new(1).unwrap().apply(middle, (out,)).unwrap();
    }
    fn middle(out: Handle<File>) {
        Pool::new(1).unwrap().apply(leaf, (out,)).unwrap();
    }
    fn leaf(out: Handle<File>) {
        let child = Process::spawn(stuck, (Handle(out.0.try_clone().unwrap()),)).unwrap();
        stuck(out);
        child.join().unwrap();
    }
    for method in [StartMethod::Spawn, StartMethod::Forkserver] {
        let (mut reader, writer) = line();
        let child = Process::builder().start_method(method).spawn(root, (writer,)).unwrap();
        let pids = told(&mut reader, 2);
        child.kill().unwrap();
        // All of them have the other end.
        reader.read_to_end(&mut Vec::new()).unwrap();
        for pid in pids {
            until(|| !runs(pid));
        }
        child.join().unwrap_err();
    }
}
