//! Messages from a peer that frames them as it likes, over each kind of descriptor and by each way to receive. What is
//! received has to be what a reading of CONNECTION.md, *Frame* and *Packets*, says.
#![no_main]

use std::{
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use procession_core::{
    channel::{self, Connection, ConnectionError, Partial},
    sync::Wait,
};

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Kind {
    Stream,
    Pipe,
    Packets,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum How {
    Receive,
    AtMost(u16),
    WithDescriptors,
    InSteps,
}

/// What the peer writes in one call.
#[derive(Arbitrary, Debug)]
enum Piece {
    Message { body: Vec<u8>, long: bool },
    /// A header, and a body that has nothing to do with it.
    Announced { short: i32, body: Vec<u8> },
    AnnouncedLong { length: u64, body: Vec<u8> },
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Input {
    kind: Kind,
    how: How,
    pieces: Vec<Piece>,
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Message { body, long: false } => [&(body.len() as u32).to_be_bytes()[..], body].concat(),
            Self::Message { body, long: true } => {
                [&[255; 4][..], &(body.len() as u64).to_be_bytes(), body].concat()
            }
            Self::Announced { short, body } => [&short.to_be_bytes()[..], body].concat(),
            Self::AnnouncedLong { length, body } => [&[255; 4][..], &length.to_be_bytes(), body].concat(),
            Self::Raw(bytes) => bytes.clone(),
        }
    }
}

/// How receiving ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Ended,
    Truncated,
    BadLength,
    /// For so much there may be no memory, which is found out before the rest is missed.
    BadLengthOrTruncated,
}

/// The length of the header and what it announces; none if it isn't whole.
fn header(kind: Kind, bytes: &[u8]) -> Result<Option<(usize, u64)>, End> {
    let Some((short, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    match i32::from_be_bytes(*short) {
        -2 if kind != Kind::Packets => Err(End::BadLength),
        -1 | -2 => match rest.first_chunk::<8>().map(|long| u64::from_be_bytes(*long)) {
            Some(length) if length > 1 << 56 => Err(End::BadLength),
            Some(length) => Ok(Some((12, length))),
            None => Ok(None),
        },
        short => u64::try_from(short).map(|length| Some((4, length))).map_err(|_| End::BadLength),
    }
}

/// The messages in what the peer writes, and how they end.
fn expected(kind: Kind, limit: u64, pieces: &[Vec<u8>]) -> (Vec<Vec<u8>>, End) {
    let mut messages = Vec::new();
    let mut pieces = pieces.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let all = pieces.concat();
    if kind != Kind::Packets {
        pieces = if all.is_empty() { Vec::new() } else { vec![&all] };
    }
    let mut pieces = pieces.into_iter();
    let mut left = pieces.next();
    loop {
        let Some(bytes) = left.filter(|bytes| !bytes.is_empty()) else { return (messages, End::Ended) };
        let (start, length) = match header(kind, bytes) {
            Err(end) => return (messages, end),
            Ok(None) => return (messages, if kind == Kind::Packets { End::BadLength } else { End::Truncated }),
            Ok(Some(header)) => header,
        };
        let mut body = bytes[start..].to_vec();
        if length > limit || kind == Kind::Packets && body.len() as u64 > length {
            return (messages, End::BadLength);
        }
        let mut rest = None;
        if kind != Kind::Packets && body.len() as u64 > length {
            rest = Some(&bytes[start + length as usize..]);
            body.truncate(length as usize);
        }
        while (body.len() as u64) < length {
            let end = if length > 64 << 20 { End::BadLengthOrTruncated } else { End::Truncated };
            let Some(packet) = pieces.next() else { return (messages, end) };
            if (packet.len() + body.len()) as u64 > length {
                return (messages, End::BadLength);
            }
            body.extend(packet);
        }
        messages.push(body);
        left = rest.or_else(|| pieces.next());
    }
}

fn ends(kind: Kind) -> (Connection, Connection) {
    match kind {
        Kind::Stream => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (OwnedFd::from(ours).into(), OwnedFd::from(theirs).into())
        }
        Kind::Pipe => channel::one_way_pipe().unwrap(),
        Kind::Packets => channel::pipe().unwrap(),
    }
}

fn write(theirs: &Connection, bytes: &[u8]) {
    use std::os::fd::FromRawFd;

    // SAFETY: the number is the connection's, which is open, and is not closed here.
    let mut file = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(theirs.number().unwrap()) });
    file.write_all(bytes).unwrap();
}

