//! The fork server: a process that is started early, has no threads, and of which children are copies.
//!
//! A copy is made in a fraction of the time that it takes to execute a program, and what the server has prepared
//! ([`set_preload`]) is there in each of them. In contrast to [`fork`](crate::process::fork), it does not matter what
//! threads this process has: none of them, and nothing of its memory, is in the copy.
//!
//! Children are started through it with [`StartMethod::Forkserver`], as
//! [set for all](crate::set_start_method) or [for some](crate::process::Builder::start_method). The first of them
//! starts the server. Each process that starts children so has a server of its own, which ends with it, and
//! which is started anew if it was killed. The children have its environment, its directory, its limits, and its output streams: what these
//! were in this process when the server was started.
//!
//! ```
//! use procession::{Process, StartMethod, forkserver};
//!
//! fn table() -> &'static [u64] {
//!     static TABLE: std::sync::OnceLock<Vec<u64>> = std::sync::OnceLock::new();
//!     TABLE.get_or_init(|| (0..1_000).map(|n| n * n).collect())
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! procession::init();
//! // The server makes the table, and the children find it made.
//! forkserver::set_preload(|| {
//!     table();
//! });
//! let builder = Process::builder().start_method(StartMethod::Forkserver);
//! let child = builder.spawn(|n: usize| table()[n], (12,))?;
//! assert_eq!(child.join()?, 144);
//! # Ok(())
//! # }
//! ```
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use procession_core::{
    process::{self, Answer, ForkLocal, ForkServer, Sentinel, receive_parcel, request},
    sync::Wait,
};

use crate::{
    StartError, StartMethod, bootstrap,
    code::Code,
    interrupts,
    launched::Launched,
    panic,
    process::{Settings, Stdio},
    published::Published,
    start::{Launch, Started, launch},
};

/// What the server does first.
static PRELOAD: Published<fn()> = Published::new();

/// Names a function that the server calls when it starts, so that what it prepares is ready in each child. To be called
/// before the server is started.
///
/// The function must leave no threads behind: they would not be in the children, and the server refuses to go on.
/// If it panics, the server goes on without what was to be prepared.
pub fn set_preload(preload: fn()) {
    PRELOAD.set(preload);
}

/// Starts the server, unless it runs already. The first child to be started through it would do so, too; this way it is ready by then.
///
/// # Errors
///
/// As for any process.
///
/// ```
/// use procession::forkserver;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// assert_eq!(forkserver::pid(), None);
/// forkserver::ensure_running()?;
/// assert!(forkserver::pid().is_some());
/// # Ok(())
/// # }
/// ```
pub fn ensure_running() -> Result<(), StartError> {
    running().map(drop)
}

/// The process id of the server; `None` if none was started, or it was found to have ended.
pub fn pid() -> Option<u32> {
    server().as_ref().filter(|server| !server.process.sentinel.has_ended()).map(|server| server.process.pid())
}

/// The server as its starter sees it.
#[derive(Debug)]
pub(crate) struct Server {
    /// Readable only at its end.
    control: OwnedFd,
    process: Launched,
}

/// That of this process. A forked child has none.
fn server() -> MutexGuard<'static, Option<Arc<Server>>> {
    static SERVER: ForkLocal<Mutex<Option<Arc<Server>>>> = ForkLocal::new();
    SERVER.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server of this process, which is started if there is none.
fn running() -> Result<Arc<Server>, StartError> {
    let mut before = None;
    let result = running_after(&mut before);
    // Logging is others' code: the server is not locked any more.
    #[cfg(feature = "tracing")]
    {
        if let Some(before) = &before {
            tracing::warn!(pid = before.process.pid(), exit = ?before.process.exit(), "the fork server has ended");
        }
        if let Ok((running, true)) = &result {
            tracing::debug!(pid = running.process.pid(), "a fork server was started");
        }
    }
    result.map(|(running, _)| running)
}

/// The server of this process, and whether it was started just now; in `before`, one that was found to have ended.
fn running_after(before: &mut Option<Arc<Server>>) -> Result<(Arc<Server>, bool), StartError> {
    let mut server = server();
    if let Some(running) = server.as_ref().filter(|server| !server.process.sentinel.has_ended()) {
        return Ok((Arc::clone(running), false));
    }
    *before = server.take();
    if let Some(before) = before {
        // Reaped. Those who wait for its children find out by themselves.
        before.process.exit()?;
    }
    let (control, servers) = process::message_sockets()?;
    let preload = PRELOAD.get().map(|preload| Code::of(*preload as *const ())).transpose()?;
    let payload = postcard::to_allocvec(&preload).map_err(io::Error::other)?;
    let settings = Settings {
        name: Some("ForkServer".into()),
        daemon: true,
        helper: true,
        stdio: [Some(Stdio::null()), None, None],
        ..Settings::default()
    };
    // A Ctrl-C that comes before the server ignores it waits until then.
    let process = interrupts::blocked_while(|| {
        launch(Launch {
            entry: serve,
            payload: &payload,
            descriptors: vec![servers],
            settings: &settings,
            method: StartMethod::Spawn,
        })
    })?;
    let running = Arc::new(Server { control, process });
    *server = Some(Arc::clone(&running));
    Ok((running, true))
}

