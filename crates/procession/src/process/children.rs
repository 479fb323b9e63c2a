//! The children of this process: none is forgotten before it has ended.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use procession_core::{
    process::{Exit, ForkLocal, generation},
    sync::Wait,
};

use crate::launched::Launched;

/// A child as everybody here has it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) launched: Launched,
    pub(crate) daemon: bool,
    /// The process that it is a child of.
    generation: u32,
}

/// Those that have not been found to have ended. A forked child has none.
fn children() -> MutexGuard<'static, Vec<Arc<Shared>>> {
    static CHILDREN: ForkLocal<Mutex<Vec<Arc<Shared>>>> = ForkLocal::new();
    CHILDREN.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes in a child that was started.
pub(super) fn adopt(launched: Launched, daemon: bool) -> Arc<Shared> {
    static AT_EXIT: AtomicBool = AtomicBool::new(false);
    extern "C" fn end() {
        at_exit();
    }
    if !AT_EXIT.swap(true, Ordering::Relaxed) {
        // SAFETY: the handler does not unwind. Without room for it nobody is waited for.
        unsafe { libc::atexit(end) };
    }
    #[cfg(feature = "tracing")]
    tracing::debug!(pid = launched.pid(), name = launched.name, daemon, "a process was started");
    let shared = Arc::new(Shared { launched, daemon, generation: generation() });
    children().push(Arc::clone(&shared));
    shared
}

/// Takes those out of the list that have ended, and says so in the log.
fn forget_all(has_ended: impl Fn(&Arc<Shared>) -> bool) {
    let ended: Vec<_> = children().extract_if(.., |child| has_ended(child)).collect();
    // Not while the list is locked: whoever writes the log may ask for it.
    #[cfg(feature = "tracing")]
    for child in &ended {
        tracing::debug!(pid = child.launched.pid(), name = child.launched.name, "a process has ended");
    }
    drop(ended);
}

/// Reaps those that have ended.
pub(super) fn sweep() {
    forget_all(|child| child.launched.has_ended());
}

/// At the normal end of this process: waits for the children. Those that are daemonic are asked to end, and are killed if they
/// don't.
pub(crate) fn at_exit() {
    let all = std::mem::take(&mut *children());
    for child in all.iter().filter(|child| child.daemon) {
        // It may have ended by itself.
        let _ = child.launched.sentinel.send_signal(libc::SIGTERM);
    }
    for child in all.iter().filter(|child| !child.daemon) {
        child.wait(&mut Wait::forever());
    }
    let mut patience = Wait::timeout(PATIENCE);
    for child in all.iter().filter(|child| child.daemon) {
        if !child.wait(&mut patience) {
            let _ = child.launched.sentinel.send_signal(libc::SIGKILL);
        }
    }
}

/// How long daemonic children have to end.
const PATIENCE: Duration = Duration::from_secs(1);

impl Shared {
    /// Whether this is the process that it is a child of.
    pub(crate) fn is_own(&self) -> bool {
        self.generation == generation()
    }

    /// How it ended, or `None` if it still runs. Reaps it.
    pub(crate) fn exit(&self) -> io::Result<Option<Exit>> {
        self.launched.exit()
    }

    /// Waits for the end and reaps it; tells whether it came in time.
    pub(crate) fn wait(&self, wait: &mut Wait<'_>) -> bool {
        let ended = self.launched.wait(wait).is_ok();
        if ended {
            self.forget();
        }
        ended
    }

