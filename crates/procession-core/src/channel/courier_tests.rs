#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    io::{PipeReader, Read, Write},
    time::Duration,
};

use super::*;
use crate::{
    channel::{Message, PutError, Queue, Ring, TakeError},
    kills::KillTest,
};

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_secs(30))
}

fn ring() -> Ring {
    Ring::create_with_courier("test").unwrap()
}

/// A message and a pipe's end that belongs to it.
#[derive(Debug)]
struct Parcel {
    body: Vec<u8>,
    reader: PipeReader,
    writer: Option<OwnedFd>,
}

fn parcel(number: u8, length: usize) -> Parcel {
    let (reader, writer) = io::pipe().unwrap();
    Parcel { body: vec![number; length], reader, writer: Some(writer.into()) }
}

impl Parcel {
    fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_ref().unwrap().as_fd()
    }

    fn put(&self, ring: &Ring) {
        assert_eq!(ring.put_with(&[&self.body], &[self.writer()], None, &mut soon()).unwrap().count, 1);
    }

    /// The message is this one, and what came with it leads to this one's pipe.
    fn expect(&self, (body, mut descriptors): (Vec<u8>, Vec<OwnedFd>)) {
        assert!(self.body == body, "another message");
        assert_eq!(descriptors.len(), 1);
        let flags = rustix::io::fcntl_getfd(&descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(descriptors.pop().unwrap()).write_all(b"!").unwrap();
        assert_eq!((&self.reader).read(&mut [0; 2]).unwrap(), 1);
    }

    /// Nobody has the pipe's other end any more.
    fn expect_closed(mut self) {
        drop(self.writer.take());
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}

fn both(message: &Message<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    Ok((message.to_vec()?, message.descriptors()?))
}

fn bytes_of(message: &Message<'_>) -> io::Result<Vec<u8>> {
    message.to_vec()
}

fn take(ring: &Ring) -> (Vec<u8>, Vec<OwnedFd>) {
    ring.take_with(&mut soon(), both).unwrap().0
}

fn packets(ring: &Ring) -> bool {
    let consumers = ring.courier().unwrap()[1];
    poll::readable(consumers, &mut Wait::timeout(Duration::ZERO)).is_ok()
}

#[test]
fn descriptors_come_out_with_their_message_whether_it_is_in_the_window_or_spilled() {
    for lengths in [&[0, 5, 2000][..], &[10, 5_000_000, 100, 4000, 3, 70_000]] {
        let ring = ring();
        let other = Ring::attach_with_courier(
            ring.as_fd().try_clone_to_owned().unwrap(),
            ring.courier().unwrap().map(|end| end.try_clone_to_owned().unwrap()),
        )
        .unwrap();
        let parcels: Vec<_> = lengths.iter().enumerate().map(|(at, &length)| parcel(at as u8, length)).collect();
        for parcel in &parcels {
            let _ = ring.put(&[b"without"], None, &mut soon()).unwrap();
            parcel.put(&ring);
        }
        for parcel in parcels {
            let (body, descriptors) = take(&other);
            assert_eq!((body.as_slice(), descriptors.len()), (b"without".as_slice(), 0));
            parcel.expect(take(&other));
            parcel.expect_closed();
        }
        assert!(!packets(&ring));
    }
}

#[test]
fn who_does_not_want_descriptors_leaves_none_behind() {
    let ring = ring();
    let parcel = parcel(1, 10);
    parcel.put(&ring);
    let body = ring.try_take_with(bytes_of).unwrap().0;
    assert_eq!(body, parcel.body);
    assert!(!packets(&ring));
    parcel.expect_closed();
}

#[test]
fn a_refused_message_keeps_its_descriptors() {
    let ring = ring();
    let parcel = parcel(1, 10);
    parcel.put(&ring);
    let refuse = |message: &Message<'_>| {
        assert!(message.has_descriptors() && message.descriptors()?.len() == 1);
        Err::<(), _>(io::ErrorKind::OutOfMemory.into())
    };
    for _ in 0..3 {
        assert!(matches!(ring.try_take_with(refuse), Err(TakeError::Read(_))));
    }
    parcel.expect(take(&ring));
    parcel.expect_closed();
}

#[test]
fn a_batch_ends_before_the_second_message_with_descriptors() {
    let ring = ring();
    let parcels = [parcel(1, 3), parcel(2, 3)];
    let _ = ring.put(&[b"first"], None, &mut soon()).unwrap();
    parcels[0].put(&ring);
    let _ = ring.put(&[b"third"], None, &mut soon()).unwrap();
    parcels[1].put(&ring);
    let mut bodies = Vec::new();
    let mut collect = |message: &Message<'_>| both(message).map(|both| bodies.push(both));
    assert_eq!(ring.take_many_with(9, &mut soon(), &mut collect).unwrap().count, 3);
    assert_eq!(ring.take_many_with(9, &mut soon(), &mut collect).unwrap().count, 1);
    parcels[1].expect(bodies.pop().unwrap());
    parcels[0].expect(bodies.remove(1));
    assert!(!packets(&ring));
}

