//! The side of a line that serves.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{Area, Bell, Memory, Phase, State, Words, patience::Patience};
use crate::{
    channel::{Connection, ConnectionError},
    kills::point,
    sync::Wait,
};

/// The server's side of a line, for the thread that belongs to it: gets requests, and replies.
///
/// Meanwhile an attendant may do requests in its place: see [`Attendance`](super::Attendance).
#[derive(Debug)]
pub struct Serving {
    memory: Memory,
    patience: Patience,
    /// Whether an attendant looks at the line. It does nothing for the line but with `at_work` held and this set, which the
    /// line's own thread may take back at any time.
    watched: AtomicBool,
    at_work: Mutex<()>,
    /// Whether an attendant may still be at work; only for the line's own thread.
    left: AtomicBool,
    /// What is left of a reply that an attendant began.
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    sent: usize,
}

fn is_request(phase: Phase) -> bool {
    matches!(phase, Phase::Asked | Phase::AskedPart)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Serving {
    /// From the descriptor that the client has sent.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] if it is not that of a line; there is no memory.
    pub fn attach(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::attach(fd)?,
            patience: Patience::new(),
            watched: AtomicBool::new(false),
            at_work: Mutex::default(),
            left: AtomicBool::new(false),
            rest: Mutex::default(),
        })
    }

    /// Waits for the next request and puts it in `request`, which is emptied first. Only for the line's own thread.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Ended`] if the client has ended, [`ConnectionError::Wait`], [`ConnectionError::BadLength`] if
    /// what stands in shared memory makes no sense.
    pub fn receive(
        &self,
        connection: &Connection,
        request: &mut Vec<u8>,
        wait: &mut Wait<'_>,
    ) -> Result<(), ConnectionError> {
        request.clear();
        loop {
            let state = self.turn(connection, wait)?;
            match state.phase {
                Phase::Asked | Phase::AskedPart => self.memory.read(Area::Requests, state.length, request)?,
                Phase::TakeMore => {
                    self.go_on(connection, state.sequence)?;
                    continue;
                }
                _ => return Err(ConnectionError::BadLength),
            }
            if state.phase == Phase::Asked {
                self.take(state);
                return Ok(());
            }
            self.hand_over(connection, Phase::GiveMore, state.sequence, 0)?;
            Patience::look_for_piece(|| self.is_our_turn());
        }
    }

    /// Replies to the request that was received, with parts one after another.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn send(&self, connection: &Connection, parts: &[&[u8]], wait: &mut Wait<'_>) -> Result<(), ConnectionError> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let sequence = self.words().state()?.sequence;
        let mut sent = 0;
        loop {
            point("line: a piece of a reply about to be written");
            let length = self.memory.write(Area::Replies, parts, sent);
            sent += length;
            let phase = if sent == total { Phase::Answered } else { Phase::AnsweredPart };
            self.hand_over(connection, phase, sequence, length)?;
            if phase == Phase::Answered {
                return Ok(());
            }
            Patience::look_for_piece(|| self.is_our_turn());
            if self.turn(connection, wait)?.phase != Phase::TakeMore {
                return Err(ConnectionError::BadLength);
            }
        }
    }

    /// Whether there is a reply that the client has not read, or not to its end. If it has ended, it never will.
    pub fn is_unread(&self) -> bool {
        use Phase::{Answered, AnsweredPart, TakeMore};
        self.words().state().is_ok_and(|state| matches!(state.phase, Answered | AnsweredPart | TakeMore))
    }

    pub(super) fn words(&self) -> &Words {
        self.memory.words()
    }

    fn hand_over(&self, bell: &impl Bell, phase: Phase, sequence: u32, length: usize) -> Result<(), ConnectionError> {
        let words = self.words();
        words.hand_over(State { phase, sequence, length }, &words.client, bell)
    }

    /// Whether it is, or never will be.
    fn is_our_turn(&self) -> bool {
        self.words().state().map_or(true, |state| state.phase.of_server())
    }

    /// The request has been read: the client need not ring for it any more.
    fn take(&self, state: State) {
        let taken = State { phase: Phase::Taken, length: 0, ..state };
        self.words().state.0.store(taken.to_word(), crate::loom::Ordering::Release);
        point("line: a request read and noted");
    }

    /// Waits until it is our turn.
    fn turn(&self, bell: &impl Bell, wait: &mut Wait<'_>) -> Result<State, ConnectionError> {
        let words = self.words();
        loop {
            if self.left.load(Relaxed) {
                // While an attendant looks, as the client knows, we sleep until somebody needs us.
                let slept = if self.is_watched() { bell.sleep(None, wait) } else { Ok(()) };
                self.take_back();
                slept?;
            }
            if self.patience.look(|| self.is_our_turn()) {
                return words.state();
            }
            let slept = match words.falls_asleep(&words.server, |phase| !phase.of_server()) {
                Ok(true) => bell.sleep(None, wait),
                other => other.map(drop),
            };
            Words::wakes_up(&words.server);
            point("line: the server woke up");
            slept?;
        }
    }

    /// From now on no attendant touches the line.
    fn take_back(&self) {
        self.watched.store(false, Relaxed);
        // It may be in the midst of something, even of leaving the line to us.
        drop(locked(&self.at_work));
        self.left.store(false, Relaxed);
        Words::wakes_up(&self.words().server);
    }

    /// Sends the next piece of a reply that an attendant began.
    fn go_on(&self, bell: &impl Bell, sequence: u32) -> Result<(), ConnectionError> {
        let mut rest = locked(&self.rest);
        let length = self.memory.write(Area::Replies, &[&rest.bytes], rest.sent);
        rest.sent += length;
        let last = rest.sent == rest.bytes.len();
        if last {
            *rest = Rest::default();
        }
        self.hand_over(bell, if last { Phase::Answered } else { Phase::AnsweredPart }, sequence, length)
    }

    // What an attendant does

    /// Has an attendant look at the line from now on. Only for the line's own thread, between a reply and the next request.
    pub(super) fn watch(&self) {
        self.left.store(true, Relaxed);
        self.watched.store(true, Relaxed);
    }

    /// Whether there may be something for an attendant to do.
    pub fn is_asked(&self) -> bool {
        self.words().state().is_ok_and(|state| is_request(state.phase))
    }

    /// Whether an attendant looks at the line.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    /// For an attendant: the line, if it has a request and its own thread leaves it to the attendant.
    pub(super) fn attend(&self) -> Option<(MutexGuard<'_, ()>, State)> {
        let at_work = self.at_work.try_lock().ok()?;
        let state = self.words().state().ok().filter(|state| is_request(state.phase))?;
        self.is_watched().then_some((at_work, state))
    }

    /// Reads the request for an attendant; false for a piece of one, which is nothing for it.
    pub(super) fn read(&self, state: State, request: &mut Vec<u8>) -> Result<bool, ConnectionError> {
        request.clear();
        if state.phase != Phase::Asked {
            return Ok(false);
        }
        self.memory.read(Area::Requests, state.length, request)?;
        self.take(state);
        Ok(true)
    }

    /// Replies for an attendant. What does not fit is left to the line's own thread, whom the client then rings for.
    pub(super) fn answer(&self, bell: &impl Bell, state: State, parts: &[&[u8]]) -> Result<(), ConnectionError> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let length = self.memory.write(Area::Replies, parts, 0);
        let mut phase = Phase::Answered;
        if length < total {
            *locked(&self.rest) = Rest { bytes: parts.concat(), sent: length };
            self.words().server.0.store(1, crate::loom::Ordering::Relaxed);
            self.watched.store(false, Relaxed);
            phase = Phase::AnsweredPart;
        }
        self.hand_over(bell, phase, state.sequence, length)
    }

    /// Leaves the line to its own thread; only for the holder of `at_work`. If it has a request, the client is told to hand
    /// it over again, and rings.
    pub(super) fn dismiss(&self, bell: &impl Bell) -> Result<(), ConnectionError> {
        if !self.watched.swap(false, Relaxed) {
            return Ok(());
        }
        let words = self.words();
        if words.falls_asleep(&words.server, |phase| !is_request(phase))? {
            return Ok(());
        }
        let State { sequence, length, .. } = words.state()?;
        self.hand_over(bell, Phase::AskAgain, sequence, length)
    }

    /// For an attendant: leaves a request that it has taken to the line's own thread. The request is in its area still.
    pub(super) fn give_back(&self, bell: &impl Bell, state: State) -> Result<(), ConnectionError> {
        let words = self.words();
        self.watched.store(false, Relaxed);
        words.server.0.store(1, crate::loom::Ordering::Relaxed);
        self.hand_over(bell, Phase::AskAgain, state.sequence, state.length)
    }

    /// [`dismiss`](Self::dismiss) for an attendant that is not at work on the line.
    pub(super) fn leave(&self, bell: &impl Bell) {
        let _at_work = locked(&self.at_work);
        // Its own thread sees for itself what the error was.
        let _ = self.dismiss(bell);
    }
}