/// One message by steps that never wait; what has come is kept in between.
fn step(ours: &Connection, kept: &mut Option<Partial>) -> Result<Option<Vec<u8>>, ConnectionError> {
    let mut incoming = match kept.take() {
        Some(partial) => ours.resume(partial)?,
        None => ours.receiving()?,
    };
    let message = incoming.try_body()?;
    if message.is_none() {
        *kept = incoming.suspend();
    }
    Ok(message)
}

fuzz_target!(|input: Input| {
    let Input { kind, how, pieces } = input;
    // A packet of nothing is the end to whoever receives it, and no library sends one.
    let pieces: Vec<_> = pieces.iter().map(Piece::bytes).filter(|piece| !piece.is_empty()).collect();
    // What the system takes without a reader.
    if pieces.iter().map(|piece| piece.len() + 1024).sum::<usize>() > 60_000 || pieces.len() > 100 {
        return;
    }
    let (ours, theirs) = ends(kind);
    let mut received = Vec::new();
    let mut result = Ok(());
    if how == How::InSteps {
        let mut kept = None;
        let mut writes = pieces.iter();
        let mut open = Some(theirs);
        result = loop {
            match step(&ours, &mut kept) {
                Ok(Some(message)) => received.push(message),
                Ok(None) => match writes.next() {
                    Some(piece) => write(open.as_ref().unwrap(), piece),
                    None => drop(open.take()),
                },
                Err(error) => break Err(error),
            }
        };
    } else {
        for piece in &pieces {
            if how == How::WithDescriptors && kind != Kind::Pipe {
                send_with_descriptor(&theirs, piece);
            } else {
                write(&theirs, piece);
            }
        }
        drop(theirs);
        while result.is_ok() {
            let wait = &mut Wait::timeout(Duration::from_secs(10));
            let message = match how {
                How::AtMost(limit) => ours.receive_at_most(limit.into(), wait),
                How::WithDescriptors => ours.receive_with(wait).map(|(message, descriptors)| {
                    assert!(kind == Kind::Pipe || message.is_empty() || descriptors.len() <= 100);
                    message
                }),
                _ => ours.receive(wait),
            };
            result = message.map(|message| received.push(message));
        }
    }
    let limit = if let How::AtMost(limit) = how { limit.into() } else { u64::MAX };
    let (messages, end) = expected(kind, limit, &pieces);
    assert_eq!(received, messages);
    match (result.unwrap_err(), end) {
        (ConnectionError::Ended, End::Ended)
        | (ConnectionError::Truncated, End::Truncated | End::BadLengthOrTruncated)
        | (ConnectionError::BadLength, End::BadLength | End::BadLengthOrTruncated) => {}
        (got, end) => panic!("ended with {got:?}, not {end:?}"),
    }
    // Whatever comes now, it comes to an end.
    for _ in 0..2 {
        let _ = ours.receive(&mut Wait::timeout(Duration::from_secs(10)));
    }
});

fn send_with_descriptor(theirs: &Connection, bytes: &[u8]) {
    use std::os::fd::BorrowedFd;

    let (reader, _) = std::io::pipe().unwrap();
    let descriptors = [reader.as_fd()];
    // SAFETY: open as long as the connection, which outlives the call.
    let socket = unsafe { BorrowedFd::borrow_raw(theirs.number().unwrap()) };
    let mut space = [std::mem::MaybeUninit::uninit(); 64];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = rustix::net::sendmsg(
        socket,
        &[std::io::IoSlice::new(bytes)],
        &mut control,
        rustix::net::SendFlags::empty(),
    );
    assert_eq!(sent, Ok(bytes.len()));
}
