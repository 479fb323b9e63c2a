//! How much memory a process has.

use std::io;

/// How many bytes of memory the calling process has resident, memory that it shares with others included.
///
/// # Errors
///
/// `/proc` is not mounted, or no descriptor is left.
///
/// # Examples
///
/// ```
/// let before = procession_core::process::resident()?;
/// assert!(before > 0);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn resident() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    let pages =
        pages.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/statm says nothing known"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_written_to_is_resident() {
        const LENGTH: usize = 64 << 20;
        let before = resident().unwrap();
        let memory = std::hint::black_box(vec![1_u8; LENGTH]);
        let with = resident().unwrap();
        // Other tests may give some back meanwhile, where all run in one process.
        assert!(with > before + LENGTH as u64 / 2, "{before} bytes, then {with}");
        drop(memory);
    }
}
