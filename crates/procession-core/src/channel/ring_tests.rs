#![allow(unsafe_code)]

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    channel::{Message, PutError, TakeError},
    kills::KillTest,
};

fn ring() -> Ring {
    Ring::create("test").unwrap()
}

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_secs(30))
}

fn put(ring: &Ring, bytes: &[u8]) {
    assert_eq!(ring.put(&[bytes], None, &mut soon()).unwrap().count, 1);
}

fn bytes_of(message: &Message<'_>) -> io::Result<Vec<u8>> {
    message.to_vec()
}

fn take(ring: &Ring) -> Vec<u8> {
    ring.take_with(&mut soon(), bytes_of).unwrap().0
}

/// Memory in use by the ring's file, in bytes.
fn resident(ring: &Ring) -> u64 {
    rustix::fs::fstat(ring).unwrap().st_blocks as u64 * 512
}

/// A message of a length, told from others by its first byte, and each of its pages from the next.
fn message(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![number; length];
    for at in (1..length).step_by(509) {
        bytes[at] = (at >> 9) as u8;
    }
    bytes
}

#[test]
fn messages_come_out_as_they_went_in() {
    let ring = ring();
    put(&ring, b"one");
    let _ = ring.put(&[b"t", b"", b"wo"], None, &mut soon()).unwrap();
    put(&ring, b"");
    assert_eq!((ring.len(), ring.put_count(), ring.get_count()), (3, 3, 0));
    let (seen, taken) = ring.try_take_with(|message| Ok((message.sequence(), message.len()))).unwrap();
    assert_eq!((seen, taken.count), ((0, 3), 1));
    assert_eq!(take(&ring), b"two");
    assert_eq!(take(&ring), b"");
    assert!(matches!(ring.try_take_with(bytes_of), Err(TakeError::Empty)));
    assert!(ring.is_empty());
}

#[test]
fn an_idle_ring_takes_a_page() {
    assert!(resident(&ring()) <= 2 * 4096);
}

#[test]
fn a_bound_is_kept() {
    let ring = ring();
    assert!(matches!(ring.try_put(&[b"x"], Some(0)), Err(PutError::Full)));
    put(&ring, b"a");
    let _ = ring.try_put(&[b"b"], Some(2)).unwrap();
    assert!(matches!(ring.try_put(&[b"c"], Some(2)), Err(PutError::Full)));
    let mut short = Wait::timeout(Duration::from_millis(20));
    assert!(matches!(ring.put(&[b"c"], Some(2), &mut short), Err(PutError::Wait(WaitError::TimedOut))));
    assert_eq!(take(&ring), b"a");
    let _ = ring.put(&[b"c"], Some(2), &mut soon()).unwrap();
    assert_eq!(ring.len(), 2);
}

#[test]
fn batches_go_in_and_out_together() {
    for size in 1..6 {
        let ring = ring();
        let bytes: Vec<_> = (0..size).map(|n| message(n, 5)).collect();
        let parts: Vec<[&[u8]; 1]> = bytes.iter().map(|bytes| [bytes.as_slice()]).collect();
        let messages: Vec<&[&[u8]]> = parts.iter().map(<[_; 1]>::as_slice).collect();
        assert_eq!(ring.put_many(&messages, Some(4), &mut soon()).unwrap().count, u64::from(size).min(4));
        let mut seen = Vec::new();
        let mut collect = |message: &Message<'_>| message.to_vec().map(|bytes| seen.push(bytes));
        let taken = ring.take_many_with(3, &mut soon(), &mut collect).unwrap().count;
        assert_eq!(taken, u64::from(size).min(3));
        assert_eq!(seen, bytes[..taken as usize]);
        assert_eq!(ring.len(), u64::from(size).min(4) - taken);
    }
}

#[test]
fn a_refused_message_stays() {
    let ring = ring();
    put(&ring, b"a");
    put(&ring, b"b");
    let refuse = |_: &Message<'_>| Err::<(), _>(io::ErrorKind::OutOfMemory.into());
    assert!(matches!(ring.take_with(&mut soon(), refuse), Err(TakeError::Read(_))));
    let mut count = 0;
    let one = |_: &Message<'_>| {
        count += 1;
        if count == 1 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    };
    assert_eq!(ring.take_many_with(9, &mut soon(), one).unwrap().count, 1);
    assert_eq!(take(&ring), b"b");
}

