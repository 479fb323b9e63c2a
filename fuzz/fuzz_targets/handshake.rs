//! Handshakes: with strangers, who have no key and say what they like, the words of others among it; and between two
//! that have it, with a message changed on the way. No stranger may be let in, and no change go unnoticed.
#![no_main]

use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::OnceLock,
    time::Duration,
};

use arbitrary::Arbitrary;
use hmac::{KeyInit, Mac, SimpleHmac};
use libfuzzer_sys::fuzz_target;
use procession_core::{
    channel::{Address, Connection, Digest, Handshake, Listener, ListenerOptions, Step, connect},
    sync::Wait,
};

const KEY: &[u8] = b"the key";

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Role {
    Listener,
    Client,
    Deliver(Named),
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Named {
    Md5,
    Sha256,
    Sha384,
    Sha3_256,
    Sha3_384,
}

impl Named {
    fn digest(self) -> Digest {
        Digest::ALL[self as usize]
    }
}

impl Role {
    fn handshake(self) -> Handshake {
        match self {
            Self::Listener => Handshake::listener(KEY),
            Self::Client => Handshake::client(KEY),
            Self::Deliver(named) => Handshake::deliver(KEY, named.digest()),
        }
        .unwrap()
    }
}

/// What a message of a stranger is made of.
#[derive(Arbitrary, Debug)]
enum Part {
    Challenge,
    Welcome,
    Failure,
    Name(Named),
    Raw(Vec<u8>),
    Zeros(u8),
    /// What was heard so many messages ago, from `from` on.
    Heard { ago: u8, from: u8 },
    /// The right answer under a wrong key to what was heard last.
    Answer(Named),
}

#[derive(Arbitrary, Debug)]
enum Input {
    /// A stranger has two conversations with listeners of the same key, and takes what it hears from one to the other.
    Stranger(Role, Vec<(bool, Vec<Part>)>),
    /// The same in bytes, over a socket: to a listener that accepts, or to a client.
    Socket(bool, Vec<Vec<u8>>),
    /// One message of several is changed, in one place.
    Changed { digest: Named, whole: bool, message: u8, at: u8, by: u8 },
}

fn said(parts: &[Part], heard: &[Vec<u8>]) -> Vec<u8> {
    let mut message = Vec::new();
    for part in parts {
        match part {
            Part::Challenge => message.extend(b"#CHALLENGE#"),
            Part::Welcome => message.extend(b"#WELCOME#"),
            Part::Failure => message.extend(b"#FAILURE#"),
            Part::Name(named) => message.extend(format!("{{{}}}", named.digest()).into_bytes()),
            Part::Raw(bytes) => message.extend(bytes),
            Part::Zeros(count) => message.extend(vec![0; (*count).into()]),
            Part::Heard { ago, from } => {
                let heard = heard.iter().rev().nth((*ago).into());
                message.extend(heard.and_then(|heard| heard.get(usize::from(*from)..)).unwrap_or_default());
            }
            Part::Answer(named) => {
                let question = heard.last().map(|heard| heard.strip_prefix(b"#CHALLENGE#").unwrap_or(heard));
                message.extend(mac(*named, b"another key", question.unwrap_or_default()));
            }
        }
    }
    message
}

fn mac(named: Named, key: &[u8], message: &[u8]) -> Vec<u8> {
    fn of<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Vec<u8> {
        let mut mac = <M as KeyInit>::new_from_slice(key).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().to_vec()
    }
    match named {
        Named::Md5 => of::<SimpleHmac<md5::Md5>>(key, message),
        Named::Sha256 => of::<SimpleHmac<sha2::Sha256>>(key, message),
        Named::Sha384 => of::<SimpleHmac<sha2::Sha384>>(key, message),
        Named::Sha3_256 => of::<SimpleHmac<sha3::Sha3_256>>(key, message),
        Named::Sha3_384 => of::<SimpleHmac<sha3::Sha3_384>>(key, message),
    }
}

/// Goes on until it is the peer's turn; keeps what it says. True if it let the peer in.
fn go_on(handshake: &mut Handshake, heard: &mut Vec<Vec<u8>>) -> bool {
    loop {
        match handshake.step() {
            Step::Send(message) => heard.push(message),
            Step::Receive => return false,
            Step::End(result) => return result.is_ok(),
        }
    }
}

fn stranger(role: Role, messages: &[(bool, Vec<Part>)]) {
    // A client shows that it has the key before it asks, to whoever is there. So two of them in one stranger's hands
    // could be led to each other, as a listener and a client can: nothing is to be found there.
    let other = if role == Role::Client { Handshake::answer(KEY) } else { role.handshake() };
    let mut two = [role.handshake(), other];
    let mut heard = Vec::new();
    let asks = [true, role != Role::Client];
    for handshake in &mut two {
        go_on(handshake, &mut heard);
    }
    for (second, parts) in messages {
        let (which, message) = (usize::from(*second), said(parts, &heard));
        if role == Role::Client && which == 1 {
            continue;
        }
        two[which].received(&message);
        for (handshake, asks) in two.iter_mut().zip(asks) {
            assert!(!go_on(handshake, &mut heard) || !asks, "a stranger was let in");
        }
    }
}

fn listener() -> &'static Listener {
    static LISTENER: OnceLock<Listener> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let name = format!("procession-fuzz-{}", std::process::id());
        Listener::bind(&Address::Abstract(name.into()), &ListenerOptions::default()).unwrap()
    })
}

