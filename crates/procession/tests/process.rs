//! Processes that are spawned.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use procession::{
    Child, Exit, Handle, JoinError, Plain, Process, StartError, StartMethod, Stdio, active_children, current_process,
    parent_process, process::Resource, set_start_method, start_method,
};
use procession_core::{process::Sentinel, sync::Wait};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

procession::test_support!();

/// For tests that look at what the whole process has, where others run as threads of it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn sleep_for_ever() {
    loop {
        std::thread::park();
    }
}

fn file(fd: impl Into<OwnedFd>) -> Handle<File> {
    Handle(File::from(fd.into()))
}

/// Waits until a process has ended, and leaves it to others to reap it.
fn wait_for(pid: u32) {
    if let Ok(process) = Sentinel::open(pid) {
        process.wait(&mut Wait::forever()).unwrap();
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_function_and_a_closure_return_their_results() {
    let first = Process::spawn(add, (1, 2)).unwrap();
    let second = Process::spawn(|text: String| (text.len(), text), ("four".to_string(),)).unwrap();
    let third = Process::spawn(|| (), ()).unwrap();
    assert_eq!(first.join().unwrap(), 3);
    assert_eq!(second.join().unwrap(), (4, "four".into()));
    third.join().unwrap();
}

#[test]
fn arguments_and_results_may_be_large() {
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| n as u8).collect();
    let reverse = |Plain(mut bytes): Plain<u8>| -> Vec<u8> {
        bytes.reverse();
        bytes
    };
    let mut reversed = Process::spawn(reverse, (Plain(bytes.clone()),)).unwrap().join().unwrap();
    reversed.reverse();
    assert!(reversed == bytes);
}

#[test]
fn descriptors_go_along_both_ways() {
    let (mut reader, writer) = io::pipe().unwrap();
    let child = Process::spawn(
        |Handle(mut out): Handle<File>| {
            out.write_all(b"from the child").unwrap();
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(b", left behind").unwrap();
            file(reader)
        },
        (file(writer),),
    )
    .unwrap();
    let Handle(mut back) = child.join().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    back.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the child, left behind");
}

#[test]
fn many_descriptors_go_along() {
    let handles = |count| (0..count).map(|_| Handle(io::stdout().as_fd().try_clone_to_owned().unwrap()));
    let count = |handles: Vec<Handle<OwnedFd>>| handles.len();
    let child = Process::spawn(count, (handles(600).collect::<Vec<_>>(),)).unwrap();
    assert_eq!(child.join().unwrap(), 600);
    // As a result as well.
    let back = |handles: Vec<Handle<OwnedFd>>| handles;
    let child = Process::spawn(back, (handles(300).collect::<Vec<_>>(),)).unwrap();
    assert_eq!(child.join().unwrap().len(), 300);
}

#[test]
fn a_panic_is_carried_over() {
    let line = line!() + 1;
    let child = Process::spawn(|n: u32| -> u32 { panic!("number {n}") }, (7,)).unwrap();
    assert_eq!(child.wait(), Exit::Code(101));
    match child.join() {
        Err(JoinError::Panicked(panic)) => {
            assert_eq!(panic.message, "number 7");
            let location = panic.location.unwrap();
            assert_eq!((location.line, location.file.ends_with("process.rs")), (line, true));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn ends_are_told() {
    let child = Process::spawn(|| std::process::exit(7), ()).unwrap();
    assert_eq!(child.wait(), Exit::Code(7));
    assert_eq!(child.exit_code(), Some(7));
    assert!(matches!(Child::<()>::join(child), Err(JoinError::Exited(7))));
    let child = Process::spawn(|| std::process::exit(0), ()).unwrap();
    assert!(matches!(Child::<()>::join(child), Err(JoinError::Exited(0))));
    for (signal, send) in [
        (libc::SIGTERM, Child::terminate as fn(&Child<()>) -> io::Result<()>),
        (libc::SIGKILL, Child::kill),
        (libc::SIGINT, Child::interrupt),
    ] {
        let child = Process::spawn(sleep_for_ever, ()).unwrap();
        assert!(child.is_alive());
        assert_eq!((child.exit(), child.exit_code()), (None, None));
        send(&child).unwrap();
        assert_eq!(child.wait(), Exit::Signal(signal));
        assert!(!child.is_alive());
        assert_eq!(child.exit_code(), Some(-signal));
        // It is gone: nothing happens.
        send(&child).unwrap();
        assert!(matches!(child.join(), Err(JoinError::Killed(killer)) if killer == signal));
    }
}

#[test]
fn a_wait_has_a_limit() {
    let (reader, writer) = io::pipe().unwrap();
    let read = |Handle(mut file): Handle<File>| io::read_to_string(&mut file).unwrap();
    let mut child = Process::spawn(read, (file(reader),)).unwrap();
    assert!(matches!(child.join_timeout(Duration::from_millis(20)), Err(JoinError::TimedOut)));
    assert_eq!(child.wait_timeout(Duration::ZERO), None);
    (&writer).write_all(b"done").unwrap();
    drop(writer);
    assert_eq!(child.join_timeout(Duration::from_secs(60)).unwrap(), "done");
    assert!(matches!(child.join_timeout(Duration::ZERO), Err(JoinError::Taken)));
    assert_eq!(child.wait_timeout(Duration::ZERO), Some(Exit::Code(0)));
}

#[test]
fn a_result_waits_for_nobody() {
    // More than fits into any socket: the child ends before it is read.
    let child = Process::spawn(|| vec![1_u8; 3_000_000], ()).unwrap();
    child.wait();
    assert!(!is_there(child.pid()));
    assert_eq!(child.join().unwrap().len(), 3_000_000);
}

#[test]
fn many_threads_wait_for_one_child() {
    let (reader, writer) = io::pipe().unwrap();
    let child =
        Process::spawn(|Handle(mut file): Handle<File>| io::read_to_string(&mut file).unwrap().len(), (file(reader),));
    let child = child.unwrap();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| child.wait())).collect();
        drop(writer);
        assert!(waiting.into_iter().all(|waiting| waiting.join().unwrap() == Exit::Code(0)));
    });
    assert_eq!(child.join().unwrap(), 0);
}

