//! procession.

use std::time::Duration;

use procession::{Pool, Process, StartMethod};

use super::WORKERS;
use crate::{Outcome, channel::timed};

fn start_by(method: StartMethod, count: u64) -> Outcome<Duration> {
    let builder = Process::builder().start_method(method);
    timed(count, |count| {
        for _ in 0..count {
            builder.spawn(|| (), ())?.join()?;
        }
        Ok(())
    })
}

/// Starts a process that does nothing, and waits for its end.
pub fn spawn(count: u64) -> Outcome<Duration> {
    start_by(StartMethod::Spawn, count)
}

/// As a copy of the fork server.
pub fn forkserver(count: u64) -> Outcome<Duration> {
    start_by(StartMethod::Forkserver, count)
}

fn double(number: u64) -> u64 {
    number * 2
}

fn warm_pool() -> Outcome<Pool> {
    let pool = Pool::new(WORKERS)?;
    for number in 0..100 {
        pool.apply(double, (number,))?;
    }
    Ok(pool)
}

/// One call of a pool after another.
pub fn calls(count: u64) -> Outcome<Duration> {
    let pool = warm_pool()?;
    timed(count, |count| {
        for number in 0..count {
            if pool.apply(double, (number,))? != number * 2 {
                return Err("a wrong result".into());
            }
        }
        Ok(())
    })
}

/// Many calls of a pool at once, then all results.
pub fn pipelined(count: u64) -> Outcome<Duration> {
    let pool = warm_pool()?;
    timed(count, |count| {
        let calls = (0..count).map(|number| pool.apply_async(double, (number,)));
        for (number, call) in calls.collect::<Result<Vec<_>, _>>()?.into_iter().enumerate() {
            if call.get()? != number as u64 * 2 {
                return Err("a wrong result".into());
            }
        }
        Ok(())
    })
}
