//! How long a receiver looks before it sleeps.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::sync::one_core;

/// How often it is looked whether something has come, before a receiver goes to sleep.
///
/// It pays only if the answer comes sooner than a thread is put to sleep and woken. So it grows when it did, and shrinks
/// when it did not.
#[derive(Debug)]
pub(super) struct Patience {
    looks: AtomicU32,
    waits: AtomicU32,
}

impl Patience {
    const MOST: u32 = 64;
    const LEAST: u32 = 2;
    /// Every so often the most is tried: who has learned not to look would never learn better.
    const PROBE_EVERY: u32 = 64;

    /// The first probe of a connection. Before it come the waits of a handshake, and many a connection has no others.
    const FIRST_PROBE: u32 = 8;

    pub(super) fn new() -> Self {
        let waits = AtomicU32::new(Self::PROBE_EVERY - Self::FIRST_PROBE);
        Self { looks: AtomicU32::new(Self::LEAST), waits }
    }

    pub(super) fn get(&self) -> u32 {
        if one_core() {
            0
        } else if self.waits.fetch_add(1, Ordering::Relaxed).is_multiple_of(Self::PROBE_EVERY) {
            Self::MOST
        } else {
            self.looks.load(Ordering::Relaxed)
        }
    }

    /// To be told how many looks were made, and whether they were in vain.
    pub(super) fn end(&self, made: u32, slept: bool) {
        let usual = self.looks.load(Ordering::Relaxed);
        let next = if slept { (usual / 2).max(Self::LEAST) } else { usual.max(made * 2).min(Self::MOST) };
        if next != usual {
            self.looks.store(next, Ordering::Relaxed);
        }
    }
}
