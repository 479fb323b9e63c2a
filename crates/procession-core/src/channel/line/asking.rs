//! The side of a line that asks.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use super::{Area, Bell, Memory, Phase, SEQUENCE, State, Words, patience::Patience};
use crate::{
    channel::{Connection, ConnectionError},
    kills::point,
    sync::Wait,
};

/// A request that nobody has taken up after so long is rung for, even if somebody said that he looks ("Busy attendant").
const LATE: Duration = Duration::from_millis(5);

/// The client's side of a line: asks, and gets the reply.
///
/// After an error the line is of no use any more, as the reply that is due may still come: the connection is to be closed.
/// A forked child does not use its parent's lines.
#[derive(Debug)]
pub struct Asking {
    memory: Memory,
    sequence: u32,
    /// What was handed over last.
    handed: State,
    /// Whether a request was sent whose reply has not been read.
    unanswered: bool,
    patience: Patience,
}

impl Asking {
    /// Makes the shared memory. Its descriptor ([`AsFd`]) is to be sent to the server, who makes a
    /// [`Serving`](super::Serving) from it.
    ///
    /// # Errors
    ///
    /// There are no more descriptors, or no memory.
    pub fn create() -> io::Result<Self> {
        let handed = State { phase: Phase::Free, sequence: 0, length: 0 };
        Ok(Self { memory: Memory::create()?, sequence: 0, handed, unanswered: false, patience: Patience::new() })
    }

    /// Sends a request, made of parts one after another, without waiting for the reply; but for that to the one before
    /// it, if nobody has. `connection` is the one whose other end the server has.
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Ended`] if the server has ended, [`ConnectionError::Wait`], [`ConnectionError::BadLength`] if
    /// what stands in shared memory makes no sense.
    pub fn send(
        &mut self,
        connection: &Connection,
        parts: &[&[u8]],
        wait: &mut Wait<'_>,
    ) -> Result<(), ConnectionError> {
        if self.unanswered {
            self.receive(connection, &mut Vec::new(), wait)?;
        }
        self.unanswered = true;
        self.sequence = self.sequence.wrapping_add(1) & SEQUENCE;
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut sent = 0;
        loop {
            point("line: a piece of a request about to be written");
            let length = self.memory.write(Area::Requests, parts, sent);
            sent += length;
            let phase = if sent == total { Phase::Asked } else { Phase::AskedPart };
            self.hand_over(connection, phase, length)?;
            if phase == Phase::Asked {
                return Ok(());
            }
            let words = self.words();
            Patience::look_for_piece(|| words.state().map_or(true, |state| state.phase.of_client()));
            if self.turn(connection, wait)?.phase != Phase::GiveMore {
                return Err(ConnectionError::BadLength);
            }
        }
    }

    /// Waits for the reply to what was sent, and puts it in `reply`, which is emptied first.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn receive(
        &mut self,
        connection: &Connection,
        reply: &mut Vec<u8>,
        wait: &mut Wait<'_>,
    ) -> Result<(), ConnectionError> {
        reply.clear();
        loop {
            let state = self.turn(connection, wait)?;
            match state.phase {
                Phase::Answered | Phase::AnsweredPart => self.memory.read(Area::Replies, state.length, reply)?,
                _ => return Err(ConnectionError::BadLength),
            }
            point("line: a piece of a reply read, not noted");
            if state.phase == Phase::Answered {
                self.unanswered = false;
                self.handed = State { phase: Phase::Free, length: 0, ..state };
                // It is still our turn, but the server can see that its reply has arrived.
                self.words().state.0.store(self.handed.to_word(), crate::loom::Ordering::Release);
                return Ok(());
            }
            self.hand_over(connection, Phase::TakeMore, 0)?;
            let words = self.words();
            Patience::look_for_piece(|| words.state().map_or(true, |state| state.phase.of_client()));
        }
    }

    /// Whether the server has begun with what was sent last.
    pub fn was_taken(&self) -> bool {
        let phase = self.words().state().map(|state| state.phase);
        !matches!(phase, Ok(Phase::Asked | Phase::AskedPart | Phase::AskAgain))
    }

    fn words(&self) -> &Words {
        self.memory.words()
    }

    fn hand_over(&mut self, bell: &impl Bell, phase: Phase, length: usize) -> Result<(), ConnectionError> {
        self.handed = State { phase, sequence: self.sequence, length };
        let words = self.words();
        words.hand_over(self.handed, &words.server, bell)
    }

    /// Waits until it is our turn.
    fn turn(&self, bell: &impl Bell, wait: &mut Wait<'_>) -> Result<State, ConnectionError> {
        let words = self.words();
        let mut late = None;
        loop {
            if self.patience.look(|| words.state().map_or(true, |state| state.phase.of_client())) {
                let state = words.state()?;
                if state.sequence != self.sequence {
                    return Err(ConnectionError::BadLength);
                }
                if state.phase != Phase::AskAgain {
                    return Ok(state);
                }
                // Whoever looked does not look any more, so this rings.
                words.hand_over(self.handed, &words.server, bell)?;
                continue;
            }
            late = asleep(words, late, bell, wait)?;
        }
    }
}

/// When it is looked whether to ring in any case, and whether it has been.
pub(super) type Late = Option<(Instant, bool)>;

/// Sleeps until it may be the client's turn. Once it is late, rings if the server has not taken up what it was asked.
pub(super) fn asleep(
    words: &Words,
    late: Late,
    bell: &impl Bell,
    wait: &mut Wait<'_>,
) -> Result<Late, ConnectionError> {
    let (moment, looked) = late.unwrap_or_else(|| (Instant::now() + LATE, false));
    let slept = match words.falls_asleep(&words.client, |phase| !phase.of_client()) {
        Ok(true) => bell.sleep((!looked).then_some(moment), wait),
        other => other.map(drop),
    };
    Words::wakes_up(&words.client);
    point("line: the client woke up");
    match slept {
        // What it has answered before it ended counts.
        Err(ConnectionError::Ended) if words.state()?.phase.of_client() => return Ok(late),
        slept => slept?,
    }
    if looked || Instant::now() < moment {
        return Ok(Some((moment, looked)));
    }
    if words.state()?.phase.of_server() {
        bell.ring()?;
    }
    Ok(Some((moment, true)))
}

impl AsFd for Asking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}
