#![allow(unsafe_code)]

use std::os::fd::AsFd;

use proptest::prelude::*;

use super::*;
use crate::{
    channel::{Along, Message, PutError, Ring, TakeError},
    kills::KillTest,
    sync::{Wait, WaitError},
};

const MIB: usize = 1 << 20;

fn ring() -> Ring {
    Ring::create("test").unwrap()
}

fn soon() -> Wait<'static> {
    Wait::timeout(Duration::from_secs(30))
}

/// Bytes that differ from page to page, and from those of other numbers.
fn contents(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![number; length];
    for at in (0..length).step_by(509) {
        bytes[at] = number.wrapping_add((at >> 9) as u8);
    }
    bytes
}

fn fill(ring: &Ring, bytes: &[u8]) -> Filled {
    ring.fill(&[bytes], Duration::ZERO).unwrap()
}

fn put(ring: &Ring, number: u8, length: usize) {
    let block = fill(ring, &contents(number, length));
    let along = Along { blocks: &[block], ..Along::default() };
    assert_eq!(ring.put_along(&[&[number]], along, None, &mut soon()).unwrap().count, 1);
}

fn claim(ring: &Ring) -> (Vec<u8>, Vec<Claimed>) {
    ring.take_with(&mut soon(), |message| Ok((message.to_vec()?, message.take_blocks()))).unwrap().0
}

fn take(ring: &Ring) -> (u8, HeldBlock) {
    let (bytes, blocks) = claim(ring);
    let [block] = blocks.try_into().unwrap();
    (bytes[0], block.hold().unwrap())
}

fn check(ring: &Ring, number: u8, length: usize) -> HeldBlock {
    let (told, block) = take(ring);
    assert_eq!(told, number);
    assert!(*block == contents(number, length), "the contents of {number} are wrong");
    block
}

/// How many blocks belong to somebody.
fn live(ring: &Ring) -> usize {
    ring.blocks().unwrap().0.live()
}

fn sweep(ring: &Ring) {
    ring.blocks().unwrap().0.sweep_now();
}

/// Memory in use by the ring's file, in bytes.
fn resident(ring: &Ring) -> usize {
    rustix::fs::fstat(ring).unwrap().st_blocks as usize * 512
}

fn in_child(call: impl FnOnce()) {
    // SAFETY: the child uses shared memory and the allocator (which glibc allows after a fork), and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_ok();
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

#[test]
fn a_block_is_the_takers_and_is_used_again() {
    let ring = ring();
    let mut addresses = Vec::new();
    for number in 0..5 {
        put(&ring, number, 3 * MIB + 5);
        let mut block = check(&ring, number, 3 * MIB + 5);
        block[7] = 1;
        addresses.push(block.as_ptr());
        assert_eq!(live(&ring), 1);
    }
    assert!(addresses.iter().all(|&address| address == addresses[0]), "the mapping is kept");
    assert_eq!(live(&ring), 0);
    assert!(resident(&ring) < 4 * MIB, "one block is enough");
}

#[test]
fn a_message_may_have_many_blocks_and_none_is_lost_if_nobody_wants_them() {
    let ring = ring();
    let blocks: Vec<_> = (0..Along::MOST_BLOCKS as u8).map(|number| fill(&ring, &contents(number, 5000))).collect();
    let _ = ring.put_along(&[b"many"], Along { blocks: &blocks, ..Along::default() }, None, &mut soon()).unwrap();
    drop(blocks);
    let (bytes, claimed) = claim(&ring);
    assert_eq!(bytes, b"many");
    for (number, claimed) in claimed.into_iter().enumerate() {
        assert_eq!(*claimed.hold().unwrap(), contents(number as u8, 5000));
    }
    put(&ring, 1, MIB);
    let _ = ring.take_with(&mut soon(), |_| Ok(())).unwrap();
    put(&ring, 1, MIB);
    drop(claim(&ring));
    drop(fill(&ring, b"never sent"));
    assert_eq!(live(&ring), 0);
}

#[test]
fn parts_are_put_together() {
    let ring = ring();
    for _ in 0..2 {
        let block = ring.fill(&[b"ab", b"", b"cde"], Duration::ZERO).unwrap();
        assert_eq!(block.len(), 5);
        let _ = ring.try_put_along(&[], Along { blocks: &[block], ..Along::default() }, None).unwrap();
        assert_eq!(*claim(&ring).1.remove(0).hold().unwrap(), *b"abcde");
    }
    assert!(ring.fill(&[], Duration::ZERO).is_none());
}

#[test]
fn a_message_that_is_not_taken_keeps_its_blocks() {
    let ring = ring();
    put(&ring, 3, MIB);
    for _ in 0..3 {
        let refuse = |message: &Message<'_>| {
            assert_eq!(message.take_blocks().len(), 1);
            Err::<(), _>(io::ErrorKind::OutOfMemory.into())
        };
        assert!(matches!(ring.take_with(&mut soon(), refuse), Err(TakeError::Read(_))));
        // Of the first only: the second is refused.
        let mut kept = Vec::new();
        put(&ring, 4, MIB);
        let refuse_second = |message: &Message<'_>| {
            let first = kept.is_empty();
            kept.extend(message.take_blocks());
            if first { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
        };
        assert_eq!(ring.take_many_with(2, &mut soon(), refuse_second).unwrap().count, 1);
        drop(kept);
        let held = check(&ring, 4, MIB);
        put(&ring, 3, MIB);
        drop(held);
    }
    drop(check(&ring, 3, MIB));
    assert_eq!(live(&ring), 0);
}

