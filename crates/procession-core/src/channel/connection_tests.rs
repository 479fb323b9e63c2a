#![allow(unsafe_code)]

use std::{
    io::{IoSlice, Read, Write},
    os::fd::AsFd,
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::channel::{
    early::FIRST_PACKET,
    frame::{self, Decoded},
    one_way_pipe, pipe, wait,
};

fn forever() -> Wait<'static> {
    Wait::forever()
}

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_millis(20))
}

fn over_a_stream() -> (Connection, Connection) {
    let (one, other) = UnixStream::pair().unwrap();
    (OwnedFd::from(one).into(), OwnedFd::from(other).into())
}

fn over_a_pipe() -> (Connection, Connection) {
    let (reader, writer) = one_way_pipe().unwrap();
    (writer, reader)
}

/// A connection of each kind: the end that sends, the end that receives.
fn each_kind() -> [(Connection, Connection); 3] {
    [pipe().unwrap(), over_a_stream(), over_a_pipe()]
}

/// One end, and the bare socket at the other.
fn with_a_foreign_peer() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (OwnedFd::from(ours).into(), theirs)
}

/// One end, and the number of the packet socket at the other.
fn with_foreign_packets() -> (Connection, RawFd) {
    let (ours, theirs) = pipe().unwrap();
    (ours, theirs.detach().unwrap())
}

fn put(fd: RawFd, packet: &[u8]) {
    assert_eq!(sys::send(fd, &[IoSlice::new(packet)], Blocking::No).unwrap(), packet.len());
}

#[test]
fn messages_of_all_lengths_arrive_as_they_were_sent() {
    let lengths = [
        0,
        1,
        FIRST_PACKET - 5,
        FIRST_PACKET - 4,
        FIRST_PACKET - 3,
        FIRST_PACKET,
        FIRST_PACKET + NEXT_PACKET,
        FIRST_PACKET + NEXT_PACKET + 1,
        3_000_000,
    ];
    for (sender, receiver) in each_kind() {
        thread::scope(|scope| {
            scope.spawn(|| {
                for (number, &length) in lengths.iter().enumerate() {
                    sender.send(&vec![number as u8; length], &mut forever()).unwrap();
                }
            });
            for (number, &length) in lengths.iter().enumerate() {
                let message = receiver.receive(&mut forever()).unwrap();
                assert_eq!(message.len(), length);
                assert!(message.iter().all(|&byte| byte == number as u8));
            }
        });
    }
}

#[test]
fn a_message_larger_than_the_first_room_arrives_as_it_was_sent() {
    let mut message = vec![0; 3 * incoming::FIRST_ROOM + 12345];
    for (place, byte) in message.iter_mut().step_by(10_007).enumerate() {
        *byte = place as u8;
    }
    for (sender, receiver) in each_kind() {
        thread::scope(|scope| {
            scope.spawn(|| sender.send(&message, &mut forever()).unwrap());
            assert!(receiver.receive(&mut forever()).unwrap() == message);
        });
    }
}

#[test]
fn a_message_is_gone_on_with_after_a_pause() {
    let message: Vec<u8> = (0..2_000_000_u32).map(|number| (number / 7) as u8).collect();
    for (sender, receiver) in each_kind() {
        let (sender, receiver) = (&sender, &receiver);
        thread::scope(|scope| {
            scope.spawn(|| sender.send(&message, &mut forever()).unwrap());
            let mut partial = None;
            let received = loop {
                receiver.poll(&mut forever()).unwrap();
                let mut incoming = match partial.take() {
                    Some(partial) => receiver.resume(partial).unwrap(),
                    None => receiver.receiving().unwrap(),
                };
                if let Some(body) = incoming.try_body().unwrap() {
                    break body;
                }
                // In another thread, as whoever goes on with it may be.
                partial = scope.spawn(|| incoming.suspend()).join().unwrap();
            };
            assert!(received == message);
        });
        sender.send(b"in step", &mut forever()).unwrap();
        assert_eq!(receiver.receive(&mut forever()).unwrap(), b"in step");
    }
}

