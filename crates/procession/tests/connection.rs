//! Connections, listeners and their clients between real processes.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpListener,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::Duration,
};

use procession::{
    Client, Connection, Handle, Listener, Plain, Process, Receiver, RecvError, RecvTimeoutError, SendError, Sender,
    TryRecvError, one_way_pipe, pipe, wait,
};
use serde::{Deserialize, Serialize};

procession::test_support!();

const SHORT: Duration = Duration::from_millis(20);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(100);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle { radius: f64 },
    Path(Plain<u32>, String),
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape::Point,
        Shape::Circle { radius: 0.5 },
        Shape::Path(vec![1; 10].into(), "short".into()),
        Shape::Path((0..500_000).collect::<Vec<_>>().into(), "long".into()),
    ]
}

fn echo<T: procession::Message>(connection: Connection<T, T>) {
    while let Ok(value) = connection.recv() {
        connection.send(&value).unwrap();
    }
}

#[test]
fn values_of_all_sizes_come_back() {
    let (ours, theirs) = pipe::<Shape, Shape>().unwrap();
    let child = Process::spawn(echo::<Shape>, (theirs,)).unwrap();
    for shape in shapes() {
        ours.send(&shape).unwrap();
        assert_eq!(ours.recv().unwrap(), shape);
    }
    drop(ours);
    child.join().unwrap();
}

#[test]
fn buffers_of_all_sizes_come_back() {
    let (ours, theirs) = pipe::<Vec<u8>, Vec<u8>>().unwrap();
    let child = Process::spawn(echo::<Vec<u8>>, (theirs,)).unwrap();
    for length in [0, 1, 65_531, 65_532, 65_533, 65_536, 1_000_000, 70_000_000] {
        let bytes = vec![length as u8; length];
        ours.send(&bytes).unwrap();
        assert!(ours.recv().unwrap() == bytes);
    }
    drop(ours);
    child.join().unwrap();
}

#[test]
fn large_messages_go_both_ways_at_once() {
    fn exchange(connection: Connection<Vec<u64>, Vec<u64>>) {
        let numbers: Vec<u64> = (0..1_000_000).collect();
        thread::scope(|scope| {
            scope.spawn(|| (0..3).for_each(|_| connection.send(&numbers).unwrap()));
            (0..3).for_each(|_| assert!(connection.recv().unwrap() == numbers));
        });
    }
    let (ours, theirs) = pipe().unwrap();
    let child = Process::spawn(exchange, (theirs,)).unwrap();
    exchange(ours);
    child.join().unwrap();
}

#[test]
fn threads_take_turns() {
    let (ours, theirs) = pipe::<Vec<u32>, Vec<u32>>().unwrap();
    let child = Process::spawn(echo::<Vec<u32>>, (theirs,)).unwrap();
    thread::scope(|scope| {
        for number in 0..4_u32 {
            let ours = ours.clone();
            scope.spawn(move || (0..20).for_each(|_| ours.send(&vec![number; 50_000]).unwrap()));
        }
        let receivers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let numbers = ours.recv().unwrap();
                        assert_eq!(numbers.len(), 50_000);
                        assert!(numbers.iter().all(|number| *number == numbers[0]));
                    }
                })
            })
            .collect();
        for receiver in receivers {
            receiver.join().unwrap();
        }
    });
    drop(ours);
    child.join().unwrap();
}

#[test]
fn many_processes_send_over_one_end() {
    fn send(number: u32, sender: Sender<u32>) {
        (0..100).for_each(|_| sender.send(&number).unwrap());
    }
    let (receiver, sender) = one_way_pipe().unwrap();
    let children: Vec<_> = (0..3).map(|number| Process::spawn(send, (number, sender.clone())).unwrap()).collect();
    drop(sender);
    let mut counts = [0; 3];
    for number in &receiver {
        counts[number.unwrap() as usize] += 1;
    }
    assert_eq!(counts, [100; 3]);
    for child in children {
        child.join().unwrap();
    }
}

#[test]
fn the_end_is_its_own_error() {
    let (ours, theirs) = pipe::<u32, u32>().unwrap();
    theirs.send(&1).unwrap();
    // What is unread at the other end makes the system report a reset, once.
    ours.send(&2).unwrap();
    drop(theirs);
    assert_eq!(ours.recv().unwrap(), 1);
    assert!(matches!(ours.recv(), Err(RecvError::Disconnected)));
    assert!(matches!(ours.try_recv(), Err(TryRecvError::Failed(RecvError::Disconnected))));
    assert!(matches!(ours.recv_timeout(SHORT), Err(RecvTimeoutError::Failed(RecvError::Disconnected))));
    assert!(matches!(ours.send(&3), Err(SendError::Disconnected)));
    assert!(ours.poll(Duration::ZERO).unwrap());
}