#[test]
fn what_cannot_go_along_is_an_error_at_the_put() {
    let parcel = parcel(1, 10);
    let plain = Ring::create("test").unwrap();
    let put = |ring: &Ring, descriptors: &[BorrowedFd<'_>]| ring.put_with(&[b"x"], descriptors, None, &mut soon());
    assert!(matches!(put(&plain, &[parcel.writer()]), Err(PutError::Descriptors(_))));
    let _ = put(&plain, &[]).unwrap();
    let ring = ring();
    let many = vec![parcel.writer(); rights::MOST + 1];
    assert!(matches!(put(&ring, &many), Err(PutError::Descriptors(_))));
    assert!(ring.is_empty());
    let _ = put(&ring, &many[1..]).unwrap();
    assert_eq!(take(&ring).1.len(), rights::MOST);
    let sockets = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let fd = ring.as_fd().try_clone_to_owned().unwrap();
    assert!(Ring::attach_with_courier(fd, sockets.into()).is_err());
}

#[test]
fn a_full_courier_is_a_full_queue() {
    let queue = Queue::create_with_courier(None).unwrap();
    let parcel = parcel(1, 10);
    let put = || queue.put_now_with(&[b"x"], &[parcel.writer()], &mut soon());
    let mut count = 0;
    while put().is_ok() {
        count += 1;
    }
    assert!(count > 50 && queue.len() == count);
    assert!(matches!(put(), Err(PutError::Full)));
    let mut short = Wait::timeout(Duration::from_millis(50));
    let timed_out = queue.put_with(&[b"x"], &[parcel.writer()], &mut short);
    assert!(matches!(timed_out, Err(PutError::Wait(WaitError::TimedOut))));
    // What has no descriptors finds room.
    queue.put(&[b"without"], &mut soon()).unwrap();
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            for _ in 0..count {
                queue.put_with(&[b"y"], &[parcel.writer()], &mut soon()).unwrap();
            }
        });
        for number in 0..=2 * count {
            let (body, descriptors) = queue.take_with(&mut soon(), both).unwrap();
            assert_eq!(descriptors.len(), usize::from(number != count));
            let expected: &[u8] = match number.cmp(&count) {
                std::cmp::Ordering::Less => b"x",
                std::cmp::Ordering::Equal => b"without",
                std::cmp::Ordering::Greater => b"y",
            };
            assert_eq!(body, expected);
        }
        producer.join().unwrap();
    });
    parcel.expect_closed();
}

#[test]
fn a_courier_full_of_what_the_dead_left_is_emptied() {
    let ring = ring();
    let left = parcel(1, 1);
    let courier = ring.its_courier().unwrap();
    while courier.send(0, &[left.writer()]).unwrap() {}
    let parcel = parcel(2, 1);
    let _ = ring.try_put_with(&[&parcel.body], &[parcel.writer()], None).unwrap();
    left.expect_closed();
    parcel.expect(take(&ring));
    parcel.expect_closed();
}

#[test]
fn what_the_dead_left_goes_when_they_are_swept() {
    let ring = ring();
    let left = parcel(1, 10);
    // SAFETY: the child sends a packet, takes a lock in shared memory, and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        ring.map().header().producers.lock.try_acquire(crate::process::ProcessId::current());
        ring.its_courier().unwrap().send(1, &[left.writer()]).unwrap();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    let dead = ring.map().header().producers.lock.owner().unwrap();
    assert!(packets(&ring));
    assert!(ring.release_dead(dead));
    left.expect_closed();
}