fn over_socket(to_listener: bool, pieces: &[Vec<u8>]) {
    let wait = &mut Wait::timeout(Duration::from_secs(10));
    if to_listener {
        let stranger = connect(listener().address(), wait).unwrap();
        // SAFETY: the descriptor is given away by the connection.
        let mut socket = UnixStream::from(unsafe { owned(stranger.detach().unwrap()) });
        for piece in pieces {
            let _ = socket.write_all(piece);
        }
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(listener().accept_authenticated(KEY, Duration::from_secs(5), wait).is_err());
    } else {
        let (ours, mut socket) = UnixStream::pair().unwrap();
        for piece in pieces {
            let _ = socket.write_all(piece);
        }
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let ours = Connection::from(OwnedFd::from(ours));
        assert!(Handshake::client(KEY).unwrap().run(&ours, wait).is_err());
    }
}

/// # Safety
///
/// The number is that of an open descriptor, and the caller's.
unsafe fn owned(number: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;

    // SAFETY: by the caller's word.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn changed(digest: Named, whole: bool, which: u8, at: u8, by: u8) {
    let mut two = if whole {
        [Handshake::listener(KEY).unwrap(), Handshake::client(KEY).unwrap()]
    } else {
        [Handshake::deliver(KEY, digest.digest()).unwrap(), Handshake::answer(KEY)]
    };
    let (mut number, mut change) = (0, false);
    let mut ends = [None, None];
    // Who said no is not answered any more.
    for _ in 0..20 {
        for side in 0..2 {
            match two[side].step() {
                Step::Send(mut message) => {
                    if number == which && !message.is_empty() {
                        let at = usize::from(at) % message.len();
                        message[at] ^= by;
                        change = by != 0;
                    }
                    number += 1;
                    two[1 - side].received(&message);
                }
                Step::Receive => {}
                Step::End(result) => ends[side] = Some(result.is_ok()),
            }
        }
    }
    if change {
        assert_ne!(ends, [Some(true), Some(true)], "a change went unnoticed");
    } else {
        assert_eq!(ends, [Some(true), Some(true)]);
    }
}

fuzz_target!(|input: Input| {
    match input {
        Input::Stranger(role, messages) => stranger(role, &messages),
        Input::Socket(to_listener, pieces) if pieces.concat().len() < 60_000 && pieces.len() < 50 => {
            over_socket(to_listener, &pieces);
        }
        Input::Socket(..) => {}
        Input::Changed { digest, whole, message, at, by } => changed(digest, whole, message, at, by),
    }
});
