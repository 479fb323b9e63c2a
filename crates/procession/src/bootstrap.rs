//! From the invitation to the entry: how a process becomes what its starter wants it to be.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsStr, OsString},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    sync::{Mutex, PoisonError},
};

use procession_core::{
    channel::hand_on,
    process::{self, Following},
};
use rustix::{
    fs::{Mode, OFlags},
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    process::{Rlimit, fchdir, getrlimit, setrlimit},
};

use crate::{
    init, interrupts,
    invitation::{self, EXIT_NOT_BEGUN, Invitation, Place, Setup, WayBack},
    process::{Current, Environment, ParentProcess, at_exit, parent_process},
    start::{Entry, Started, set_start_method},
};

/// Runs what this process was invited to do, and ends it. `number` is what the last argument says.
pub(crate) fn run_spawned(number: OsString) -> ! {
    let code = if let Some(socket) = socket(&number) {
        run(socket)
    } else {
        eprintln!(
            "procession: the last argument is for children that this program starts itself, and there is no \
             descriptor {} here",
            number.display()
        );
        EXIT_NOT_BEGUN
    };
    hand_on(code != 0);
    // Flushes what is printed.
    std::process::exit(code)
}

/// The descriptor of this number, now closed on exec.
fn socket(number: &OsStr) -> Option<OwnedFd> {
    let number: RawFd = number.to_str()?.parse().ok().filter(|&number| number > 2)?;
    // SAFETY: it is only looked at whether it is open.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: it is open, and was inherited for nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&socket, FdFlags::CLOEXEC).ok()?;
    Some(socket)
}

/// Does what the invitation on the socket says. Returns the exit code.
pub(crate) fn run(socket: OwnedFd) -> i32 {
    init::note_initialised();
    let received = invitation::receive(socket.as_fd());
    let back = WayBack::new(socket);
    match received.and_then(accept) {
        Ok((entry, payload, descriptors)) => entry(Started { payload, descriptors, back }),
        Err(why) => back.refuse(&why),
    }
}

/// Ends a forked process, whose exit handlers are its parent's.
pub(crate) fn exit_forked(code: i32) -> ! {
    hand_on(code != 0);
    at_exit();
    // There is nobody left to tell.
    let _ = io::stdout().flush();
    // SAFETY: has no requirements.
    unsafe { libc::_exit(code) }
}

/// The tie of this process to its parent.
static FOLLOWING: Mutex<Option<Following>> = Mutex::new(None);

/// Makes this process what the invitation says, and finds what it is to call.
fn accept(invitation: Invitation) -> Result<(Entry, Vec<u8>, Vec<OwnedFd>), String> {
    let Invitation { entry, setup, payload, descriptors } = invitation;
    let mut descriptors = descriptors.into_iter();
    set_up(setup, &mut descriptors)?;
    let address = entry.address().map_err(|_| String::from("its invitation names no function of this program"))?;
    // SAFETY: the starter is the same build, where it was the address of an `Entry`.
    let entry = unsafe { std::mem::transmute::<*const (), Entry>(address) };
    Ok((entry, payload, descriptors.collect()))
}

/// Makes this process what its starter says it is. Takes the descriptors that this needs.
pub(crate) fn set_up(setup: Setup, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Result<(), String> {
    let mut next = || descriptors.next().ok_or_else(|| String::from("a descriptor is missing from its invitation"));
    let parent = match &setup.parent {
        Some((name, pid)) => Box::leak(Box::new(ParentProcess { name: name.clone(), pid: *pid, sentinel: next()? })),
        None => parent_process().ok_or("its invitation is for a child of the fork server, which this is not")?,
    };
    // Without /proc it can't be had: then the parent has to see to it. That of the fork server is not for its copies.
    *FOLLOWING.lock().unwrap_or_else(PoisonError::into_inner) =
        if setup.daemon || setup.nests { process::follow(parent.as_fd()).ok() } else { None };
    if setup.directory {
        fchdir(next()?).map_err(|error| format!("its directory can't be entered: {error}"))?;
    }
    for (number, place) in (0..).zip(setup.stdio) {
        let stream = match place {
            Place::Inherited => continue,
            Place::Null => rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| format!("/dev/null can't be opened: {error}"))?,
            Place::Given => next()?,
        };
        // SAFETY: what the number meant before is given up.
        if unsafe { libc::dup2(stream.as_raw_fd(), number) } == -1 {
            return Err(format!("standard stream {number} can't be set: {}", io::Error::last_os_error()));
        }
    }
    if let Some(blocked) = setup.interrupts_blocked {
        interrupts::block(blocked);
    }
    change_environment(&setup.environment);
    set_limits(&setup)?;
    become_current(setup, parent);
    Ok(())
}

fn change_environment(environment: &Environment) {
    let names = if environment.cleared { std::env::vars_os().map(|(name, _)| name).collect() } else { Vec::new() };
    for name in names {
        // SAFETY: only a forked child gets here, which has one thread.
        unsafe { std::env::remove_var(name) };
    }
    for (name, value) in &environment.changes {
        let name = OsStr::from_bytes(name);
        match value {
            // SAFETY: as above.
            Some(value) => unsafe { std::env::set_var(name, OsStr::from_bytes(value)) },
            // SAFETY: as above.
            None => unsafe { std::env::remove_var(name) },
        }
    }
}

fn set_limits(setup: &Setup) -> Result<(), String> {
    for &(resource, most) in &setup.limits {
        let known = getrlimit(resource.known());
        // Above the hard limit only the privileged get; all others get as much as there is.
        let most = known.maximum.map_or(most, |maximum| most.min(maximum));
        setrlimit(resource.known(), Rlimit { current: Some(most), maximum: Some(most) })
            .map_err(|error| format!("its limit of {resource:?} can't be set to {most}: {error}"))?;
    }
    Ok(())
}

fn become_current(setup: Setup, parent: &'static ParentProcess) {
    if setup.named
        && let Ok(name) = CString::new(setup.name.as_bytes())
    {
        // It is cut off after 15 bytes.
        let _ = rustix::thread::set_name(&name);
    }
    set_start_method(setup.method);
    if let Some(executable) = setup.executable {
        executable.inherit();
    }
    let Setup { name, path, daemon, nests, authkey, .. } = setup;
    Current { name, path, daemon, nests, authkey, parent: Some(parent) }.become_child();
}
