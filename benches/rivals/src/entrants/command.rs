//! What starting a process costs at least: the smallest program, by the standard library.

use std::{process::Command, time::Duration};

use crate::{Outcome, channel::timed};

pub fn start(count: u64) -> Outcome<Duration> {
    timed(count, |count| {
        for _ in 0..count {
            if !Command::new("true").status()?.success() {
                return Err("`true` failed".into());
            }
        }
        Ok(())
    })
}
