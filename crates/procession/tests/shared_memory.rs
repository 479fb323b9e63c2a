//! Named shared memory, between processes of this program and with Python.

mod support;

use std::process::{Command, Stdio};

use procession::{Process, SharedMemory, SharedMemoryError};
use support::start;

procession::test_support!();

#[test]
fn a_child_has_it_by_its_name_or_by_itself() {
    fn add(memory: SharedMemory, name: String) -> u64 {
        let named = SharedMemory::open(&name).unwrap();
        let sum = memory.get::<u64>(0).unwrap() + named.get::<u64>(8).unwrap();
        named.set(16, &sum).unwrap();
        sum
    }
    let memory = SharedMemory::create(24).unwrap().unlink_on_drop();
    memory.set(0, &[20_u64, 22]).unwrap();
    assert_eq!(start(add, (memory.clone(), memory.name().to_owned())).join().unwrap(), 42);
    assert_eq!(memory.get::<u64>(16).unwrap(), 42);
}

#[test]
fn it_arrives_even_if_its_name_is_gone() {
    fn write(memory: SharedMemory) {
        memory.write(3, b"written").unwrap();
    }
    let memory = SharedMemory::create(10).unwrap();
    memory.unlink().unwrap();
    start(write, (memory.clone(),)).join().unwrap();
    let mut bytes = [0; 7];
    memory.read(3, &mut bytes).unwrap();
    assert_eq!(&bytes, b"written");
}

#[test]
fn neither_dropping_nor_the_end_of_a_process_takes_the_name_away() {
    fn attach(name: String) {
        SharedMemory::open(&name).unwrap().close();
    }
    fn make() -> String {
        SharedMemory::create(100).unwrap().name().to_owned()
    }
    let name = Process::spawn(make, ()).unwrap().join().unwrap();
    start(attach, (name.clone(),)).join().unwrap();
    let memory = SharedMemory::open(&name).unwrap();
    assert_eq!(memory.size(), 100);
    memory.unlink().unwrap();
    assert!(matches!(memory.unlink(), Err(SharedMemoryError::Missing(missing)) if missing == name));
}

#[test]
fn only_the_process_that_said_so_unlinks_on_drop() {
    let memory = SharedMemory::create(8).unwrap().unlink_on_drop();
    let clone = memory.clone();
    start(drop::<SharedMemory>, (clone,)).join().unwrap();
    let name = memory.name().to_owned();
    assert!(SharedMemory::open(&name).is_ok());
    drop(memory);
    assert!(matches!(SharedMemory::open(&name), Err(SharedMemoryError::Missing(_))));
}

#[test]
fn the_errors_say_what_is_wrong() {
    let memory = SharedMemory::create(8).unwrap().unlink_on_drop();
    let exists = SharedMemory::create_named(memory.name(), 8).unwrap_err();
    assert_eq!(exists.to_string(), format!("there is shared memory with the name {:?} already", memory.name()));
    assert!(matches!(SharedMemory::create(0), Err(SharedMemoryError::Empty)));
    assert!(matches!(SharedMemory::create_named("a/b", 8), Err(SharedMemoryError::Name(_))));
    assert!(matches!(SharedMemory::open("there is none of this name"), Err(SharedMemoryError::Missing(_))));
    assert_eq!(
        memory.read(5, &mut [0; 4]).unwrap_err().to_string(),
        "4 bytes at 5 do not lie within 8 bytes of shared memory"
    );
    assert!(memory.set(usize::MAX, &1_u8).is_err());
}

/// Runs a program with an interpreter of Python's standard package, if there is one. Tells what it prints.
fn python(program: &str, arguments: &[&str]) -> Option<String> {
    let mut import = Command::new("python3");
    import.args(["-c", "from multiprocessing import shared_memory"]).stderr(Stdio::null());
    if !import.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no python3");
        return None;
    }
    let output = Command::new("python3").args(["-c", program]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn python_reads_and_writes_what_was_made_here() {
    let memory = SharedMemory::create(4100).unwrap().unlink_on_drop();
    memory.write(4093, b"rust").unwrap();
    // It is told to leave the memory alone, which the standard package would otherwise unlink at its end.
    let program = "
import sys
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda name, kind: None
memory = shared_memory.SharedMemory(sys.argv[1])
print(memory.size, bytes(memory.buf[4093:4097]).decode())
memory.buf[1:7] = b'python'
memory.close()
";
    let Some(printed) = python(program, &[memory.name()]) else { return };
    assert_eq!(printed, "4100 rust\n");
    let mut bytes = [0; 8];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"\0python\0");
}

#[test]
fn what_python_made_is_found_by_its_name() {
    let program = "
import struct
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda name, kind: None
memory = shared_memory.SharedMemory(create=True, size=64)
struct.pack_into('<qd', memory.buf, 8, -7, 2.5)
print(memory.name)
memory.close()
";
    let Some(name) = python(program, &[]) else { return };
    let memory = SharedMemory::open(name.trim_end()).unwrap().unlink_on_drop();
    assert_eq!(memory.size(), 64);
    assert_eq!((memory.get::<i64>(8).unwrap(), memory.get::<f64>(16).unwrap()), (-7, 2.5));
}
