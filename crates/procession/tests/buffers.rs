//! Large buffers that are handed over.

use std::{collections::HashMap, thread, time::Duration};

use procession::{
    Buffer, JoinableQueue, Pool, Process, Queue, SimpleQueue, pipe,
    queue::{PutTimeoutError, TryPutError},
};
use serde::{Deserialize, Serialize};

procession::test_support!();

const LONG: Duration = Duration::from_secs(60);
/// Large enough for a block.
const LARGE: usize = 100_000;
/// So many blocks a queue has.
const BLOCKS: usize = 512;

fn next<T: procession::Message>(queue: &Queue<T>) -> T {
    queue.get_timeout(LONG).unwrap()
}

fn numbers(length: usize) -> Buffer<u32> {
    (0..length as u32).collect()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measurement {
    title: String,
    channels: Vec<Buffer<f64>>,
    marks: Option<Buffer<[u8; 3]>>,
    by_name: HashMap<String, Buffer<i16>>,
}

fn measurement(length: usize) -> Measurement {
    Measurement {
        title: format!("{length} values"),
        channels: (0..3).map(|channel| (0..length).map(|n| (n * channel) as f64).collect()).collect(),
        marks: Some((0..length).map(|n| [n as u8, 1, 2]).collect()),
        by_name: [("short".into(), vec![1, 2, 3].into()), ("long".into(), vec![7; length].into())].into(),
    }
}

#[test]
fn buffers_of_all_sizes_go_to_another_process_and_come_back_changed() {
    let add = |queue: Queue<Buffer<u32>>, back: Queue<(bool, Buffer<u32>)>| {
        for buffer in &queue {
            let mut buffer = buffer.unwrap();
            let in_place = buffer.is_block();
            buffer.iter_mut().for_each(|number| *number += 1);
            back.put((in_place, buffer)).unwrap();
        }
    };
    let (queue, back) = (Queue::new().unwrap(), Queue::new().unwrap());
    let child = Process::builder().daemon(true).spawn(add, (queue.clone(), back.clone())).unwrap();
    for length in [0, 1, 10, 5_000, 8_191, 8_192, LARGE, 1 << 20, 5_000_001] {
        queue.put(numbers(length)).unwrap();
        let (was_block, mut buffer) = next(&back);
        assert_eq!((was_block, buffer.is_block()), (length >= 8_192, length >= 8_192), "{length}");
        assert_eq!(buffer.len(), length);
        assert!(buffer.iter().zip(1..).all(|(&number, expected)| number == expected), "{length}");
        // It is this process's own.
        buffer.fill(0);
        assert!(buffer.iter().all(|&number| number == 0));
    }
    child.kill().unwrap();
}

#[test]
fn they_may_be_anywhere_in_a_value() {
    let echo = |queue: Queue<Measurement>, back: Queue<Measurement>| {
        for value in &queue {
            back.put(value.unwrap()).unwrap();
        }
    };
    let (queue, back) = (Queue::new().unwrap(), Queue::new().unwrap());
    let child = Process::builder().daemon(true).spawn(echo, (queue.clone(), back.clone())).unwrap();
    for length in [0, 100, LARGE] {
        let value = measurement(length);
        queue.put_ref(&value).unwrap();
        let answer = next(&back);
        assert!(answer == value, "{length}");
        assert_eq!(
            answer.channels.iter().filter(|channel| channel.is_block()).count(),
            if length < LARGE { 0 } else { 3 }
        );
        assert!(!answer.by_name["short"].is_block());
    }
    child.kill().unwrap();
}

#[test]
fn more_than_a_message_has_blocks_for() {
    let queue = Queue::new().unwrap();
    let many: Vec<Buffer<u8>> = (0..100).map(|n| vec![n; 40_000].into()).collect();
    queue.put_ref(&many).unwrap();
    let got = next(&queue);
    assert!(got == many);
    assert_eq!(got.iter().filter(|buffer| buffer.is_block()).count(), 64);
}

#[test]
fn dropped_ones_give_their_blocks_back() {
    let queue = Queue::new().unwrap();
    for round in 0..3 * BLOCKS as u32 {
        queue.put(Buffer::from(vec![round; LARGE / 4])).unwrap();
        let buffer: Buffer<u32> = next(&queue);
        assert!(buffer.is_block(), "{round}");
        assert!(buffer.iter().all(|&number| number == round));
        if round % 2 == 0 {
            let elements: Vec<u32> = buffer.into();
            assert!(elements == vec![round; LARGE / 4]);
        }
    }
}

#[test]
fn without_a_free_block_bytes_go_as_ever() {
    let queue = Queue::new().unwrap();
    let mut kept: Vec<Buffer<u8>> = Vec::new();
    for round in 0..BLOCKS + 20 {
        queue.put(vec![round as u8; 40_000].into()).unwrap();
        kept.push(next(&queue));
        assert_eq!(kept[round].is_block(), round < BLOCKS);
    }
    for (round, buffer) in kept.iter().enumerate() {
        assert!(buffer.iter().all(|&byte| byte == round as u8), "{round}");
    }
    kept.remove(7);
    queue.put(vec![1; 40_000].into()).unwrap();
    assert!(next(&queue).is_block());
}

#[test]
fn passed_on_while_it_is_held() {
    let (first, second) = (Queue::new().unwrap(), Queue::new().unwrap());
    first.put(numbers(LARGE)).unwrap();
    let mut held = next(&first);
    // To another queue, and to the one it came from.
    second.put_ref(&held).unwrap();
    first.put_ref(&held).unwrap();
    held.fill(0);
    for queue in [&first, &second] {
        let copy = next(queue);
        assert!(copy.is_block());
        assert!(copy == numbers(LARGE));
    }
    assert!(held.iter().all(|&number| number == 0));
}

#[test]
fn it_outlives_its_queue_and_changes_threads() {
    let queue = Queue::new().unwrap();
    queue.put(numbers(LARGE)).unwrap();
    let mut buffer = queue.get().unwrap();
    drop(queue);
    let thread = thread::spawn(move || {
        buffer[0] = 5;
        buffer
    });
    let buffer = thread.join().unwrap();
    assert!(buffer.is_block());
    assert_eq!((buffer[0], buffer[LARGE - 1]), (5, LARGE as u32 - 1));
}

#[test]
fn many_at_once_in_order() {
    let queue = Queue::new().unwrap();
    let length = |n: u32| if n.is_multiple_of(3) { LARGE } else { 10 };
    queue.put_many((0..30).map(|n| Buffer::from(vec![n; length(n)]))).unwrap();
    let mut expected = 0;
    while expected < 30 {
        for buffer in queue.get_many(7).unwrap() {
            assert!(buffer == vec![expected; length(expected)].into());
            assert_eq!(buffer.is_block(), expected.is_multiple_of(3));
            expected += 1;
        }
    }
    assert!(queue.is_empty());
}

#[test]
fn a_full_queue_gives_them_back() {
    let queue = Queue::bounded(1).unwrap();
    queue.try_put(numbers(LARGE)).unwrap();
    let mut more = numbers(LARGE);
    for _ in 0..2 * BLOCKS {
        more = match queue.try_put(more) {
            Err(TryPutError::Full(buffer)) => buffer,
            other => panic!("{other:?}"),
        };
    }
    match queue.put_timeout(more, Duration::from_millis(1)) {
        Err(PutTimeoutError::TimedOut(buffer)) => assert!(buffer == numbers(LARGE)),
        other => panic!("{other:?}"),
    }
    assert!(next(&queue) == numbers(LARGE));
    queue.try_put(numbers(LARGE)).unwrap();
    assert!(queue.try_get().unwrap().is_block());
}

#[test]
fn queues_of_all_kinds() {
    let (simple, joinable) = (SimpleQueue::new().unwrap(), JoinableQueue::new().unwrap());
    simple.put(numbers(LARGE)).unwrap();
    joinable.put(numbers(LARGE)).unwrap();
    for buffer in [simple.get().unwrap(), joinable.get().unwrap()] {
        assert!(buffer.is_block());
        assert!(buffer == numbers(LARGE));
    }
    joinable.task_done().unwrap();
    joinable.join();
}

fn doubled(buffer: &Buffer<u32>) -> Buffer<u32> {
    buffer.iter().map(|number| number * 2).collect()
}

fn twice(mut buffer: Buffer<u32>) -> Buffer<u32> {
    buffer.iter_mut().for_each(|number| *number *= 2);
    buffer
}

/// Whether the argument came as a block, and what comes of it.
fn seen(buffer: Buffer<u32>) -> (bool, Buffer<u32>) {
    (buffer.is_block(), twice(buffer))
}

#[test]
fn pools_hand_over_arguments_and_results() {
    let pool = Pool::new(2).unwrap();
    let is_right = |(argument, result): &(bool, Buffer<u32>)| {
        assert!(*argument && result.is_block());
        assert!(*result == doubled(&numbers(LARGE)));
    };
    for _ in 0..3 {
        is_right(&pool.apply(seen, (numbers(LARGE),)).unwrap());
    }
    let kept = pool.apply_async(seen, (numbers(LARGE),)).unwrap();
    pool.map(seen, (0..10).map(|_| numbers(LARGE))).unwrap().iter().for_each(is_right);
    for chunk_size in [1, 3] {
        let results = pool.options().chunk_size(chunk_size).imap(seen, (0..10).map(|_| numbers(LARGE)));
        for result in results.unwrap() {
            is_right(&result.unwrap());
        }
    }
    // A small one goes with the other bytes.
    let (argument, result) = pool.apply(seen, (numbers(10),)).unwrap();
    assert!(!argument && !result.is_block());
    pool.close();
    pool.join();
    is_right(&kept.get().unwrap());
}

#[test]
fn a_task_that_may_be_retried_keeps_its_bytes() {
    fn at_first_killed(first: Queue<()>, buffer: Buffer<u32>) -> (bool, Buffer<u32>) {
        if first.try_get().is_ok() {
            std::process::abort();
        }
        seen(buffer)
    }
    let first = Queue::new().unwrap();
    first.put(()).unwrap();
    let pool = Pool::new(1).unwrap();
    let options = pool.options().retries(1);
    let (argument, result) = options.apply(at_first_killed, (first, numbers(LARGE))).unwrap();
    assert!(!argument && result.is_block());
    assert!(result == doubled(&numbers(LARGE)));
}

#[test]
fn everything_else_sends_their_bytes() {
    let expected = doubled(&numbers(LARGE));
    assert!(Process::spawn(twice, (numbers(LARGE),)).unwrap().join().unwrap() == expected);
    let (ours, theirs) = pipe::<Buffer<u32>, Buffer<u32>>().unwrap();
    let echo = thread::spawn(move || theirs.send(&theirs.recv().unwrap()).unwrap());
    ours.send(&numbers(LARGE)).unwrap();
    assert!(ours.recv().unwrap() == numbers(LARGE));
    echo.join().unwrap();
}

#[test]
fn what_has_too_much_alignment_is_copied() {
    #[derive(Clone, Copy, Debug, PartialEq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
    #[repr(C, align(16384))]
    struct Page([u8; 16384]);
    let queue = Queue::new().unwrap();
    for byte in 0..10 {
        queue.put(Buffer::from(vec![Page([byte; 16384]); 2])).unwrap();
        let pages = next(&queue);
        assert!(pages.as_ptr().is_aligned());
        assert!(pages.iter().all(|page| page.0 == [byte; 16384]));
    }
}