#[test]
fn what_does_not_fit_the_window_spills_in_order_and_gives_memory_back() {
    let ring = ring();
    for number in 0..100 {
        put(&ring, &message(number, 1 << 20));
    }
    assert!(resident(&ring) >= 100 << 20);
    for number in 0..50 {
        assert_eq!(take(&ring), message(number, 1 << 20));
    }
    assert!(resident(&ring) < 70 << 20);
    for number in 50..100 {
        assert_eq!(take(&ring), message(number, 1 << 20));
    }
    assert!(resident(&ring) < 5 << 20);
    // The window comes into use again.
    put(&ring, b"small");
    assert_eq!(take(&ring), b"small");
}

#[test]
fn small_spilled_messages_are_read_ahead_by_several_consumers() {
    let one = ring();
    let other = Ring::attach(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
    for round in 0..3_u32 {
        put(&one, &message(1, 5 << 20));
        for number in 0..5000_u32 {
            put(&one, &(round * 5000 + number).to_le_bytes().repeat(1 + number as usize % 40));
        }
        assert_eq!(take(&one), message(1, 5 << 20));
        for number in 0..5000_u32 {
            let taker = if number / 7 % 3 == 0 { &one } else { &other };
            assert_eq!(take(taker), (round * 5000 + number).to_le_bytes().repeat(1 + number as usize % 40));
        }
    }
    assert!(one.is_empty());
}

#[test]
fn some_spilled_memory_is_kept_warm() {
    let ring = ring();
    for round in 0..20 {
        put(&ring, &message(round, 4 << 20));
        assert_eq!(take(&ring), message(round, 4 << 20));
    }
    assert!(resident(&ring) < 6 << 20);
    assert!(resident(&ring) > 4 << 20);
}

#[test]
fn producers_and_consumers_in_threads_lose_and_double_nothing() {
    let (ring, each) = (ring(), 20_000_u64);
    let mut seen: Vec<Vec<u64>> = std::thread::scope(|scope| {
        for producer in 0..3 {
            let ring = &ring;
            scope.spawn(move || {
                for number in 0..each {
                    let bound = (producer == 1).then_some(100);
                    let _ = ring.put(&[&(producer * each + number).to_le_bytes()], bound, &mut soon()).unwrap();
                }
            });
        }
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let take = || u64::from_le_bytes(take(&ring).try_into().unwrap());
                scope.spawn(move || (0..each).map(|_| take()).collect())
            })
            .collect();
        consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect()
    });
    for seen in &seen {
        for producer in 0..3 {
            let of_one: Vec<_> = seen.iter().filter(|&number| number / each == producer).collect();
            assert!(of_one.is_sorted(), "the messages of one producer are out of order");
        }
    }
    let mut all = seen.drain(..).flatten().collect::<Vec<_>>();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..3 * each));
}