#[test]
fn the_sentinel_becomes_readable() {
    let child = Process::spawn(sleep_for_ever, ()).unwrap();
    let sentinel = [child.sentinel().as_raw_fd()];
    assert_eq!(child.as_fd().as_raw_fd(), sentinel[0]);
    let look = |wait: &mut Wait<'_>| procession_core::channel::wait(&sentinel, wait).unwrap();
    assert!(look(&mut Wait::timeout(Duration::ZERO)).is_empty());
    child.kill().unwrap();
    assert_eq!(look(&mut Wait::forever()), [0]);
}

#[test]
fn those_that_run_are_known_and_those_that_ended_are_not_kept() {
    let _alone = alone();
    let child = Process::builder().name("known").spawn(sleep_for_ever, ()).unwrap();
    let pid = child.pid();
    drop(child);
    assert!(is_there(pid));
    let known: Vec<_> = active_children().into_iter().filter(|child| child.name() == "known").collect();
    assert_eq!((known.len(), known[0].pid(), known[0].is_alive()), (1, pid, true));
    known[0].kill().unwrap();
    wait_for(pid);
    // Asking reaps it, and so does the next start.
    assert!(active_children().iter().all(|child| child.pid() != pid));
    assert!(!is_there(pid));
    let ended = Process::spawn(|| (), ()).unwrap();
    wait_for(ended.pid());
    let pid = ended.pid();
    drop(ended);
    assert!(!is_there(pid));
}

#[test]
fn nothing_is_left_open() {
    let _alone = alone();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    Process::spawn(|| (), ()).unwrap().join().unwrap();
    let before = descriptors();
    for _ in 0..10 {
        Process::builder().stdout(Stdio::piped()).stdin(Stdio::piped()).spawn(|| (), ()).unwrap().join().unwrap();
        let ended = Process::spawn(|| std::process::exit(1), ()).unwrap();
        assert!(Child::<()>::join(ended).is_err());
    }
    // Threads of other tests may have some open, but not for long.
    let deadline = Instant::now() + Duration::from_secs(20);
    while descriptors() > before {
        assert!(Instant::now() < deadline, "{} descriptors are left open", descriptors() - before);
        std::thread::sleep(Duration::from_millis(5));
    }
    // Standard streams, the parent's sentinel, the socket, the folder that is being read.
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert_eq!(Process::spawn(count, ()).unwrap().join().unwrap(), 6);
}