/// Runs `child` in a process of its own, which may have only so many descriptors on their way, and so may its user.
fn with_few_descriptors(child: impl FnOnce()) {
    // SAFETY: the child uses the ring and the allocator (which glibc allows after a fork), and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let few = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        // SAFETY: changes who this process is: the limit is not for the privileged.
        unsafe { libc::setuid(65534) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(status, 0);
}

#[test]
fn more_descriptors_than_the_user_may_send_are_a_full_queue() {
    let queue = Queue::create_with_courier(None).unwrap();
    let parcel = parcel(1, 10);
    let many = vec![parcel.writer(); 10];
    with_few_descriptors(|| {
        let mut count = 0;
        while queue.put_now_with(&[b"x"], &many, &mut soon()).is_ok() {
            count += 1;
        }
        assert!((1..20).contains(&count), "{count} messages");
        let mut short = Wait::timeout(Duration::from_millis(100));
        let put = queue.put_with(&[b"x"], &many, &mut short);
        assert!(matches!(put, Err(PutError::Wait(WaitError::TimedOut))), "{put:?}");
        std::thread::scope(|scope| {
            scope.spawn(|| queue.put_with(&[b"y"], &many, &mut soon()).unwrap());
            for _ in 0..=count {
                assert_eq!(queue.take_with(&mut soon(), both).unwrap().1.len(), 10);
            }
        });
    });
}

/// Scenes to be killed in: the lengths of what is in the ring before, and of the message that is put or taken.
const SCENES: [(&[usize], usize); 4] = [(&[], 10), (&[5], 3000), (&[5, 4_180_000], 100_000), (&[5_000_000], 40)];

#[test]
fn a_producer_killed_anywhere_leaves_messages_with_their_descriptors() {
    let mut test = KillTest::new("a producer with descriptors");
    for polled in [false, true] {
        for (lengths, length) in SCENES {
            let queue = Queue::create_with_courier(None).unwrap();
            let ring = queue.ring();
            if polled {
                queue.pollable();
            }
            let mut model: VecDeque<_> =
                lengths.iter().enumerate().map(|(at, &length)| parcel(at as u8, length)).collect();
            for parcel in &model {
                parcel.put(ring);
            }
            let (mut kills, mut unpublished) = (0, Vec::new());
            // The one that the next child puts; it inherits the pipe.
            let next = std::cell::RefCell::new(parcel(77, length));
            let put = || {
                let parcel = next.borrow();
                queue.put_with(&[&parcel.body], &[parcel.writer()], &mut soon()).unwrap();
            };
            let check = |_, killed: bool| {
                kills += usize::from(killed);
                let tried = next.replace(parcel(77, length));
                if queue.len() > model.len() as u64 {
                    model.push_back(tried);
                } else {
                    assert!(killed, "a message that was put is missing");
                    unpublished.push(tried);
                }
                // Others go on, whatever the dead one left.
                let another = parcel(99, 20);
                queue.put_with(&[&another.body], &[another.writer()], &mut soon()).unwrap();
                model.push_back(another);
                let first = model.pop_front().unwrap();
                first.expect(queue.take_with(&mut soon(), both).unwrap());
                first.expect_closed();
            };
            test.at_every_point(put, check);
            assert!(kills > 4 && unpublished.len() > 2, "too few points: {kills}");
            for parcel in model {
                parcel.expect(take(ring));
                parcel.expect_closed();
            }
            // All that the dead had sent was thrown away on the way.
            unpublished.into_iter().for_each(Parcel::expect_closed);
            assert!(!packets(ring));
        }
    }
}

#[test]
fn a_consumer_killed_anywhere_leaves_messages_with_their_descriptors() {
    let mut test = KillTest::new("a consumer with descriptors");
    for (lengths, length) in SCENES {
        let ring = ring();
        let mut model: VecDeque<_> = lengths.iter().enumerate().map(|(at, &length)| parcel(at as u8, length)).collect();
        model.push_back(parcel(77, length));
        for parcel in &model {
            parcel.put(&ring);
        }
        let mut kills = 0;
        let check = |_, killed: bool| {
            kills += usize::from(killed);
            if ring.len() < model.len() as u64 {
                model.pop_front();
            } else {
                assert!(killed, "a message that was taken is still there");
            }
            let another = parcel(99, length);
            another.put(&ring);
            model.push_back(another);
            if model.len() > 1 {
                model.pop_front().unwrap().expect(take(&ring));
            }
        };
        test.at_every_point(|| drop(take(&ring)), check);
        assert!(kills > 4, "too few points: {kills}");
        for parcel in model {
            parcel.expect(take(&ring));
            parcel.expect_closed();
        }
        assert!(!packets(&ring));
    }
}

#[test]
fn a_queue_can_be_sent_through_itself_and_back() {
    let queue = Queue::create_with_courier(Some(5)).unwrap();
    let (ring, pollable) = queue.descriptors();
    let [one, other] = queue.courier().unwrap();
    for _ in 0..10 {
        queue.put_with(&[b"myself"], &[ring, pollable, one, other], &mut soon()).unwrap();
        let (_, descriptors) = queue.take_with(&mut soon(), both).unwrap();
        let [ring, pollable, one, other] = <[OwnedFd; 4]>::try_from(descriptors).unwrap();
        let again = Queue::attach_with_courier(Some(5), ring, pollable, [one, other]).unwrap();
        again.put_with(&[b"x"], &[again.courier().unwrap()[0]], &mut soon()).unwrap();
        assert_eq!(queue.take_with(&mut soon(), both).unwrap().1.len(), 1);
    }
}
