//! A process that was started, as its starter sees it.

use std::{
    fmt,
    io::{self, PipeReader, PipeWriter},
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use procession_core::{
    process::{Exit, Parcel},
    sync::Wait,
};
use thiserror::Error;

use super::{
    Pipes,
    children::{Shared, adopt, common},
};
use crate::{
    DecodeError, Message, Panic,
    handover::Reach,
    invitation::{NOT_BEGUN, PANICKED, RETURNED, UNSENDABLE},
    launched::{Launched, Outcome},
    message,
};

/// A process that was started by this one and is to return an `R`.
///
/// Dropping it does nothing to the process, which goes on, is waited for at the end of this one (unless it is daemonic), and is
/// still among the [`active_children`](super::active_children) until it has ended.
///
/// It can be used from any thread. With the feature `tokio` it can be awaited.
///
/// In a forked child it is of no use: only the process that started a child can wait for it.
///
/// ```
/// use std::time::Duration;
/// use procession::{Exit, Process};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # procession::init();
/// let child = Process::builder().name("sleeper").spawn(|| std::thread::sleep(Duration::from_secs(60)), ())?;
/// assert_eq!((child.name(), child.is_alive(), child.exit()), ("sleeper", true, None));
/// assert_eq!(child.wait_timeout(Duration::from_millis(10)), None);
/// child.terminate()?;
/// assert_eq!(child.wait(), Exit::Signal(15));
/// assert_eq!((child.is_alive(), child.exit_code()), (false, Some(-15)));
/// # Ok(())
/// # }
/// ```
pub struct Child<R> {
    pub(super) shared: Arc<Shared>,
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    returns: PhantomData<fn() -> R>,
}

/// A child has not returned a value.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Its function panicked.
    #[error("the process {0}")]
    Panicked(Panic),
    /// It exited by itself, with this code, before its function returned.
    #[error("the process exited with code {0} before its function returned")]
    Exited(i32),
    /// This signal ended it before its function returned.
    #[error("the process was killed by signal {0} before its function returned")]
    Killed(i32),
    /// Its function was never called: why.
    #[error("the process did not begin: {0}")]
    NotBegun(String),
    /// Its function returned what can't be sent: why.
    #[error("the result of the process can't be sent: {0}")]
    Unsendable(String),
    /// What it returned can't be read here.
    #[error("the result of the process can't be read: {0}")]
    Decode(#[from] DecodeError),
    /// It still runs.
    #[error("the process still runs")]
    TimedOut,
    /// What it returned has been given out by [`Child::join_timeout`].
    #[error("the result of the process was given out before")]
    Taken,
    /// It has ended, and nothing is known of how: somebody else waited for it, or it is not a child of this process.
    #[error(
        "how the process ended is not known here: it is no child of this process, or somebody else has waited for it"
    )]
    Unknown,
    /// What it told can't be received.
    #[error("the result of the process can't be received: {0}")]
    Io(#[from] io::Error),
}

impl<R: Message> Child<R> {
    /// Waits until the process has ended, and returns what its function returned.
    ///
    /// # Errors
    ///
    /// Its function panicked, or did not come to its end: see [`JoinError`].
    ///
    /// ```
    /// use procession::{JoinError, Process};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// procession::init();
    /// let child = Process::spawn(|| -> u32 { panic!("that went wrong") }, ())?;
    /// match child.join() {
    ///     Err(JoinError::Panicked(panic)) => assert_eq!(panic.message, "that went wrong"),
    ///     other => unreachable!("{other:?}"),
    /// }
    /// let child = Process::spawn(|| std::process::exit(3), ())?;
    /// assert!(matches!(child.join(), Err::<(), _>(JoinError::Exited(3))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn join(mut self) -> Result<R, JoinError> {
        self.finish(&mut Wait::forever())
    }

    /// Waits until the process has ended, or for as long as `limit`. Returns what its function returned; only once.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join), and [`JoinError::TimedOut`] if it still runs.
    ///
    /// ```
    /// use std::time::Duration;
    /// use procession::{JoinError, Process};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # procession::init();
    /// let mut child = Process::spawn(|| "done".to_string(), ())?;
    /// let result = loop {
    ///     match child.join_timeout(Duration::from_millis(100)) {
    ///         Err(JoinError::TimedOut) => println!("still at it"),
    ///         other => break other?,
    ///     }
    /// };
    /// assert_eq!(result, "done");
    /// # Ok(())
    /// # }
    /// ```
    pub fn join_timeout(&mut self, limit: Duration) -> Result<R, JoinError> {
        self.finish(&mut Wait::timeout(limit))
    }

    fn finish(&mut self, wait: &mut Wait<'_>) -> Result<R, JoinError> {
        if !self.shared.is_own() {
            return Err(JoinError::Unknown);
        }
        if !self.shared.wait(wait) {
            return Err(JoinError::TimedOut);
        }
        self.result()
    }

    /// What the function of the process, which has ended, returned.
    pub(crate) fn result(&mut self) -> Result<R, JoinError> {
        let parcel = match self.shared.launched.outcome()? {
            Outcome::Told(parcel) => parcel,
            Outcome::Taken => return Err(JoinError::Taken),
            nothing => {
                return Err(match (self.shared.exit()?, nothing) {
                    (Some(Exit::Code(code)), Outcome::NeverBegan) => JoinError::NotBegun(format!(
                        "it exited with code {code} and did not call procession::init(), which has to come first of all"
                    )),
                    (Some(Exit::Code(code)), _) => JoinError::Exited(code),
                    (Some(Exit::Signal(signal)), _) => JoinError::Killed(signal),
                    (Some(Exit::Unknown) | None, _) => JoinError::Unknown,
                });
            }
        };
        let Parcel { kind, contents, descriptors } = parcel;
        let text = || message::decode::<String>(&contents, Vec::new(), Reach::Related);
        Err(match kind {
            RETURNED => return Ok(message::decode(&contents, descriptors, Reach::Related)?),
            PANICKED => JoinError::Panicked(message::decode(&contents, descriptors, Reach::Related)?),
            NOT_BEGUN => JoinError::NotBegun(text()?),
            UNSENDABLE => JoinError::Unsendable(text()?),
            _ => JoinError::Decode(DecodeError::Malformed("result")),
        })
    }
}

impl<R> Child<R> {
    /// Of a process that was just started.
    pub(super) fn adopted(mut launched: Launched, daemon: bool) -> Self {
        let Pipes { stdin, stdout, stderr } = std::mem::take(&mut launched.pipes);
        Self { shared: adopt(launched, daemon), stdin, stdout, stderr, returns: PhantomData }
    }

    common!(self => self.shared);

    /// The other end of its standard input, if that was to be [piped](super::Stdio::piped). Given out once. Dropping it is the
    /// end of the input.
    pub fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.stdin.take()
    }

    /// The other end of its standard output, if that was to be [piped](super::Stdio::piped). Given out once.
    pub fn take_stdout(&mut self) -> Option<PipeReader> {
        self.stdout.take()
    }

    /// The other end of its standard error output, if that was to be [piped](super::Stdio::piped). Given out once.
    pub fn take_stderr(&mut self) -> Option<PipeReader> {
        self.stderr.take()
    }
}

/// Becomes readable when the process ends.
impl<R> AsFd for Child<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel()
    }
}

impl<R> fmt::Debug for Child<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("exit", &self.exit())
            .finish_non_exhaustive()
    }
}

impl<R> Drop for Child<R> {
    fn drop(&mut self) {
        // One that has ended is not left for later.
        if self.shared.is_own() && self.shared.launched.sentinel.has_ended() {
            self.shared.forget();
        }
    }
}
