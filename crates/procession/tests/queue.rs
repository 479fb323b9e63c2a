//! Queues between processes.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use procession::{
    Handle, JoinableQueue, Pool, Process, Queue, SimpleQueue,
    queue::{GetError, GetTimeoutError, PutFailure, TryGetError},
};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize, ser};

procession::test_support!();

const SOON: Duration = Duration::from_secs(60);

/// The next value, which is sure to come.
fn next<T: procession::Message>(queue: &Queue<T>) -> T {
    queue.get_timeout(SOON).unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Order {
    Say(String),
    Sum { of: Vec<i64>, and: Option<f64> },
    Buffer(Vec<u8>),
    Stop,
}

#[test]
fn values_of_all_kinds_go_to_another_process_and_back() {
    let (out, back) = (Queue::new().unwrap(), Queue::new().unwrap());
    let echo = |orders: Queue<Order>, back: Queue<(usize, Order)>| {
        for (number, order) in orders.iter().enumerate() {
            let order = order.unwrap();
            let last = order == Order::Stop;
            back.put((number, order)).unwrap();
            if last {
                break;
            }
        }
    };
    let child = Process::spawn(echo, (out.clone(), back.clone())).unwrap();
    let orders = [
        Order::Say("hello".repeat(1000)),
        Order::Sum { of: (-500..500).collect(), and: Some(0.5) },
        Order::Buffer(vec![9; 6_000_000]),
        Order::Sum { of: vec![], and: None },
        Order::Stop,
    ];
    out.put_many(orders.clone()).unwrap();
    for (number, order) in orders.into_iter().enumerate() {
        assert!(next(&back) == (number, order));
    }
    child.join().unwrap();
    assert_eq!((out.statistics().put, out.statistics().got), (5, 5));
}

#[test]
fn buffers_go_as_they_are() {
    let (bytes, back) = (Queue::<Vec<u8>>::new().unwrap(), Queue::<String>::bounded(2).unwrap());
    let read = |bytes: Queue<Vec<u8>>, back: Queue<String>| {
        for bytes in bytes.iter().map(Result::unwrap) {
            back.put(String::from_utf8_lossy(&bytes).into_owned()).unwrap();
        }
    };
    let child = Process::spawn(read, (bytes.clone(), back.clone())).unwrap();
    for length in [0, 1, 100, 5000, 1 << 20, 9 << 20] {
        bytes.put(vec![b'x'; length]).unwrap();
        assert!(next(&back) == "x".repeat(length));
    }
    child.kill().unwrap();
    child.join().unwrap_err();
}

#[test]
fn many_producers_and_consumers_lose_and_double_nothing() {
    const EACH: u64 = 20_000;
    let (numbers, seen) = (Queue::bounded(1000).unwrap(), Queue::new().unwrap());
    let produce = |numbers: Queue<u64>, from: u64| {
        numbers.put_many(from..from + EACH / 2).unwrap();
        for number in from + EACH / 2..from + EACH {
            numbers.put(number).unwrap();
        }
    };
    let consume = |numbers: Queue<u64>, seen: Queue<Vec<u64>>, many: bool| {
        let mut mine = Vec::new();
        while mine.last() != Some(&u64::MAX) {
            if many {
                // Not more than one word to stop.
                mine.extend(numbers.get_many(1 + mine.len() % 3).unwrap());
            } else {
                mine.push(numbers.get().unwrap());
            }
            while mine.iter().rev().nth(1) == Some(&u64::MAX) {
                mine.pop();
                numbers.put(u64::MAX).unwrap();
            }
        }
        mine.pop();
        seen.put(mine).unwrap();
    };
    let consumers: Vec<_> =
        (0..3).map(|many| Process::spawn(consume, (numbers.clone(), seen.clone(), many == 1)).unwrap()).collect();
    let producers: Vec<_> =
        (0..3).map(|which| Process::spawn(produce, (numbers.clone(), which * EACH)).unwrap()).collect();
    for producer in producers {
        producer.join().unwrap();
    }
    numbers.put_many([u64::MAX; 3]).unwrap();
    let mut all = Vec::new();
    for _ in 0..3 {
        let mine = next(&seen);
        for producer in 0..3 {
            assert!(mine.iter().filter(|number| *number / EACH == producer).is_sorted(), "out of order");
        }
        all.extend(mine);
    }
    for consumer in consumers {
        consumer.join().unwrap();
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..3 * EACH));
}