#[test]
fn the_descriptor_is_enough_to_attach() {
    let one = ring();
    put(&one, b"hello");
    let other = Ring::attach(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(take(&other), b"hello");
    let segment = Segment::create("test", 1 << 23, 0).unwrap();
    assert!(Ring::attach(segment.as_fd().try_clone_to_owned().unwrap()).is_err());
}

#[test]
fn the_doorbell_is_reported() {
    let ring = ring();
    assert!(!ring.try_put(&[b"a"], None).unwrap().doorbell);
    ring.set_doorbell(true);
    assert!(ring.try_put(&[b"b"], None).unwrap().doorbell);
    assert!(ring.try_take_with(bytes_of).unwrap().1.doorbell);
    ring.set_doorbell(false);
    assert!(!ring.try_put(&[b"c"], None).unwrap().doorbell);
}

#[test]
fn damage_is_noticed() {
    let ring = ring();
    put(&ring, b"abc");
    // The length of the first message.
    ring.segment().write_at(&u64::MAX.to_le_bytes(), WINDOW_AT as u64).unwrap();
    assert!(matches!(ring.try_take_with(bytes_of), Err(TakeError::Damaged)));
    ring.segment().write_at(&(1_u64 << 30).to_le_bytes(), WINDOW_AT as u64).unwrap();
    assert!(matches!(ring.try_take_with(bytes_of), Err(TakeError::Damaged)));
    assert_eq!(ring.len(), 1);
}

/// Scenes to be killed in: what is in the ring before, and how large the message is that is put.
const SCENES: [(&[usize], usize); 5] = [
    (&[], 10),                           // the first message: the window has no memory yet
    (&[5, 4_193_600, 30], 200),          // the window is nearly full, and comes to its end
    (&[5, 4_100_000], 100_000),          // the first to spill
    (&[5, 4_100_000, 100_000], 3),       // a small one after a spilled one
    (&[5_000_000, 20_000_000], 1 << 20), // a page of what was read is given back
];

fn fill(ring: &Ring, lengths: &[usize]) -> VecDeque<Vec<u8>> {
    lengths
        .iter()
        .enumerate()
        .map(|(number, &length)| {
            let bytes = message(number as u8, length);
            put(ring, &bytes);
            bytes
        })
        .collect()
}

#[test]
fn a_producer_killed_anywhere_leaves_the_ring_right() {
    let mut test = KillTest::new("a producer of a ring");
    for (lengths, length) in SCENES {
        let ring = ring();
        let mut model = fill(&ring, lengths);
        let mut killed_first = false;
        let mut number = 100;
        let call = || put(&ring, &message(77, length));
        let check = |_, killed: bool| {
            killed_first |= killed;
            if ring.len() > model.len() as u64 {
                model.push_back(message(77, length));
            } else {
                assert!(killed, "a message that was put is missing");
            }
            assert_eq!(ring.len(), model.len() as u64);
            // Others go on, whatever the dead one held.
            let bytes = message(number, length / 2);
            put(&ring, &bytes);
            model.push_back(bytes);
            assert_eq!(take(&ring), model.pop_front().unwrap());
            number += 1;
        };
        test.at_every_point(call, check);
        assert!(killed_first, "no point was passed");
        while let Some(bytes) = model.pop_front() {
            assert_eq!(take(&ring), bytes);
        }
        assert!(ring.is_empty());
    }
}

#[test]
fn a_consumer_killed_anywhere_leaves_the_ring_right() {
    let mut test = KillTest::new("a consumer of a ring");
    for (lengths, length) in SCENES {
        let ring = ring();
        let mut model = fill(&ring, lengths);
        model.push_back(message(77, length));
        put(&ring, &message(77, length));
        let check = |_, killed: bool| {
            if ring.len() < model.len() as u64 {
                model.pop_front();
            } else {
                assert!(killed, "a message that was taken is still there");
            }
            assert_eq!(ring.len(), model.len() as u64);
            model.push_back(message(99, length));
            put(&ring, &message(99, length));
            if model.len() > 1 {
                assert_eq!(take(&ring), model.pop_front().unwrap());
            }
        };
        test.at_every_point(|| drop(take(&ring)), check);
        while let Some(bytes) = model.pop_front() {
            assert_eq!(take(&ring), bytes);
        }
        assert!(ring.is_empty());
    }
}

#[test]
fn a_producer_killed_while_it_begins_the_spill_anew_leaves_the_ring_right() {
    let ring = ring();
    let bytes = message(77, 5_000_000);
    // What has spilled, and was taken.
    let spill = || {
        put(&ring, &bytes);
        assert_eq!(take(&ring), bytes);
    };
    spill();
    let check = |_, killed: bool| {
        if ring.is_empty() {
            assert!(killed, "a message that was put is missing");
        } else {
            assert_eq!(take(&ring), bytes);
        }
        spill();
        assert!(ring.is_empty());
    };
    KillTest::new("a producer that begins the spill anew").at_every_point(|| put(&ring, &bytes), check);
}

#[test]
fn a_consumer_killed_while_it_gives_memory_back_leaves_the_ring_right() {
    let ring = ring();
    let bytes = message(77, 17 << 20);
    // So much has been read that the next consumer gives memory back.
    let scene = || {
        (0..3).for_each(|_| put(&ring, &bytes));
        assert!(take(&ring) == bytes);
    };
    scene();
    let check = |_, killed: bool| {
        assert!(ring.len() == 1 || killed && ring.len() == 2);
        while !ring.is_empty() {
            assert!(take(&ring) == bytes);
        }
        scene();
    };
    KillTest::new("a consumer that gives memory back").at_every_point(|| drop(take(&ring)), check);
}

#[test]
fn a_consumer_killed_while_it_waits_is_nobody_to_wake() {
    let ring = ring();
    let wait = || {
        let taken = ring.take_with(&mut Wait::timeout(Duration::from_millis(30)), bytes_of);
        assert!(matches!(taken, Err(TakeError::Wait(WaitError::TimedOut))));
    };
    let check = |number: i64, _| {
        put(&ring, &message(number as u8, 10));
        assert_eq!(take(&ring), message(number as u8, 10));
    };
    KillTest::new("a consumer that waits").at_every_point(wait, check);
}

#[test]
fn a_batch_is_put_whole_or_up_to_a_message() {
    let ring = ring();
    let batch: [&[&[u8]]; 4] = [&[b"0"], &[b"1"], &[b"2"], &[b"3"]];
    let call = || drop(ring.put_many(&batch, None, &mut soon()));
    let check = |_, killed: bool| {
        let there = ring.len();
        assert!(if killed { [0, 3, 4].contains(&there) } else { there == 4 });
        for number in 0..there {
            assert_eq!(take(&ring), number.to_string().as_bytes());
        }
    };
    KillTest::new("a producer of a batch").at_every_point(call, check);
}

#[test]
fn the_dead_are_swept() {
    let ring = ring();
    // SAFETY: the child takes a lock in shared memory and waits to be killed.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        ring.map().header().producers.lock.try_acquire(ProcessId::current());
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    while ring.map().header().producers.lock.owner().is_none() {
        std::thread::yield_now();
    }
    let owner = ProcessId::of_pid(pid as u32).unwrap();
    assert!(matches!(ring.try_put(&[b"x"], None), Err(PutError::Busy)));
    // SAFETY: ends the child made above.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: reaps it.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    assert!(ring.release_dead(owner));
    assert!(!ring.release_dead(owner));
    let _ = ring.try_put(&[b"x"], None).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    PutMany(Vec<usize>),
    Take,
    TakeMany(u64),
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..64_usize,
        2 => 1000..40_000_usize,
        1 => 200_000..5_000_000_usize,
        1 => 16_000_000..18_000_000_usize,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => length().prop_map(Step::Put),
        1 => prop::collection::vec(length(), 1..5).prop_map(Step::PutMany),
        3 => Just(Step::Take),
        1 => (1..6_u64).prop_map(Step::TakeMany),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn it_is_a_fifo(steps in prop::collection::vec(step(), 1..60)) {
        let ring = ring();
        let (mut model, mut number) = (VecDeque::new(), 0_u8);
        let mut make = |length| {
            number = number.wrapping_add(1);
            message(number, length)
        };
        for step in steps {
            match step {
                Step::Put(length) => {
                    let bytes = make(length);
                    put(&ring, &bytes);
                    model.push_back(bytes);
                }
                Step::PutMany(lengths) => {
                    let bytes: Vec<_> = lengths.into_iter().map(&mut make).collect();
                    let parts: Vec<[&[u8]; 1]> = bytes.iter().map(|bytes| [bytes.as_slice()]).collect();
                    let messages: Vec<&[&[u8]]> = parts.iter().map(<[_; 1]>::as_slice).collect();
                    prop_assert_eq!(ring.try_put_many(&messages, None).unwrap().count, messages.len() as u64);
                    model.extend(bytes);
                }
                Step::Take => {
                    match ring.try_take_with(bytes_of) {
                        Ok((bytes, _)) => prop_assert!(Some(bytes) == model.pop_front()),
                        Err(_) => prop_assert!(model.is_empty()),
                    }
                }
                Step::TakeMany(most) => {
                    let mut seen = Vec::new();
                    let collect = |message: &Message<'_>| message.to_vec().map(|bytes| seen.push(bytes));
                    let taken = ring.try_take_many_with(most, collect).map_or(0, |taken| taken.count);
                    prop_assert_eq!(taken, most.min(model.len() as u64));
                    prop_assert!(seen.into_iter().eq(model.drain(..taken as usize)));
                }
            }
            prop_assert_eq!(ring.len(), model.len() as u64);
        }
    }
}
