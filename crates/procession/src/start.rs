//! Starting a process that runs a function of this program, whatever it is for.
//!
//! The new process runs the same program again, with one argument more: `--procession-child=N`. N is a descriptor that it inherits,
//! one end of a pair of sockets, on which an [invitation](crate::invitation) waits. [`init`](crate::init()), which the
//! program calls first of all, finds it and does what it says instead of going on. The other end stays with the starter:
//! the child's outcome comes back on it. It is told without anybody waiting, and is there when the child is long gone.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    sync::atomic::{AtomicU8, Ordering},
};

use procession_core::process::{self, Sentinel};
use rustix::{
    fs::{Mode, OFlags},
    io::{fcntl_dupfd_cloexec, retry_on_intr},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    EncodeError, ForeignCode,
    code::Code,
    forkserver,
    init::{self, Executable},
    interrupts,
    invitation::{self, Setup},
    launched::Launched,
    process::{Current, Environment, Settings, Streams, usual_name},
};

/// What a child runs. What it returns is the exit code.
pub(crate) type Entry = fn(Started) -> i32;

/// A process to be started.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) entry: Entry,
    /// What the entry is given.
    pub(crate) payload: &'a [u8],
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) settings: &'a Settings,
    pub(crate) method: StartMethod,
}

/// What a child's entry is given.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Leads to whoever started it.
    pub(crate) back: invitation::WayBack,
}

/// How a child is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program is executed anew. The child inherits nothing but what it is given.
    #[default]
    Spawn,
    /// A copy is made of a process that was started early and has no threads, the fork server. See
    /// [`forkserver`](crate::forkserver).
    Forkserver,
}

static METHOD: AtomicU8 = AtomicU8::new(0);

/// Sets how children are started from now on, where nothing else is said. The children inherit it.
///
/// ```
/// use procession::{StartMethod, set_start_method, start_method};
///
/// # procession::init();
/// assert_eq!(start_method(), StartMethod::Spawn);
/// set_start_method(StartMethod::Forkserver);
/// assert_eq!(start_method(), StartMethod::Forkserver);
/// ```
pub fn set_start_method(method: StartMethod) {
    METHOD.store(u8::from(method == StartMethod::Forkserver), Ordering::Relaxed);
}

/// How children are started where nothing else is said: by spawn, unless [`set_start_method`] was called.
pub fn start_method() -> StartMethod {
    if METHOD.load(Ordering::Relaxed) == 0 { StartMethod::Spawn } else { StartMethod::Forkserver }
}