#[test]
fn a_process_knows_who_it_is() {
    let child = Process::builder()
        .name("a name that is longer")
        .spawn(
            || {
                let current = current_process();
                let inner = Process::spawn(
                    || {
                        (
                            current_process().name().to_string(),
                            current_process().authkey().to_vec(),
                            parent_process().unwrap().name().to_string(),
                        )
                    },
                    (),
                );
                let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
                (current.name().to_string(), comm, current.pid(), current.is_daemon(), inner.unwrap().join().unwrap())
            },
            (),
        )
        .unwrap();
    assert_eq!(child.name(), "a name that is longer");
    let pid = child.pid();
    let (name, comm, seen, daemon, (inner, key, parent)) = child.join().unwrap();
    assert_eq!(
        (name.as_str(), comm.as_str(), seen, daemon),
        ("a name that is longer", "a name that is \n", pid, false)
    );
    assert!(inner.starts_with("Process-") && inner.ends_with(":1"), "{inner}");
    assert_eq!((key.as_slice(), parent.as_str()), (current_process().authkey(), "a name that is longer"));
}

#[test]
fn the_end_of_the_parent_can_be_waited_for() {
    let (mut reader, writer) = io::pipe().unwrap();
    let child = Process::spawn(
        |writer: Handle<File>| {
            let orphan = |Handle(mut file): Handle<File>| {
                let parent = parent_process().unwrap();
                file.write_all(b"started").unwrap();
                parent.wait();
                write!(file, ", alive: {}", parent.is_alive()).unwrap();
            };
            Process::spawn(orphan, (writer,)).unwrap();
            sleep_for_ever();
        },
        (file(writer),),
    )
    .unwrap();
    let mut started = [0; 7];
    reader.read_exact(&mut started).unwrap();
    child.kill().unwrap();
    assert_eq!(io::read_to_string(reader).unwrap(), ", alive: false");
}

#[test]
fn what_is_set_up_is_set_up() {
    let directory = std::env::temp_dir();
    let child = Process::builder()
        .env("PROCESSION_TEST", "value")
        .env_remove("PATH")
        .current_dir(&directory)
        .limit(Resource::OpenFiles, 64)
        .limit(Resource::CoreFile, 0)
        .spawn(
            || {
                let limit = |resource| rustix::process::getrlimit(resource).maximum;
                (
                    std::env::vars().collect::<HashMap<_, _>>(),
                    std::env::current_dir().unwrap(),
                    limit(rustix::process::Resource::Nofile),
                    limit(rustix::process::Resource::Core),
                    std::fs::read_link("/proc/self/fd/0").unwrap(),
                )
            },
            (),
        )
        .unwrap();
    let (variables, at, files, core, input) = child.join().unwrap();
    let mut expected: HashMap<_, _> = std::env::vars().collect();
    expected.insert("PROCESSION_TEST".into(), "value".into());
    expected.remove("PATH");
    assert_eq!(variables, expected);
    assert_eq!(at, directory.canonicalize().unwrap());
    assert_eq!((files, core), (Some(64), Some(0)));
    assert_eq!(input, Path::new("/dev/null"));
    let child = Process::builder().env("A", "1").env_clear().env("B", "2");
    let variables = child.spawn(|| std::env::vars().collect::<Vec<_>>(), ()).unwrap().join().unwrap();
    assert_eq!(variables, [("B".to_string(), "2".to_string())]);
}

#[test]
fn streams_lead_where_they_are_to() {
    let builder = Process::builder().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let echo = || {
        for line in io::stdin().lines() {
            let line = line.unwrap();
            println!("out: {line}");
            eprint!("err: {line}");
        }
    };
    // The builder can be used again.
    for text in ["one", "two"] {
        let mut child = builder.spawn(echo, ()).unwrap();
        writeln!(child.take_stdin().unwrap(), "{text}").unwrap();
        assert!(child.take_stdin().is_none());
        assert_eq!(io::read_to_string(child.take_stdout().unwrap()).unwrap(), format!("out: {text}\n"));
        assert_eq!(io::read_to_string(child.take_stderr().unwrap()).unwrap(), format!("err: {text}"));
        child.join().unwrap();
    }
    let (reader, writer) = io::pipe().unwrap();
    let both = writer.try_clone().unwrap();
    let child = Process::builder().stdout(writer).stderr(both).stdin(Stdio::null()).spawn(
        || {
            assert_eq!(io::stdin().read(&mut [0]).unwrap(), 0);
            print!("first, ");
            io::stdout().flush().unwrap();
            eprint!("second");
        },
        (),
    );
    child.unwrap().join().unwrap();
    assert_eq!(io::read_to_string(reader).unwrap(), "first, second");
}