#[test]
fn a_full_queue_gives_the_value_back_and_waits_for_room() {
    let queue = Queue::bounded(2).unwrap();
    queue.put_many([1, 2]).unwrap();
    assert!(queue.is_full());
    assert_eq!((queue.len(), queue.capacity()), (2, Some(2)));
    let full = queue.try_put(3).unwrap_err();
    assert!(full.is_full() && full.into_inner() == 3);
    let late = queue.put_timeout(4, Duration::from_millis(20)).unwrap_err();
    assert!(late.is_timed_out() && late.into_inner() == 4);
    let child = Process::spawn(|queue: Queue<i32>| queue.put_many(5..100).unwrap(), (queue.clone(),)).unwrap();
    for expected in [1, 2].into_iter().chain(5..100) {
        assert_eq!(next(&queue), expected);
        assert!(queue.len() <= 2);
    }
    child.join().unwrap();
    assert!(Queue::<u8>::bounded(0).is_err());
}

#[test]
fn an_empty_queue_says_so() {
    let queue = Queue::<u8>::new().unwrap();
    assert!(matches!(queue.try_get(), Err(TryGetError::Empty)));
    let began = Instant::now();
    assert!(matches!(queue.get_timeout(Duration::from_millis(30)), Err(GetTimeoutError::TimedOut)));
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert!(queue.is_empty() && queue.get_many(0).unwrap().is_empty());
}

#[test]
fn queues_go_through_queues_and_through_themselves() {
    #[derive(Serialize, Deserialize)]
    struct Loop(Option<Queue<Loop>>, [Queue<u8>; 2]);

    let post: Queue<(String, Queue<Queue<u64>>)> = Queue::new().unwrap();
    let answer = |post: Queue<(String, Queue<Queue<u64>>)>| {
        let (name, box_of_boxes) = post.get().unwrap();
        assert_eq!(name, "first");
        let inner = Queue::new().unwrap();
        inner.put_many([1, 2, 3]).unwrap();
        box_of_boxes.put(inner).unwrap();
    };
    let child = Process::spawn(answer, (post.clone(),)).unwrap();
    let box_of_boxes = Queue::new().unwrap();
    post.put(("first".into(), box_of_boxes.clone())).unwrap();
    let inner = next(&box_of_boxes);
    child.join().unwrap();
    assert_eq!(inner.get_many(9).unwrap(), [1, 2, 3]);

    let (ring, other) = (Queue::new().unwrap(), Queue::bounded(3).unwrap());
    let before = descriptors();
    for _ in 0..100 {
        ring.put(Loop(Some(ring.clone()), [other.clone(), other.clone()])).unwrap();
        let Loop(again, [one, another]) = next(&ring);
        again.unwrap().put(Loop(None, [one.clone(), another])).unwrap();
        assert!(next(&ring).0.is_none());
        assert_eq!(one.capacity(), Some(3));
    }
    assert_eq!(descriptors(), before);
}

