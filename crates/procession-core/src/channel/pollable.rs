//! The descriptor that is readable while a queue is not empty.
//!
//! An eventfd stands beside the ring. Nobody writes to it until somebody asked for its number: then the ring's doorbell
//! is set for good, and whoever puts or takes a message sees to it that the descriptor tells the truth (PROTOCOL.md, "A
//! poller and a kill").
//!
//! That is done under a lock, and from the state of the ring as it is then, so the last one to do it sets it right,
//! whatever happened in between. `bell_state` spares the system call where the descriptor is as it should be:
//!
//! | value      | the eventfd |
//! |------------|-------------|
//! | `CLEAR`    | is not readable |
//! | `READABLE` | is readable |
//! | `UNKNOWN`  | somebody is about to change it, or was killed while doing so |

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::EventfdFlags;

use super::ring::{Held, Ring};
use crate::{
    kills::point,
    loom::Ordering::Relaxed,
    sync::{Wait, WaitError},
};

const CLEAR: u32 = 0;
const READABLE: u32 = 1;
const UNKNOWN: u32 = 2;

/// The eventfd of a ring.
#[derive(Debug)]
pub(super) struct Pollable(OwnedFd);

impl Pollable {
    pub(super) fn create() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Self(fd))
    }

    /// Has the descriptor tell the truth from now on.
    pub(super) fn arm(&self, ring: &Ring) {
        if !ring.doorbell() {
            ring.set_doorbell(true);
        }
        self.settle(ring);
    }

    /// Puts a message with the descriptor made readable before it is there, so that no poller misses it if the process
    /// is killed in between. Who looks in between finds the lock held, and looks again ([`settle`](Self::settle)).
    ///
    /// `put` must not wait: not for a consumer, which may wait for the lock, and not for anything that lets a signal
    /// handler run, which may use the queue.
    pub(super) fn announced<R>(
        &self,
        ring: &Ring,
        wait: &mut Wait<'_>,
        put: impl FnOnce() -> R,
    ) -> Result<R, WaitError> {
        let held = Held::acquire(&ring.map().header().joining.bell_lock, wait)?;
        self.set(ring, true);
        let result = put();
        self.set_right(ring);
        drop(held);
        Ok(result)
    }

    /// Makes the descriptor readable if there is a message, and not readable if there is none.
    pub(super) fn settle(&self, ring: &Ring) {
        ring.map().header().joining.bell_lock.with(|| self.set_right(ring));
    }

    fn set_right(&self, ring: &Ring) {
        loop {
            let filled = !ring.is_empty();
            self.set(ring, filled);
            // Whoever changes this now comes here afterwards, but might be killed on the way.
            if ring.is_empty() != filled {
                break;
            }
        }
    }

    fn set(&self, ring: &Ring, readable: bool) {
        let state = &ring.map().header().joining.bell_state;
        let wanted = if readable { READABLE } else { CLEAR };
        if state.load(Relaxed) == wanted {
            return;
        }
        state.store(UNKNOWN, Relaxed);
        point("queue: its descriptor about to change, the state unknown");
        // The descriptor does not block. Reading takes the whole of its counter; that it was zero is no failure, and
        // neither is that it was at its maximum.
        if readable {
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        } else {
            let _ = rustix::io::read(&self.0, &mut [0; 8]);
        }
        point("queue: its descriptor changed, the state still unknown");
        state.store(wanted, Relaxed);
    }
}

impl AsFd for Pollable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
