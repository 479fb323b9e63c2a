//! Children that are copies of this process. Each test needs a process with one thread, so they are run by a harness of their own.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use procession::{
    Buffer, Event, Exit, Handle, JoinError, Process, Queue, StartError, Stdio, active_children, current_process,
    parent_process,
    process::{Resource, fork},
};
use rustix::{
    io::Errno,
    process::{WaitOptions, waitpid},
};

/// Forks, which is safe here: nothing is open but the standard streams.
fn forked<R: procession::Message>(function: impl FnOnce() -> R) -> Result<procession::Child<R>, StartError> {
    // SAFETY: see above.
    unsafe { fork(function) }
}

fn a_closure_takes_along_what_it_captures() {
    let numbers: Vec<u32> = (0..10).collect();
    let shared = Rc::new(Cell::new(5));
    let child = forked(|| {
        shared.set(numbers.len() as u32 + shared.get());
        shared.get()
    });
    assert_eq!(child.unwrap().join().unwrap(), 15);
    // What the child did to it, it did to its copy.
    assert_eq!(shared.get(), 5);
}

fn the_child_knows_who_it_is() {
    let pid = std::process::id();
    let key = current_process().authkey();
    let child = forked(|| {
        let parent = parent_process().unwrap();
        let alive = parent.is_alive();
        (
            parent.pid(),
            parent.name().to_string(),
            alive,
            current_process().name().to_string(),
            current_process().authkey().to_vec(),
        )
    })
    .unwrap();
    let name = child.name().to_string();
    assert_eq!(child.join().unwrap(), (pid, "MainProcess".into(), true, name, key.to_vec()));
    assert!(parent_process().is_none());
}

fn a_process_with_threads_refuses() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv());
    assert!(matches!(forked(|| ()), Err(StartError::Threads(2))));
    drop(sender);
    let _ = thread.join().unwrap();
    // The kernel may still be at removing the thread.
    while let Err(error) = forked(|| ()) {
        assert!(matches!(error, StartError::Threads(2)), "{error}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn it_has_no_children() {
    let child = Process::spawn(std::thread::park, ()).unwrap();
    let inner = forked(|| {
        let none = active_children().is_empty();
        // Nor can it wait for its parent's.
        (none, matches!(child.join(), Err(JoinError::Unknown)))
    });
    assert_eq!(inner.unwrap().join().unwrap(), (true, true));
    for child in active_children() {
        child.kill().unwrap();
        child.wait();
    }
}

fn children_of_children_are_waited_for() {
    let (reader, writer) = std::io::pipe().unwrap();
    let child = forked(|| {
        let writer = Handle(File::from(OwnedFd::from(writer.try_clone().unwrap())));
        let late = |Handle(mut file): Handle<File>| {
            std::thread::sleep(Duration::from_millis(100));
            file.write_all(b"late").unwrap();
        };
        drop(Process::spawn(late, (writer,)).unwrap());
    });
    drop(writer);
    child.unwrap().join().unwrap();
    // It has been written by the end of the child.
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut text = [0; 10];
    assert_eq!((&reader).read(&mut text).unwrap(), 4);
}

fn a_buffer_that_is_held_is_a_copy_there() {
    let queue = Queue::new().unwrap();
    queue.put(Buffer::from(vec![1_u64; 100_000])).unwrap();
    let mut buffer = queue.get().unwrap();
    assert!(buffer.is_block());
    let (written, seen) = (Event::new().unwrap(), Event::new().unwrap());
    let child = forked(|| {
        buffer.fill(2);
        written.set();
        seen.wait();
        // Its copy goes on as any other buffer.
        queue.put_ref(&buffer).unwrap();
        buffer.iter().sum::<u64>()
    });
    written.wait();
    assert!(buffer.iter().all(|&number| number == 1));
    buffer.fill(3);
    seen.set();
    assert_eq!(child.unwrap().join().unwrap(), 200_000);
    assert!(queue.get().unwrap().iter().all(|&number| number == 2));
    assert!(buffer.iter().all(|&number| number == 3));
    // The block is the queue's again, whoever lets go of the copies.
    drop(buffer);
    for number in 0..20 {
        queue.put(vec![number; 100_000].into()).unwrap();
        let buffer = queue.get().unwrap();
        assert!(buffer.is_block() && buffer.iter().all(|&each| each == number));
    }
}

fn panics_and_ends_are_told() {
    match forked(|| -> u32 { panic!("in the copy") }).unwrap().join() {
        Err(JoinError::Panicked(panic)) => assert_eq!(panic.message, "in the copy"),
        other => panic!("{other:?}"),
    }
    let child = forked(|| -> () {
        // SAFETY: kills only this process.
        unsafe { libc::raise(libc::SIGKILL) };
    })
    .unwrap();
    assert_eq!(child.wait(), Exit::Signal(libc::SIGKILL));
}

fn nothing_of_the_parent_is_dropped_in_the_child() {
    struct Loud(OwnedFd);
    impl Drop for Loud {
        fn drop(&mut self) {
            let _ = rustix::io::write(&self.0, b"x");
        }
    }
    let (mut reader, writer) = std::io::pipe().unwrap();
    let loud = Loud(writer.into());
    forked(|| ()).unwrap().join().unwrap();
    drop(loud);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}

fn what_is_printed_is_printed_once() {
    let mut outer = Process::builder()
        .stdout(Stdio::piped())
        .spawn(
            || {
                print!("before ");
                forked(|| print!("inside ")).unwrap().join().unwrap();
                print!("after");
            },
            (),
        )
        .unwrap();
    let mut text = String::new();
    outer.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "before inside after");
    outer.join().unwrap();
}