#[test]
fn what_can_not_be_set_up_is_an_error() {
    match Process::builder().current_dir("/nowhere/at/all").spawn(|| (), ()) {
        Err(StartError::Directory { directory, source }) => {
            assert_eq!((directory.to_str(), source.kind()), (Some("/nowhere/at/all"), io::ErrorKind::NotFound));
        }
        other => panic!("{other:?}"),
    }
    match Process::builder().env("A=B", "x").spawn(|| (), ()) {
        Err(StartError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::InvalidInput),
        other => panic!("{other:?}"),
    }
    // An open file is needed to find that out, so the child does.
    let child = Process::builder().limit(Resource::OpenFiles, 3).spawn(|| (), ()).unwrap();
    child.join().unwrap();
}

#[test]
fn a_daemonic_process_has_daemonic_children_only() {
    let child = Process::builder().daemon(true).spawn(
        || {
            let refused = matches!(Process::spawn(|| (), ()), Err(StartError::Daemonic));
            let child = Process::builder().daemon(true).spawn(|| current_process().is_daemon(), ());
            (refused, child.unwrap().join().unwrap())
        },
        (),
    );
    assert_eq!(child.unwrap().join().unwrap(), (true, true));
}

/// A process that has started a child, which has told its pid.
struct Family {
    child: Child<()>,
    /// Dropped, it lets the child end.
    hold: io::PipeWriter,
    /// What the child's child writes.
    reader: io::PipeReader,
    pid: u32,
}

fn family(daemon: bool) -> Family {
    let (mut reader, writer) = io::pipe().unwrap();
    let (held, hold) = io::pipe().unwrap();
    let child = Process::spawn(
        |daemon: bool, writer: Handle<File>, Handle(held): Handle<File>| {
            Process::builder().daemon(daemon).spawn(write_late, (writer, daemon)).unwrap();
            io::read_to_string(held).unwrap();
        },
        (daemon, file(writer), file(held)),
    )
    .unwrap();
    let mut pid = [0; 4];
    reader.read_exact(&mut pid).unwrap();
    Family { child, hold, reader, pid: u32::from_le_bytes(pid) }
}

/// Tells the own pid. Then writes something after a while, or never if it is `daemon`.
fn write_late(Handle(mut file): Handle<File>, daemon: bool) {
    file.write_all(&std::process::id().to_le_bytes()).unwrap();
    if daemon {
        sleep_for_ever();
    }
    std::thread::sleep(Duration::from_millis(200));
    file.write_all(b"late").unwrap();
}

#[test]
fn at_its_end_a_process_waits_for_its_children() {
    let Family { child, hold, reader, pid } = family(false);
    drop(hold);
    child.join().unwrap();
    assert!(!is_there(pid));
    assert_eq!(io::read_to_string(reader).unwrap(), "late");
}

#[test]
fn at_its_end_a_process_ends_its_daemonic_children() {
    let Family { child, hold, reader, pid } = family(true);
    drop(hold);
    child.join().unwrap();
    assert!(!is_there(pid));
    assert_eq!(io::read_to_string(reader).unwrap(), "");
}

#[test]
fn a_killed_process_takes_its_daemonic_children_along_and_no_others() {
    let Family { child, hold: _hold, reader, pid } = family(true);
    let inner = Sentinel::open(pid).unwrap();
    child.kill().unwrap();
    inner.wait(&mut Wait::forever()).unwrap();
    assert_eq!(io::read_to_string(reader).unwrap(), "");
    let Family { child, hold: _hold, reader, .. } = family(false);
    child.kill().unwrap();
    assert_eq!(io::read_to_string(reader).unwrap(), "late");
}

