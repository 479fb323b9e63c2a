//! Waiting for many descriptors at once.

use std::{io::ErrorKind, os::fd::RawFd, time::Duration};

use super::ConnectionError;
use crate::{
    sync::{Wait, WaitError},
    sys::io as sys,
};

/// A poll sleeps no longer than this in one go, so that a signal that arrived just before it is seen soon.
const SLICE: Duration = Duration::from_millis(500);

/// The descriptors of which something can be received, their end included: their places in `descriptors`, in order.
///
/// Blocks until there is one. Empty if the time is over. A descriptor may be there more than once.
///
/// ```
/// use procession_core::{channel, sync::Wait};
/// use std::time::Duration;
///
/// let (ours, theirs) = channel::pipe()?;
/// let both = [ours.number().unwrap(), theirs.number().unwrap()];
/// assert!(channel::wait(&both, &mut Wait::timeout(Duration::ZERO))?.is_empty());
/// ours.send(b"hello", &mut Wait::forever())?;
/// assert_eq!(channel::wait(&both, &mut Wait::forever())?, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`ConnectionError::Io`] with `EBADF` if a number is not open, [`ConnectionError::Wait`] if interrupted.
pub fn wait(descriptors: &[RawFd], wait: &mut Wait<'_>) -> Result<Vec<usize>, ConnectionError> {
    let mut entries: Vec<_> =
        descriptors.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    match poll(&mut entries, wait) {
        Ok(()) | Err(ConnectionError::Wait(WaitError::TimedOut)) => {}
        Err(error) => return Err(error),
    }
    if entries.iter().any(|entry| entry.revents & libc::POLLNVAL != 0) {
        return Err(not_open());
    }
    Ok(entries.iter().enumerate().filter(|(_, entry)| entry.revents != 0).map(|(place, _)| place).collect())
}

/// Waits until one descriptor is ready for `events`.
pub(super) fn poll_one(fd: RawFd, events: i16, wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
    let mut entry = [libc::pollfd { fd, events, revents: 0 }];
    poll(&mut entry, wait)?;
    if entry[0].revents & libc::POLLNVAL != 0 { Err(not_open()) } else { Ok(()) }
}

fn not_open() -> ConnectionError {
    ConnectionError::Io(std::io::Error::from_raw_os_error(libc::EBADF))
}

/// Returns when at least one entry has something to tell.
pub(super) fn poll(entries: &mut [libc::pollfd], wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
    loop {
        // With no time left it is looked once nevertheless.
        let (limit, last) = match wait.remaining(SLICE) {
            Ok(limit) => (limit, false),
            Err(_) => (Duration::ZERO, true),
        };
        match sys::poll(entries, Some(limit)) {
            Ok(0) if last => return Err(WaitError::TimedOut.into()),
            Ok(0) => wait.signalled()?,
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => wait.signalled()?,
            Err(error) => return Err(ConnectionError::Io(error)),
        }
    }
}
