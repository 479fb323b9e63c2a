//! A barrier in a manager.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use procession_core::manager::{Caller, Ended, Failure, Object};

use super::{
    Manager, ManagerError, Refusal, deadline,
    reference::{limit, proxy},
    wire::{Reader, Writer},
};

/// The server's side of a barrier.
#[derive(Debug)]
pub(super) struct Barrier {
    parties: u64,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many have arrived in this round.
    arrived: u64,
    /// How it went: every one of a round has its own, as the next round may be over before it looks.
    round: Arc<AtomicU8>,
    broken: bool,
}

const UNDER_WAY: u8 = 0;
const PASSED: u8 = 1;
const BROKEN: u8 = 2;

impl State {
    /// Ends the round, which is new for whoever comes next.
    fn end_round(&mut self, how: u8) {
        self.arrived = 0;
        // Changed under the lock, and read under it.
        std::mem::take(&mut self.round).store(how, Ordering::Relaxed);
    }
}

impl Barrier {
    pub(super) fn new(arguments: &[u8]) -> Result<Self, Failure> {
        match Reader(arguments).number()? {
            0 => Err(Refusal::NoParties.into()),
            parties => Ok(Self { parties, state: Mutex::default(), over: Condvar::new() }),
        }
    }

    /// How many had arrived before.
    fn wait(&self, limit: u64, caller: &Caller<'_>) -> Result<u64, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.broken {
            return Err(Refusal::BrokenBarrier.into());
        }
        let (place, round) = (state.arrived, Arc::clone(&state.round));
        state.arrived += 1;
        if state.arrived == self.parties {
            state.end_round(PASSED);
            self.over.notify_all();
            return Ok(place);
        }
        let mut waiting = caller.waiting(deadline(limit));
        loop {
            match round.load(Ordering::Relaxed) {
                UNDER_WAY => {}
                PASSED => return Ok(place),
                _ => return Err(Refusal::BrokenBarrier.into()),
            }
            state = match waiting.wait(&self.over, state) {
                Ok(state) => state,
                // It has arrived: the others pass without it.
                Err((_, Ended::Gone)) => return Err(Failure::Gone),
                Err((mut state, Ended::TimedOut)) => {
                    if round.load(Ordering::Relaxed) == UNDER_WAY {
                        state.broken = true;
                        state.end_round(BROKEN);
                        self.over.notify_all();
                    }
                    state
                }
            };
        }
    }
}

impl Object for Barrier {
    fn type_name(&self) -> &'static str {
        "Barrier"
    }

    fn call(&self, method: &str, arguments: &[u8], caller: &Caller<'_>) -> Result<Vec<u8>, Failure> {
        let mut reply = Writer::default();
        if method == "wait" {
            let place = self.wait(Reader(arguments).number()?, caller)?;
            return Ok(reply.number(place).0.clone());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "abort" | "reset" => {
                state.end_round(BROKEN);
                state.broken = method == "abort";
                self.over.notify_all();
            }
            "parties" => {
                reply.number(self.parties);
            }
            "waiting" => {
                reply.number(state.arrived);
            }
            "is_broken" => {
                reply.flag(state.broken);
            }
            _ => return Err(Failure::NoSuchMethod),
        }
        Ok(reply.0)
    }
}

proxy! {
    /// A barrier in a manager: so many threads, of all processes that have a proxy of it, wait for each other.
    ///
    /// Related processes of one machine have [`Barrier`](crate::Barrier), which is many times as fast. A process that dies
    /// while it waits has arrived all the same.
    ///
    /// ```
    /// use procession::Manager;
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     procession::init();
    ///     let manager = Manager::new()?;
    ///     let barrier = manager.barrier(2)?;
    ///     let places = std::thread::scope(|scope| {
    ///         let other = scope.spawn(|| barrier.wait());
    ///         [barrier.wait(), other.join().unwrap()]
    ///     });
    ///     let [mine, others] = places;
    ///     assert_eq!(mine? + others?, 1);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Each call may fail with a [`ManagerError`]: most of all, the manager has ended.
    BarrierProxy
}

impl Manager {
    /// Makes a barrier for so many.
    ///
    /// # Errors
    ///
    /// As every call, and [`Refusal::NoParties`].
    pub fn barrier(&self, parties: usize) -> Result<BarrierProxy, ManagerError> {
        self.make("Barrier", Writer::default().number(parties as u64)).map(BarrierProxy::new)
    }
}

#[expect(clippy::missing_errors_doc, reason = "said for all of them at the type")]
impl BarrierProxy {
    /// Blocks until all have come; returns how many came before this one. [`Refusal::BrokenBarrier`] if somebody's time was
    /// over, or somebody broke it.
    pub fn wait(&self) -> Result<usize, ManagerError> {
        let place = self.reference.ask_number("wait", Writer::default().number(limit(None)))?;
        Ok(place as usize)
    }

    /// As [`wait`](Self::wait), but if not all have come in time, the barrier is broken for everybody.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, ManagerError> {
        let place = self.reference.ask_number("wait", Writer::default().number(limit(Some(timeout))))?;
        Ok(place as usize)
    }

    /// Breaks it: whoever waits, and whoever comes, gets an error.
    pub fn abort(&self) -> Result<(), ManagerError> {
        self.reference.tell("abort", &Writer::default())
    }

    /// Makes it as new. Whoever waits gets an error.
    pub fn reset(&self) -> Result<(), ManagerError> {
        self.reference.tell("reset", &Writer::default())
    }

    /// For how many it is.
    pub fn parties(&self) -> Result<usize, ManagerError> {
        self.reference.ask_number("parties", &Writer::default()).map(|parties| parties as usize)
    }

    /// How many wait.
    pub fn waiting(&self) -> Result<usize, ManagerError> {
        self.reference.ask_number("waiting", &Writer::default()).map(|waiting| waiting as usize)
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> Result<bool, ManagerError> {
        self.reference.ask_flag("is_broken", &Writer::default())
    }
}
