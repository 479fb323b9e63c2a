//! The messages between the clients and the server of a manager, and their bytes. See `PROTOCOL.md`, *Messages*.

use crate::process::ProcessId;

/// The version of these messages. A server takes no client of another one.
pub const VERSION: u16 = 2;

const MAGIC: [u8; 6] = *b"prcmgr";

/// Who calls: all threads of a process are one client, a forked child is another. Random, so no two are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u128);

/// Which server: random, so that one that was started at the address of another isn't taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u128);

/// The number of an object. A server gives none twice.
pub type ObjectId = u64;

/// Bytes that are no message of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer speaks another protocol, or none.
    #[error("the peer is not a manager of procession")]
    Magic,
    /// The peer is of another version of procession.
    #[error("the peer speaks version {0} of the manager's protocol, this is version {VERSION}")]
    Version(u16),
    /// A message is too short, or announces more than it holds, or holds more than it announces.
    #[error("a message of the manager's protocol has a wrong length")]
    Length,
    /// A message is of no known kind.
    #[error("a message of the manager's protocol is of an unknown kind: {0}")]
    Kind(u8),
    /// The name of a type or method is not UTF-8.
    #[error("a name is not text")]
    Name,
    /// A field that has no meaning in this message is not zero.
    #[error("a message of the manager's protocol sets a field that it hasn't")]
    Surplus,
    /// The reply is to another request.
    #[error("the reply is to another request")]
    OutOfStep,
}

/// The first message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who it is.
    pub client: ClientId,
    /// Its process; `None` if it is of another machine or doesn't tell.
    pub process: Option<ProcessId>,
}

impl Hello {
    /// Its length in bytes.
    pub const LENGTH: usize = 32;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.client.0.to_le_bytes());
        bytes[24..].copy_from_slice(&self.process.map_or(0, ProcessId::to_bits).to_le_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// They are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let fields = Fields(opening(bytes)?);
        if bytes.len() != Self::LENGTH {
            return Err(ProtocolError::Length);
        }
        Ok(Self { client: ClientId(fields.u128(0)?), process: ProcessId::from_bits(fields.u64(16)?) })
    }
}

/// The server's answer to [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Who it is.
    pub server: ServerId,
    /// Whether it takes the shared memory that came with the [`Hello`]: all that follows goes over that.
    pub shares: bool,
}

impl Welcome {
    /// Its length in bytes.
    pub const LENGTH: usize = 32;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.server.0.to_le_bytes());
        bytes[24..].copy_from_slice(&u64::from(self.shares).to_le_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// They are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let fields = Fields(opening(bytes)?);
        if bytes.len() != Self::LENGTH {
            return Err(ProtocolError::Length);
        }
        let shares = match fields.u64(16)? {
            0 => false,
            1 => true,
            _ => return Err(ProtocolError::Surplus),
        };
        Ok(Self { server: ServerId(fields.u128(0)?), shares })
    }
}

/// Checks magic and version; what follows them.
fn opening(bytes: &[u8]) -> Result<&[u8], ProtocolError> {
    let (magic, rest) = bytes.split_first_chunk::<6>().ok_or(ProtocolError::Magic)?;
    if *magic != MAGIC {
        return Err(ProtocolError::Magic);
    }
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(ProtocolError::Length)?;
    match u16::from_le_bytes(*version) {
        VERSION => Ok(rest),
        other => Err(ProtocolError::Version(other)),
    }
}

/// Numbers within bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], ProtocolError> {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(ProtocolError::Length)
    }

    fn u32(&self, at: usize) -> Result<u32, ProtocolError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, ProtocolError> {
        self.array(at).map(u64::from_le_bytes)
    }

    fn u128(&self, at: usize) -> Result<u128, ProtocolError> {
        self.array(at).map(u128::from_le_bytes)
    }
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Call a method of an object. The reply is what it returns.
    Call {
        /// The object.
        object: ObjectId,
        /// The thread that calls, a number that no other one has: the owner of what only a thread can own.
        thread: u64,
        /// The method.
        method: &'a str,
        /// Bytes that the object understands.
        arguments: &'a [u8],
    },
    /// Make an object. The reply is its number; the client has a reference to it.
    Create {
        /// The type.
        name: &'a str,
        /// Bytes that the type understands.
        arguments: &'a [u8],
    },
    /// Count one more reference of this client.
    Retain(ObjectId),
    /// Count one reference of this client less. Has no reply.
    Release(ObjectId),
    /// Count a reference that is on its way to another client. The reply is its number, for `Claim`.
    Lend(ObjectId),
    /// Count one more reference of this client, in the place of the one that was on its way.
    Claim {
        /// The object.
        object: ObjectId,
        /// The number that `Lend` had in reply; zero if none is on its way.
        loan: u64,
    },
    /// The reply is how many objects there are.
    Count,
    /// End the server. The reply comes first.
    Shutdown,
}

/// The fixed part of a request: kind, a zero, the length of the name, the request's number, the object, and what the kind
/// adds to it (thread or loan).
const REQUEST: usize = 24;

