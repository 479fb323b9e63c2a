//! A flag to wait for.

use std::{fmt, io, time::Duration};

use procession_core::sync::{self, Wait};
use serde::{Deserialize, Serialize};

use super::{Common, Handed};

/// A flag between processes, to wait for.
///
/// ```
/// use procession::{Event, Process};
///
/// fn wait(event: Event) {
///     event.wait();
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let event = Event::new()?;
///     let waiting = Process::spawn(wait, (event.clone(),))?;
///     event.set();
///     waiting.join()?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct Event(Common<Handed<sync::Event>>);

impl Event {
    /// A clear flag.
    ///
    /// # Errors
    ///
    /// Memory or descriptors are lacking.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Common::new(Handed(sync::Event::create()?))))
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.is_set()
    }

    /// Sets it and wakes all who wait. Never blocks; a signal handler may call it.
    pub fn set(&self) {
        self.0.set();
    }

    /// Clears it. Who was waiting when it was set returns nevertheless.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Waits until it is set, at once if it is already.
    pub fn wait(&self) {
        // Without an end and a say in signals, it only ends with the flag.
        while self.0.wait(&mut Wait::forever()).is_err() {}
    }

    /// As [`wait`](Self::wait), but so long at most. Tells whether it was set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.0.wait(&mut Wait::timeout(timeout)).is_ok()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("set", &self.is_set()).finish()
    }
}
