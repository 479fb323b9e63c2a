use std::{io::Write, os::fd::OwnedFd, os::unix::net::UnixStream, thread, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{channel::pipe, sync::WaitError};

/// Lets two sides talk until both are at the end.
fn talk(one: &mut Handshake, other: &mut Handshake) -> [Result<(), AuthenticationError>; 2] {
    let mut ends = [None, None];
    while ends.contains(&None) {
        let before = ends.clone();
        let mut moved = false;
        let sides = [&mut *one, &mut *other];
        for side in 0..2 {
            match sides[side].step() {
                Step::Send(message) => {
                    assert!(message.len() <= LONGEST_MESSAGE);
                    sides[1 - side].received(&message);
                    moved = true;
                }
                Step::Receive => {}
                Step::End(result) => ends[side] = Some(result),
            }
        }
        // Who waits for a peer that refused it sees the end of the connection.
        if !moved && ends == before {
            return ends.map(|end| end.unwrap_or(Err(AuthenticationError::Rejected)));
        }
    }
    ends.map(Option::unwrap)
}

#[test]
fn the_same_key_lets_in() {
    for key in [&b""[..], b"x", &[7; 1000]] {
        let ends = talk(&mut Handshake::listener(key).unwrap(), &mut Handshake::client(key).unwrap());
        assert_eq!(ends, [Ok(()), Ok(())]);
    }
}

#[test]
fn another_key_is_refused_on_both_sides() {
    let ends = talk(&mut Handshake::listener(b"one").unwrap(), &mut Handshake::client(b"other").unwrap());
    assert_eq!(ends, [Err(AuthenticationError::WrongDigest), Err(AuthenticationError::Rejected)]);
}

#[test]
fn every_digest_that_is_asked_for_is_answered() {
    for digest in Digest::ALL {
        let ends = talk(&mut Handshake::deliver(b"key", digest).unwrap(), &mut Handshake::answer(b"key"));
        assert_eq!(ends, [Ok(()), Ok(())], "{digest}");
    }
}

/// Computed with Python's `hmac.new(b"key", message, name).hexdigest()`.
#[test]
fn macs_are_those_of_other_implementations() {
    let message = b"{sha256}the quick brown fox";
    let known = [
        "3d8e749f4afb42418bd53914ce5c94f4",
        "ae5775a2e2f97d4c130e9148c3080532bc24bcc4b18d109d09a7942f849726ca",
        "7782c652a1899a68bb6d1d6209872312f156cd642d8306a48167995c5d3f0e2c9cea0c3bea5cd4f2ead2054a85f103f3",
        "8d511d4987d9831db81493ca8375d8996c8e2867103f60485390baad3ebe8f72",
        "0bf142b00df96e9b763580b3a1ee46b75b42ccd64db0e66250ea2abc2ea99376320eb7c44874371d47d23566eb4434ec",
    ];
    for (digest, known) in Digest::ALL.into_iter().zip(known) {
        let mac = digest.mac(b"key", message);
        let known: Vec<u8> = (0..known.len())
            .step_by(2)
            .map(|place| u8::from_str_radix(&known[place..place + 2], 16).unwrap())
            .collect();
        assert_eq!(mac, known, "{digest}");
    }
}

#[test]
fn an_old_peer_is_understood() {
    // Its challenge has 20 bytes and no name: the answer is a bare HMAC with MD5.
    let old = [b'#'; OLD_CHALLENGE];
    let bare = answer(b"key", &[CHALLENGE, &old].concat()).unwrap();
    assert_eq!(bare, Digest::Md5.mac(b"key", &old));
    // It takes all of our challenge for random bytes.
    let challenge = Challenge::new(Digest::Sha256).unwrap();
    assert_eq!(verify_response(b"key", &challenge.0, &Digest::Md5.mac(b"key", &challenge.0)), Ok(()));
    let wrong = verify_response(b"key", &challenge.0, &Digest::Md5.mac(b"another", &challenge.0));
    assert_eq!(wrong, Err(AuthenticationError::WrongDigest));
}

#[test]
fn a_weaker_digest_put_in_by_somebody_between_is_noticed() {
    let challenge = Challenge::new(Digest::Sha384).unwrap();
    let forged = [b"#CHALLENGE#{md5}", &challenge.0["{sha384}".len()..]].concat();
    let answered = answer(b"key", &forged).unwrap();
    assert_eq!(verify_response(b"key", &challenge.0, &answered), Err(AuthenticationError::WrongDigest));
}

#[test]
fn what_is_no_challenge_or_answer_is_refused() {
    use AuthenticationError as E;
    assert_eq!(answer(b"k", b""), Err(E::NoChallenge));
    assert_eq!(answer(b"k", b"#WELCOME#"), Err(E::NoChallenge));
    assert_eq!(answer(b"k", b"#CHALLENGE#"), Err(E::ShortChallenge(0)));
    assert_eq!(answer(b"k", b"#CHALLENGE#{sha256}0123"), Err(E::ShortChallenge(12)));
    assert_eq!(answer(b"k", &[b"#CHALLENGE#{sha1}", &[1; 40][..]].concat()), Err(E::UnknownDigest));
    assert_eq!(answer(b"k", &[b"#CHALLENGE#", &[b'{'; 40][..]].concat()), Err(E::UnknownDigest));
    let challenge = Challenge::new(Digest::Sha256).unwrap();
    assert_eq!(verify_response(b"k", &challenge.0, b"#WELCOME#"), Err(E::UnknownDigest));
    let short = E::WrongLength { digest: Digest::Sha256, length: 5 };
    assert_eq!(verify_response(b"k", &challenge.0, b"{sha256}12345"), Err(short));
}

/// A bare socket, and the answer of the other end to a `listener`'s or a `client`'s part.
fn against(
    part: fn(&[u8]) -> io::Result<Handshake>,
    sent: &[u8],
    wait: &mut Wait<'_>,
) -> (UnixStream, Result<(), HandshakeError>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ours = Connection::from(OwnedFd::from(ours));
    theirs.write_all(sent).unwrap();
    let result = part(b"key").unwrap().run(&ours, wait);
    (theirs, result)
}

#[test]
fn a_peer_that_says_nothing_holds_us_for_the_timeout() {
    for part in [Handshake::listener, Handshake::client] {
        for said in [&b""[..], &[0, 0], &[0, 0, 0, 30], b"\0\0\0\x14#CHALL"] {
            let (_peer, result) = against(part, said, &mut Wait::timeout(Duration::from_millis(30)));
            let error = result.unwrap_err();
            assert!(
                matches!(error, HandshakeError::Connection(ConnectionError::Wait(WaitError::TimedOut))),
                "{error:?}"
            );
        }
    }
}

#[test]
fn a_long_message_is_refused_when_it_is_announced() {
    for part in [Handshake::listener, Handshake::client] {
        for said in [257_i32.to_be_bytes(), i32::MAX.to_be_bytes()] {
            let (_peer, result) = against(part, &said, &mut Wait::forever());
            let error = result.unwrap_err();
            assert!(matches!(error, HandshakeError::Connection(ConnectionError::BadLength)), "{error:?}");
        }
    }
}

#[test]
fn both_parts_over_a_pipe() {
    let (ours, theirs) = pipe().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| Handshake::listener(b"key").unwrap().run(&ours, &mut Wait::forever()).unwrap());
        Handshake::client(b"key").unwrap().run(&theirs, &mut Wait::forever()).unwrap();
    });
    thread::scope(|scope| {
        scope.spawn(|| deliver_challenge(&ours, b"key", Digest::Sha3_384, &mut Wait::forever()).unwrap());
        answer_challenge(&theirs, b"key", &mut Wait::forever()).unwrap();
    });
}

