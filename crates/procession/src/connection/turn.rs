//! Taking turns at one end of a connection.

use std::{
    ops::{Deref, DerefMut},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long something may take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// It must not wait.
    Now,
    /// To a moment.
    Moment(Instant),
    /// It takes as long as it takes.
    Forever,
}

impl Until {
    pub(super) fn timeout(limit: Duration) -> Self {
        Instant::now().checked_add(limit).map_or(Self::Forever, Self::Moment)
    }
}

/// A value that one thread of the process has at a time, as in a mutex, but with an end to the wait for it.
#[derive(Debug)]
pub(super) struct Turn<T> {
    state: Mutex<State<T>>,
    given_back: Condvar,
    /// For tasks. Who is told and finds that a thread was faster waits again.
    #[cfg(feature = "tokio")]
    tell_a_task: tokio::sync::Notify,
}

#[derive(Debug)]
struct State<T> {
    /// `None` while a thread has it.
    value: Option<T>,
    /// So many threads wait for it. To tell nobody would be a system call all the same.
    waiting: usize,
}

/// The value, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a, T> {
    turn: &'a Turn<T>,
    value: Option<T>,
}

impl<T> Turn<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            state: Mutex::new(State { value: Some(value), waiting: 0 }),
            given_back: Condvar::new(),
            #[cfg(feature = "tokio")]
            tell_a_task: tokio::sync::Notify::new(),
        }
    }

    /// `None` if another thread had it all the time.
    pub(super) fn take(&self, until: Until) -> Option<Taken<'_, T>> {
        let mut state = self.lock();
        loop {
            if let Some(value) = state.value.take() {
                return Some(Taken { turn: self, value: Some(value) });
            }
            let left = match until {
                Until::Now => return None,
                Until::Forever => Duration::MAX,
                Until::Moment(moment) => moment.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() {
                return None;
            }
            state.waiting += 1;
            state = self.given_back.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
    }

    /// Without blocking the thread.
    #[cfg(feature = "tokio")]
    pub(super) async fn take_async(&self) -> Taken<'_, T> {
        loop {
            if let Some(taken) = self.take(Until::Now) {
                return taken;
            }
            self.tell_a_task.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is there until the drop")
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is there until the drop")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let mut state = self.turn.lock();
        state.value = self.value.take();
        let anybody = state.waiting > 0;
        drop(state);
        if anybody {
            self.turn.given_back.notify_one();
        }
        #[cfg(feature = "tokio")]
        self.turn.tell_a_task.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn one_thread_has_it_at_a_time() {
        let turn = Turn::new(0);
        let first = turn.take(Until::Now).unwrap();
        assert!(turn.take(Until::Now).is_none());
        assert!(turn.take(Until::timeout(Duration::from_millis(5))).is_none());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        *turn.take(Until::Forever).unwrap() += 1;
                    }
                });
            }
            drop(first);
        });
        assert_eq!(*turn.take(Until::timeout(Duration::MAX)).unwrap(), 4000);
    }
}
