//! Starting a process that runs a function of this program, whatever it is for.
//!
//! The new process runs the same program again, with one argument more: `--procession-child=N`. N is a descriptor that it inherits,
//! one end of a pair of sockets, on which an [invitation](crate::invitation) waits. [`init`](crate::init()), which the
//! program calls first of all, finds it and does what it says instead of going on. The other end stays with the starter:
//! the child's outcome comes back on it. It is told without anybody waiting, and is there when the child is long gone.

use std::{
    ffi::CString,
    io::{self, PipeReader, PipeWriter},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use procession_core::{
    channel,
    process::{self, Answer, Exit, Parcel, Sentinel, receive_parcel},
    sync::{Wait, WaitError},
};
use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, fcntl_dupfd_cloexec},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    EncodeError, ForeignCode,
    code::Code,
    forkserver::{self, Server},
    init,
    invitation::{self, Head, Place},
    process::{Current, Environment, Settings, Stdio, Way, usual_name},
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
    /// can have daemonic ones only.
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
    let current = Current::get();
    if current.daemon && !settings.daemon {
        return Err(StartError::Daemonic);
    }
    let path = if settings.helper { current.path.clone() } else { current.next_path() };
    let name = settings.name.clone().unwrap_or_else(|| usual_name(&path));
    let directory = settings.directory.as_ref().map(|directory| {
        let opened = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        opened.map_err(|error| StartError::Directory { directory: directory.clone(), source: error.into() })
    });
    let directory = directory.transpose()?;
    let streams = Streams::prepare(&settings.stdio, method)?;
    let executed_with = match method {
        StartMethod::Spawn => settings.environment.whole()?,
        StartMethod::Forkserver => settings.environment.check().map(|()| None)?,
    };
    let head = Head {
        entry: Code::of(launch.entry as *const ())?,
        name,
        named: settings.name.is_some(),
        path,
        daemon: settings.daemon,
        authkey: current.authkey.clone(),
        parent: (method == StartMethod::Spawn).then(|| (current.name.clone(), std::process::id())),
        method: start_method(),
        directory: directory.is_some(),
        stdio: streams.places,
        limits: settings.limits.clone(),
        environment: if method == StartMethod::Spawn { Environment::default() } else { settings.environment.clone() },
    };
    // A child of the fork server has that of the server, whose parent is this process as well.
    let life = if method == StartMethod::Spawn { Some(process::life_sentinel()?) } else { None };
    let lent: Vec<_> = life
        .into_iter()
        .chain(directory.as_ref().map(AsFd::as_fd))
        .chain(streams.childs.iter().map(Lent::as_fd))
        .chain(launch.descriptors.iter().map(AsFd::as_fd))
        .collect();
    let invited = || {
        let (ours, theirs) = process::message_sockets()?;
        invitation::send(ours.as_fd(), &head, launch.payload, &lent)?;
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
    let pipes = streams.pipes;
    Ok(Launched { name: head.name, sentinel, pipes, server, socket, heard: Mutex::default() })
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
    Ok(Sentinel::open(pid)?)
}

/// The standard streams of a child to be: what it is given, and the other ends of pipes.
#[derive(Debug)]
struct Streams<'a> {
    places: [Place; 3],
    childs: Vec<Lent<'a>>,
    pipes: Pipes,
}

/// The starter's ends of the standard streams that are pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
}

#[derive(Debug)]
enum Lent<'a> {
    Given(BorrowedFd<'a>),
    Made(OwnedFd),
}

impl AsFd for Lent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Given(fd) => *fd,
            Self::Made(fd) => fd.as_fd(),
        }
    }
}

impl<'a> Streams<'a> {
    fn prepare(stdio: &'a [Option<Stdio>; 3], method: StartMethod) -> io::Result<Self> {
        let mut streams = Self { places: [Place::Inherited; 3], childs: Vec::new(), pipes: Pipes::default() };
        for (number, stream) in stdio.iter().enumerate() {
            streams.places[number] = match stream.as_ref().map(|Stdio(way)| way) {
                // What the user types is for the main process. The fork server has none of it, either.
                None if number == 0 && method == StartMethod::Spawn => Place::Null,
                None | Some(Way::Inherit) => Place::Inherited,
                Some(Way::Null) => Place::Null,
                Some(Way::Given(fd)) => streams.give(Lent::Given(fd.as_fd())),
                Some(Way::Piped) => {
                    let (reader, writer) = io::pipe()?;
                    if number == 0 {
                        streams.pipes.stdin = Some(writer);
                        streams.give(Lent::Made(reader.into()))
                    } else {
                        let end = if number == 1 { &mut streams.pipes.stdout } else { &mut streams.pipes.stderr };
                        *end = Some(reader);
                        streams.give(Lent::Made(writer.into()))
                    }
                }
            };
        }
        Ok(streams)
    }