#[test]
fn files_go_with_values_and_none_is_left_over() {
    let queue: Queue<Vec<Handle<File>>> = Queue::new().unwrap();
    let write = |queue: Queue<Vec<Handle<File>>>| {
        while let Some(Handle(mut file)) = queue.get().unwrap().pop() {
            file.write_all(b"through").unwrap();
        }
    };
    let child = Process::spawn(write, (queue.clone(),)).unwrap();
    let before = descriptors();
    for count in 1..50 {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let file = File::from(OwnedFd::from(writer));
        let copies = (1..count % 7).map(|_| Handle(file.try_clone().unwrap()));
        let handles = copies.chain([Handle(file.try_clone().unwrap())]).collect();
        queue.put(handles).unwrap();
        drop(file);
        let mut text = String::new();
        // Ends only if nobody has the other end any more.
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
    queue.put(vec![]).unwrap();
    child.join().unwrap();
    // Those that nobody gets go with the queue.
    let (mut reader, writer) = std::io::pipe().unwrap();
    queue.put(vec![Handle(File::from(OwnedFd::from(writer)))]).unwrap();
    drop(queue);
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    drop(reader);
    assert!(descriptors() < before);
}

#[test]
fn put_many_and_get_many_take_descriptors_along() {
    let queue = Queue::new().unwrap();
    let file = || Handle(File::open("/dev/null").unwrap());
    queue.put_many((0..20).map(|number| (number, (number % 3 == 0).then(file)))).unwrap();
    let mut all = Vec::new();
    while !queue.is_empty() {
        all.extend(queue.get_many(7).unwrap());
    }
    for (at, (number, file)) in all.iter().enumerate() {
        assert_eq!((*number, file.is_some()), (at, at % 3 == 0));
    }
    assert_eq!(all.len(), 20);
    let too_many: Vec<_> = (0..254).map(|_| file()).collect();
    let many = Queue::new().unwrap();
    let error = many.put(too_many).unwrap_err();
    assert!(matches!(error.reason(), PutFailure::Descriptors(_)));
    let mut handles = error.into_inner();
    handles.pop();
    many.put(handles).unwrap();
    assert_eq!(next(&many).len(), 253);
}

/// Refuses to be sent if it is 13, and to be received if it is 7.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(try_from = "u8")]
struct Picky(u8);

impl TryFrom<u8> for Picky {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, &'static str> {
        if number == 7 { Err("not seven") } else { Ok(Self(number)) }
    }
}

impl Serialize for Picky {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 13 { Err(ser::Error::custom("not thirteen")) } else { self.0.serialize(serializer) }
    }
}

#[test]
fn what_cannot_be_sent_is_given_back() {
    let queue = Queue::new().unwrap();
    let error = queue.put(Picky(13)).unwrap_err();
    assert!(matches!(error.reason(), PutFailure::Encode(_)));
    assert_eq!(error.into_inner(), Picky(13));
    assert_eq!(queue.try_put(Picky(13)).unwrap_err().into_inner(), Picky(13));
    assert_eq!(queue.put_timeout(Picky(13), SOON).unwrap_err().into_inner(), Picky(13));
    // However many are to follow, they stay where they are.
    let mut endless = (10..).map(Picky);
    let error = queue.put_many(endless.by_ref()).unwrap_err();
    assert_eq!(error.into_inner(), [Picky(13)]);
    assert_eq!(endless.next(), Some(Picky(14)));
    assert_eq!(queue.get_many(9).unwrap(), [10, 11, 12].map(Picky));
}

#[test]
fn what_cannot_be_read_is_taken_out() {
    let queue = Queue::new().unwrap();
    queue.put_many((6..9).map(Picky)).unwrap();
    assert_eq!(next(&queue), Picky(6));
    assert!(matches!(queue.get(), Err(GetError::Decode(_))));
    assert_eq!(next(&queue), Picky(8));
    queue.put_many((6..9).map(Picky)).unwrap();
    let error = queue.get_many(9).unwrap_err();
    assert_eq!(error.into_values(), [Picky(6), Picky(8)]);
    assert!(queue.is_empty());
}

#[test]
fn a_value_may_use_the_queue_while_it_is_read_or_written() {
    thread_local! {
        static QUEUE: Queue<Busy> = Queue::new().unwrap();
    }
    #[derive(Debug, PartialEq)]
    struct Busy(u32);
    impl Serialize for Busy {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 > 0 {
                QUEUE.with(|queue| queue.put(Busy(self.0 - 1)).unwrap());
            }
            ([self.0; 100], self.0).0[..].serialize(serializer)
        }
    }
    impl<'de> Deserialize<'de> for Busy {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let numbers = Vec::<u32>::deserialize(deserializer)?;
            QUEUE.with(|queue| {
                let _ = queue.try_get();
            });
            Ok(Self(numbers[0]))
        }
    }
    QUEUE.with(|queue| {
        queue.put(Busy(3)).unwrap();
        assert_eq!(queue.len(), 4);
        assert_eq!(next(queue), Busy(0));
        assert!(queue.is_empty());
    });
}