#[test]
fn what_could_not_be_put_is_given_back() {
    let ring = ring();
    let block = fill(&ring, b"x");
    let along = Along { blocks: std::slice::from_ref(&block), ..Along::default() };
    assert!(matches!(ring.try_put_along(&[b"x"], along, Some(0)), Err(PutError::Full)));
    let mut short = Wait::timeout(Duration::from_millis(5));
    assert!(matches!(ring.put_along(&[b"x"], along, Some(0), &mut short), Err(PutError::Wait(WaitError::TimedOut))));
    assert_eq!(live(&ring), 1);
    let _ = ring.try_put_along(&[b"x"], along, None).unwrap();
    drop(block);
    assert_eq!(live(&ring), 1);
    drop(claim(&ring));
    assert_eq!(live(&ring), 0);
}

#[test]
fn a_block_is_sent_on_without_a_copy() {
    let ring = ring();
    put(&ring, 1, MIB);
    let (_, mut claimed) = claim(&ring);
    let block = claimed.remove(0).send_again().unwrap();
    let _ = ring.try_put_along(&[&[1]], Along { blocks: &[block], ..Along::default() }, None).unwrap();
    drop(check(&ring, 1, MIB));
    put(&ring, 1, MIB);
    drop(claim(&ring).1.remove(0).send_again().unwrap());
    assert_eq!(live(&ring), 0);
}

#[test]
fn descriptors_and_blocks_go_together_and_spilled_too() {
    let ring = Ring::create_with_courier("test").unwrap();
    for filler in [0, 5 * MIB] {
        let _ = ring.try_put(&[&vec![0; filler]], None).unwrap();
        let blocks: Vec<_> = (0..60).map(|number| fill(&ring, &contents(number, 900))).collect();
        let descriptors = [ring.as_fd()];
        let along = Along { descriptors: &descriptors, blocks: &blocks };
        let _ = ring.put_along(&[b"both"], along, None, &mut soon()).unwrap();
        let _ = ring.take_with(&mut soon(), |_| Ok(())).unwrap();
        let read = |message: &Message<'_>| Ok((message.to_vec()?, message.descriptors()?, message.take_blocks()));
        let ((bytes, descriptors, blocks), _) = ring.take_with(&mut soon(), read).unwrap();
        assert_eq!((bytes.as_slice(), descriptors.len(), blocks.len()), (b"both".as_slice(), 1, 60));
        for (number, block) in blocks.into_iter().enumerate() {
            assert_eq!(*block.hold().unwrap(), contents(number as u8, 900));
        }
    }
}

#[test]
fn free_memory_is_bounded_and_a_very_large_block_is_given_back_at_once() {
    let ring = ring();
    put(&ring, 1, 5 * MIB);
    drop(check(&ring, 1, 5 * MIB));
    assert!(resident(&ring) < MIB);
    for number in 0..10 {
        put(&ring, number, MIB);
    }
    let held: Vec<_> = (0..10).map(|number| check(&ring, number, MIB)).collect();
    assert!(resident(&ring) >= 10 * MIB);
    drop(held);
    assert!((3 * MIB..=5 * MIB).contains(&resident(&ring)), "{} bytes are kept", resident(&ring));
}

