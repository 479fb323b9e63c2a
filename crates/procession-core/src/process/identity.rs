//! Who a process is, in 64 bits.

use std::{
    fs::File,
    io::Read,
    sync::atomic::{AtomicU64, Ordering},
};

use super::fork;

/// The identity of a process: its pid and when it started.
///
/// The low half is the pid, the high half the start time in clock ticks since boot (the low 32 bits of it). A process
/// that was given the pid of a dead one is therefore not taken for it. It fits a word of shared memory, so that a lock
/// can name its owner with one store. Zero is nobody.
///
/// Processes must be of one pid namespace to know each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId(u64);

/// The present process, once it has been asked for; zero before, and after a fork.
static CURRENT: AtomicU64 = AtomicU64::new(0);

/// Run in a forked child.
pub(super) fn forget() {
    CURRENT.store(0, Ordering::Relaxed);
}

impl ProcessId {
    /// The process that calls.
    #[inline]
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            0 => Self::find_current(),
            known => Self(known),
        }
    }

    #[cold]
    fn find_current() -> Self {
        fork::watch();
        let pid = std::process::id();
        let current = Self::new(pid, stat_of(pid).map_or(0, |stat| stat.start));
        CURRENT.store(current.0, Ordering::Relaxed);
        current
    }

    fn new(pid: u32, start: u32) -> Self {
        Self(u64::from(pid) | u64::from(start) << 32)
    }

    /// The process that has this pid now; `None` if there is none, or only its remains (a zombie).
    pub fn of_pid(pid: u32) -> Option<Self> {
        let stat = stat_of(pid)?;
        (!stat.dead).then(|| Self::new(pid, stat.start))
    }

    /// From the bits of a word; `None` for zero, which is nobody.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits & 0xffff_ffff != 0).then_some(Self(bits))
    }

    /// The bits to store in a word.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The process number.
    pub fn pid(self) -> u32 {
        self.0 as u32
    }

    /// Whether the process still runs. A zombie does not.
    ///
    /// Reads `/proc`; where that is not mounted, only the existence of the pid is looked at.
    pub fn is_alive(self) -> bool {
        if self == Self::current() {
            return true;
        }
        match stat_of(self.pid()) {
            Some(stat) => !stat.dead && stat.start == (self.0 >> 32) as u32,
            None => !proc_is_mounted() && pid_exists(self.pid()),
        }
    }
}

impl std::fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProcessId({}, started {})", self.pid(), self.0 >> 32)
    }
}

struct Stat {
    dead: bool,
    start: u32,
}

/// What `/proc/PID/stat` tells (`proc_pid_stat(5)`): field 3 is the state, field 20 the number of threads, field 22 the start
/// time.
fn stat_of(pid: u32) -> Option<Stat> {
    let mut text = [0; 1024];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
    parse_stat(&text[..length])
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The name of the program, in parentheses, may hold anything, parentheses too: fields are counted from its end.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(text.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X" | "x");
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    let start: u64 = fields.nth(1)?.parse().ok()?;
    // The state is that of the main thread, which may end before the others (`pthread_exit`).
    let dead = ended && threads <= 1;
    Some(Stat { dead, start: start as u32 })
}

fn proc_is_mounted() -> bool {
    std::path::Path::new("/proc/self/stat").exists()
}

fn pid_exists(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return false;
    };
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_present_process_is_alive_and_found_by_its_pid() {
        let me = ProcessId::current();
        assert!(me.is_alive());
        assert_eq!(me.pid(), std::process::id());
        assert_eq!(ProcessId::of_pid(std::process::id()), Some(me));
        assert_eq!(ProcessId::from_bits(me.to_bits()), Some(me));
    }

    #[test]
    fn a_killed_child_is_dead_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of_pid(child.id()).unwrap();
        assert!(id.is_alive());
        child.kill().unwrap();
        while id.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!id.is_alive());
        assert_eq!(ProcessId::of_pid(id.pid()), None);
    }

    #[test]
    fn a_process_with_a_recycled_pid_is_another() {
        let me = ProcessId::current();
        let former = ProcessId::from_bits(me.to_bits() ^ 1 << 40).unwrap();
        assert_eq!(former.pid(), me.pid());
        assert!(!former.is_alive());
    }

    /// Fields 4 to 19.
    fn fields() -> String {
        (4..=19).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_process_lives_while_one_of_its_threads_does() {
        let dead = |threads| parse_stat(format!("17 (a) Z {} {threads} 0 1", fields()).as_bytes()).unwrap().dead;
        assert_eq!((dead(0), dead(1), dead(2)), (true, true, false));

        let (mut reader, writer) = std::io::pipe().unwrap();
        // SAFETY: the child makes a thread, ends its main thread, and is killed.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            std::thread::spawn(move || {
                let main_is_gone = || stat_text(std::process::id()).contains(") Z ");
                while !main_is_gone() {
                    std::thread::yield_now();
                }
                (&writer).write_all(b"x").unwrap();
                std::thread::park();
            });
            // SAFETY: ends this thread alone, as the last step of `pthread_exit` does, which would unwind it before.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!("the thread has ended");
        }
        drop(writer);
        reader.read_exact(&mut [0]).unwrap();
        let id = ProcessId::of_pid(pid.cast_unsigned()).unwrap();
        assert!(id.is_alive());
        // SAFETY: a child of this test.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        while id.is_alive() {
            std::thread::yield_now();
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
    }

    fn stat_text(pid: u32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
    }

    #[test]
    fn a_program_name_with_parentheses_is_read() {
        let stat = parse_stat(format!("17 (a) b) S {} 1 21 4321 99", fields()).as_bytes()).unwrap();
        assert!(!stat.dead);
        assert_eq!(stat.start, 4321);
        assert!(parse_stat(b"17 (a) S 1 2").is_none());
        assert!(parse_stat(b"nonsense").is_none());
    }
}