#[test]
fn the_start_method_is_inherited() {
    let child = Process::spawn(
        || {
            let before = start_method();
            set_start_method(StartMethod::Forkserver);
            let inner = Process::spawn(|| (start_method(), std::os::unix::process::parent_id()), ()).unwrap();
            let (method, parent) = inner.join().unwrap();
            (before, method, Some(parent) == procession::forkserver::pid())
        },
        (),
    );
    assert_eq!(child.unwrap().join().unwrap(), (StartMethod::Spawn, StartMethod::Forkserver, true));
    assert_eq!(start_method(), StartMethod::Spawn);
}

/// Can be sent to some, and panics for others.
#[derive(Debug, PartialEq)]
struct Bad(u8);

const FAILS_THERE: Bad = Bad(1);
const PANICS_THERE: Bad = Bad(2);
const FAILS_HERE: Bad = Bad(3);
const PANICS_HERE: Bad = Bad(4);

impl Serialize for Bad {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            FAILS_HERE => Err(ser::Error::custom("not this one")),
            PANICS_HERE => panic!("can't write it"),
            Bad(n) => serializer.serialize_u8(n),
        }
    }
}

impl<'de> Deserialize<'de> for Bad {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Bad(u8::deserialize(deserializer)?) {
            FAILS_THERE => Err(de::Error::custom("not that one")),
            PANICS_THERE => panic!("can't read it"),
            bad => Ok(bad),
        }
    }
}

#[test]
fn arguments_that_can_not_be_sent_are_errors() {
    assert!(matches!(Process::spawn(|_: Bad| (), (FAILS_HERE,)), Err(StartError::Encode(_))));
    match Process::spawn(|_: Bad| (), (FAILS_THERE,)).unwrap().join() {
        Err(JoinError::NotBegun(why)) => assert!(why.contains("arguments can't be read"), "{why}"),
        other => panic!("{other:?}"),
    }
    match Process::spawn(|_: Bad| (), (PANICS_THERE,)).unwrap().join() {
        Err(JoinError::Panicked(panic)) => assert_eq!(panic.message, "can't read it"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn results_that_can_not_be_sent_are_errors() {
    let child = Process::spawn(|| FAILS_HERE, ()).unwrap();
    assert_eq!(child.wait(), Exit::Code(74));
    assert!(matches!(child.join(), Err(JoinError::Unsendable(_))));
    match Process::spawn(|| PANICS_HERE, ()).unwrap().join() {
        Err(JoinError::Panicked(panic)) => assert_eq!(panic.message, "can't write it"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(Process::spawn(|| FAILS_THERE, ()).unwrap().join(), Err(JoinError::Decode(_))));
}

#[test]
fn a_broken_pipe_is_an_error_and_not_the_end() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let write = |Handle(mut file): Handle<File>| file.write_all(b"x").unwrap_err().kind() == io::ErrorKind::BrokenPipe;
    assert!(Process::spawn(write, (file(writer),)).unwrap().join().unwrap());
}

#[test]
#[allow(unsafe_code)]
fn closed_streams_are_opened_before_anything_takes_their_place() {
    let child = Process::spawn(
        || {
            // SAFETY: this process does not use its standard input.
            unsafe { libc::close(0) };
            // What is opened now may get the number, also what leads to the child.
            let builder = Process::builder().stdin(Stdio::inherit());
            let input = || std::fs::read_link("/proc/self/fd/0").unwrap();
            [builder.spawn(input, ()).unwrap().join().unwrap(), builder.spawn(input, ()).unwrap().join().unwrap()]
        },
        (),
    );
    assert_eq!(child.unwrap().join().unwrap(), [Path::new("/dev/null"), Path::new("/dev/null")]);
}

#[test]
fn the_arguments_of_a_child_are_known_to_it() {
    let arguments = Process::spawn(|| std::env::args().collect::<Vec<_>>(), ()).unwrap().join().unwrap();
    assert_eq!((arguments.len(), &arguments[0]), (2, &std::env::args().next().unwrap()));
    assert!(arguments[1].starts_with("--procession-child="));
}

#[test]
fn a_child_that_somebody_else_waited_for_is_no_riddle() {
    let child = Process::spawn(|| 5, ()).unwrap();
    rustix::process::waitpid(
        rustix::process::Pid::from_raw(child.pid().cast_signed()),
        rustix::process::WaitOptions::empty(),
    )
    .unwrap();
    assert_eq!(child.wait(), Exit::Unknown);
    // What it told is there all the same.
    assert_eq!(child.join().unwrap(), 5);
}
