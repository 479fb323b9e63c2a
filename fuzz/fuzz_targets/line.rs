//! Either side of a line whose peer writes what it likes into the memory that they share, between the calls and during
//! them. Nothing but an error may come of it.
#![no_main]

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering},
    time::Duration,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use procession_core::{
    channel::{Asking, Connection, LINE_AREA, Serving},
    sync::Wait,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where LINE.md, *The segment*, has them.
const STATE: usize = 64;
const SERVER: usize = 128;
const CLIENT: usize = 192;
const LENGTH: usize = 4096 + 2 * LINE_AREA;

/// What the peer does to the memory and the socket.
#[derive(Arbitrary, Debug)]
enum Act {
    State { phase: u8, sequence: u16, length: u32 },
    /// With the number of the request that is there.
    Phase { phase: u8, length: u16 },
    Word(u64),
    Sleeps { server: bool, word: u32 },
    Bytes { at: u32, bytes: Vec<u8> },
    Ring(u8),
}

/// What our side does.
#[derive(Arbitrary, Debug)]
enum Step {
    Peer(Act),
    Receive,
    Send(u16),
    SendMuch,
    Ask,
}

#[derive(Arbitrary, Debug)]
struct Input {
    serving: bool,
    /// Done to the memory before the server sees it.
    before: Vec<Act>,
    steps: Vec<Step>,
    /// Done again and again while our side is at work, but not for ever: who keeps ringing keeps the other side awake, which
    /// costs nobody else's line anything.
    meanwhile: Vec<Act>,
}

/// The memory as the peer has it.
struct Memory(NonNull<u8>);

// SAFETY: it is touched by atomics only, and stays mapped as long as the value lives.
unsafe impl Sync for Memory {}

impl Memory {
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: mapped, and aligned for all places that are passed.
        unsafe { self.0.add(at).cast().as_ref() }
    }

    fn act(&self, act: &Act, socket: &UnixStream) {
        match act {
            Act::State { phase, sequence, length } => self.set_state(*phase % 12, (*sequence).into(), *length),
            Act::Phase { phase, length } => {
                let sequence = self.word(STATE).load(Ordering::Relaxed) as u32 >> 8;
                self.set_state(*phase % 9, sequence, (*length).into());
            }
            Act::Word(word) => self.word(STATE).store(*word, Ordering::Release),
            Act::Sleeps { server, word } => {
                let at = if *server { SERVER } else { CLIENT };
                // SAFETY: mapped and aligned.
                let place: &AtomicU32 = unsafe { self.0.add(at).cast().as_ref() };
                place.store(*word, Ordering::Relaxed);
            }
            Act::Bytes { at, bytes } => {
                for (offset, byte) in bytes.iter().enumerate() {
                    let at = (*at as usize).wrapping_add(offset) % LENGTH;
                    // SAFETY: within the mapping.
                    let place: &AtomicU8 = unsafe { self.0.add(at).cast().as_ref() };
                    place.store(*byte, Ordering::Relaxed);
                }
            }
            Act::Ring(count) => {
                use std::io::Write;
                let _ = (&*socket).write_all(&vec![b'!'; (*count).into()]);
            }
        }
    }

    fn set_state(&self, phase: u8, sequence: u32, length: u32) {
        let word = u64::from(length) << 32 | u64::from(sequence & 0xff_ffff) << 8 | u64::from(phase);
        self.word(STATE).store(word, Ordering::Release);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `over`, and nobody refers to it any more.
        unsafe { munmap(self.0.as_ptr().cast(), LENGTH) }.unwrap();
    }
}

enum Side {
    Asking(Asking),
    Serving(Serving),
}

fuzz_target!(|input: Input| {
    let asking = Asking::create().unwrap();
    let fd = asking.as_fd().try_clone_to_owned().unwrap();
    // SAFETY: a new mapping of all of the file.
    let mapped = unsafe {
        mmap(std::ptr::null_mut(), LENGTH, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
    };
    let memory = Memory(NonNull::new(mapped.unwrap().cast()).unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let ours = Connection::from(OwnedFd::from(ours));
    let mut side = if input.serving {
        for act in &input.before {
            memory.act(act, &theirs);
        }
        let Ok(serving) = Serving::attach(fd) else { return };
        Side::Serving(serving)
    } else {
        Side::Asking(asking)
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peer = (!input.meanwhile.is_empty()).then(|| {
            scope.spawn(|| {
                for _ in 0..200 {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    for act in &input.meanwhile {
                        memory.act(act, &theirs);
                    }
                }
            })
        });
        for step in &input.steps {
            work(&mut side, step, &ours, &memory, &theirs);
        }
        over.store(true, Ordering::Relaxed);
        // Not left to the scope, which does not wait for what the thread frees at its end: LeakSanitizer would see it.
        peer.map(|peer| peer.join().unwrap());
    });
});

fn work(side: &mut Side, step: &Step, ours: &Connection, memory: &Memory, theirs: &UnixStream) {
    let wait = &mut Wait::timeout(Duration::ZERO);
    let much = vec![7; 3 * LINE_AREA + 1];
    let mut received = Vec::new();
    match (step, side) {
        (Step::Peer(act), _) => memory.act(act, theirs),
        (Step::Receive, Side::Serving(serving)) => drop(serving.receive(ours, &mut received, wait)),
        (Step::Receive, Side::Asking(asking)) => drop(asking.receive(ours, &mut received, wait)),
        (Step::Send(length), Side::Serving(serving)) => drop(serving.send(ours, &[&much[..(*length).into()]], wait)),
        (Step::Send(length), Side::Asking(asking)) => drop(asking.send(ours, &[&much[..(*length).into()]], wait)),
        (Step::SendMuch, Side::Serving(serving)) => drop(serving.send(ours, &[&much, &much], wait)),
        (Step::SendMuch, Side::Asking(asking)) => drop(asking.send(ours, &[&much, &much], wait)),
        (Step::Ask, Side::Serving(serving)) => drop((serving.is_unread(), serving.is_asked(), serving.is_watched())),
        (Step::Ask, Side::Asking(asking)) => drop(asking.was_taken()),
    }
    assert!(received.len() < 256 << 20, "memory without end");
}
