//! Who this process is to others: its name, its parent, the key of its family.
#![allow(unsafe_code)]

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use procession_core::{process, sync::Wait};

use crate::published::Published;

/// What a process knows of itself.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) name: String,
    /// The way down to it from the main process, which has none: the how-manieth child of each it was.
    pub(crate) path: Vec<u32>,
    pub(crate) daemon: bool,
    /// Whether its children end with it, daemonic or not.
    pub(crate) nests: bool,
    pub(crate) authkey: Vec<u8>,
    pub(crate) parent: Option<&'static ParentProcess>,
}

static CURRENT: Published<Current> = Published::new();
/// How many children were named.
static NAMED: AtomicU32 = AtomicU32::new(0);

impl Current {
    pub(crate) fn get() -> &'static Self {
        CURRENT.get_or_set(|| Self {
            name: "MainProcess".into(),
            path: Vec::new(),
            daemon: false,
            nests: false,
            authkey: random_key(),
            parent: None,
        })
    }

    /// Makes this process what its starter says it is.
    pub(crate) fn become_child(self) {
        CURRENT.set(self);
        NAMED.store(0, Ordering::Relaxed);
    }

    /// The path of the next child.
    pub(crate) fn next_path(&self) -> Vec<u32> {
        let mut path = self.path.clone();
        path.push(NAMED.fetch_add(1, Ordering::Relaxed) + 1);
        path
    }
}

/// The name of a process that was given none.
pub(crate) fn usual_name(path: &[u32]) -> String {
    let numbers: Vec<_> = path.iter().map(u32::to_string).collect();
    format!("Process-{}", numbers.join(":"))
}

fn random_key() -> Vec<u8> {
    let mut key = vec![0; 32];
    let mut filled = 0;
    while filled < key.len() {
        // SAFETY: pointer and length describe the rest of `key`.
        let count = unsafe { libc::getrandom(key[filled..].as_mut_ptr().cast(), key.len() - filled, 0) };
        if let Ok(count) = usize::try_from(count) {
            filled += count;
        } else {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "the kernel has no random numbers");
        }
    }
    key
}

/// The process that calls.
///
/// ```
/// let current = procession::current_process();
/// assert_eq!(current.name(), "MainProcess");
/// assert_eq!(current.pid(), std::process::id());
/// assert!(!current.is_daemon());
/// ```
pub fn current_process() -> CurrentProcess {
    CurrentProcess(Current::get())
}

/// The process that calls, as returned by [`current_process`].
#[derive(Clone, Copy)]
pub struct CurrentProcess(&'static Current);

/// The key is nothing for logs.
impl fmt::Debug for CurrentProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentProcess")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("daemon", &self.is_daemon())
            .field("parent", &self.0.parent)
            .finish_non_exhaustive()
    }
}

impl CurrentProcess {
    /// Its name: what it was given, or `MainProcess`, or `Process-` and its number among the children of its parent, which is that
    /// of its parent, if that has one, a colon and so on.
    pub fn name(&self) -> &'static str {
        &self.0.name
    }

    /// Its process id.
    #[allow(clippy::unused_self, reason = "only the process that calls has one of these")]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether it ends with its parent.
    pub fn is_daemon(&self) -> bool {
        self.0.daemon
    }

    /// The process that started it; `None` in the main process. See [`parent_process`].
    pub fn parent(&self) -> Option<&'static ParentProcess> {
        self.0.parent
    }

    /// The key by which processes of one family know each other: random, made by the main process and inherited by all that
    /// descend from it. Listeners, clients and managers use it unless they are given another one.
    pub fn authkey(&self) -> &'static [u8] {
        &self.0.authkey
    }

    /// Makes another key that of this process and of the children that it starts from now on.
    ///
    /// ```
    /// use procession::current_process;
    ///
    /// current_process().set_authkey(b"a secret");
    /// assert_eq!(current_process().authkey(), b"a secret");
    /// ```
    pub fn set_authkey(&self, key: impl AsRef<[u8]>) {
        CURRENT.set(Current { authkey: key.as_ref().to_vec(), ..self.0.clone() });
    }
}

/// The process that started this one; `None` in the main process.
///
/// ```
/// use procession::{Process, parent_process};
///
/// fn parents_pid() -> u32 {
///     parent_process().expect("it is a child").pid()
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// procession::init();
/// assert!(parent_process().is_none());
/// assert_eq!(Process::spawn(parents_pid, ())?.join()?, std::process::id());
/// # Ok(())
/// # }
/// ```
pub fn parent_process() -> Option<&'static ParentProcess> {
    Current::get().parent
}

/// The process that started this one, as returned by [`parent_process`].
#[derive(Debug)]
pub struct ParentProcess {
    pub(crate) name: String,
    pub(crate) pid: u32,
    /// The reading end of its life pipe.
    pub(crate) sentinel: OwnedFd,
}

impl ParentProcess {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        !self.wait_timeout(Duration::ZERO)
    }

    /// Waits until it has ended.
    pub fn wait(&self) {
        // Without a limit, nothing else ends the wait.
        let _ = process::wait_readable(self.sentinel.as_fd(), &mut Wait::forever());
    }

    /// Waits until it has ended, or for as long as `limit`; tells whether it has.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        process::wait_readable(self.sentinel.as_fd(), &mut Wait::timeout(limit)).is_ok()
    }
}

/// Becomes readable when the process ends.
impl AsFd for ParentProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel.as_fd()
    }
}

/// How many processors this process can use, as [`std::thread::available_parallelism`] has it; 1 if that is not known.
///
/// ```
/// assert!(procession::cpu_count() >= 1);
/// ```
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_process_has_a_key_and_no_parent() {
        assert_eq!(current_process().authkey().len(), 32);
        assert_eq!(current_process().authkey(), current_process().authkey());
        assert!(parent_process().is_none());
    }

    #[test]
    fn the_key_is_not_printed() {
        let printed = format!("{:?}", current_process());
        assert!(printed.contains("MainProcess") && !printed.contains("key"), "{printed}");
    }

    #[test]
    fn names_tell_the_way_down() {
        assert_eq!(usual_name(&[1]), "Process-1");
        assert_eq!(usual_name(&[3, 1, 2]), "Process-3:1:2");
    }
}
