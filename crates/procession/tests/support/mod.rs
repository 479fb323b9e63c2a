//! Processes to kill, and managers, for tests.
#![allow(dead_code)] // each test program uses some of it

pub(crate) mod managers;
pub(crate) mod workers;

use std::time::{Duration, Instant};

use procession::{Child, Event, Function, Message, Process};

/// Starts a process that does something with these arguments, the last of which is an event that it sets when it has done so far as
/// it is to be killed at.
pub(crate) fn start<F, Args>(function: F, args: Args) -> Child<F::Output>
where
    F: Function<Args, Output: Message>,
    Args: Message,
{
    Process::builder().daemon(true).spawn(function, args).unwrap()
}

/// Kills a process and waits for its end. Returns the number that it had.
pub(crate) fn kill<R: Message>(child: Child<R>) -> u32 {
    let pid = child.pid();
    child.kill().unwrap();
    child.wait();
    pid
}

/// For a child that is to be killed where it stands.
pub(crate) fn wait_for_the_end(reached: &Event) -> ! {
    reached.set();
    loop {
        std::thread::park();
    }
}

/// Waits for what another process is about to do.
pub(crate) fn until(mut what: impl FnMut() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(60), "it never happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Long enough for whatever is to happen.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Long enough to see that nothing happens.
pub(crate) const SHORT: Duration = Duration::from_millis(50);