    fn give(&mut self, fd: Lent<'a>) -> Place {
        self.childs.push(fd);
        Place::Given
    }
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) name: String,
    /// Tells the end of the process. How it ended, only [`exit`](Self::exit) knows in every case.
    pub(crate) sentinel: Sentinel,
    pub(crate) pipes: Pipes,
    /// Who has to be asked how it ended, if it is no child of this process.
    server: Option<Arc<Server>>,
    socket: OwnedFd,
    heard: Mutex<Heard>,
}

/// What has come back.
#[derive(Debug, Default)]
struct Heard {
    outcome: Option<Parcel>,
    /// From the fork server.
    exit: Option<Exit>,
    /// The child ended without having read its invitation.
    unread: bool,
    /// There will be no more.
    closed: bool,
    taken: bool,
}

/// What a process that has ended left behind.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It told this.
    Told(Parcel),
    /// Nothing.
    Nothing,
    /// What it told was given out before.
    Taken,
    /// Nothing, as it never asked what it was to do.
    NeverBegan,
}

impl Launched {
    pub(crate) fn pid(&self) -> u32 {
        self.sentinel.pid()
    }

    /// Waits until the process has ended. Does not reap it.
    pub(crate) fn wait(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        self.sentinel.wait(wait)
    }

    /// Whether the process has ended. Reaps it.
    pub(crate) fn has_ended(&self) -> bool {
        match &self.server {
            None => !matches!(self.exit(), Ok(None)),
            // It is reaped by the server.
            Some(_) => self.sentinel.has_ended(),
        }
    }

    /// How the process ended; `None` while it runs. Reaps it.
    pub(crate) fn exit(&self) -> io::Result<Option<Exit>> {
        let Some(server) = &self.server else { return self.sentinel.exit() };
        if !self.sentinel.has_ended() {
            return Ok(None);
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        while heard.exit.is_none() {
            self.listen(&mut heard)?;
            if heard.exit.is_none() {
                // Its own end may take a moment to get to the server. That has ended as well, if nothing but its socket is readable.
                let both = [self.socket.as_raw_fd(), server.control().as_raw_fd()];
                let readable = channel::wait(&both, &mut Wait::forever()).map_err(io::Error::other)?;
                if !readable.contains(&0) {
                    heard.exit = Some(Exit::Unknown);
                }
            }
        }
        Ok(heard.exit)
    }

    /// What the process, which has ended, told. It is given out once.
    pub(crate) fn outcome(&self) -> io::Result<Outcome> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.listen(&mut heard)?;
        Ok(match heard.outcome.take() {
            Some(parcel) => {
                heard.taken = true;
                Outcome::Told(parcel)
            }
            None if heard.taken => Outcome::Taken,
            None if heard.unread => Outcome::NeverBegan,
            None => Outcome::Nothing,
        })
    }

    /// Takes in what has been told of a process that has ended.
    fn listen(&self, heard: &mut Heard) -> io::Result<()> {
        if heard.closed {
            return Ok(());
        }
        // The kernel says so once, to whoever asks first.
        heard.unread |= matches!(rustix::net::sockopt::socket_error(&self.socket), Ok(Err(Errno::CONNRESET)));
        // A process that is left of a child's own fork may hold the socket open: there may be no end of it.
        while let Ok(parcel) = receive_parcel(self.socket.as_fd(), &mut Wait::timeout(Duration::ZERO)) {
            match parcel?.map(Answer::from_parcel) {
                Some(Ok(Answer::Ended(exit))) => heard.exit = Some(exit),
                Some(Ok(_)) => {}
                Some(Err(parcel)) => heard.outcome = Some(parcel),
                None => {
                    heard.closed = true;
                    if self.server.is_some() {
                        // It ended without having told.
                        heard.exit.get_or_insert(Exit::Unknown);
                    }
                    break;
                }
            }
        }
        Ok(())
    }
}
