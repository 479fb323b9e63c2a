//! Programs that start processes as they should, and as they should not.

use std::{
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{Command, Output, Stdio},
};

use procession_core::{
    process::{Exit, Sentinel, message_sockets, receive_parcel, send, send_parcel, spawn},
    sync::Wait,
};

const HOST: &str = env!("CARGO_BIN_EXE_host");
const STARTER: &str = env!("CARGO_BIN_EXE_starter");
const STRANGER: &str = env!("CARGO_BIN_EXE_stranger");
const UNINITIALISED: &str = env!("CARGO_BIN_EXE_uninitialised");

/// A program was invited by what is no invitation.
const NOT_BEGUN: Option<i32> = Some(78);

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_stands_before_init_runs_in_the_child_and_nothing_behind_it() {
    let output = run(STARTER, &[]);
    assert_eq!(text(&output.stdout), "result: 42\n");
    assert_eq!(text(&output.stderr), "main begins\nmain goes on\nmain begins\n");
}

#[test]
fn a_program_without_init_starts_nothing() {
    let output = run(UNINITIALISED, &[]);
    let lines = text(&output.stdout);
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "main runs"));
    assert!(lines[1].contains("call procession::init() as the first line of main"), "{}", lines[1]);
    assert_eq!(lines[1], lines[2]);
}

#[test]
fn a_child_without_init_starts_nothing_either() {
    let output = run(UNINITIALISED, &[UNINITIALISED]);
    let text = text(&output.stdout);
    // It is run as a child and as a fork server, twice, but no further: it has no children.
    assert!((2..=4).contains(&text.matches("main runs").count()), "{text}");
    assert!(text.contains("did not call procession::init()"), "{text}");
    assert!(text.contains("start: procession is not initialised"), "{text}");
}

#[test]
fn a_library_starts_processes_of_its_host() {
    let tests = std::env::current_exe().unwrap();
    let library = tests.parent().unwrap().join("libprocession_fixtures.so");
    assert!(library.exists(), "{}", library.display());
    let output = run(HOST, &[library.to_str().unwrap()]);
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("42 100\n", ""));
}

#[test]
fn another_program_may_be_named_if_it_is_the_same_build() {
    assert_eq!(text(&run(STARTER, &[STARTER, "an argument"]).stdout), "result: 42\n");
    let output = run(STARTER, &[STRANGER]);
    assert!(text(&output.stdout).starts_with("join: the process did not begin: "), "{output:?}");
    assert!(text(&output.stdout).contains("another build"), "{output:?}");
    assert!(text(&output.stderr).contains("another build"), "{output:?}");
}

#[test]
fn a_program_that_is_none_is_an_error() {
    let output = run(STARTER, &["/nowhere/at/all"]);
    assert!(text(&output.stdout).starts_with("start: /nowhere/at/all can't be executed: No such file"), "{output:?}");
    let output = run(STARTER, &[env!("CARGO_MANIFEST_DIR")]);
    assert!(text(&output.stdout).contains("can't be executed: Permission denied"), "{output:?}");
    // One that knows nothing of its being a child.
    let output = run(STARTER, &["/bin/true"]);
    assert!(text(&output.stdout).contains("exited with code 0 and did not call procession::init()"), "{output:?}");
    let output = run(STARTER, &["/bin/sh", "-c", "kill -9 $$"]);
    assert!(text(&output.stdout).contains("killed by signal 9"), "{output:?}");
}

#[test]
fn an_argument_that_names_no_descriptor_is_told() {
    for argument in ["", "x", "-1", "0", "2", "987654", "99999999999999999999"] {
        let output = run(STARTER, &[&format!("--procession-child={argument}")]);
        assert_eq!(output.status.code(), NOT_BEGUN);
        assert!(text(&output.stderr).contains(&format!("no descriptor {argument} here")), "{output:?}");
        assert_eq!(text(&output.stdout), "");
    }
    // Only as the last one.
    assert!(text(&run(STARTER, &["--procession-child=5", "x"]).stdout).starts_with("start: "));
}

/// Runs a program as a child that is invited by what is on the descriptor.
fn invited_by(descriptor: &OwnedFd) -> (Option<i32>, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let program = std::ffi::CString::new(Path::new(STARTER).as_os_str().as_bytes()).unwrap();
    let number = descriptor.as_raw_fd();
    // The shell leads the errors into the pipe.
    let script = format!("exec \"$0\" --procession-child={number} 2>&{}", writer.as_raw_fd());
    let arguments = [c"sh".into(), c"-c".into(), std::ffi::CString::new(script).unwrap(), program];
    let pid = spawn(c"/bin/sh", &arguments, None, &[number, writer.as_raw_fd()]).unwrap();
    let child = Sentinel::open(pid).unwrap();
    drop(writer);
    let mut errors = String::new();
    reader.read_to_string(&mut errors).unwrap();
    child.wait(&mut Wait::forever()).unwrap();
    match child.exit().unwrap() {
        Some(Exit::Code(code)) => (Some(code), errors),
        other => panic!("{other:?}: {errors}"),
    }
}

type Send = fn(&OwnedFd);

#[test]
fn what_is_no_invitation_is_told() {
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let (code, errors) = invited_by(&file);
    assert_eq!(code, NOT_BEGUN);
    assert!(errors.contains("does not begin"), "{errors}");

    let cases: [(Send, &str); 6] = [
        (|_| (), "no invitation came with it"),
        (|there| send(there.as_fd(), b"garbage", &[], &mut Wait::forever()).unwrap().unwrap(), "no parcel"),
        (|there| parcel(there, b'x', b""), "no invitation came with it"),
        (|there| parcel(there, b'i', b""), "cut short"),
        (|there| parcel(there, b'i', b"\xff1234"), "cut short"),
        (|there| parcel(there, b'i', b"\x041234\xff\xff\xff\xff"), "another build"),
    ];
    for (send, why) in cases {
        let (here, there) = message_sockets().unwrap();
        send(&here);
        let (code, errors) = invited_by(&there);
        assert_eq!(code, NOT_BEGUN);
        assert!(errors.contains(why), "{errors}");
        drop(there);
        // The other side is told as well.
        let told = receive_parcel(here.as_fd(), &mut Wait::forever()).unwrap().unwrap().unwrap();
        assert_eq!(told.kind, b'n');
    }
}

fn parcel(there: &OwnedFd, kind: u8, contents: &[u8]) {
    send_parcel(there.as_fd(), kind, &[contents], &[], &mut Wait::forever()).unwrap().unwrap();
}