/// How often a server may end with a request in its hands. Twice in a row is no accident.
const ATTEMPTS: usize = 2;

/// Has the server start a child. `prepare` makes the child's socket, on which its invitation waits, and the starter's
/// end of it.
pub(crate) fn start(
    mut prepare: impl FnMut() -> io::Result<(OwnedFd, OwnedFd)>,
) -> Result<(OwnedFd, Sentinel, Arc<Server>), StartError> {
    let mut why = String::from("it runs, but has no descriptor left");
    for _ in 0..ATTEMPTS {
        let server = running()?;
        let (ours, theirs) = prepare()?;
        // If it has ended there is no answer, either.
        match request(server.control.as_fd(), theirs) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error.into()),
        }
        match answer(ours.as_fd())? {
            Some(Answer::Started(child)) => return Ok((ours, child, server)),
            Some(Answer::Failed(error)) => return Err(error.into()),
            // A child that was killed before it could tell of itself has done nothing.
            Some(Answer::Ended(_)) | None => {}
        }
        if server.process.sentinel.wait(&mut Wait::timeout(PATIENCE)).is_ok() {
            why = server.why()?;
        }
    }
    Err(StartError::Server(why))
}

/// How long the sentinel may take to tell that a process has ended whose sockets are closed.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

fn answer(socket: BorrowedFd<'_>) -> io::Result<Option<Answer>> {
    match receive_parcel(socket, &mut Wait::forever()) {
        Ok(parcel) => Ok(parcel?.and_then(|parcel| Answer::from_parcel(parcel).ok())),
        // A wait without end does not end.
        Err(_) => Ok(None),
    }
}

impl Server {
    /// Readable when the server has ended.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Why it ended.
    fn why(&self) -> Result<String, StartError> {
        use crate::{invitation::NOT_BEGUN, launched::Outcome};
        Ok(match self.process.outcome()? {
            Outcome::Told(parcel) if parcel.kind == NOT_BEGUN => {
                crate::message::decode(&parcel.contents, Vec::new(), crate::handover::Reach::Related)
                    .unwrap_or_default()
            }
            _ => match self.process.exit()? {
                Some(process::Exit::Code(code)) => format!("it exited with code {code}"),
                Some(process::Exit::Signal(signal)) => format!("it was killed by signal {signal}"),
                _ => "how, is not known".into(),
            },
        })
    }
}

/// The entry of the server, and on the way of each of its children.
fn serve(started: Started) -> i32 {
    let Started { payload, descriptors, back } = started;
    // Ctrl-C is for the program. The children get back what was before, and what their starter has blocked.
    // SAFETY: no handler is set.
    let before = unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let prepared = postcard::from_bytes(&payload).map_err(|error| error.to_string()).and_then(prepare);
    let Ok([control]) = <[OwnedFd; 1]>::try_from(descriptors) else {
        return back.refuse("the fork server was given no socket");
    };
    let served = prepared.and_then(|()| {
        let server = ForkServer::new(control).map_err(|error| error.to_string())?;
        // SAFETY: `prepare` has made sure.
        unsafe { server.serve() }.map_err(|error| error.to_string())
    });
    match served {
        Ok(None) => 0,
        Ok(Some(socket)) => {
            drop(back);
            // SAFETY: puts back what was there.
            unsafe { libc::signal(libc::SIGINT, before) };
            bootstrap::exit_forked(bootstrap::run(socket))
        }
        Err(why) => back.refuse(&format!("the fork server {why}")),
    }
}

/// Calls the function that was named, if one was.
fn prepare(preload: Option<Code>) -> Result<(), String> {
    if let Some(code) = preload {
        let address = code.address().map_err(|error| error.to_string())?;
        // SAFETY: the starter is the same build, where it was the address of a `fn()`.
        let preload = unsafe { std::mem::transmute::<*const (), fn()>(address) };
        // It was printed. The children do without.
        let _ = panic::catch(preload);
    }
    match process::threads() {
        Ok(1) => Ok(()),
        Ok(threads) => Err(format!(
            "can't be copied with {threads} threads: the function named by set_preload, or what runs before init, leaves some behind"
        )),
        Err(error) => Err(format!("can't count its threads: {error}")),
    }
}
