//! Killed at the very places where it matters: at the points that the core has names for.

use std::{fs::File, time::Duration};

use procession::{Buffer, Exit, Handle, Pool, Process, Queue};
use procession_core::kills::{POINTS, kill_at};

use crate::{
    queues::every_block_is_free,
    support::workers::{lost, square},
};

fn aim(name: String, passes: u32) {
    kill_at(&name, passes);
}

/// Has a worker killed at a point that it comes by as it takes a task or sends a result. Tells whether a task went with it;
/// all others are done.
fn task_lost_at(name: &str) -> bool {
    let pool = Pool::new(1).unwrap();
    let before = pool.statistics().pids;
    let aiming = pool.apply_async(aim, (name.to_owned(), 2)).unwrap();
    let results: Vec<_> = (0..9).map(|n| pool.apply_async(square, (n,)).unwrap()).collect();
    let mut gone = usize::from(aiming.get().map_err(lost).is_err());
    for (n, result) in (0..).zip(results) {
        match result.get() {
            Ok(value) => assert_eq!(value, square(n)),
            Err(error) => {
                assert_eq!(lost(error), Exit::Signal(libc::SIGKILL), "{name}");
                gone += 1;
            }
        }
    }
    assert!(gone <= 1, "{gone} tasks lost by one death: {name}");
    assert_ne!(pool.statistics().pids, before, "no worker was killed: {name}");
    gone == 1
}

#[test]
fn worker_killed_while_taking() {
    let still_in_the_ring = [
        "ring: a message about to be read",
        "pool: a task read, not claimed",
        "pool: a former claimant's task struck out",
        "pool: a task claimed, not named",
        "pool: a task named, its place not stored",
        "pool: a task in hand, still in the ring",
        "ring: messages read, not taken",
    ];
    for name in still_in_the_ring {
        assert!(!task_lost_at(name), "the task was still there: {name}");
    }
    assert!(task_lost_at("ring: messages taken, nobody told of the room"));
}

#[test]
fn worker_killed_while_publishing() {
    for name in ["ring: a part of a message about to be copied", "ring: messages in place, none published"] {
        assert!(task_lost_at(name), "the result was not there yet: {name}");
    }
    let published = [
        "ring: messages published, nobody woken",
        "pool: a result sent, its task still in hand",
        "pool: a task done, not counted",
    ];
    for name in published {
        assert!(!task_lost_at(name), "the result was there: {name}");
    }
}

/// Puts and gets messages of all kinds again and again, with the point at which it is to be killed.
fn use_them(buffers: Queue<Vec<u8>>, files: Queue<Handle<File>>, name: String) {
    kill_at(&name, 0);
    for number in 0..100 {
        for length in [10, 3000, 20_000_000, 5_000_000] {
            buffers.put(vec![number; length]).unwrap();
        }
        files.put(Handle(File::open("/dev/null").unwrap())).unwrap();
        files.get().unwrap();
        (0..4).for_each(|_| drop(buffers.get().unwrap()));
        let _ = buffers.get_timeout(Duration::from_millis(5));
    }
}

#[test]
fn queue_user_killed_at_every_point() {
    for (name, _) in POINTS {
        let of_queues = ["ring: ", "spill: ", "sleepers: "].iter().any(|area| name.starts_with(area));
        if !of_queues || name.contains("block") {
            continue;
        }
        let (buffers, files) = (Queue::new().unwrap(), Queue::new().unwrap());
        let child = Process::spawn(use_them, (buffers.clone(), files.clone(), (*name).to_owned())).unwrap();
        child.wait();
        assert_eq!(child.exit(), Some(Exit::Signal(libc::SIGKILL)), "{name}");
        // What is there is whole, and others go on.
        while let Ok(bytes) = buffers.try_get() {
            assert!(bytes.chunks(1 << 12).all(|part| part == vec![bytes[0]; part.len()]), "{name}");
        }
        while files.try_get().is_ok() {}
        buffers.put(vec![5; 100]).unwrap();
        assert_eq!(buffers.get().unwrap(), [5; 100]);
        files.put(Handle(File::open("/dev/null").unwrap())).unwrap();
        files.get().unwrap();
    }
}

/// Hands buffers over again and again, with the point at which it is to be killed.
fn hand_over(queue: Queue<Buffer<u8>>, name: String) {
    kill_at(&name, 0);
    for number in 0..100 {
        // The last has more memory than is kept.
        for length in [40_000, 1_000_000, 70_000_000] {
            queue.put(vec![number; length].into()).unwrap();
            queue.put(vec![number; length / 100].into()).unwrap();
            (0..2).for_each(|_| drop(queue.get().unwrap()));
        }
    }
}

#[test]
fn user_of_buffers_killed_at_every_point() {
    // Somebody else has to have died before somebody can be killed there.
    let sweeping = "block: of a dead process, about to be given back";
    for (name, _) in POINTS.iter().filter(|(name, _)| name.contains("block") && *name != sweeping) {
        let queue = Queue::new().unwrap();
        let child = Process::spawn(hand_over, (queue.clone(), (*name).to_owned())).unwrap();
        child.wait();
        assert_eq!(child.exit(), Some(Exit::Signal(libc::SIGKILL)), "{name}");
        while let Ok(buffer) = queue.try_get() {
            assert!(*buffer == vec![buffer[0]; buffer.len()], "{name}");
        }
        // All blocks come back, one after another.
        every_block_is_free(&queue);
    }
}
