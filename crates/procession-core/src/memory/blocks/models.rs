#![allow(unsafe_code)]

use loom::{
    cell::UnsafeCell,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use super::word::Entry;
use crate::{
    loom::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    process::ProcessId,
};

fn process(pid: u64) -> ProcessId {
    ProcessId::from_bits(pid).unwrap()
}

/// A block, and the counts of the ring that its message goes through.
#[derive(Default)]
struct World {
    entry: Entry,
    put: AtomicU64,
    taken: AtomicU64,
    sender_died: AtomicBool,
    taker_died: AtomicBool,
}

impl World {
    /// Sends the block with the first message; dies after so many steps.
    fn send(&self, steps: u32, contents: &UnsafeCell<u8>) {
        self.run_sender(steps, contents);
        self.sender_died.store(true, Release);
    }

    fn run_sender(&self, steps: u32, contents: &UnsafeCell<u8>) {
        let Some(_mark) = self.entry.acquire(process(1)).filter(|_| steps > 0) else { return };
        self.entry.next_generation();
        // SAFETY: the block belongs to this thread; loom reports it otherwise.
        contents.with_mut(|contents| unsafe { *contents = 7 });
        if steps > 1 {
            self.entry.place(1);
        }
        if steps > 2 {
            self.put.store(1, Release);
        }
    }

    /// Takes the message if it is there; dies after so many steps. Frees the block if it does not.
    fn take(&self, steps: u32, contents: &UnsafeCell<u8>) {
        if self.put.load(Acquire) == 1 {
            let mark = self.entry.claim(1, 1, process(2), 0).expect("the block of a message is there");
            if steps > 0 {
                self.taken.store(1, Release);
            }
            if steps > 1 {
                // SAFETY: as above.
                contents.with(|contents| assert_eq!(unsafe { *contents }, 7));
                assert!(self.entry.free(mark));
            }
        }
        self.taker_died.store(true, Release);
    }

    /// Frees the block if a dead process has left it. Tells whether it did.
    fn sweep(&self, contents: &UnsafeCell<u8>) -> bool {
        let dead = |owner| match owner {
            owner if owner == process(1) => self.sender_died.load(Acquire),
            _ => self.taker_died.load(Acquire),
        };
        let Some(mark) = self.entry.seize(process(3), || self.taken.load(Acquire), dead) else { return false };
        assert!(self.put.load(Relaxed) <= self.taken.load(Relaxed), "its message is in the ring");
        // SAFETY: as above.
        contents.with_mut(|contents| unsafe { *contents = 0 });
        assert!(self.entry.free(mark));
        true
    }
}

/// A sender and a taker that die after so many steps, and somebody who frees what the dead leave.
fn model(sender: u32, taker: u32) {
    crate::loom::check(3, move || {
        let world = Arc::new((World::default(), UnsafeCell::new(0)));
        let threads = [
            thread::spawn({
                let world = world.clone();
                move || world.0.send(sender, &world.1)
            }),
            thread::spawn({
                let world = world.clone();
                move || world.0.take(taker, &world.1)
            }),
        ];
        world.0.sweep(&world.1);
        for thread in threads {
            thread.join().unwrap();
        }
        // All is over: what is left is free, or goes with the message that is in the ring.
        world.0.sweep(&world.1);
        let in_ring = world.0.put.load(Acquire) > world.0.taken.load(Acquire);
        let waits = sender == 2 && !in_ring;
        assert_eq!(!world.0.entry.is_free(), in_ring || waits, "a block is lost, or one that is needed was freed");
        if waits {
            // Its position was noted, its message never published: another one has that position.
            world.0.taken.store(1, Release);
            assert!(world.0.sweep(&world.1));
        } else if in_ring {
            world.0.take(2, &world.1);
            assert!(world.0.entry.is_free());
        }
    });
}

#[test]
fn a_sender_that_dies_at_any_step_leaves_nothing_behind() {
    for steps in 0..4 {
        model(steps, 2);
    }
}

#[test]
fn a_taker_that_dies_at_any_step_leaves_nothing_behind() {
    for steps in 0..3 {
        model(3, steps);
    }
}
