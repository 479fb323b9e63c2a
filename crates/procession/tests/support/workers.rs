//! What workers of pools do in tests, and what becomes of them.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    thread::sleep,
    time::Duration,
};

use procession::{Exit, Handle, TaskError};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn square(n: u64) -> u64 {
    n * n
}

/// Sends a signal to its own process.
pub(crate) fn die(by: i32) {
    // SAFETY: sends a signal to this process.
    #[allow(unsafe_code)]
    unsafe {
        libc::raise(by)
    };
}

/// How the worker ended that took a task with it.
pub(crate) fn lost(error: TaskError) -> Exit {
    match error {
        TaskError::WorkerLost { exit, .. } => exit,
        other => panic!("not a lost worker: {other:?}"),
    }
}

pub(crate) fn kill_pid(pid: u32) {
    // It may have ended already.
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
}

/// Whether a process has not ended. A zombie has, whoever is to reap it.
pub(crate) fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

/// The two ends of a pipe; one goes along with a task or to a process.
pub(crate) fn line() -> (std::io::PipeReader, Handle<File>) {
    let (reader, writer) = std::io::pipe().unwrap();
    (reader, Handle(File::from(OwnedFd::from(writer))))
}

/// Tells its process id, takes no notice of SIGTERM, and never ends.
pub(crate) fn stuck(Handle(mut out): Handle<File>) {
    // SAFETY: no handler is set.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN)
    };
    // In one piece: others write there, too.
    out.write_all(format!("pid {}.", std::process::id()).as_bytes()).unwrap();
    loop {
        sleep(Duration::from_secs(600));
    }
}

/// The process ids that so many [`stuck`] ones tell, between other things perhaps.
pub(crate) fn told(reader: &mut impl Read, count: usize) -> Vec<u32> {
    let mut seen = String::new();
    loop {
        let parts: Vec<_> = seen.split("pid ").skip(1).filter_map(|part| part.split_once('.')).collect();
        let pids: Vec<u32> = parts.into_iter().filter_map(|(pid, _)| pid.parse().ok()).collect();
        if pids.len() >= count {
            return pids;
        }
        let mut bytes = [0; 256];
        let more = reader.read(&mut bytes).unwrap();
        assert!(more > 0, "it ended: {seen}");
        seen.push_str(std::str::from_utf8(&bytes[..more]).unwrap());
    }
}
