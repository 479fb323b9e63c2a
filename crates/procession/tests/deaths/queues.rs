//! Queues and pipes, whose users are killed.

use std::{fs::File, time::Duration};

use procession::{
    Buffer, Child, Event, Handle, JoinableQueue, Process, Queue, RecvError, Sender, SimpleQueue, one_way_pipe,
};

use crate::support::{LONG, kill, start, until, wait_for_the_end};

fn next<T: procession::Message>(queue: &Queue<T>) -> T {
    queue.get_timeout(Duration::from_secs(60)).unwrap()
}

/// Lets a process work for a while and kills it.
fn kill_soon<R: procession::Message>(child: Child<R>, round: u64) {
    std::thread::sleep(Duration::from_micros(300 * (round % 30)));
    child.kill().unwrap();
    assert!(child.join().is_err());
}

#[test]
fn queue_putter_killed() {
    type Value = (u64, u64, Vec<u8>, Option<Handle<File>>);
    let queue = Queue::<Value>::new().unwrap();
    let produce = |queue: Queue<Value>, round: u64| {
        for number in 0.. {
            let length = [3, 1000, 70_000][(number % 3) as usize];
            let file = (number % 4 == 1).then(|| Handle(File::open("/dev/null").unwrap()));
            queue.put((round, number, vec![number as u8; length], file)).unwrap();
        }
    };
    let mut seen = 0;
    for round in 0..40 {
        let child = Process::spawn(produce, (queue.clone(), round)).unwrap();
        if round % 2 == 0 {
            // Some are killed while a consumer is at work.
            seen += 1;
            assert_eq!(next(&queue).1, 0);
        }
        kill_soon(child, round);
        let mut expected = u64::from(round % 2 == 0);
        while let Ok((of, number, bytes, file)) = queue.try_get() {
            assert_eq!((of, number, file.is_some()), (round, expected, number % 4 == 1));
            assert!(bytes == vec![number as u8; [3, 1000, 70_000][(number % 3) as usize]]);
            expected += 1;
            seen += 1;
        }
        // It is empty, and goes on.
        queue.put((round, 0, vec![], None)).unwrap();
        assert_eq!(next(&queue).0, round);
    }
    assert!(seen > 40, "only {seen} values were put");
}

#[test]
fn queue_getter_killed() {
    let queue = Queue::<(u64, Option<Handle<File>>)>::bounded(500).unwrap();
    let got = Queue::<u64>::new().unwrap();
    let consume = |queue: Queue<(u64, Option<Handle<File>>)>, got: Queue<u64>| {
        for value in &queue {
            got.put(value.unwrap().0).unwrap();
        }
    };
    let produce = |queue: Queue<(u64, Option<Handle<File>>)>| {
        for number in 0.. {
            let file = (number % 16 == 1).then(|| Handle(File::open("/dev/null").unwrap()));
            queue.put((number, file)).unwrap();
        }
    };
    let producer = Process::spawn(produce, (queue.clone(),)).unwrap();
    let (mut last, mut lost) = (None, 0);
    for round in 0..40 {
        let child = Process::spawn(consume, (queue.clone(), got.clone())).unwrap();
        let first = next(&got);
        kill_soon(child, round);
        for number in std::iter::once(first).chain(got.try_iter().map(Result::unwrap)) {
            let expected = last.map_or(0, |last| last + 1);
            assert!(number >= expected, "a value came twice");
            lost += number - expected;
            last = Some(number);
        }
        assert!(lost <= round + 1, "{lost} values lost in {} deaths", round + 1);
    }
    producer.kill().unwrap();
    producer.join().unwrap_err();
    while queue.try_get().is_ok() {}
    queue.put((0, None)).unwrap();
    assert_eq!(next(&queue).0, 0);
}

/// So many blocks a queue has, for as many buffers.
const BLOCKS: usize = 512;

/// Sees that all blocks of a queue can be had, if need be after those of the dead have been found.
pub(crate) fn every_block_is_free(queue: &Queue<Buffer<u8>>) {
    let mut kept = Vec::new();
    until(|| {
        queue.put(vec![3; 40_000].into()).unwrap();
        let buffer = next(queue);
        assert!(*buffer == vec![3; 40_000]);
        if buffer.is_block() {
            kept.push(buffer);
        }
        kept.len() == BLOCKS
    });
}

#[test]
fn buffer_putter_killed() {
    let produce = |queue: Queue<Buffer<u8>>, round: u64| {
        for number in 0..=255 {
            queue.put(vec![number; 40_000 + 10_000 * round as usize].into()).unwrap();
        }
    };
    let queue = Queue::new().unwrap();
    for round in 0..30 {
        let child = Process::spawn(produce, (queue.clone(), round)).unwrap();
        assert_eq!(next(&queue)[0], 0);
        kill_soon_or_late(child, round);
        // What was put is whole and in order, though who put it is gone.
        for (buffer, number) in queue.try_iter().zip(1..) {
            let buffer = buffer.unwrap();
            assert_eq!(buffer.len(), 40_000 + 10_000 * round as usize);
            assert!(*buffer == vec![number; buffer.len()], "{number}");
        }
    }
    every_block_is_free(&queue);
}

