//! Waiting for a descriptor.

use std::{os::fd::BorrowedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::sync::{Wait, WaitError};

/// A signal can arrive in another thread than the one that has to see to it, so no sleep is longer than this.
const SLICE: Duration = Duration::from_millis(500);

/// Waits until the descriptor can be read from without blocking; its end and its failure are something to read.
pub(crate) fn readable(fd: BorrowedFd<'_>, wait: &mut Wait<'_>) -> Result<(), WaitError> {
    ready(fd, PollFlags::IN, wait)
}

/// Waits until the descriptor can be written to without blocking, or failed.
pub(crate) fn writable(fd: BorrowedFd<'_>, wait: &mut Wait<'_>) -> Result<(), WaitError> {
    ready(fd, PollFlags::OUT, wait)
}

fn ready(fd: BorrowedFd<'_>, flags: PollFlags, wait: &mut Wait<'_>) -> Result<(), WaitError> {
    loop {
        // With no time left one look is taken nevertheless.
        let left = wait.remaining(SLICE);
        let limit = Timespec::try_from(left.unwrap_or_default()).unwrap_or_default();
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&limit)) {
            Ok(0) | Err(Errno::INTR) => {
                left?;
                wait.signalled()?;
            }
            // An error shows when the descriptor is used.
            Ok(_) | Err(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_pipe_is_readable_from_the_first_byte_on_and_at_its_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut none = Wait::timeout(Duration::ZERO);
        assert_eq!(readable(reader.as_fd(), &mut none), Err(WaitError::TimedOut));
        writer.write_all(b"x").unwrap();
        assert_eq!(readable(reader.as_fd(), &mut none), Ok(()));
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(writable(writer.as_fd(), &mut none), Ok(()));
        drop(writer);
        assert_eq!(readable(reader.as_fd(), &mut Wait::forever()), Ok(()));
    }
}