#[test]
fn a_child_that_is_killed_closes_its_end() {
    fn hang(connection: Connection<u32, u32>) {
        connection.send(&1).unwrap();
        let _ = connection.recv();
    }
    let (ours, theirs) = pipe::<u32, u32>().unwrap();
    let child = Process::spawn(hang, (theirs,)).unwrap();
    assert_eq!(ours.recv().unwrap(), 1);
    assert!(matches!(ours.recv_timeout(SHORT), Err(RecvTimeoutError::TimedOut)));
    child.kill().unwrap();
    assert!(matches!(ours.recv(), Err(RecvError::Disconnected)));
    child.join().unwrap_err();
}

#[test]
fn a_receiver_that_is_killed_is_an_error_of_the_sender() {
    fn hang(receiver: Receiver<Vec<u8>>) {
        assert_eq!(receiver.recv().unwrap(), [7]);
        thread::sleep(LONG);
    }
    let (receiver, sender) = one_way_pipe::<Vec<u8>>().unwrap();
    let child = Process::spawn(hang, (receiver,)).unwrap();
    sender.send(&vec![7]).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            child.kill().unwrap();
        });
        assert!(matches!(sender.send(&vec![1; 10_000_000]), Err(SendError::Disconnected)));
    });
    child.join().unwrap_err();
}

#[test]
fn a_long_message_that_comes_in_parts_is_gone_on_with() {
    // Over a bare socket, so that the parts can be chosen.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ours: Connection<u32, String> = OwnedFd::from(listener.accept().unwrap().0).into();
    let text = "part ".repeat(1000);
    let mut frame = (text.len() as u32).to_be_bytes().to_vec();
    frame.extend(text.as_bytes());
    for part in frame.chunks(3) {
        assert!(matches!(ours.try_recv(), Err(TryRecvError::Empty)));
        peer.write_all(part).unwrap();
    }
    assert_eq!(ours.recv_timeout(LONG).unwrap(), text);
    peer.write_all(&frame[..2]).unwrap();
    assert!(matches!(ours.recv_timeout(SHORT), Err(RecvTimeoutError::TimedOut)));
    peer.write_all(&frame[2..1000]).unwrap();
    assert!(matches!(ours.recv_timeout(SHORT), Err(RecvTimeoutError::TimedOut)));
    peer.write_all(&frame[1000..]).unwrap();
    assert_eq!(ours.recv().unwrap(), text);
    drop(peer);
    assert!(matches!(ours.recv(), Err(RecvError::Disconnected)));
}

#[test]
fn a_message_of_another_type_is_an_error_of_its_own() {
    let (bytes, texts) = std::os::unix::net::UnixStream::pair().unwrap();
    let bytes: Connection<Vec<u8>, ()> = OwnedFd::from(bytes).into();
    let texts: Connection<(), String> = OwnedFd::from(texts).into();
    bytes.send(&vec![0xff; 5]).unwrap();
    bytes.send(&vec![0xff; 200_000]).unwrap();
    bytes.send(&b"good".to_vec()).unwrap();
    assert!(matches!(texts.recv(), Err(RecvError::Decode(_))));
    assert!(matches!(texts.recv(), Err(RecvError::Decode(_))));
    assert_eq!(texts.recv().unwrap(), "good");

    let (numbers, bytes) = std::os::unix::net::UnixStream::pair().unwrap();
    let numbers: Connection<(), Vec<u64>> = OwnedFd::from(numbers).into();
    let bytes: Connection<Vec<u8>, ()> = OwnedFd::from(bytes).into();
    bytes.send(&vec![0; 100_001]).unwrap();
    bytes.send(&vec![0; 16]).unwrap();
    assert!(matches!(numbers.recv(), Err(RecvError::Decode(_))));
    assert_eq!(numbers.recv().unwrap(), [0, 0]);
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let ours: Connection<u32, u32> = OwnedFd::from(ours).into();
    peer.write_all(&[0x80, 0, 0, 0]).unwrap();
    assert!(matches!(ours.recv(), Err(RecvError::Malformed)));
    assert!(matches!(ours.recv(), Err(RecvError::OutOfStep)));
}