#[test]
fn what_idle_rings_keep_does_not_add_up() {
    let rings: Vec<Ring> = (0..30).map(|_| ring()).collect();
    for ring in &rings {
        put(ring, 1, 2 << 20);
        drop(check(ring, 1, 2 << 20));
        assert_eq!(live(ring), 0);
    }
    let kept = |rings: &[Ring]| rings.iter().filter(|ring| resident(ring) >= 2 << 20).count();
    assert!(kept(&rings) <= 16, "{}", kept(&rings));
    // Other tests of this process may have some.
    drop(rings);
    let ring = ring();
    put(&ring, 1, 1 << 20);
    drop(check(&ring, 1, 1 << 20));
    put(&ring, 2, 1 << 20);
    drop(check(&ring, 2, 1 << 20));
    assert_eq!(live(&ring), 0);
}

#[test]
fn with_all_blocks_in_use_there_is_none() {
    let ring = ring();
    let mut filled = Vec::new();
    while let Some(block) = ring.fill(&[b"x"], Duration::ZERO) {
        filled.push(block);
    }
    assert_eq!(filled.len(), BLOCKS);
    filled.pop();
    assert!(ring.fill(&[b"x"], Duration::ZERO).is_some());
}

#[test]
fn damage_is_noticed() {
    let ring = ring();
    put(&ring, 1, 100);
    // The number of the block: behind the length of the message and the count of blocks.
    let at = (4096 + 16) as u64;
    for number in [1_u64, 511, 512, u64::MAX] {
        ring.segment().write_at(&number.to_le_bytes(), at).unwrap();
        assert!(matches!(ring.try_take_with(|_| Ok(())), Err(TakeError::Damaged)));
    }
    ring.segment().write_at(&0_u64.to_le_bytes(), at).unwrap();
    for length in [0_u64, 8192, LONGEST + 1] {
        ring.segment().write_at(&length.to_le_bytes(), at + 16).unwrap();
        assert!(matches!(ring.try_take_with(|_| Ok(())), Err(TakeError::Damaged)));
    }
}

proptest! {
    #[test]
    fn references_come_back(slot in 0..BLOCKS as u32, generation: u64, length in 1..=LONGEST) {
        let reference = Reference { slot, generation, length };
        prop_assert_eq!(Reference::from_bytes(&reference.to_bytes()), Some(reference));
    }

    #[test]
    fn no_reference_is_too_strange(bytes: [u8; Reference::LENGTH]) {
        let _ = Reference::from_bytes(&bytes);
    }
}

#[test]
fn both_sides_of_a_fork_have_a_block_of_their_own() {
    let ring = ring();
    put(&ring, 1, 2 * MIB + 100);
    let mut block = Some(check(&ring, 1, 2 * MIB + 100));
    block.as_mut().unwrap()[0] = 10;
    in_child(|| {
        let mut block = block.take().unwrap();
        assert_eq!(block[0], 10);
        assert_eq!(block[1..], contents(1, 2 * MIB + 100)[1..]);
        block[MIB] = 77;
        // The block was given back: the child may use it for something else.
        put(&ring, 2, 2 * MIB + 100);
        drop(check(&ring, 2, 2 * MIB + 100));
    });
    assert_eq!(live(&ring), 0);
    put(&ring, 3, 2 * MIB + 100);
    let other = check(&ring, 3, 2 * MIB + 100);
    let block = block.unwrap();
    assert_eq!(block[0], 10);
    assert_eq!(block[1..], contents(1, 2 * MIB + 100)[1..], "neither the child nor others wrote to it");
    drop(block);
    assert_eq!(*other, contents(3, 2 * MIB + 100));
}

#[test]
fn a_forked_child_leaves_alone_what_its_parent_has_in_hand() {
    let ring = ring();
    put(&ring, 1, MIB);
    let (_, mut claimed) = claim(&ring);
    let mut filled = Some(fill(&ring, b"x"));
    in_child(|| {
        drop(filled.take());
        assert!(claimed.remove(0).hold().is_err());
    });
    assert_eq!(live(&ring), 2);
}

#[test]
fn forks_of_other_threads_lose_nothing_that_is_written_meanwhile() {
    let ring = ring();
    put(&ring, 0, MIB);
    let mut block = check(&ring, 0, MIB);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0_u8;
            while !stop.load(Relaxed) {
                rounds = rounds.wrapping_add(1);
                for at in (0..MIB).step_by(512) {
                    block[at] = rounds;
                }
                for at in (0..MIB).step_by(512) {
                    assert_eq!(block[at], rounds);
                }
            }
        });
        for _ in 0..5 {
            in_child(|| ());
            put(&ring, 9, MIB);
            drop(check(&ring, 9, MIB));
        }
        stop.store(true, Relaxed);
        writer.join().unwrap();
    });
}