#[test]
fn a_longer_message_than_the_limit_is_refused() {
    for (sender, receiver) in each_kind() {
        sender.send(b"four", &mut forever()).unwrap();
        assert_eq!(receiver.receive_at_most(4, &mut forever()).unwrap(), b"four");
        sender.send(b"five!", &mut forever()).unwrap();
        let error = receiver.receive_at_most(4, &mut forever()).unwrap_err();
        assert!(matches!(error, ConnectionError::BadLength), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parts_arrive_as_one(pairs in proptest::collection::vec((any::<u8>(), 0..40_000usize), 0..20)) {
        let parts: Vec<Vec<u8>> = pairs.iter().map(|&(byte, length)| vec![byte; length]).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        for (sender, receiver) in each_kind() {
            let received = thread::scope(|scope| {
                scope.spawn(|| sender.sending(&slices).unwrap().finish(&mut forever()).unwrap());
                receiver.receive(&mut forever()).unwrap()
            });
            prop_assert_eq!(&received, &parts.concat());
        }
    }

    #[test]
    fn any_bytes_of_a_stream_are_messages_and_then_an_end(
        bytes in proptest::collection::vec(prop_oneof![4 => 0..4u8, 1 => any::<u8>()], 0..400),
        limit in 0..100usize,
    ) {
        let (connection, mut peer) = with_a_foreign_peer();
        peer.write_all(&bytes).unwrap();
        drop(peer);
        let mut rest = &bytes[..];
        loop {
            match connection.receive_at_most(limit, &mut forever()) {
                Ok(body) => {
                    prop_assert!(body.len() <= limit);
                    let Some(Decoded::Complete { header, length, .. }) = frame::decode(rest, false) else { panic!() };
                    prop_assert_eq!(&body, &rest[header..header + length]);
                    rest = &rest[header + length..];
                }
                Err(ConnectionError::Ended) => break prop_assert!(rest.is_empty()),
                // Which of these it is depends on what the bytes say; there is no message after it.
                Err(ConnectionError::Truncated | ConnectionError::BadLength) => {
                    let after = connection.receive(&mut forever()).unwrap_err();
                    prop_assert!(matches!(after, ConnectionError::Ended | ConnectionError::OutOfStep), "{after:?}");
                    break;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    #[test]
    fn any_packets_are_a_message_or_an_error(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        length in 0..60i32,
    ) {
        let (connection, peer) = with_foreign_packets();
        put(peer, &length.to_be_bytes());
        for packet in &packets {
            put(peer, packet);
        }
        sys::close(peer).unwrap();
        // Whatever it is: it ends.
        while connection.receive(&mut forever()).is_ok() {}
    }
}

#[test]
fn without_a_message_a_receiver_waits_until_the_deadline() {
    for (_sender, receiver) in each_kind() {
        assert!(!receiver.poll(&mut soon()).unwrap());
        let error = receiver.receive(&mut soon()).unwrap_err();
        assert!(matches!(error, ConnectionError::Wait(WaitError::TimedOut)), "{error:?}");
    }
}

#[test]
fn the_end_comes_after_what_was_sent() {
    for (sender, receiver) in each_kind() {
        sender.send(b"last", &mut forever()).unwrap();
        drop(sender);
        assert!(receiver.poll(&mut forever()).unwrap());
        assert_eq!(receiver.receive(&mut forever()).unwrap(), b"last");
        for _ in 0..2 {
            assert!(matches!(receiver.receive(&mut forever()).unwrap_err(), ConnectionError::Ended));
        }
    }
}

#[test]
fn without_a_receiver_sending_is_an_error() {
    for (sender, receiver) in [pipe().unwrap(), over_a_stream()] {
        drop(receiver);
        for _ in 0..2 {
            let ConnectionError::Io(error) = sender.send(b"x", &mut forever()).unwrap_err() else {
                panic!("another error");
            };
            assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
        }
    }
}

#[test]
fn an_end_in_the_middle_of_a_message_is_told() {
    for part in [&[0, 0][..], &[0, 0, 0, 5], &[0, 0, 0, 5, b'a', b'b'], &[255, 255, 255, 255, 0]] {
        let (connection, mut peer) = with_a_foreign_peer();
        peer.write_all(part).unwrap();
        drop(peer);
        assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::Truncated));
        assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::Ended));
    }
    let (connection, peer) = with_foreign_packets();
    put(peer, &[0, 1, 0, 0, b'a', b'b']);
    sys::close(peer).unwrap();
    assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::Truncated));
}