#[test]
fn memory_is_not_taken_on_the_word_of_a_peer() {
    let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let ours: Connection<u32, Vec<u8>> = OwnedFd::from(ours).into();
    ours.set_message_limit(1 << 20);
    peer.write_all(&(1_u32 << 30).to_be_bytes()).unwrap();
    let error = ours.recv().unwrap_err();
    assert!(
        matches!(error, RecvError::TooLong { length, limit } if length == 1 << 30 && limit == 1 << 20),
        "{error:?}"
    );

    let (mut peer, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let ours: Connection<u32, Vec<u8>> = OwnedFd::from(ours).into();
    let size = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
    };
    let before = size();
    peer.write_all(&0x7fff_ffff_u32.to_be_bytes()).unwrap();
    peer.write_all(b"only this").unwrap();
    assert!(matches!(ours.recv_timeout(SHORT), Err(RecvTimeoutError::TimedOut)));
    // In pages: two gibibytes would be half a million.
    assert!(size() < before + 10_000, "{} pages more", size() - before);
}

#[test]
fn descriptors_go_along() {
    fn write(connection: Connection<u32, (String, Handle<File>)>) {
        let (text, Handle(mut file)) = connection.recv().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        connection.send(&1).unwrap();
    }
    let (ours, theirs) = pipe().unwrap();
    let child = Process::spawn(write, (theirs,)).unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    ours.send(&("to be written".to_owned(), Handle(File::from(OwnedFd::from(writer))))).unwrap();
    assert_eq!(ours.recv().unwrap(), 1);
    child.join().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to be written");
}

#[test]
fn descriptors_go_with_long_messages_too() {
    let (ours, theirs) = pipe::<(), (Vec<String>, Vec<Handle<OwnedFd>>)>().unwrap();
    let (reader, writer) = io::pipe().unwrap();
    let texts = vec!["x".repeat(1000); 1000];
    thread::scope(|scope| {
        scope.spawn(|| theirs.send(&(texts.clone(), vec![Handle(reader.into()), Handle(writer.into())])).unwrap());
        let (received, handles) = ours.recv().unwrap();
        assert_eq!(received, texts);
        let [Handle(reader), Handle(writer)] = <[_; 2]>::try_from(handles).unwrap();
        File::from(writer).write_all(b"through").unwrap();
        assert_eq!(io::read_to_string(File::from(reader)).unwrap(), "through");
    });
}

#[test]
fn too_many_descriptors_are_an_error_and_send_nothing() {
    let (ours, theirs) = pipe::<Vec<Handle<OwnedFd>>, ()>().unwrap();
    let handle = || Handle(OwnedFd::from(File::open("/dev/null").unwrap()));
    let error = ours.send(&(0..254).map(|_| handle()).collect()).unwrap_err();
    assert!(matches!(error, SendError::TooManyDescriptors), "{error:?}");
    ours.send(&(0..253).map(|_| handle()).collect()).unwrap();
    assert_eq!(theirs.recv().unwrap().len(), 253);
}

#[test]
fn connections_are_messages() {
    type Job = (u32, Sender<u32>);
    fn answer(jobs: Receiver<Job>) {
        for job in &jobs {
            let (number, answers) = job.unwrap();
            answers.send(&(number * number)).unwrap();
        }
    }
    let (theirs, jobs) = one_way_pipe::<Job>().unwrap();
    let child = Process::spawn(answer, (theirs,)).unwrap();
    for number in 0..10 {
        let (receiver, sender) = one_way_pipe().unwrap();
        jobs.send(&(number, sender)).unwrap();
        assert_eq!(receiver.recv().unwrap(), number * number);
        assert!(matches!(receiver.recv(), Err(RecvError::Disconnected)));
    }
    drop(jobs);
    child.join().unwrap();
}

#[test]
fn a_connection_is_no_message_elsewhere() {
    let (ours, _theirs) = pipe::<u32, u32>().unwrap();
    assert!(postcard_of(&ours).is_err());
}

fn postcard_of<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_allocvec(value)
}

#[test]
fn waiting_for_connections_listeners_and_children() {
    let (ours, theirs) = pipe::<u32, u32>().unwrap();
    let listener = Listener::<u32, u32>::private().unwrap();
    let child = Process::spawn(|connection: Connection<u32, u32>| assert_eq!(connection.recv().unwrap(), 9), (theirs,));
    let child = child.unwrap();
    assert!(wait(&[&ours, &listener, &child], SHORT).unwrap().is_empty());
    let client = {
        let address = listener.address().clone();
        thread::spawn(move || Client::new(address).connect::<u32, u32>().unwrap())
    };
    assert_eq!(wait(&[&ours, &listener, &child], None).unwrap(), [1]);
    let connection = listener.accept().unwrap();
    client.join().unwrap();
    ours.send(&9).unwrap();
    // At its end the child closes its end of the pipe too, which may be seen first.
    while !wait(&[&ours, &child], LONG).unwrap().contains(&1) {}
    child.join().unwrap();
    assert_eq!(wait(&[&ours, &connection], LONG).unwrap(), [0, 1]);
}

