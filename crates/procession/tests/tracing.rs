//! What programs with a log hear of the dead: of their locks, and of the workers of pools.
#![cfg(feature = "tracing")]

mod support;

use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
};

use procession::{Array, Event, Lock, Pool, Recovered};
use support::{kill, start, wait_for_the_end};
use tracing::{
    Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

procession::test_support!();

/// Keeps the warnings of this crate, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN && metadata.target().starts_with("procession")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                write!(self.0, "{field}={value:?} ").unwrap();
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn a_recovery_is_an_event() {
    fn hold(lock: Lock<u32>, array: Array<u32>, holds: Event) {
        let _held = (lock.acquire().unwrap(), array.acquire().unwrap());
        wait_for_the_end(&holds)
    }
    let (lock, array, holds) = (Lock::new(0).unwrap(), Array::zeroed(1).unwrap(), Event::new().unwrap());
    let child = start(hold, (lock.clone(), array.clone(), holds.clone()));
    holds.wait();
    let dead = kill(child);
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        drop(lock.acquire().unwrap_or_else(Recovered::into_inner));
        array.get(0).unwrap();
        drop(lock.acquire().unwrap());
    });
    let [of_lock, of_array] = &log.0.lock().unwrap()[..] else { panic!("two events") };
    for (text, what) in [(of_lock, "lock"), (of_array, "array")] {
        assert!(text.contains(&format!("process={dead}")) && text.contains(&format!("what={what:?}")), "{text}");
    }
}

#[test]
fn a_lost_worker_is_an_event() {
    // A pool has a thread of its own.
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let pool = Pool::builder().workers(1).max_tasks_per_child(1).build().unwrap();
    pool.apply(|| (), ()).unwrap();
    pool.apply(|| std::process::exit(3), ()).map(|(): ()| ()).unwrap_err();
    pool.join();
    let log = log.0.lock().unwrap();
    let [lost] = &log[..] else { panic!("one event, not {log:?}") };
    assert!(lost.contains("a worker of a pool is lost") && lost.contains("Exited"), "{lost}");
}
