//! Proving to each other that both sides of a connection have the same key, without sending it. The messages are
//! described in `CONNECTION.md`, *Handshake*; they are those of Python's multiprocessing.
//!
//! [`Handshake`] is the protocol alone: messages in, messages out, no waiting and no descriptors. The functions beside it
//! drive one over a connection.

use std::{fmt, io};

use hmac::{KeyInit, Mac, SimpleHmac};
use subtle::ConstantTimeEq;

use super::{Connection, ConnectionError};
use crate::{sync::Wait, sys::io as sys};

/// No message of a handshake is longer. A peer that announces a longer one has no key to show.
pub const LONGEST_MESSAGE: usize = 256;

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";

/// So many random bytes are in a challenge.
const RANDOM: usize = 40;
/// What old peers send names no digest, and is told by its length: a challenge, or an HMAC with MD5.
const OLD_CHALLENGE: usize = 20;
const OLD_ANSWER: usize = 16;

/// The hash function under the HMAC.
///
/// A peer answers with the one it was asked for. Python 3.11 and older answers with MD5 whatever it was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Digest {
    /// For peers that know nothing else. HMAC with MD5 is not broken, but there is no reason to ask for it.
    Md5,
    /// What both sides ask for unless told otherwise.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA3-256.
    Sha3_256,
    /// SHA3-384.
    Sha3_384,
}

impl Digest {
    /// Every one that a peer may name.
    pub const ALL: [Self; 5] = [Self::Md5, Self::Sha256, Self::Sha384, Self::Sha3_256, Self::Sha3_384];

    /// The name it has in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha3_256 => "sha3_256",
            Self::Sha3_384 => "sha3_384",
        }
    }

    /// The one of this name.
    pub fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|digest| digest.name().as_bytes() == name)
    }

    /// The HMAC of `message` under `key`.
    fn mac(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        fn of<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
            let mut mac = <M as KeyInit>::new_from_slice(key).expect("an HMAC takes a key of any length");
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Self::Md5 => of::<SimpleHmac<md5::Md5>>(key, message),
            Self::Sha256 => of::<SimpleHmac<sha2::Sha256>>(key, message),
            Self::Sha384 => of::<SimpleHmac<sha2::Sha384>>(key, message),
            Self::Sha3_256 => of::<SimpleHmac<sha3::Sha3_256>>(key, message),
            Self::Sha3_384 => of::<SimpleHmac<sha3::Sha3_384>>(key, message),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a peer was not let in, or we were not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticationError {
    /// Another message than a challenge came where one was due.
    #[error("protocol error: expected a challenge")]
    NoChallenge,
    /// A challenge of so few bytes could be one that was seen before.
    #[error("challenge too short: {0} bytes")]
    ShortChallenge(usize),
    /// A challenge or an answer names no digest, or one that is not known.
    #[error("the other side names no digest, or one that is not supported")]
    UnknownDigest,
    /// An answer has a length that its digest doesn't.
    #[error("a digest of {digest} has another length than {length} bytes")]
    WrongLength {
        /// What the peer says it is.
        digest: Digest,
        /// What the peer sent.
        length: usize,
    },
    /// The peer has another key.
    #[error("digest received was wrong: the other side has another authkey")]
    WrongDigest,
    /// The peer says that we have another key.
    #[error("digest sent was rejected: the other side has another authkey")]
    Rejected,
}

/// Why a handshake failed. The connection is good for nothing afterwards: close it.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The two sides don't have the same key, or the other one doesn't know the protocol.
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
    /// The connection ended, or the time did.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// What is asked of a peer: everything after `#CHALLENGE#`.
struct Challenge(Vec<u8>);

impl Challenge {
    fn new(digest: Digest) -> io::Result<Self> {
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random)?;
        let mut message = format!("{{{digest}}}").into_bytes();
        message.extend(random);
        Ok(Self(message))
    }

    fn question(&self) -> Vec<u8> {
        [CHALLENGE, &self.0].concat()
    }
}

