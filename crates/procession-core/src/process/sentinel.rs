//! Noticing the end of a process.
//!
//! A sentinel is a pidfd (Linux 5.3): it becomes readable when the process ends, is of use to `poll`, and stands for one
//! process for good, whatever becomes of its pid. A port to a kernel without it has to take the reading end of a pipe
//! whose writing end only the child has (then a grandchild that inherits it hides the end), or a thread in `waitpid`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use crate::{
    sync::{Wait, WaitError},
    sys::poll,
};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It has ended, but somebody else asked for the status, or it is no child of this process.
    Unknown,
}

/// A process that can be waited for and signalled.
///
/// It may be shared between threads. In a forked child it can no longer tell how the process ended.
#[derive(Debug)]
pub struct Sentinel {
    pid: u32,
    pidfd: OwnedFd,
    /// Filled once. Held while the kernel is asked, so that of two threads the second finds what the first was told.
    exit: Mutex<Option<Exit>>,
}

impl Sentinel {
    /// The sentinel of the process that has this pid: to be made before the process can have been reaped.
    ///
    /// # Errors
    ///
    /// There is no such process, or no descriptor is left.
    pub fn open(pid: u32) -> io::Result<Self> {
        let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(known.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
        Ok(Self::from_pidfd(pid, pidfd))
    }

    /// The sentinel of a process whose pidfd came from another one.
    pub fn from_pidfd(pid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, exit: Mutex::new(None) }
    }

    /// The pid the process had.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended. Does not reap it.
    ///
    /// # Errors
    ///
    /// It still runs when the wait is over.
    pub fn wait(&self, wait: &mut Wait<'_>) -> Result<(), WaitError> {
        poll::readable(self.pidfd.as_fd(), wait)
    }

    /// How the process ended; `None` while it runs. Reaps it. Does not block.
    ///
    /// # Errors
    ///
    /// What the kernel reports beyond "no child of yours", which is [`Exit::Unknown`] once it has ended.
    pub fn exit(&self) -> io::Result<Option<Exit>> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() {
            *exit = self.ask()?;
        }
        Ok(*exit)
    }

    fn ask(&self) -> io::Result<Option<Exit>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(status) => break status,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CHILD) => return Ok(self.has_ended().then_some(Exit::Unknown)),
                Err(error) => return Err(error.into()),
            }
        };
        Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        }))
    }

    /// Whether the process has ended. Does not reap it.
    pub fn has_ended(&self) -> bool {
        self.wait(&mut Wait::timeout(std::time::Duration::ZERO)).is_ok()
    }

    /// Sends a signal by its number.
    ///
    /// # Errors
    ///
    /// The process has ended (`ESRCH`), may not be signalled (`EPERM`), or there is no such signal.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_send_signal(&self.pidfd, signal)?)
    }
}

/// Waits until a descriptor is readable: a sentinel of any kind.
///
/// # Errors
///
/// It is not when the wait is over.
pub fn wait_readable(fd: BorrowedFd<'_>, wait: &mut Wait<'_>) -> Result<(), WaitError> {
    poll::readable(fd, wait)
}

impl AsFd for Sentinel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str) -> Sentinel {
        #[expect(clippy::zombie_processes, reason = "the sentinel reaps it")]
        let child = Command::new("sh").arg("-c").arg(script).stdin(Stdio::null()).spawn().unwrap();
        Sentinel::open(child.id()).unwrap()
    }

    #[test]
    fn the_exit_code_is_told_once_the_process_has_ended() {
        let child = shell("exit 7");
        child.wait(&mut Wait::forever()).unwrap();
        assert_eq!(child.exit().unwrap(), Some(Exit::Code(7)));
        assert_eq!(child.exit().unwrap(), Some(Exit::Code(7)));
    }

    #[test]
    fn the_signal_that_ended_it_is_told() {
        let child = shell("exec sleep 60");
        assert!(!child.has_ended());
        assert_eq!(child.exit().unwrap(), None);
        let soon = &mut Wait::timeout(std::time::Duration::from_millis(10));
        assert_eq!(child.wait(soon), Err(WaitError::TimedOut));
        child.send_signal(libc::SIGKILL).unwrap();
        child.wait(&mut Wait::forever()).unwrap();
        assert_eq!(child.exit().unwrap(), Some(Exit::Signal(libc::SIGKILL)));
        assert_eq!(child.send_signal(libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn of_a_process_that_is_no_child_only_the_end_is_known() {
        let child = shell("exit 3");
        let other = Sentinel::open(child.pid()).unwrap();
        child.wait(&mut Wait::forever()).unwrap();
        assert_eq!(child.exit().unwrap(), Some(Exit::Code(3)));
        assert_eq!(other.exit().unwrap(), Some(Exit::Unknown));
    }

    #[test]
    fn two_threads_are_told_the_same() {
        let child = shell("exit 5");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    child.wait(&mut Wait::forever()).unwrap();
                    assert_eq!(child.exit().unwrap(), Some(Exit::Code(5)));
                });
            }
        });
    }
}
