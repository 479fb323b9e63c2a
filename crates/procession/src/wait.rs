//! Waiting for many things at once.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use procession_core::{
    channel::{self, ConnectionError},
    sync::Wait,
};

/// Waits until something is to be had of at least one of these: a value of a [`Connection`](crate::Connection) or a queue,
/// a client of a [`Listener`](crate::Listener), the end of a [`Child`](crate::Child), or the bytes of any other descriptor. Returns the
/// places of all of which that is so, in order. What has ended counts.
///
/// Without a timeout it waits for ever; if the time is over the result is empty. Signals don't end the wait.
///
/// ```
/// use procession::{Process, pipe, wait};
/// use std::time::Duration;
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (ours, theirs) = pipe::<u32, u32>()?;
///     let child = Process::spawn(|| (), ())?;
///     assert_eq!(wait(&[&ours, &child], None)?, [1]);
///     theirs.send(&1)?;
///     assert_eq!(wait(&[&ours, &child], Duration::from_secs(5))?, [0, 1]);
///     child.join()?;
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// Those of poll(2): there are more than files may be open.
pub fn wait(objects: &[&dyn AsFd], timeout: impl Into<Option<Duration>>) -> io::Result<Vec<usize>> {
    let descriptors: Vec<_> = objects.iter().map(|object| object.as_fd().as_raw_fd()).collect();
    let mut wait = timeout.into().map_or_else(Wait::forever, Wait::timeout);
    channel::wait(&descriptors, &mut wait).map_err(|error| match error {
        ConnectionError::Io(error) => error,
        other => io::Error::other(other),
    })
}