#[test]
fn only_procession_sends_queues() {
    let queue = Queue::<u8>::new().unwrap();
    assert!(postcard::to_allocvec(&queue).is_err());
    assert!(postcard::from_bytes::<Queue<u8>>(&[0; 20]).is_err());
}

#[test]
fn the_descriptor_tells_whether_something_is_there() {
    let queue = Queue::<u64>::new().unwrap();
    let readable = |limit: &Timespec| {
        let mut fds = [PollFd::new(&queue, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(limit)).unwrap() == 1
    };
    let (now, soon) = (Timespec::default(), Timespec { tv_sec: 60, tv_nsec: 0 });
    assert!(!readable(&now));
    let child = Process::spawn(
        |queue: Queue<u64>| {
            std::thread::sleep(Duration::from_millis(20));
            queue.put(1).unwrap();
        },
        (queue.clone(),),
    )
    .unwrap();
    assert!(readable(&soon));
    assert_eq!(queue.try_get().unwrap(), 1);
    assert!(!readable(&now));
    child.join().unwrap();
}

#[test]
fn a_joinable_queue_is_joined_when_all_is_done() {
    let tasks = JoinableQueue::bounded(10).unwrap();
    let work = |tasks: JoinableQueue<u32>| {
        while tasks.get().unwrap() > 0 {
            tasks.task_done().unwrap();
        }
    };
    let workers: Vec<_> = (0..2).map(|_| Process::spawn(work, (tasks.clone(),)).unwrap()).collect();
    tasks.put_many(1..=500).unwrap();
    tasks.join();
    assert!(tasks.is_empty() && tasks.unfinished() == 0);
    tasks.put_many([0, 0]).unwrap();
    for worker in workers {
        worker.join().unwrap();
    }
    // They have ended in order, without a word of what they took last: they may have handed it on.
    assert_eq!(tasks.unfinished(), 2);
    assert!(!tasks.join_timeout(Duration::from_millis(100)));
    tasks.task_done().unwrap();
    tasks.task_done().unwrap();
    tasks.join();
    tasks.task_done().unwrap_err();
}

#[test]
fn a_simple_queue_goes_along_too() {
    let queue = SimpleQueue::new().unwrap();
    let child = Process::spawn(|queue: SimpleQueue<(u8, String)>| queue.get().unwrap(), (queue.clone(),)).unwrap();
    queue.put((1, "one".into())).unwrap();
    assert_eq!(child.join().unwrap(), (1, "one".into()));
    assert!(queue.is_empty());
}

#[test]
fn tasks_of_a_pool_are_given_queues_and_give_queues_back() {
    let pool = Pool::new(2).unwrap();
    let queue = Queue::new().unwrap();
    let put = |queue: Queue<u32>, number: u32| {
        queue.put(number).unwrap();
        let back = Queue::new().unwrap();
        back.put(number.to_string()).unwrap();
        back
    };
    let results: Vec<_> = (0..50).map(|number| pool.apply_async(put, (queue.clone(), number)).unwrap()).collect();
    for (number, result) in results.into_iter().enumerate() {
        assert_eq!(next(&result.get().unwrap()), number.to_string());
    }
    let mut all = queue.get_many(50).unwrap();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..50));
}

#[test]
fn queues_take_no_descriptors_along_when_they_go() {
    let run = || {
        let queue: Queue<(Queue<u8>, JoinableQueue<String>)> = Queue::new().unwrap();
        queue.put((Queue::new().unwrap(), JoinableQueue::bounded(1).unwrap())).unwrap();
        queue.put((Queue::new().unwrap(), JoinableQueue::bounded(1).unwrap())).unwrap();
        let (one, other) = next(&queue);
        one.put(1).unwrap();
        other.put("x".into()).unwrap();
    };
    run();
    let before = descriptors();
    (0..50).for_each(|_| run());
    assert_eq!(descriptors(), before);
}