fn it_is_set_up_like_others() {
    let directory = std::env::temp_dir();
    let builder = Process::builder()
        .name("copy")
        .env("PROCESSION_TEST", "value")
        .current_dir(&directory)
        .limit(Resource::OpenFiles, 50)
        .stdout(Stdio::piped())
        .daemon(true);
    let look = || {
        print!("through the pipe");
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        (
            comm,
            std::env::var("PROCESSION_TEST").unwrap(),
            std::env::current_dir().unwrap(),
            most,
            current_process().is_daemon(),
        )
    };
    // SAFETY: as in `forked`.
    let mut child = unsafe { builder.fork(look) }.unwrap();
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "through the pipe");
    let expected = ("copy\n".into(), "value".into(), directory.canonicalize().unwrap(), Some(50), true);
    assert_eq!(child.join().unwrap(), expected);
    assert!(std::env::var_os("PROCESSION_TEST").is_none());
}

fn nothing_is_left_open() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    forked(|| ()).unwrap().join().unwrap();
    let before = descriptors();
    for _ in 0..10 {
        forked(|| ()).unwrap().join().unwrap();
    }
    assert_eq!(descriptors(), before);
}

/// A process may come into being when there is no descriptor left to watch over it.
fn what_is_started_in_vain_is_not_left_behind() {
    type Start = fn() -> Result<procession::Child<()>, StartError>;
    let (copied, anew): (Start, Start) = (|| forked(|| ()), || Process::spawn(|| (), ()));
    for start in [copied, anew] {
        // SAFETY: as in `forked`.
        let child = unsafe {
            Process::builder().limit(Resource::OpenFiles, 40).fork(move || {
                let mut others: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
                loop {
                    let error = match start() {
                        Ok(child) => break child.join().is_ok(),
                        Err(error) => error,
                    };
                    assert_eq!(waitpid(None, WaitOptions::NOHANG).unwrap_err(), Errno::CHILD);
                    assert!(others.pop().is_some(), "{error}");
                }
            })
        };
        assert!(child.unwrap().join().unwrap());
    }
}

fn main() {
    procession::init();
    let tests: &[(&str, fn())] = &[
        ("a_closure_takes_along_what_it_captures", a_closure_takes_along_what_it_captures),
        ("the_child_knows_who_it_is", the_child_knows_who_it_is),
        ("a_process_with_threads_refuses", a_process_with_threads_refuses),
        ("it_has_no_children", it_has_no_children),
        ("children_of_children_are_waited_for", children_of_children_are_waited_for),
        ("a_buffer_that_is_held_is_a_copy_there", a_buffer_that_is_held_is_a_copy_there),
        ("panics_and_ends_are_told", panics_and_ends_are_told),
        ("nothing_of_the_parent_is_dropped_in_the_child", nothing_of_the_parent_is_dropped_in_the_child),
        ("what_is_printed_is_printed_once", what_is_printed_is_printed_once),
        ("it_is_set_up_like_others", it_is_set_up_like_others),
        ("nothing_is_left_open", nothing_is_left_open),
        ("what_is_started_in_vain_is_not_left_behind", what_is_started_in_vain_is_not_left_behind),
    ];
    harness(tests);
}

/// Understands what `cargo test` and `cargo nextest` say to a test program.
fn harness(tests: &[(&str, fn())]) {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    if has("--list") {
        // None is ignored.
        for (name, _) in tests.iter().filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return;
    }
    let wanted: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let matches = |name: &str| {
        let exact = has("--exact");
        wanted.is_empty()
            || wanted.iter().any(|wanted| if exact { *wanted == name } else { name.contains(wanted.as_str()) })
    };
    let chosen: Vec<_> = tests.iter().filter(|(name, _)| !has("--ignored") && matches(name)).collect();
    for (name, test) in &chosen {
        // A panic ends the program, which is a failure.
        test();
        println!("test {name} ... ok");
    }
    println!("\ntest result: ok. {} passed", chosen.len());
}
