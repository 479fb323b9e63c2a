//! An event in a manager.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use procession_core::manager::{Caller, Ended, Failure, Object};

use super::{
    Manager, ManagerError, deadline,
    reference::{limit, proxy},
    wire::{Reader, Writer},
};

/// The server's side of an event.
#[derive(Debug, Default)]
pub(super) struct Event {
    state: Mutex<State>,
    set: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_set: bool,
    /// How often it was set: who waits is woken even if it was cleared again at once.
    times: u64,
}

impl Object for Event {
    fn type_name(&self) -> &'static str {
        "Event"
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let mut reply = Writer::default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "set" => {
                state.is_set = true;
                state.times += 1;
                self.set.notify_all();
            }
            "clear" => state.is_set = false,
            "is_set" => {
                reply.flag(state.is_set);
            }
            "wait" => {
                let mut waiting = caller.waiting(deadline(Reader(arguments).number()?));
                let times = state.times;
                while !state.is_set && state.times == times {
                    state = match waiting.wait(&self.set, state) {
                        Ok(state) => state,
                        Err((_, Ended::Gone)) => return Err(Failure::Gone),
                        Err((_, Ended::TimedOut)) => return Ok(reply.flag(false).0.clone()),
                    };
                }
                reply.flag(true);
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }
}

proxy! {
    /// A flag in a manager that processes wait for.
    ///
    /// Related processes of one machine have [`Event`](crate::Event), which is many times as fast.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let ready = manager.event()?;
    ///     assert!(!ready.is_set()?);
    ///     ready.set()?;
    ///     ready.wait()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    EventProxy
}

impl Manager {
    /// Makes an event that is not set.
    ///
    /// # Errors
    ///
    /// As every call: see [`ManagerError`].
    pub fn event(&self) -> Result<EventProxy, ManagerError> {
        self.make("Event", &Writer::default()).map(EventProxy::new)
    }
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl EventProxy {
    /// Sets it: whoever waits goes on.
    pub fn set(&self) -> Result<(), ManagerError> {
        self.reference.tell("set", &Writer::default())
    }

    /// Whoever waits from now on waits until it is set again.
    pub fn clear(&self) -> Result<(), ManagerError> {
        self.reference.tell("clear", &Writer::default())
    }

    /// Whether it is set.
    pub fn is_set(&self) -> Result<bool, ManagerError> {
        self.reference.ask_flag("is_set", &Writer::default())
    }

    /// Blocks until it is set.
    pub fn wait(&self) -> Result<(), ManagerError> {
        self.reference.ask_flag("wait", Writer::default().number(limit(None))).map(drop)
    }

    /// Blocks until it is set, but not longer; whether it was.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, ManagerError> {
        self.reference.ask_flag("wait", Writer::default().number(limit(Some(timeout))))
    }
}