#[derive(Debug, Clone)]
enum Step {
    Put(Order),
    PutMany(Vec<Order>),
    Get,
    GetMany(usize),
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        any::<String>().prop_map(Order::Say),
        (any::<Vec<i64>>(), any::<Option<i32>>().prop_map(|it| it.map(f64::from)))
            .prop_map(|(of, and)| Order::Sum { of, and }),
        (0..100_000_usize).prop_map(|length| Order::Buffer(vec![length as u8; length])),
        Just(Order::Stop),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => order().prop_map(Step::Put),
        1 => prop::collection::vec(order(), 0..10).prop_map(Step::PutMany),
        3 => Just(Step::Get),
        1 => (0..10_usize).prop_map(Step::GetMany),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, ..ProptestConfig::default() })]
    #[test]
    fn it_is_a_fifo_of_values(steps in prop::collection::vec(step(), 1..60)) {
        let (queue, mut model) = (Queue::new().unwrap(), VecDeque::new());
        for step in steps {
            match step {
                Step::Put(order) => {
                    queue.put_ref(&order).unwrap();
                    model.push_back(order);
                }
                Step::PutMany(orders) => {
                    queue.put_many(orders.clone()).unwrap();
                    model.extend(orders);
                }
                Step::Get => prop_assert!(queue.try_get().ok() == model.pop_front()),
                Step::GetMany(most) => {
                    let most = most.min(model.len());
                    prop_assert!(queue.get_many(most).unwrap().into_iter().eq(model.drain(..most)));
                }
            }
            prop_assert_eq!(queue.len(), model.len());
        }
    }
}

#[cfg(feature = "tokio")]
mod asynchronous {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn values_are_awaited_by_many_tasks() {
        let queue = Queue::<u64>::bounded(3).unwrap();
        let getters: Vec<_> = (0..8)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let mut sum = 0;
                    loop {
                        match queue.get_async().await.unwrap() {
                            0 => return sum,
                            number => sum += number,
                        }
                    }
                })
            })
            .collect();
        let produce = |queue: Queue<u64>| queue.put_many(1..=3000).unwrap();
        let child = Process::spawn(produce, (queue.clone(),)).unwrap();
        let putting = queue.clone();
        let putter = tokio::spawn(async move {
            for number in 1..=3000 {
                putting.put_async(number).await.unwrap();
            }
        });
        putter.await.unwrap();
        child.join().unwrap();
        let mut sum = 0;
        for _ in &getters {
            queue.put_async(0).await.unwrap();
        }
        for getter in getters {
            sum += getter.await.unwrap();
        }
        assert_eq!(sum, 2 * 3000 * 3001 / 2);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_given_up_has_neither_got_nor_put_anything() {
        let short = Duration::from_millis(20);
        let queue = Queue::bounded(1).unwrap();
        tokio::time::timeout(short, queue.get_async()).await.unwrap_err();
        queue.put_async("first".to_string()).await.unwrap();
        tokio::time::timeout(short, queue.put_async("second".to_string())).await.unwrap_err();
        assert_eq!(queue.get_async().await.unwrap(), "first");
        tokio::time::timeout(short, queue.get_async()).await.unwrap_err();
        assert!(queue.is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_task_waits_for_room_for_descriptors() {
        let queue = Queue::new().unwrap();
        let file = || Handle(File::open("/dev/null").unwrap());
        while queue.try_put(file()).is_ok() {}
        let count = queue.len();
        let putting = queue.clone();
        let putter = tokio::spawn(async move {
            for _ in 0..count {
                putting.put_async(file()).await.unwrap();
            }
        });
        for _ in 0..2 * count {
            queue.get_async().await.unwrap();
        }
        putter.await.unwrap();
        assert!(queue.is_empty());
    }
}
