//! What holds for each task of a call: when its turn comes, how long it may take, and what becomes of it if its worker dies.

use std::time::Duration;

use super::message::TaskHeader;

/// The shortest limit there is.
const SHORTEST: Duration = Duration::from_millis(1);

/// What holds for each task of a call. The default: its turn comes as it came, it may
/// take as long as it likes, and is lost with its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// How long a worker may be at it before the worker is killed, and the task with it
    /// ([`Verdict::Overdue`](super::Verdict::Overdue)). Counted from when the worker takes it; a millisecond, if it is less.
    pub limit: Option<Duration>,
    /// After how long the face that runs it is to ask it to come to an end. The engine only carries this.
    pub soft_limit: Option<Duration>,
    /// How often it is given to another worker when the one that is at it dies.
    pub retries: u32,
    /// As long as both wait, it is taken before tasks with smaller numbers, and after those with larger ones.
    pub priority: i32,
}

impl Terms {
    /// With no limit shorter than can be kept, and that of the pool where there is none.
    pub(super) fn or_limit(self, limit: Option<Duration>) -> Self {
        Self { limit: self.limit.or(limit).map(|limit| limit.max(SHORTEST)), ..self }
    }

    /// Writes what workers have to know into the header of a task.
    pub(super) fn mark(&self, header: &mut TaskHeader) {
        header.limit = in_nanoseconds(self.limit);
        header.soft_limit = in_nanoseconds(self.soft_limit);
    }
}

/// A limit as it stands in a header: 0 is none.
fn in_nanoseconds(limit: Option<Duration>) -> u64 {
    // Beyond five hundred years it is none, too.
    limit.map_or(0, |limit| u64::try_from(limit.as_nanos().max(1)).unwrap_or(0))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn marked(terms: Terms) -> (u64, u64) {
        let mut header = TaskHeader::STOP;
        terms.mark(&mut header);
        (header.limit, header.soft_limit)
    }

    #[test]
    fn limits_go_with_the_task() {
        assert_eq!(marked(Terms::default()), (0, 0));
        let (second, year) = (Duration::from_secs(1), Duration::from_secs(365 * 86400));
        let terms = Terms { limit: Some(second * 2), soft_limit: Some(second), retries: 3, priority: 2 };
        assert_eq!(marked(terms), (2_000_000_000, 1_000_000_000));
        assert_eq!(marked(Terms { limit: Some(year * 1000), ..terms }), (0, 1_000_000_000));
    }

    #[test]
    fn the_limit_of_the_pool_is_for_those_without() {
        let (long, short) = (Duration::from_secs(9), Duration::from_nanos(9));
        assert_eq!(Terms::default().or_limit(None), Terms::default());
        assert_eq!(Terms::default().or_limit(Some(long)).limit, Some(long));
        assert_eq!(Terms { limit: Some(short), ..Terms::default() }.or_limit(Some(long)).limit, Some(SHORTEST));
    }
}