/// A process can't be started.
///
/// ```
/// use procession::{Process, StartError};
///
/// // Without init() there is nobody in the child who would know what to do.
/// assert!(matches!(Process::spawn(|| (), ()), Err(StartError::NotInitialised)));
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The program would not know what to do in the child: its first line would run there once more.
    #[error(
        "procession is not initialised: call procession::init() as the first line of main, or put \
         #[procession::main] on it (see procession::test_support! for tests)"
    )]
    NotInitialised,
    /// The arguments can't be sent.
    #[error("the arguments of the process can't be sent: {0}")]
    Encode(#[from] EncodeError),
    /// The function is part of a library that has another copy of procession in it, or none.
    #[error("the function can't be called in another process: {0}")]
    Code(#[from] ForeignCode),
    /// The program can't be executed: this one, or what [`set_executable`](crate::set_executable) said.
    #[error("{} can't be executed: {source}", program.display())]
    Program {
        /// What was to be executed.
        program: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// The directory that the process was to run in can't be entered.
    #[error("the process can't run in {}: {source}", directory.display())]
    Directory {
        /// What was set.
        directory: PathBuf,
        /// Why it was not entered.
        source: io::Error,
    },
    /// A daemonic process is killed without being asked when its parent ends, and so could not wait for its children: it
    /// can have daemonic ones only. (Not so the workers of pools, all of whose children end with them.)
    #[error("a daemonic process can have daemonic children only")]
    Daemonic,
    /// [`fork`](crate::process::fork) in a process that has other threads: what those were at would be left half done in the child.
    #[error("a process with {0} threads can't be forked: use another start method")]
    Threads(usize),
    /// The fork server has ended, twice, before it had started the process: how.
    #[error("the fork server ended before it had started the process: {0}")]
    Server(String),
    /// The system can't: there is no room for another process, or no descriptor is left.
    #[error("the process can't be started: {0}")]
    Io(#[from] io::Error),
}

/// Starts a process.
pub(crate) fn launch(launch: Launch<'_>) -> Result<Launched, StartError> {
    if !init::is_initialised() {
        return Err(StartError::NotInitialised);
    }
    let Launch { settings, method, .. } = launch;
    let entry = Code::of(launch.entry as *const ())?;
    let mut prepared = Prepared::new(settings, method == StartMethod::Forkserver)?;
    let executed_with = match method {
        StartMethod::Spawn => settings.environment.whole()?,
        StartMethod::Forkserver => {
            prepared.setup.environment = settings.environment.checked()?;
            None
        }
    };
    let lent: Vec<_> = prepared.lent().chain(launch.descriptors.iter().map(AsFd::as_fd)).collect();
    let invited = || {
        let (ours, theirs) = process::message_sockets()?;
        invitation::send(ours.as_fd(), entry, &prepared.setup, launch.payload, &lent)?;
        io::Result::Ok((ours, theirs))
    };

    let (socket, sentinel, server) = match method {
        StartMethod::Spawn => {
            let (ours, theirs) = invited()?;
            (ours, spawn(theirs, executed_with.as_deref())?, None)
        }
        StartMethod::Forkserver => {
            let (ours, sentinel, server) = forkserver::start(invited)?;
            (ours, sentinel, Some(server))
        }
    };
    Ok(Launched::new(prepared.setup.name, sentinel, socket, server, prepared.streams.pipes))
}

/// What a child is set up with.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) setup: Setup,
    pub(crate) streams: Streams<'a>,
    life: Option<BorrowedFd<'static>>,
    directory: Option<OwnedFd>,
}

impl<'a> Prepared<'a> {
    /// For a process that is `copied` from the fork server, or another one.
    pub(crate) fn new(settings: &'a Settings, copied: bool) -> Result<Self, StartError> {
        let current = Current::get();
        if current.daemon && !settings.daemon && !current.nests {
            return Err(StartError::Daemonic);
        }
        let path = if settings.helper { current.path.clone() } else { current.next_path() };
        let directory = settings.directory.as_ref().map(|directory| {
            let opened = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            opened.map_err(|error| StartError::Directory { directory: directory.clone(), source: error.into() })
        });
        let directory = directory.transpose()?;
        let streams = Streams::prepare(&settings.stdio, copied)?;
        let setup = Setup {
            name: settings.name.clone().unwrap_or_else(|| usual_name(&path)),
            named: settings.name.is_some(),
            path,
            daemon: settings.daemon,
            nests: settings.nests || (current.nests && !settings.daemon),
            authkey: current.authkey.clone(),
            // The server has the same parent.
            parent: (!copied).then(|| (current.name.clone(), std::process::id())),
            method: start_method(),
            executable: Executable::of_this_process(),
            interrupts_blocked: copied.then(interrupts::are_blocked),
            directory: directory.is_some(),
            stdio: streams.places,
            limits: settings.limits.clone(),
            environment: Environment::default(),
        };
        let life = if copied { None } else { Some(process::life_sentinel()?) };
        Ok(Self { setup, streams, life, directory })
    }

    /// The descriptors that go with it.
    pub(crate) fn lent(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let directory = self.directory.as_ref().map(AsFd::as_fd);
        self.life.into_iter().chain(directory).chain(self.streams.childs.iter().map(AsFd::as_fd))
    }
}

/// Executes the program that is to become the child.
fn spawn(socket: OwnedFd, environment: Option<&[CString]>) -> Result<Sentinel, StartError> {
    // Not one of the standard streams, should one of these be closed here.
    let socket =
        if socket.as_raw_fd() > 2 { socket } else { fcntl_dupfd_cloexec(&socket, 3).map_err(io::Error::from)? };
    let (program, arguments) = init::executable(socket.as_raw_fd());
    let program_path = CString::new(program.as_os_str().as_bytes()).map_err(io::Error::from)?;
    let pid = process::spawn(&program_path, &arguments, environment, &[socket.as_raw_fd()])
        .map_err(|source| StartError::Program { program, source })?;
    Ok(sentinel_of(pid)?)
}

/// The sentinel of a process that was started just now. If there can be none, nobody would ever learn of its end: it is
/// ended here.
pub(crate) fn sentinel_of(pid: u32) -> io::Result<Sentinel> {
    Sentinel::open(pid).inspect_err(|error| {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // One that is not there any more was reaped by somebody else, and its number may be another's.
        if let Some(pid) = pid.filter(|_| error.raw_os_error() != Some(libc::ESRCH)) {
            // It is there until it is reaped.
            let _ = kill_process(pid, Signal::KILL);
            let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
        }
    })
}