    /// Reaps it and takes it out of the list, if it has ended.
    pub(crate) fn forget(&self) {
        if self.launched.has_ended() {
            forget_all(|child| std::ptr::eq(Arc::as_ptr(child), self));
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        let alive = !self.launched.sentinel.has_ended();
        if !alive {
            self.forget();
        }
        alive
    }

    /// Sends a signal, if it still runs.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        match self.launched.sentinel.send_signal(signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }
}

/// The children of this process that still run. Those that have ended are reaped.
///
/// Children that were forked by the program itself are not among them, and in a forked child there are none at first.
///
/// ```
/// use procession::{Process, active_children};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// let child = Process::builder().name("sleeper").spawn(|| std::thread::park(), ())?;
/// let [active] = &active_children()[..] else { panic!("there is one") };
/// assert_eq!((active.pid(), active.name()), (child.pid(), "sleeper"));
/// active.kill()?;
/// child.wait();
/// assert!(active_children().is_empty());
/// # Ok(())
/// # }
/// ```
pub fn active_children() -> Vec<ActiveChild> {
    sweep();
    children().iter().map(|child| ActiveChild(Arc::clone(child))).collect()
}

/// A child of this process, whatever it returns. See [`active_children`].
#[derive(Clone, Debug)]
pub struct ActiveChild(pub(super) Arc<Shared>);

/// What can be done with a child, whatever it returns.
macro_rules! common {
    ($self:ident => $shared:expr) => {
        /// Its name.
        pub fn name(&$self) -> &str {
            &$shared.launched.name
        }

        /// Its process id.
        pub fn pid(&$self) -> u32 {
            $shared.launched.pid()
        }

        /// Whether it ends with this process.
        pub fn is_daemon(&$self) -> bool {
            $shared.daemon
        }

        /// Whether it still runs.
        pub fn is_alive(&$self) -> bool {
            $shared.is_alive()
        }

        /// Asks it to end (`SIGTERM`). If it has ended, nothing happens.
        ///
        /// # Errors
        ///
        /// It may not be signalled, since it runs as another user now.
        pub fn terminate(&$self) -> ::std::io::Result<()> {
            $shared.signal(::libc::SIGTERM)
        }

        /// Ends it at once (`SIGKILL`). If it has ended, nothing happens.
        ///
        /// # Errors
        ///
        /// As [`terminate`](Self::terminate).
        pub fn kill(&$self) -> ::std::io::Result<()> {
            $shared.signal(::libc::SIGKILL)
        }

        /// Interrupts it, as Ctrl-C does (`SIGINT`). If it has ended, nothing happens.
        ///
        /// # Errors
        ///
        /// As [`terminate`](Self::terminate).
        pub fn interrupt(&$self) -> ::std::io::Result<()> {
            $shared.signal(::libc::SIGINT)
        }

        /// How it ended; `None` while it runs.
        pub fn exit(&$self) -> Option<::procession_core::process::Exit> {
            $shared.ended()
        }

        /// The exit code, or -N if signal N ended it; `None` while it runs. 255 if that is not known, as somebody else has
        /// waited for it, or the fork server was killed before the child ended.
        pub fn exit_code(&$self) -> Option<i32> {
            use ::procession_core::process::Exit;
            $shared.ended().map(|exit| match exit {
                Exit::Code(code) => code,
                Exit::Signal(signal) => -signal,
                Exit::Unknown => 255,
            })
        }

        /// Waits until it has ended; tells how. What its function returned is left for `join`.
        pub fn wait(&$self) -> ::procession_core::process::Exit {
            use ::procession_core::{process::Exit, sync::Wait};
            // Without a limit, nothing else ends the wait.
            $shared.wait(&mut Wait::forever());
            $shared.ended().unwrap_or(Exit::Unknown)
        }

        /// Waits until it has ended, or for as long as `limit`; tells how it ended, or `None`.
        pub fn wait_timeout(&$self, limit: ::std::time::Duration) -> Option<::procession_core::process::Exit> {
            $shared.wait(&mut ::procession_core::sync::Wait::timeout(limit));
            $shared.ended()
        }

        /// The descriptor that becomes readable when it ends: for `poll`, epoll and event loops. The same as its
        /// [`AsFd`](::std::os::fd::AsFd).
        pub fn sentinel(&$self) -> ::std::os::fd::BorrowedFd<'_> {
            ::std::os::fd::AsFd::as_fd(&$shared.launched.sentinel)
        }
    };
}
pub(super) use common;

impl ActiveChild {
    common!(self => self.0);
}

impl AsFd for ActiveChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel()
    }
}

impl Shared {
    /// How it ended, as far as that is known; `None` while it runs.
    pub(crate) fn ended(&self) -> Option<Exit> {
        match self.exit() {
            Ok(exit) => exit,
            // In a process that it is no child of.
            Err(_) => self.launched.sentinel.has_ended().then_some(Exit::Unknown),
        }
    }
}
