//! Processes that run functions.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
};

use procession::{Handle, JoinError, Process};

procession::test_support!();

fn add(a: u64, b: u64) -> u64 {
    a + b
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
    let child = Process::spawn(
        |mut bytes: Vec<u8>| {
            bytes.reverse();
            bytes
        },
        (bytes.clone(),),
    )
    .unwrap();
    let mut reversed = child.join().unwrap();
    reversed.reverse();
    assert!(reversed == bytes);
}

#[test]
fn descriptors_go_along_both_ways() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = Process::spawn(
        |Handle(mut file): Handle<File>| {
            file.write_all(b"from the child").unwrap();
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(b"left behind").unwrap();
            Handle(File::from(OwnedFd::from(reader)))
        },
        (Handle(File::from(OwnedFd::from(writer))),),
    )
    .unwrap();
    let Handle(mut back) = child.join().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    back.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the childleft behind");
}

#[test]
fn a_panic_is_carried_over() {
    let line = line!() + 1;
    let child = Process::spawn(|n: u32| -> u32 { panic!("number {n}") }, (7,)).unwrap();
    match child.join() {
        Err(JoinError::Panicked(panic)) => {
            assert_eq!(panic.message, "number 7");
            assert_eq!(panic.location.unwrap().line, line);
        }
        other => panic!("{other:?}"),
    }
}