mod kind {
    pub(super) const CALL: u8 = 1;
    pub(super) const CREATE: u8 = 2;
    pub(super) const RETAIN: u8 = 3;
    pub(super) const RELEASE: u8 = 4;
    pub(super) const LEND: u8 = 5;
    pub(super) const CLAIM: u8 = 6;
    pub(super) const COUNT: u8 = 7;
    pub(super) const SHUTDOWN: u8 = 8;
}

/// The longest name of a type or method.
pub const LONGEST_NAME: usize = u16::MAX as usize;

impl<'a> Request<'a> {
    /// The parts of the message, to be sent one after another: the fixed part, the name, the arguments.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::Name`] if the name has more than [`LONGEST_NAME`] bytes.
    pub fn parts(&self, sequence: u32) -> Result<([u8; REQUEST], &'a str, &'a [u8]), ProtocolError> {
        let (kind, object, extra, name, arguments): (_, _, _, &str, &[u8]) = match *self {
            Self::Call { object, thread, method, arguments } => (kind::CALL, object, thread, method, arguments),
            Self::Create { name, arguments } => (kind::CREATE, 0, 0, name, arguments),
            Self::Retain(object) => (kind::RETAIN, object, 0, "", &[]),
            Self::Release(object) => (kind::RELEASE, object, 0, "", &[]),
            Self::Lend(object) => (kind::LEND, object, 0, "", &[]),
            Self::Claim { object, loan } => (kind::CLAIM, object, loan, "", &[]),
            Self::Count => (kind::COUNT, 0, 0, "", &[]),
            Self::Shutdown => (kind::SHUTDOWN, 0, 0, "", &[]),
        };
        let length = u16::try_from(name.len()).map_err(|_| ProtocolError::Name)?;
        let mut fixed = [0; REQUEST];
        fixed[0] = kind;
        fixed[2..4].copy_from_slice(&length.to_le_bytes());
        fixed[4..8].copy_from_slice(&sequence.to_le_bytes());
        fixed[8..16].copy_from_slice(&object.to_le_bytes());
        fixed[16..24].copy_from_slice(&extra.to_le_bytes());
        Ok((fixed, name, arguments))
    }

    /// From bytes; with the number of the request.
    ///
    /// # Errors
    ///
    /// They are no request.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<(u32, Self), ProtocolError> {
        let (fixed, rest) = bytes.split_first_chunk::<REQUEST>().ok_or(ProtocolError::Length)?;
        let fields = Fields(fixed);
        let kind = fixed[0];
        let length = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
        let (name, arguments) = rest.split_at_checked(length).ok_or(ProtocolError::Length)?;
        let name = std::str::from_utf8(name).map_err(|_| ProtocolError::Name)?;
        let (sequence, object, extra) = (fields.u32(4)?, fields.u64(8)?, fields.u64(16)?);
        let request = match kind {
            kind::CALL => Self::Call { object, thread: extra, method: name, arguments },
            kind::CREATE => Self::Create { name, arguments },
            kind::RETAIN => Self::Retain(object),
            kind::RELEASE => Self::Release(object),
            kind::LEND => Self::Lend(object),
            kind::CLAIM => Self::Claim { object, loan: extra },
            kind::COUNT => Self::Count,
            kind::SHUTDOWN => Self::Shutdown,
            other => return Err(ProtocolError::Kind(other)),
        };
        // Whatever is not part of the request was not written by a client of this version.
        let (canonical, name, arguments) = request.parts(sequence)?;
        if canonical[..2] != fixed[..2] || canonical[4..] != fixed[4..] {
            return Err(ProtocolError::Surplus);
        }
        if REQUEST + name.len() + arguments.len() != bytes.len() {
            return Err(ProtocolError::Length);
        }
        Ok((sequence, request))
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It was done; the rest of the reply is the result.
    Done = 0,
    /// The object refused; the rest are bytes of the face that say why.
    Raised = 1,
    /// The object doesn't exist, or no longer.
    NoSuchObject = 2,
    /// The object has no such method, or doesn't expose it; the rest is the type of the object, a text.
    NoSuchMethod = 3,
    /// No type of the name is registered; the rest are the names of those that are, a text.
    NoSuchType = 4,
    /// The arguments are not what the method or type takes; the rest says in what way, a text.
    BadArguments = 5,
    /// The server failed; the rest says how, a text.
    Failed = 6,
}

impl Status {
    const ALL: [Self; 7] = [
        Self::Done,
        Self::Raised,
        Self::NoSuchObject,
        Self::NoSuchMethod,
        Self::NoSuchType,
        Self::BadArguments,
        Self::Failed,
    ];
}

/// The fixed part of a reply: status, three zeros, the number of the request.
pub const REPLY: usize = 8;

/// The fixed part of a reply; the result follows it.
pub fn reply(sequence: u32, status: Status) -> [u8; REPLY] {
    let mut bytes = [0; REPLY];
    bytes[0] = status as u8;
    bytes[4..].copy_from_slice(&sequence.to_le_bytes());
    bytes
}