/// Looks at the answer to a challenge: everything after `#CHALLENGE#`.
///
/// # Errors
///
/// It is not right, or no answer.
pub fn verify_response(key: &[u8], challenge: &[u8], response: &[u8]) -> Result<(), AuthenticationError> {
    let (digest, received) = split(response)?;
    let digest = digest.unwrap_or(Digest::Md5);
    let expected = digest.mac(key, challenge);
    if expected.len() != received.len() {
        return Err(AuthenticationError::WrongLength { digest, length: received.len() });
    }
    // Were the comparison to end at the first difference, its time would tell how much of an answer is right.
    if bool::from(expected.ct_eq(received)) { Ok(()) } else { Err(AuthenticationError::WrongDigest) }
}

/// The digest that a challenge or an answer names, and what follows. `None` for an old peer's.
fn split(message: &[u8]) -> Result<(Option<Digest>, &[u8]), AuthenticationError> {
    if message.len() == OLD_CHALLENGE || message.len() == OLD_ANSWER {
        return Ok((None, message));
    }
    let named = message.strip_prefix(b"{").and_then(|rest| {
        let end = rest.iter().position(|&byte| byte == b'}')?;
        Some((Digest::named(&rest[..end])?, &rest[end + 1..]))
    });
    let (digest, rest) = named.ok_or(AuthenticationError::UnknownDigest)?;
    Ok((Some(digest), rest))
}

/// The answer to a challenge: everything after `#CHALLENGE#`. The HMAC is over all of it, so nobody between can have a
/// weaker digest taken.
///
/// # Errors
///
/// The challenge names no digest that is known, and is not as long as an old peer's, which names none.
pub fn create_response(key: &[u8], challenge: &[u8]) -> Result<Vec<u8>, AuthenticationError> {
    let (digest, _) = split(challenge)?;
    let Some(digest) = digest else {
        return Ok(Digest::Md5.mac(key, challenge));
    };
    let mut response = format!("{{{digest}}}").into_bytes();
    response.extend(digest.mac(key, challenge));
    Ok(response)
}

fn answer(key: &[u8], question: &[u8]) -> Result<Vec<u8>, AuthenticationError> {
    let challenge = question.strip_prefix(CHALLENGE).ok_or(AuthenticationError::NoChallenge)?;
    if challenge.len() < OLD_CHALLENGE {
        return Err(AuthenticationError::ShortChallenge(challenge.len()));
    }
    create_response(key, challenge)
}

/// What a side has to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this message, then ask for the next step.
    Send(Vec<u8>),
    /// Receive a message of at most [`LONGEST_MESSAGE`] bytes, and hand it to [`Handshake::received`].
    Receive,
    /// The handshake is over. Unless this is an error, each side knows that the other has the key.
    End(Result<(), AuthenticationError>),
}

/// One side of a handshake, without the connection it goes over.
///
/// ```
/// use procession_core::channel::{Handshake, Step};
///
/// fn next(one: &mut Handshake, other: &mut Handshake) -> bool {
///     match one.step() {
///         Step::Send(message) => other.received(&message),
///         Step::Receive => {}
///         Step::End(result) => return result == Ok(()),
///     }
///     false
/// }
///
/// let mut listener = Handshake::listener(b"secret")?;
/// let mut client = Handshake::client(b"secret")?;
/// while !(next(&mut listener, &mut client) & next(&mut client, &mut listener)) {}
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Handshake {
    key: Box<[u8]>,
    /// A message that is to go out next.
    say: Option<Vec<u8>>,
    state: State,
    /// The half after this one, in which the parts are changed.
    then: Option<State>,
}

enum State {
    /// This side is about to ask.
    Asking(Challenge),
    /// It has asked.
    Asked(Challenge),
    /// It is about to be asked.
    Listening,
    /// It has answered.
    Answered,
    /// The end.
    Over(Result<(), AuthenticationError>),
}

impl Handshake {
    /// The side that accepted the connection: it asks first, and is asked then.
    ///
    /// # Errors
    ///
    /// There is no random source, which only a broken system lacks. So with the other constructors.
    pub fn listener(key: &[u8]) -> io::Result<Self> {
        let challenge = Challenge::new(Digest::default())?;
        Ok(Self::new(key, State::Asking(challenge), Some(State::Listening)))
    }