/// As [`kill_soon`], of one that may have ended meanwhile.
fn kill_soon_or_late<R: procession::Message>(child: Child<R>, round: u64) {
    std::thread::sleep(Duration::from_micros(300 * (round % 30)));
    let _ = child.kill();
    child.wait();
}

#[test]
fn buffer_holder_killed() {
    fn hold(queue: Queue<Buffer<u8>>, held: Event) {
        let _all: Vec<_> = (0..300).map(|_| queue.get().unwrap()).collect();
        wait_for_the_end(&held)
    }
    let queue = Queue::new().unwrap();
    for _ in 0..3 {
        let held = Event::new().unwrap();
        let child = start(hold, (queue.clone(), held.clone()));
        for number in 0..300 {
            queue.put(vec![number as u8; 40_000].into()).unwrap();
        }
        held.wait();
        kill(child);
        every_block_is_free(&queue);
    }
}

#[test]
fn buffer_getter_killed() {
    let consume = |queue: Queue<Buffer<u8>>, got: Queue<u64>| {
        for buffer in &queue {
            let buffer = buffer.unwrap();
            assert!(*buffer == vec![buffer[0]; buffer.len()]);
            got.put(buffer[0].into()).unwrap();
        }
    };
    let (queue, got) = (Queue::bounded(20).unwrap(), Queue::new().unwrap());
    let mut put = 0;
    for round in 0..30 {
        let child = Process::spawn(consume, (queue.clone(), got.clone())).unwrap();
        for _ in 0..10 {
            put += 1;
            queue.put(vec![put as u8; 50_000].into()).unwrap();
        }
        next(&got);
        kill_soon(child, round);
        while queue.try_get().is_ok() {}
    }
    every_block_is_free(&queue);
}

#[test]
fn queue_put_then_killed() {
    fn put_and_die(queue: Queue<Vec<u32>>, put: Event) {
        for number in 0..100 {
            queue.put(vec![number; 10_000]).unwrap();
        }
        wait_for_the_end(&put)
    }
    let (queue, put) = (Queue::new().unwrap(), Event::new().unwrap());
    let child = start(put_and_die, (queue.clone(), put.clone()));
    put.wait();
    kill(child);
    for number in 0..100 {
        assert!(next(&queue) == vec![number; 10_000]);
    }
}

#[test]
fn simple_queue_getter_killed() {
    fn get(queue: SimpleQueue<u32>, about_to: Event) -> u32 {
        about_to.set();
        queue.get().unwrap()
    }
    let queue = SimpleQueue::new().unwrap();
    let begin = || {
        let about_to = Event::new().unwrap();
        let child = start(get, (queue.clone(), about_to.clone()));
        about_to.wait();
        child
    };
    let (killed, waits) = (begin(), begin());
    kill(killed);
    queue.put(5).unwrap();
    // Whichever was there first: the dead has got nothing.
    assert_eq!(waits.join().unwrap(), 5);
}

/// What the dead had in its hands counts as dealt with; whoever says so of it after all is heard, once.
#[test]
fn joinable_queue_consumer_killed() {
    fn take(queue: JoinableQueue<u32>, taken: Event) {
        queue.get().unwrap();
        wait_for_the_end(&taken)
    }
    let (queue, taken) = (JoinableQueue::new().unwrap(), Event::new().unwrap());
    queue.put_many([1, 2]).unwrap();
    let child = start(take, (queue.clone(), taken.clone()));
    taken.wait();
    kill(child);
    assert_eq!(queue.get().unwrap(), 2);
    // What the living have is waited for.
    assert!(!queue.join_timeout(Duration::from_millis(100)));
    queue.task_done().unwrap();
    queue.join();
    assert_eq!(queue.unfinished(), 0);
    queue.task_done().unwrap();
    queue.task_done().unwrap_err();
}

#[test]
fn queue_joined_before_it_is_drained() {
    let queue = Queue::new().unwrap();
    let child = Process::spawn(|queue: Queue<Vec<u8>>| queue.put(vec![7; 1 << 20]).unwrap(), (queue.clone(),)).unwrap();
    child.join().unwrap();
    assert!(next(&queue) == vec![7; 1 << 20]);
}

#[test]
fn pipe_writer_killed() {
    fn flood(connection: Sender<Vec<u8>>) {
        connection.send(&vec![1; 100_000_000]).unwrap();
    }
    let (receiver, sender) = one_way_pipe::<Vec<u8>>().unwrap();
    let child = Process::spawn(flood, (sender,)).unwrap();
    // The message has begun, and is far too long for the system's buffer.
    assert!(receiver.poll(LONG).unwrap());
    child.kill().unwrap();
    child.join().unwrap_err();
    assert!(matches!(receiver.recv(), Err(RecvError::Truncated)));
    assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
}
