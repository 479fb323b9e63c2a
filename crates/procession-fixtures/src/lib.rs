//! A library that starts processes while it is loaded by a program that knows nothing of that: the recipe of
//! `procession::set_executable`.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, OsStr, c_char},
    os::unix::ffi::OsStrExt,
};

use procession::{Process, StartMethod};

/// To be called first of all, as `procession::init` is in a program. `library` is where the program has loaded this
/// library from: the children are the same program, which is told to load it, too.
///
/// # Safety
///
/// `library` is a string that ends with a null byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fixtures_init(library: *const c_char) {
    procession::init();
    // SAFETY: the caller's promise.
    let library = unsafe { CStr::from_ptr(library) };
    procession::set_executable("/proc/self/exe", [OsStr::from_bytes(library.to_bytes())]);
}

/// Doubles a number, in a process that is started by another one. The result of one that can't be started is zero.
#[unsafe(no_mangle)]
pub extern "C" fn fixtures_double(number: u64, by_forkserver: bool) -> u64 {
    let method = if by_forkserver { StartMethod::Forkserver } else { StartMethod::Spawn };
    let double = |number: u64, starter: u32| {
        assert_ne!(std::process::id(), starter);
        // Where the host does not get beyond `fixtures_init`, it is known nevertheless what to run.
        Process::spawn(|number: u64| number * 2, (number,)).unwrap().join().unwrap()
    };
    let child = Process::builder().start_method(method).spawn(double, (number, std::process::id()));
    child.map_or(0, |child| child.join().unwrap_or(0))
}