#[test]
fn what_is_no_message_is_refused() {
    let (connection, mut peer) = with_a_foreign_peer();
    peer.write_all(&(-5i32).to_be_bytes()).unwrap();
    assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::BadLength));
    // Nobody knows what would come next.
    assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::OutOfStep));

    // No whole header; more body than announced; a length that fits no memory.
    for packet in [&[0u8, 0][..], &[0, 0, 0, 1, b'a', b'b'], &[255; 12]] {
        let (connection, peer) = with_foreign_packets();
        put(peer, packet);
        assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::BadLength));
        sys::close(peer).unwrap();
    }
    // A further packet with more than is missing.
    let (connection, peer) = with_foreign_packets();
    put(peer, &[0, 0, 0, 3, b'a']);
    put(peer, b"bcd");
    assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::BadLength));
    sys::close(peer).unwrap();
}

#[test]
fn an_announced_length_without_memory_is_an_error() {
    let (connection, mut peer) = with_a_foreign_peer();
    peer.write_all(&[255, 255, 255, 255]).unwrap();
    peer.write_all(&(1u64 << 62).to_be_bytes()).unwrap();
    assert!(matches!(connection.receive(&mut forever()).unwrap_err(), ConnectionError::BadLength));
}

#[test]
fn the_long_form_of_a_short_length_is_read() {
    let (connection, mut peer) = with_a_foreign_peer();
    peer.write_all(&[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']).unwrap();
    assert_eq!(connection.receive(&mut forever()).unwrap(), b"hi");
}

#[test]
fn no_byte_of_the_next_message_is_read() {
    let (connection, mut peer) = with_a_foreign_peer();
    peer.write_all(b"\0\0\0\x02hi\0\0\0\x03you").unwrap();
    assert_eq!(connection.receive(&mut forever()).unwrap(), b"hi");
    let mut rest = [0; 7];
    UnixStream::from(owned(connection.detach().unwrap())).read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"\0\0\0\x03you");
}

fn owned(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the number was detached from its connection, so nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn a_frame_is_what_the_standard_package_writes() {
    let (connection, mut peer) = with_a_foreign_peer();
    connection.send(b"hi", &mut forever()).unwrap();
    let mut frame = [0; 6];
    peer.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\0\0\0\x02hi");
}

#[test]
fn who_gave_up_half_way_is_out_of_step() {
    for (sender, receiver) in each_kind() {
        let large = vec![1; 4_000_000];
        let error = sender.send(&large, &mut soon()).unwrap_err();
        assert!(matches!(error, ConnectionError::Wait(WaitError::TimedOut)), "{error:?}");
        assert!(matches!(sender.send(b"x", &mut forever()).unwrap_err(), ConnectionError::OutOfStep));
        // The other side, too, if it gives up.
        assert!(matches!(receiver.receive(&mut soon()).unwrap_err(), ConnectionError::Wait(_)));
        assert!(matches!(receiver.receive(&mut forever()).unwrap_err(), ConnectionError::OutOfStep));
    }
}

#[test]
fn who_gave_up_before_the_first_byte_is_not() {
    let (sender, receiver) = pipe().unwrap();
    while sender.sending(&[b"full"]).unwrap().try_finish().unwrap() {}
    assert!(matches!(sender.send(b"y", &mut soon()).unwrap_err(), ConnectionError::Wait(WaitError::TimedOut)));
    while receiver.poll(&mut Wait::timeout(Duration::ZERO)).unwrap() {
        assert_eq!(receiver.receive(&mut forever()).unwrap(), b"full");
    }
    sender.send(b"y", &mut forever()).unwrap();
    assert_eq!(receiver.receive(&mut forever()).unwrap(), b"y");
}

#[test]
fn a_signal_may_end_a_wait_or_not() {
    let (sender, receiver) = pipe().unwrap();
    let mut signals = 0;
    let mut second = || {
        signals += 1;
        signals < 2
    };
    // Slices end without a signal, too; that is how one is seen that came at the wrong moment.
    let error = receiver.poll(&mut Wait::forever().on_signal(&mut second)).unwrap_err();
    assert!(matches!(error, ConnectionError::Wait(WaitError::Interrupted)), "{error:?}");
    assert_eq!(signals, 2);
    sender.send(b"still", &mut forever()).unwrap();
    assert_eq!(receiver.receive(&mut forever()).unwrap(), b"still");
}

#[test]
fn a_small_buffer_makes_small_packets() {
    let (sender, receiver) = pipe().unwrap();
    let size: libc::c_int = 1; // the system makes it the least it has
    // SAFETY: the option is read from `size`, whose length is given.
    let result = unsafe {
        libc::setsockopt(
            sender.number().unwrap(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
    let message: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| sender.send(&message, &mut forever()).unwrap());
        assert_eq!(receiver.receive(&mut forever()).unwrap(), message);
    });
}

#[test]
fn a_descriptor_made_non_blocking_by_others_still_blocks() {
    for (sender, receiver) in each_kind() {
        for end in [&sender, &receiver] {
            // SAFETY: sets a flag of a descriptor that is open.
            assert_eq!(unsafe { libc::fcntl(end.number().unwrap(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
        }
        let large = vec![7; 2_000_000];
        thread::scope(|scope| {
            let received = scope.spawn(|| receiver.receive(&mut forever()).unwrap());
            thread::sleep(Duration::from_millis(10));
            sender.send(&large, &mut forever()).unwrap();
            assert_eq!(received.join().unwrap(), large);
        });
    }
}

#[test]
fn many_senders_of_packets_do_not_mix() {
    let (sender, receiver) = pipe().unwrap();
    thread::scope(|scope| {
        for letter in b"abcd" {
            let sender = &sender;
            scope.spawn(move || {
                for length in 1..=200 {
                    sender.send(&vec![*letter; length * 100], &mut forever()).unwrap();
                }
            });
        }
        let mut lengths = [0; 4];
        for _ in 0..800 {
            let message = receiver.receive(&mut forever()).unwrap();
            let from = usize::from(message[0] - b'a');
            lengths[from] += 100;
            assert_eq!(message, vec![message[0]; lengths[from]]);
        }
    });
}

#[test]
fn waiting_tells_which_are_ready() {
    let (one, other) = pipe().unwrap();
    let (reader, writer) = one_way_pipe().unwrap();
    let all = [one.number().unwrap(), reader.number().unwrap(), other.number().unwrap(), reader.number().unwrap()];
    assert!(wait(&all, &mut soon()).unwrap().is_empty());
    writer.send(b"x", &mut forever()).unwrap();
    assert_eq!(wait(&all, &mut forever()).unwrap(), [1, 3]);
    drop(one);
    assert_eq!(wait(&all[2..], &mut forever()).unwrap(), [0, 1]);
    let ConnectionError::Io(error) = wait(&[i32::MAX], &mut forever()).unwrap_err() else {
        panic!("another error");
    };
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_closed_connection_says_so() {
    let (one, other) = pipe().unwrap();
    one.close().unwrap();
    one.close().unwrap();
    assert_eq!(one.number(), None);
    assert!(matches!(one.send(b"x", &mut forever()).unwrap_err(), ConnectionError::Closed));
    assert!(matches!(one.receive(&mut forever()).unwrap_err(), ConnectionError::Closed));
    assert!(matches!(one.poll(&mut forever()).unwrap_err(), ConnectionError::Closed));
    assert!(matches!(other.receive(&mut forever()).unwrap_err(), ConnectionError::Ended));
}

/// The writing end of a new pipe, and a proof that all copies of it are closed when this returns.
fn writer() -> (io::PipeReader, OwnedFd) {
    let (reader, writer) = io::pipe().unwrap();
    (reader, writer.into())
}

fn is_cloexec(descriptor: &OwnedFd) -> bool {
    rustix::io::fcntl_getfd(descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
}

#[test]
fn descriptors_arrive_with_their_message_and_nobody_keeps_one() {
    for (ours, theirs) in [pipe().unwrap(), over_a_stream()] {
        for length in [0, 10, FIRST_PACKET, 1_000_000] {
            let ((mut one, first), (mut other, second)) = (writer(), writer());
            let body = vec![7; length];
            thread::scope(|scope| {
                scope.spawn(|| {
                    ours.send(b"before", &mut forever()).unwrap();
                    ours.send_with(&body, &[first.as_fd(), second.as_fd()], &mut forever()).unwrap();
                    ours.send(b"after", &mut forever()).unwrap();
                });
                assert_eq!(theirs.receive_with(&mut forever()).unwrap().1.len(), 0);
                let (received, descriptors) = theirs.receive_with(&mut forever()).unwrap();
                assert!(received == body);
                assert!(descriptors.iter().all(is_cloexec));
                for (descriptor, text) in descriptors.into_iter().zip(["first", "second"]) {
                    std::fs::File::from(descriptor).write_all(text.as_bytes()).unwrap();
                }
                let (received, descriptors) = theirs.receive_with(&mut forever()).unwrap();
                assert_eq!((received.as_slice(), descriptors.len()), (b"after".as_slice(), 0));
            });
            drop((first, second));
            for (reader, text) in [(&mut one, "first"), (&mut other, "second")] {
                let mut all = String::new();
                reader.read_to_string(&mut all).unwrap();
                assert_eq!(all, text);
            }
        }
    }
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    for (ours, theirs) in [pipe().unwrap(), over_a_stream()] {
        let (mut reader, writer) = writer();
        ours.send_with(b"x", &[writer.as_fd()], &mut forever()).unwrap();
        drop(writer);
        assert_eq!(theirs.receive(&mut forever()).unwrap(), b"x");
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
    }
}

#[test]
fn what_cannot_carry_descriptors_says_so() {
    let (_reader, descriptor) = writer();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ours = Connection::from(OwnedFd::from(client));
    let theirs = Connection::from(OwnedFd::from(listener.accept().unwrap().0));
    for connection in [&ours, &over_a_pipe().0] {
        let error = connection.send_with(b"x", &[descriptor.as_fd()], &mut soon()).unwrap_err();
        assert!(matches!(error, ConnectionError::NoDescriptors));
    }
    ours.send_with(b"none", &[], &mut soon()).unwrap();
    assert_eq!(theirs.receive_with(&mut soon()).unwrap().0, b"none");
    let many = vec![descriptor.as_fd(); rights::MOST + 1];
    let (ours, theirs) = pipe().unwrap();
    let error = ours.send_with(b"x", &many, &mut soon()).unwrap_err();
    assert!(matches!(error, ConnectionError::TooManyDescriptors));
    ours.send_with(b"x", &many[1..], &mut soon()).unwrap();
    assert_eq!(theirs.receive_with(&mut soon()).unwrap().1.len(), rights::MOST);
}

#[test]
fn a_message_with_its_buffers_apart_says_so() {
    let (ours, theirs) = pipe().unwrap();
    let body = vec![7; 300_000];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            ours.sending_apart(&[&body[..100], &body[100..]]).unwrap().finish(&mut forever()).unwrap();
            ours.send(&body, &mut forever()).unwrap();
        });
        for apart in [true, false] {
            let mut incoming = theirs.receiving().unwrap();
            assert_eq!(incoming.length(&mut forever()).unwrap(), body.len());
            assert_eq!(incoming.is_apart(), apart);
            assert_eq!(incoming.body(&mut forever()).unwrap(), body);
        }
    });
}

#[test]
fn a_foreign_peer_can_not_send_buffers_apart() {
    let (connection, mut peer) = with_a_foreign_peer();
    peer.write_all(&[&(-2_i32).to_be_bytes()[..], &8_u64.to_be_bytes(), &[0; 8]].concat()).unwrap();
    let received = connection.receive(&mut forever());
    assert!(matches!(received, Err(ConnectionError::BadLength)), "{received:?}");
}

#[test]
fn descriptors_without_room_for_them_are_an_error() {
    let (ours, theirs) = pipe().unwrap();
    let (_reader, descriptor) = writer();
    ours.send_with(b"lost", &[descriptor.as_fd()], &mut soon()).unwrap();
    ours.send_with(b"kept", &[descriptor.as_fd()], &mut soon()).unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // In a process of its own: the limit would hit the tests in other threads.
    // SAFETY: the child uses the connection and the allocator (which glibc allows after a fork), and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let none = rustix::process::Rlimit { current: Some(0), ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();
        let lost = matches!(theirs.receive_with(&mut soon()), Err(ConnectionError::DescriptorsLost));
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!lost)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
    // The message was whole, so the next one is found.
    let (body, descriptors) = theirs.receive_with(&mut soon()).unwrap();
    assert_eq!((body.as_slice(), descriptors.len()), (b"kept".as_slice(), 1));
}