#[test]
fn waiting_for_queues_too() {
    let (ours, theirs) = pipe::<u32, u32>().unwrap();
    let queue = procession::Queue::<u32>::new().unwrap();
    let child = Process::spawn(
        |queue: procession::Queue<u32>, connection: Connection<u32, u32>| {
            queue.put(1).unwrap();
            assert_eq!(connection.recv().unwrap(), 2);
            connection.send(&3).unwrap();
        },
        (queue.clone(), theirs),
    )
    .unwrap();
    assert_eq!(wait(&[&ours, &queue, &child], None).unwrap(), [1]);
    assert_eq!(queue.get().unwrap(), 1);
    assert!(wait(&[&ours, &queue, &child], SHORT).unwrap().is_empty());
    ours.send(&2).unwrap();
    assert!(wait(&[&queue, &ours], None).unwrap() == [1]);
    assert_eq!(ours.recv().unwrap(), 3);
    assert_eq!(wait(&[&queue, &child], None).unwrap(), [1]);
    child.join().unwrap();
}

#[cfg(feature = "tokio")]
mod awaited {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn values_of_all_sizes_come_back() {
        let (ours, theirs) = pipe::<Shape, Shape>().unwrap();
        let child = Process::spawn(echo::<Shape>, (theirs,)).unwrap();
        let ours = Arc::new(ours);
        let sender = {
            let ours = ours.clone();
            tokio::spawn(async move {
                for shape in shapes() {
                    ours.send_async(&shape).await.unwrap();
                }
            })
        };
        for shape in shapes() {
            assert_eq!(ours.recv_async().await.unwrap(), shape);
        }
        sender.await.unwrap();
        drop(ours);
        child.join().unwrap();
    }

    #[tokio::test]
    async fn a_dropped_future_loses_nothing() {
        let (bytes, texts) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut bytes = bytes;
        let texts = Connection::<(), String>::from(OwnedFd::from(texts));
        let text = "x".repeat(1000);
        let mut frame = 1000_u32.to_be_bytes().to_vec();
        frame.extend(text.as_bytes());
        for part in frame.chunks(100) {
            assert!(tokio::time::timeout(Duration::from_millis(2), texts.recv_async()).await.is_err());
            bytes.write_all(part).unwrap();
        }
        assert_eq!(texts.recv_async().await.unwrap(), text);
        drop(bytes);
        assert!(matches!(texts.recv_async().await, Err(RecvError::Disconnected)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_tasks_use_one_connection() {
        let (ours, theirs) = pipe::<u32, u32>().unwrap();
        let child = Process::spawn(echo::<u32>, (theirs,)).unwrap();
        let ours = Arc::new(ours);
        let tasks: Vec<_> = (0..50)
            .map(|number| {
                let ours = ours.clone();
                tokio::spawn(async move {
                    ours.send_async(&number).await.unwrap();
                    ours.recv_async().await.unwrap()
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        assert_eq!(sum, (0..50).sum());
        drop(ours);
        child.join().unwrap();
    }

    #[test]
    fn a_connection_may_come_to_another_runtime() {
        let (ours, theirs) = pipe::<u32, u32>().unwrap();
        for number in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                assert!(tokio::time::timeout(Duration::from_millis(2), ours.recv_async()).await.is_err());
                theirs.send_async(&number).await.unwrap();
                assert_eq!(ours.recv_async().await.unwrap(), number);
            });
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn threads_and_tasks_take_turns() {
        let (ours, theirs) = pipe::<u32, u32>().unwrap();
        let receiving: Vec<_> = (0..10)
            .map(|number| {
                let ours = ours.clone();
                if number % 2 == 0 {
                    tokio::spawn(async move { ours.recv_async().await.unwrap() })
                } else {
                    tokio::task::spawn_blocking(move || ours.recv().unwrap())
                }
            })
            .collect();
        let mut sum = 0;
        (0..10).for_each(|number| theirs.send(&number).unwrap());
        for task in receiving {
            sum += task.await.unwrap();
        }
        assert_eq!(sum, (0..10).sum());
    }
}
