//! Starting a process as a copy of this one.
#![allow(unsafe_code)]

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
};

use procession_core::process::{self, Forked};

use super::{Builder, Child, children};
use crate::{
    Message, StartError, bootstrap,
    invitation::WayBack,
    launched::Launched,
    panic,
    start::{Prepared, sentinel_of},
};

/// Starts a process as a copy of this one (`fork(2)`), which calls a function, tells what that returns, and ends.
///
/// In contrast to [`spawn`](super::Process::spawn), the child has a copy of all the memory of this process: the function may
/// capture what it likes, and nothing of it is sent. The result is. It starts in less time the smaller this process
/// is. The child has no children, and ends without running destructors or exit handlers of this process; what it prints is flushed.
///
/// # Safety
///
/// Not all that this process has may be used by two: what else the program and the libraries that it uses have open (a connection to a database, say)
/// is in the hands of both, and whoever drops or closes it in the child may do so for this process. A library that had
/// threads which have ended, or relies on its process id, may not work in the child. Whoever calls this knows that all
/// that `function` uses can stand it.
///
/// # Errors
///
/// [`StartError::Threads`] if this process has other threads, which would not exist in the child, while what they were at
/// would be half done there, and their locks locked for ever. For others see [`StartError`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # procession::init();
/// let numbers: Vec<u64> = (0..1000).collect();
/// // SAFETY: nothing is open here but the standard streams.
/// let child = unsafe { procession::process::fork(|| numbers.iter().sum::<u64>()) }?;
/// assert_eq!(child.join()?, 499_500);
/// # Ok(())
/// # }
/// ```
pub unsafe fn fork<R: Message>(function: impl FnOnce() -> R) -> Result<Child<R>, StartError> {
    // SAFETY: the caller's promise.
    unsafe { Builder::default().fork(function) }
}

impl Builder {
    /// Starts a process as a copy of this one: see [`fork`](fn@fork).
    ///
    /// # Safety
    ///
    /// As there.
    ///
    /// # Errors
    ///
    /// As there.
    pub unsafe fn fork<R: Message>(&self, function: impl FnOnce() -> R) -> Result<Child<R>, StartError> {
        let threads = process::threads()?;
        if threads != 1 {
            return Err(StartError::Threads(threads));
        }
        children::sweep();
        let mut prepared = Prepared::new(&self.settings, false)?;
        prepared.setup.environment = self.settings.environment.checked()?;
        // The child's own, even if it sets its standard streams.
        let descriptors = prepared.lent().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
        let (ours, theirs) = process::message_sockets()?;
        // Or what is not yet written would be written by both.
        io::stdout().flush()?;
        // SAFETY: there is no other thread. The child does not return.
        match unsafe { process::fork() }? {
            Forked::Parent(pid) => {
                let Prepared { setup, streams, .. } = prepared;
                let sentinel = sentinel_of(pid)?;
                let launched = Launched::new(setup.name, sentinel, ours, None, streams.pipes);
                Ok(Child::adopted(launched, self.settings.daemon))
            }
            Forked::Child => {
                drop(ours);
                let life = || live(prepared, descriptors, WayBack::new(theirs), function);
                // No panic may get to the callers, which are the parent's.
                bootstrap::exit_forked(panic::catch(life).unwrap_or(crate::invitation::EXIT_PANICKED))
            }
        }
    }
}

/// The life of the child; returns the exit code.
fn live<R: Message>(
    prepared: Prepared<'_>,
    descriptors: Vec<OwnedFd>,
    back: WayBack,
    function: impl FnOnce() -> R,
) -> i32 {
    let Prepared { setup, streams, .. } = prepared;
    // The parent's ends of pipes.
    drop(streams);
    match bootstrap::set_up(setup, &mut descriptors.into_iter()) {
        Ok(()) => back.conclude(panic::catch(function)),
        Err(why) => back.refuse(&why),
    }
}