proptest! {
    #[test]
    fn any_messages_of_a_peer_end_in_a_refusal_or_a_wait(
        messages in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                proptest::collection::vec(any::<u8>(), 0..80).prop_map(|rest| [CHALLENGE, &rest].concat()),
                proptest::collection::vec(any::<u8>(), 0..80).prop_map(|rest| [b"{sha256}", &rest[..]].concat()),
                (0..5usize, proptest::collection::vec(any::<u8>(), 0..80)).prop_map(|(digest, rest)| {
                    [CHALLENGE, format!("{{{}}}", Digest::ALL[digest]).as_bytes(), &rest].concat()
                }),
                Just(WELCOME.to_vec()),
                Just(FAILURE.to_vec()),
            ],
            0..8,
        ),
        listener in any::<bool>(),
    ) {
        let part = if listener { Handshake::listener } else { Handshake::client };
        let mut ours = part(b"key").unwrap();
        let mut messages = messages.iter();
        loop {
            match ours.step() {
                Step::Send(message) => prop_assert!(message.len() <= LONGEST_MESSAGE),
                Step::Receive => match messages.next() {
                    Some(message) => ours.received(message),
                    None => break,
                },
                Step::End(result) => {
                    prop_assert!(result.is_err(), "somebody without the key was let in");
                    break;
                }
            }
        }
    }

    #[test]
    fn one_wrong_bit_is_noticed(byte in 8..40usize, bit in 0..8u32) {
        let challenge = Challenge::new(Digest::Sha256).unwrap();
        let mut answer = answer(b"key", &challenge.question()).unwrap();
        answer[byte] ^= 1u8 << bit;
        prop_assert_eq!(verify_response(b"key", &challenge.0, &answer), Err(AuthenticationError::WrongDigest));
    }
}
