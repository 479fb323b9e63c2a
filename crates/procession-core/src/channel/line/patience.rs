//! How long one side of a line looks by itself before it sleeps.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::sync::one_core;

/// How many rounds are looked, adapted to what came of it: a message between two processes that both run takes less than
/// a microsecond, but where more want to run than there are cores, looking only keeps the other from it.
#[derive(Debug)]
pub(super) struct Patience {
    rounds: AtomicU32,
    waits: AtomicU32,
}

/// Rounds of pausing, about a tenth of a microsecond each; further rounds give the core to whoever wants it.
const PAUSING: u32 = 40;
const MOST: u32 = 120;
const LEAST: u32 = 4;
/// Who looked for longer than this was not running all the time: there are others who want the core, and who sleeps gets it back
/// sooner than who looks.
const LONG: Duration = Duration::from_micros(60);
/// Every so often the most is tried: who has learned not to look would never learn better.
const PROBE_EVERY: u32 = 32;

impl Patience {
    pub(super) fn new() -> Self {
        Self { rounds: AtomicU32::new(MOST), waits: AtomicU32::new(0) }
    }

    /// Looks whether `done` becomes true, as long as that takes between two pieces of a message: the other side only copies
    /// meanwhile. Nothing is learned from it.
    pub(super) fn look_for_piece(mut done: impl FnMut() -> bool) -> bool {
        if one_core() {
            return done();
        }
        let began = Instant::now();
        while !done() {
            if began.elapsed() > LONG {
                return false;
            }
            for _ in 0..4 {
                crate::loom::hint::spin_loop();
            }
        }
        true
    }

    /// Looks whether `done` becomes true.
    pub(super) fn look(&self, mut done: impl FnMut() -> bool) -> bool {
        if done() {
            return true;
        }
        if one_core() {
            return false;
        }
        let usual = self.rounds.load(Relaxed);
        let probes = self.waits.fetch_add(1, Relaxed).is_multiple_of(PROBE_EVERY);
        let began = Instant::now();
        for round in 0..if probes { MOST } else { usual } {
            if round < PAUSING {
                for _ in 0..4 {
                    crate::loom::hint::spin_loop();
                }
            } else {
                std::thread::yield_now();
            }
            if done() {
                let pays = began.elapsed() < LONG;
                let rounds = if pays { usual.max(round * 2 + LEAST).min(MOST) } else { (usual / 2).max(LEAST) };
                self.rounds.store(rounds, Relaxed);
                return true;
            }
        }
        self.rounds.store((usual / 2).max(LEAST), Relaxed);
        false
    }
}