/// Reads the fixed part of the reply to the request of this number. What follows it is the result.
///
/// # Errors
///
/// The bytes are no reply, or one to another request.
pub fn read_reply(sequence: u32, bytes: &[u8]) -> Result<Status, ProtocolError> {
    let fixed = bytes.first_chunk::<REPLY>().ok_or(ProtocolError::Length)?;
    let status = Status::ALL.into_iter().find(|status| *status as u8 == fixed[0]);
    let status = status.ok_or(ProtocolError::Kind(fixed[0]))?;
    if fixed[1..4] != [0; 3] {
        return Err(ProtocolError::Surplus);
    }
    if Fields(fixed).u32(4)? == sequence { Ok(status) } else { Err(ProtocolError::OutOfStep) }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;

    /// The message as it goes over the connection.
    fn bytes_of(request: &Request<'_>, sequence: u32) -> Vec<u8> {
        let (fixed, name, arguments) = request.parts(sequence).unwrap();
        [&fixed[..], name.as_bytes(), arguments].concat()
    }

    fn one_of<'a>(kind: u8, object: u64, extra: u64, name: &'a str, arguments: &'a [u8]) -> Request<'a> {
        match kind {
            0 => Request::Call { object, thread: extra, method: name, arguments },
            1 => Request::Create { name, arguments },
            2 => Request::Retain(object),
            3 => Request::Release(object),
            4 => Request::Lend(object),
            5 => Request::Claim { object, loan: extra },
            6 => Request::Count,
            _ => Request::Shutdown,
        }
    }

    proptest! {
        #[test]
        fn every_request_comes_back(
            (kind, sequence, object, extra) in (0..8u8, any::<u32>(), any::<u64>(), any::<u64>()),
            name in ".{0,40}",
            arguments in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let request = one_of(kind, object, extra, &name, &arguments);
            let bytes = bytes_of(&request, sequence);
            prop_assert_eq!(Request::from_bytes(&bytes), Ok((sequence, request)));
        }

        #[test]
        fn a_damaged_request_is_refused_or_another(
            kind in 0..8u8, at in any::<Index>(), value in any::<u8>(), cut in any::<Index>(),
        ) {
            let mut bytes = bytes_of(&one_of(kind, 5, 7, "name", b"arguments"), 3);
            let at = at.index(bytes.len());
            bytes[at] = value;
            // Whatever is read says exactly what the bytes say.
            if let Ok((sequence, request)) = Request::from_bytes(&bytes) {
                prop_assert_eq!(bytes_of(&request, sequence), bytes.clone());
            }
            let cut = &bytes[..cut.index(bytes.len())];
            if let Ok((sequence, request)) = Request::from_bytes(cut) {
                prop_assert_eq!(bytes_of(&request, sequence), cut);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), sequence: u32) {
            if let Ok((sequence, request)) = Request::from_bytes(&bytes) {
                prop_assert_eq!(bytes_of(&request, sequence), bytes.clone());
            }
            if let Ok(status) = read_reply(sequence, &bytes) {
                prop_assert_eq!(&reply(sequence, status)[..], &bytes[..REPLY]);
            }
            if let Ok(hello) = Hello::from_bytes(&bytes) {
                prop_assert_eq!(&hello.to_bytes()[..], &bytes[..]);
            }
            if let Ok(welcome) = Welcome::from_bytes(&bytes) {
                prop_assert_eq!(&welcome.to_bytes()[..], &bytes[..]);
            }
        }

        #[test]
        fn greetings_come_back(client: u128, server: u128, process: u64) {
            let hello = Hello { client: ClientId(client), process: ProcessId::from_bits(process) };
            prop_assert_eq!(Hello::from_bytes(&hello.to_bytes()), Ok(hello));
            let welcome = Welcome { server: ServerId(server), shares: server % 2 == 1 };
            prop_assert_eq!(Welcome::from_bytes(&welcome.to_bytes()), Ok(welcome));
        }
    }

    #[test]
    fn another_version_is_told_from_another_protocol() {
        let mut bytes = Hello { client: ClientId(1), process: None }.to_bytes();
        bytes[6] = 9;
        assert_eq!(Hello::from_bytes(&bytes), Err(ProtocolError::Version(9)));
        assert_eq!(Hello::from_bytes(b"GET / HTTP/1.1"), Err(ProtocolError::Magic));
        assert_eq!(Hello::from_bytes(&bytes[..7]), Err(ProtocolError::Length));
    }

    #[test]
    fn every_status_comes_back() {
        for status in Status::ALL {
            assert_eq!(read_reply(77, &reply(77, status)), Ok(status));
            assert_eq!(read_reply(78, &reply(77, status)), Err(ProtocolError::OutOfStep));
        }
        assert_eq!(read_reply(0, &[7, 0, 0, 0, 0, 0, 0, 0]), Err(ProtocolError::Kind(7)));
        assert_eq!(read_reply(0, &[0; 7]), Err(ProtocolError::Length));
    }

    #[test]
    fn a_name_that_is_too_long_is_an_error() {
        let name = "n".repeat(LONGEST_NAME + 1);
        assert_eq!(Request::Create { name: &name, arguments: &[] }.parts(0), Err(ProtocolError::Name));
    }
}
