//! How many items to put into one task, so that handing them over costs little beside the work.

use std::time::Duration;

/// What a task should take: long beside the microseconds that it costs to hand it over, and short enough that all workers
/// are done at about the same time.
const TARGET: Duration = Duration::from_millis(4);
/// The most items of one task.
const MOST: u64 = 1 << 16;

/// Chooses the sizes of the chunks of one call, by the time that [items took](super::Job::pace).
#[derive(Debug)]
pub struct Pace {
    workers: u64,
    last: u64,
}

impl Pace {
    /// For a pool of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers: workers.max(1) as u64, last: 1 }
    }

    /// How many tasks may be under way, so that no worker waits for the next and those that follow are made by what was
    /// learned from these.
    pub fn window(&self) -> u64 {
        2 * self.workers + 1
    }

    /// How long to wait for the items of a chunk, once there is a first one.
    pub const fn patience() -> Duration {
        TARGET
    }

    /// The size of the next chunk. `pace` is what an item took of late, in nanoseconds; `left` tells how many items are
    /// left, if that is known.
    pub fn next(&mut self, pace: Option<u32>, left: Option<u64>) -> usize {
        // Of what takes no time at all, one can't know how little.
        let fitting = pace.map_or(1, |pace| TARGET.as_nanos() as u64 / u64::from(pace.max(1)));
        // The first items may be quicker than the others: sizes grow step by step, and shrink at once.
        let size = fitting.min(2 * self.last).clamp(1, MOST);
        self.last = size;
        // Towards the end chunks become smaller, lest all wait for the worker that got the last one.
        let share = left.map_or(MOST, |left| left.div_ceil(2 * self.workers).max(fitting / 16));
        size.min(share).min(left.unwrap_or(MOST)).max(1) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_grow_to_what_takes_the_time_aimed_at() {
        let mut pace = Pace::new(2);
        assert_eq!([pace.next(None, None), pace.next(None, None)], [1, 1]);
        let sizes: Vec<_> = (0..6).map(|_| pace.next(Some(400_000), None)).collect();
        assert_eq!(sizes, [2, 4, 8, 10, 10, 10]);
        assert_eq!(pace.next(Some(u32::MAX), None), 1, "slow ones go one by one, at once");
    }

    #[test]
    fn the_last_chunks_leave_something_for_everybody() {
        let mut pace = Pace { workers: 2, last: 1 << 15 };
        let mut left = 10_000;
        let mut sizes = Vec::new();
        while left > 0 {
            sizes.push(pace.next(Some(1000), Some(left)));
            left -= sizes[sizes.len() - 1] as u64;
        }
        assert_eq!(sizes[..4], [2500, 1875, 1407, 1055]);
        assert!(sizes[..sizes.len() - 1].iter().all(|&size| size >= 250), "nor are they not worth while: {sizes:?}");
    }

    proptest! {
        #[test]
        fn there_is_always_a_chunk(workers: usize, paces: Vec<Option<u32>>, left in proptest::option::of(1_u64..)) {
            let mut pace = Pace::new(workers % 1000);
            for measured in paces {
                let size = pace.next(measured, left) as u64;
                prop_assert!((1..=MOST).contains(&size));
                prop_assert!(left.is_none_or(|left| size <= left));
            }
        }
    }
}
