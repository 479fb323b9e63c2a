//! How much memory is left.

use std::{fs, io, sync::OnceLock};

use rustix::io::Errno;

/// Less than this is asked of the kernel without looking first.
const MUCH: u64 = 256 << 20;

/// That so many bytes of memory can be had, as far as can be known beforehand.
///
/// The kernel does not refuse to fill a file in memory beyond what the machine has: it kills processes to make room, any of
/// them. Where that is foreseeable it is to be an error.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn ensure_available(length: u64) -> io::Result<()> {
    if length < MUCH || available().is_none_or(|available| length <= available) {
        return Ok(());
    }
    Err(Errno::NOMEM.into())
}

/// How much memory the machine has, or this process may have of it; all there can be if the kernel does not tell.
pub(crate) fn physical() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let own = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|limit| limit.trim().parse().ok());
        let total = kibibytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:");
        total.map_or(u64::MAX, |total| total << 10).min(own.unwrap_or(u64::MAX))
    })
}

fn kibibytes(told: &str, name: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// What could be used without pushing others out; swap counts. `None` if the kernel does not tell.
fn available() -> Option<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok()?;
    Some((kibibytes(&told, "MemAvailable:")? + kibibytes(&told, "SwapFree:").unwrap_or(0)) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        assert!(available().unwrap() > 1 << 20);
        assert!(physical() > 1 << 20);
        ensure_available(1).unwrap();
        assert_eq!(ensure_available(1 << 60).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
