//! Children of test programs, whose `main` is not the program's own.
#![allow(unsafe_code)]

use std::{ffi::OsString, io::Read, os::unix::ffi::OsStringExt};

use crate::{bootstrap, init};

/// Has the processes that tests start become children before the test harness begins: to be put once into each test program,
/// outside of all functions.
///
/// The harness that `cargo test` and `cargo nextest` run has a `main` of its own, in which there is no place for
/// [`init`](crate::init()). With
///
/// ```standalone_crate
/// procession::test_support!();
/// # fn main() {
/// # let child = procession::Process::spawn(|| 1, ()).unwrap();
/// # assert_eq!(child.join().unwrap(), 1);
/// # }
/// ```
///
/// at the top of `tests/mine.rs`, or in `lib.rs` with `#[cfg(test)]` before it for unit tests, tests start processes as they like:
///
/// ```ignore
/// #[test]
/// fn two_processes_add() {
///     let child = Process::spawn(|a: u32, b: u32| a + b, (1, 2)).unwrap();
///     assert_eq!(child.join().unwrap(), 3);
/// }
/// ```
///
/// It makes a function run before `main`, among the constructors of the program (`.init_array`). In a process whose last
/// argument says that it is a child it does what [`init`](crate::init()) does there, and in any other it only takes note. Three
/// things are different from a child of a program that calls `init`: constructors that are linked behind it have not run,
/// the main thread has no name in messages of panics, and an overflow of its stack is a plain segmentation fault. What
/// a child prints is not captured by the harness.
///
/// A test program of one's own (`harness = false` in `Cargo.toml`) has a `main`, whose first line is `procession::init();`
/// as in any other program. So do doctests that have a `fn main`.
#[macro_export]
macro_rules! test_support {
    () => {
        const _: () = {
            #[used]
            #[allow(unsafe_code)]
            #[unsafe(link_section = ".init_array")]
            static BEFORE_MAIN: extern "C" fn() = $crate::__private::before_main;
        };
    };
}

/// Called by the C library before `main`.
pub extern "C" fn before_main() {
    let last = init::last_argument().or_else(from_proc);
    if let Some(socket) = last.as_deref().and_then(init::invitation_in) {
        // What the standard library does before `main`: writing to a pipe that nobody reads is an error, not the end.
        // SAFETY: no handler is set, and nothing else runs yet.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        open_streams();
        bootstrap::run_spawned(socket);
    }
    init::note_initialised();
}

/// Where the standard library does not know the arguments before `main` (with C libraries that don't pass them to constructors).
fn from_proc() -> Option<OsString> {
    let mut line = Vec::new();
    std::fs::File::open("/proc/self/cmdline").ok()?.read_to_end(&mut line).ok()?;
    let last = line.strip_suffix(b"\0")?.rsplit(|&byte| byte == 0).next()?;
    Some(OsString::from_vec(last.to_vec()))
}

/// No file that is opened later is to be taken for a standard stream.
fn open_streams() {
    for number in 0..=2 {
        // SAFETY: only asks.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            // It gets the lowest number that is free, which is this one.
            // SAFETY: the path is a string that ends with a null byte.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_argument_is_found_in_proc_as_well() {
        let known = std::env::args_os().next_back().unwrap();
        assert_eq!(from_proc().unwrap(), known);
    }
}
