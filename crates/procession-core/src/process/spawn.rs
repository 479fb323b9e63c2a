//! Starting a program that gets the descriptors it is meant to have, and no others.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char},
    io,
    mem::MaybeUninit,
    os::fd::RawFd,
};

unsafe extern "C" {
    /// The environment as libc keeps it, environ(7).
    static mut environ: *const *mut c_char;
}

/// Starts `path` (no search in `PATH`) with these arguments; returns its pid. The caller has to reap it.
///
/// `environment` takes the place of this process's own, if given. The descriptors listed in `keep` have the same numbers in
/// the new process and stay open in it, whether they are closed on exec here or not; of the others only 0, 1 and 2 do. The
/// signal mask and what is ignored are inherited; what has a handler here is at its default there.
///
/// It goes by `posix_spawn`, which does not copy the address space: the time doesn't depend on the size of this process.
/// Another thread must not change the environment meanwhile.
///
/// # Errors
///
/// The program can't be executed, a descriptor of `keep` is not open, or there is no room for another process.
///
/// # Examples
///
/// ```
/// use std::{ffi::CString, io::Read, os::fd::AsRawFd};
/// use procession_core::{process::{Exit, Sentinel, spawn}, sync::Wait};
///
/// let (mut reader, writer) = std::io::pipe()?;
/// let script = format!("echo hello >/proc/self/fd/{}; exit 3", writer.as_raw_fd());
/// let arguments = [CString::from(c"sh"), CString::from(c"-c"), CString::new(script)?];
/// let child = Sentinel::open(spawn(c"/bin/sh", &arguments, None, &[writer.as_raw_fd()])?)?;
/// drop(writer);
///
/// let mut text = String::new();
/// reader.read_to_string(&mut text)?;
/// assert_eq!(text, "hello\n");
/// child.wait(&mut Wait::forever())?;
/// assert_eq!(child.exit()?, Some(Exit::Code(3)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn spawn(path: &CStr, arguments: &[CString], environment: Option<&[CString]>, keep: &[RawFd]) -> io::Result<u32> {
    let mut actions = Actions::new()?;
    for fd in open_descriptors() {
        // What another thread closes before the child gets to it is no error there.
        if fd > 2 && !keep.contains(&fd) && !closed_on_exec(fd) {
            match actions.close(fd) {
                // The C library takes no number beyond the limit, which may have been lowered since it was opened. The
                // child inherits it, as it would from any other program.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
                closed => closed?,
            }
        }
    }
    for &fd in keep {
        actions.keep(fd)?;
    }
    let arguments = pointers(arguments);
    let environment = environment.map(pointers);
    let environment = match &environment {
        Some(list) => list.as_ptr(),
        // SAFETY: a plain read of the pointer; the caller sees to it that nobody changes it now.
        None => unsafe { environ },
    };
    let mut pid = 0;
    // SAFETY: the strings and the lists of pointers to them, which end with a null, outlive the call, and so do the actions.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            actions.0.as_ptr(),
            std::ptr::null(),
            arguments.as_ptr(),
            environment,
        )
    };
    check(error)?;
    Ok(pid as u32)
}

fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// What the new process does before it executes the program.
struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: makes the list in the room given for it.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    /// Closes it there. One whose number is beyond the limit, as that was lowered since it was opened, can't be listed and
    /// stays open: the child has no use for it, but is to be started nonetheless.
    fn close(&mut self, fd: RawFd) -> io::Result<()> {
        // SAFETY: the list was made by `new`.
        let listed = check(unsafe { libc::posix_spawn_file_actions_addclose(self.0.as_mut_ptr(), fd) });
        listed.or_else(|error| if error.raw_os_error() == Some(libc::EBADF) { Ok(()) } else { Err(error) })
    }

    fn keep(&mut self, fd: RawFd) -> io::Result<()> {
        // Onto itself: the one case in which dup2 does no more than clear "close on exec".
        // SAFETY: the list was made by `new`.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), fd, fd) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used no more.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// The numbers of the open descriptors, perhaps of some that are not.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        // No /proc: all numbers that there can be, within reason.
        // SAFETY: asks for a number.
        let most = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
        return (0..RawFd::try_from(most).unwrap_or(RawFd::MAX).clamp(256, 65536)).collect();
    };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the descriptor is closed on exec, or not even open.
fn closed_on_exec(fd: RawFd) -> bool {
    // SAFETY: only asks; a number that is no descriptor is an error.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags == -1 || flags & libc::FD_CLOEXEC != 0
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::fd::{AsFd, AsRawFd},
    };

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;
    use crate::{
        process::{Exit, Sentinel},
        sync::Wait,
    };

    fn strings(words: &[&str]) -> Vec<CString> {
        words.iter().map(|word| CString::new(*word).unwrap()).collect()
    }

    fn shell(script: &str, environment: Option<&[CString]>, keep: &[RawFd]) -> Exit {
        let pid = spawn(c"/bin/sh", &strings(&["sh", "-c", script]), environment, keep).unwrap();
        let child = Sentinel::open(pid).unwrap();
        child.wait(&mut Wait::forever()).unwrap();
        child.exit().unwrap().unwrap()
    }

    #[test]
    fn what_is_kept_is_open_under_its_number_and_nothing_else_is() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (other, _inheritable) = std::io::pipe().unwrap();
        fcntl_setfd(other.as_fd(), FdFlags::empty()).unwrap();
        let (kept, not_kept) = (writer.as_raw_fd(), other.as_raw_fd());
        let script = format!("echo hello > /proc/self/fd/{kept}; test ! -e /proc/self/fd/{not_kept}");
        assert_eq!(shell(&script, None, &[kept]), Exit::Code(0));
        // Here it is closed on exec as before.
        assert!(closed_on_exec(kept));
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
    }

    #[test]
    fn one_beyond_the_limit_does_not_keep_others_from_being_started() {
        Actions::new().unwrap().close(RawFd::MAX).unwrap();
    }

    #[test]
    fn the_environment_is_inherited_unless_one_is_given() {
        assert_eq!(shell("test -n \"$PATH\"", None, &[]), Exit::Code(0));
        assert_eq!(shell("test \"$ONLY\" = this", Some(&strings(&["ONLY=this"])), &[]), Exit::Code(0));
    }

    #[test]
    fn errors_are_those_of_the_call_itself() {
        let missing = spawn(c"/nowhere/at/all", &strings(&["x"]), None, &[]).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let closed = spawn(c"/bin/sh", &strings(&["sh"]), None, &[987_654]).unwrap_err();
        assert_eq!(closed.raw_os_error(), Some(libc::EBADF));
    }
}