#[test]
fn a_sender_killed_anywhere_leaves_no_block_behind() {
    let mut kills = KillTest::new("a sender of a block");
    let ring = ring();
    // First each needs more memory than there is, then it is warm.
    let length = std::cell::Cell::new(10_000);
    for more in [10_000, 0] {
        let check_after = |_, _| {
            // Others go on, and what the dead one sent arrives.
            put(&ring, 5, length.get());
            while !ring.is_empty() {
                let (told, block) = take(&ring);
                assert_eq!(*block, contents(told, length.get()));
            }
            sweep(&ring);
            assert_eq!(live(&ring), 0);
            length.set(length.get() + more);
        };
        kills.at_every_point(|| put(&ring, 77, length.get()), check_after);
    }
    assert!(resident(&ring) < 2 * MIB);
}

#[test]
fn a_receiver_killed_anywhere_leaves_no_block_behind() {
    let mut kills = KillTest::new("a receiver of a block");
    for length in [MIB / 4, 5 * MIB] {
        let ring = ring();
        put(&ring, 1, length);
        let check_after = |_, _| {
            sweep(&ring);
            assert_eq!(live(&ring), ring.len() as usize, "a block for each message, and no other");
            if ring.is_empty() {
                put(&ring, 1, length);
            }
        };
        kills.at_every_point(|| drop(take(&ring)), check_after);
        drop(check(&ring, 1, length));
        assert_eq!(live(&ring), 0);
    }
}

#[test]
fn a_sweeper_killed_anywhere_leaves_no_block_behind() {
    let mut kills = KillTest::new("a sweeper of blocks");
    let ring = ring();
    for number in 0..3 {
        put(&ring, number, MIB);
    }
    let die_with_it = || {
        in_child(|| std::mem::forget(take(&ring)));
        assert_eq!(live(&ring), 3);
    };
    die_with_it();
    let check_after = |_, killed| {
        if killed {
            assert_eq!(live(&ring), 3);
        }
        sweep(&ring);
        assert_eq!(live(&ring), ring.len() as usize);
    };
    kills.at_every_point(|| sweep(&ring), check_after);
    assert_eq!(live(&ring), 2);
}

#[test]
fn what_the_dead_held_is_found_when_memory_is_needed() {
    let ring = ring();
    for number in 0..3 {
        put(&ring, number, MIB);
    }
    in_child(|| std::mem::forget((take(&ring), fill(&ring, b"not sent"))));
    assert_eq!(live(&ring), 4);
    // They are looked for every now and then by those who need more memory.
    let mut length = MIB;
    while live(&ring) > 2 {
        length += 4096;
        drop(fill(&ring, &contents(9, length)));
    }
    for number in [1, 2] {
        drop(check(&ring, number, MIB));
    }
    assert_eq!(live(&ring), 0);
}

#[test]
fn processes_and_threads_hand_over_what_is_theirs() {
    let (there, back) = (ring(), ring());
    let rounds = 60;
    let work = || {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        let (told, mut block) = take(&there);
                        assert_eq!(*block, contents(told, block.len()));
                        block.fill(told);
                        let answer = back.fill(&[&block], Duration::from_millis(5)).unwrap();
                        drop(block);
                        let along = Along { blocks: &[answer], ..Along::default() };
                        let _ = back.put_along(&[&[told]], along, None, &mut soon()).unwrap();
                    }
                });
            }
        });
    };
    // SAFETY: the child uses shared memory and the allocator (which glibc allows after a fork), and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_ok();
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    std::thread::scope(|scope| {
        for part in 0..2 {
            let there = &there;
            scope.spawn(move || {
                for round in 0..rounds {
                    let length = 1000 + (round as usize * 7919 + part * 31) % (300 << 10);
                    put(there, round as u8, length);
                }
            });
        }
        for _ in 0..2 * rounds {
            let (told, block) = take(&back);
            assert!(block.iter().all(|&byte| byte == told));
        }
    });
    let mut status = -1;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    for ring in [&there, &back] {
        sweep(ring);
        assert_eq!(live(ring), 0);
    }
}