    /// The side that made the connection: it is asked first, and asks then.
    ///
    /// # Errors
    ///
    /// As [`listener`](Self::listener).
    pub fn client(key: &[u8]) -> io::Result<Self> {
        let challenge = Challenge::new(Digest::default())?;
        Ok(Self::new(key, State::Listening, Some(State::Asking(challenge))))
    }

    /// The half in which this side asks, alone.
    ///
    /// # Errors
    ///
    /// As [`listener`](Self::listener).
    pub fn deliver(key: &[u8], digest: Digest) -> io::Result<Self> {
        Ok(Self::new(key, State::Asking(Challenge::new(digest)?), None))
    }

    /// The half in which this side is asked, alone.
    pub fn answer(key: &[u8]) -> Self {
        Self::new(key, State::Listening, None)
    }

    fn new(key: &[u8], state: State, then: Option<State>) -> Self {
        Self { key: key.into(), say: None, state, then }
    }

    /// What to do now.
    pub fn step(&mut self) -> Step {
        if let Some(message) = self.say.take() {
            return Step::Send(message);
        }
        match std::mem::replace(&mut self.state, State::Listening) {
            State::Asking(challenge) => {
                let question = challenge.question();
                self.state = State::Asked(challenge);
                Step::Send(question)
            }
            State::Over(result) => {
                self.state = State::Over(result.clone());
                Step::End(result)
            }
            state => {
                self.state = state;
                Step::Receive
            }
        }
    }

    /// Takes a message of the peer. One that comes at the wrong time changes nothing.
    pub fn received(&mut self, message: &[u8]) {
        match &self.state {
            State::Asked(challenge) => {
                let verified = verify_response(&self.key, &challenge.0, message);
                self.say = Some(if verified.is_ok() { WELCOME } else { FAILURE }.to_vec());
                self.half_over(verified);
            }
            State::Listening => match answer(&self.key, message) {
                Ok(answer) => {
                    self.say = Some(answer);
                    self.state = State::Answered;
                }
                Err(error) => self.half_over(Err(error)),
            },
            State::Answered => {
                let welcome = if message == WELCOME { Ok(()) } else { Err(AuthenticationError::Rejected) };
                self.half_over(welcome);
            }
            State::Asking(_) | State::Over(_) => {}
        }
    }

    fn half_over(&mut self, result: Result<(), AuthenticationError>) {
        let next = if result.is_ok() { self.then.take() } else { None };
        self.state = next.unwrap_or(State::Over(result));
    }

    /// Goes through all of it over a connection.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`]: see there.
    pub fn run(mut self, connection: &Connection, wait: &mut Wait<'_>) -> Result<(), HandshakeError> {
        let mut heard_last = false;
        loop {
            match self.step() {
                Step::Send(message) => connection.send(&message, wait)?,
                Step::Receive => {
                    self.received(&connection.receive_at_most(LONGEST_MESSAGE, wait)?);
                    heard_last = true;
                    continue;
                }
                Step::End(result) => {
                    // A peer of the standard package holds back what it sends next until it knows that its last message has
                    // come, and the system would wait for something to send along with that.
                    if let Some(number) = connection.number().filter(|_| heard_last) {
                        sys::acknowledge(number);
                    }
                    return Ok(result?);
                }
            }
            heard_last = false;
        }
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key, nor of what was made from it.
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

/// Has the peer prove that it has the key. Blocks until it did.
///
/// # Errors
///
/// It hasn't, or it says nothing until the time is over, or it is gone.
pub fn deliver_challenge(
    connection: &Connection,
    key: &[u8],
    digest: Digest,
    wait: &mut Wait<'_>,
) -> Result<(), HandshakeError> {
    Handshake::deliver(key, digest).map_err(ConnectionError::Io)?.run(connection, wait)
}

/// Proves to the peer that we have the key. Blocks until it has seen it.
///
/// # Errors
///
/// It says that we haven't, or it says nothing until the time is over, or it is gone.
pub fn answer_challenge(connection: &Connection, key: &[u8], wait: &mut Wait<'_>) -> Result<(), HandshakeError> {
    Handshake::answer(key).run(connection, wait)
}

#[cfg(all(test, not(loom)))]
#[path = "auth_tests.rs"]
mod tests;
