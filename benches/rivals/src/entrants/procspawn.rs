//! procspawn: processes and pools for functions.

use std::time::Duration;

use procspawn::Pool;

use super::WORKERS;
use crate::{Outcome, channel::timed};

/// Starts a process that does nothing, and waits for its end.
pub fn start(count: u64) -> Outcome<Duration> {
    timed(count, |count| {
        for _ in 0..count {
            procspawn::spawn((), |()| ()).join()?;
        }
        Ok(())
    })
}

fn double(number: u64) -> u64 {
    number * 2
}

fn warm_pool() -> Outcome<Pool> {
    let pool = Pool::new(WORKERS)?;
    for number in 0..100 {
        pool.spawn(number, double).join()?;
    }
    Ok(pool)
}

/// One call of a pool after another.
pub fn calls(count: u64) -> Outcome<Duration> {
    let pool = warm_pool()?;
    timed(count, |count| {
        for number in 0..count {
            if pool.spawn(number, double).join()? != number * 2 {
                return Err("a wrong result".into());
            }
        }
        Ok(())
    })
}

/// At most so many calls are under way: each takes four descriptors.
const PENDING: u64 = 2000;

/// Many calls of a pool at once, then all results.
pub fn pipelined(count: u64) -> Outcome<Duration> {
    let pool = warm_pool()?;
    timed(count, |count| {
        let mut next = 0;
        while next < count {
            let numbers = next..count.min(next + PENDING);
            next = numbers.end;
            let handles: Vec<_> = numbers.map(|number| (number, pool.spawn(number, double))).collect();
            for (number, handle) in handles {
                if handle.join()? != number * 2 {
                    return Err("a wrong result".into());
                }
            }
        }
        Ok(())
    })
}
