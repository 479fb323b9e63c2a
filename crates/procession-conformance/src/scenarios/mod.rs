//! What is to hold, on every side.
//!
//! Who is said to wait is given the time to come so far: a scenario never fails because a machine is slow.

pub mod barrier;
pub mod condition;
pub mod event;
pub mod lock;
pub mod queue;
pub mod semaphore;

use std::time::{Duration, Instant};

use crate::stage::Actor;

/// What an actor answers that got a lock from a process that was killed.
fn recovered(pid: u32) -> String {
    format!("recovered {pid}")
}

/// Makes sure that a call with a timeout of 0.2 seconds gives this answer, and not before the time is up.
fn times_out(actor: &Actor, command: &str, answer: &str) {
    let began = Instant::now();
    assert_eq!(actor.call(format_args!("{command} 0.2")), answer);
    assert!(began.elapsed() >= Duration::from_millis(195), "{command} ended after {:?}", began.elapsed());
}

/// Has all of these add to a counter, `times` each, and makes sure that no addition got lost.
fn count_together(actors: &[Actor], lock: &str, times: u64) {
    for actor in actors {
        actor.begin(format_args!("{lock} count counter {times}"));
    }
    for actor in actors {
        assert_eq!(actor.answer(), "");
    }
    let total = actors.len() as u64 * times;
    assert_eq!(actors[0].call("counter value"), total.to_string());
}

/// Waits until an object says so: for what others are about to do.
fn until(actor: &Actor, command: &str, answer: &str) {
    let began = Instant::now();
    while actor.call(command) != answer {
        assert!(began.elapsed() < Duration::from_secs(60), "{command} is never {answer}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
