//! `Condition`.

use super::{recovered, until};
use crate::stage::{Actor, Stage};

/// Actors that wait for `condition`, whose lock is `lock`. They wait each, as the next one got the lock.
fn waiting(stage: &mut Stage, count: usize) -> Vec<Actor> {
    let actors = stage.crowd(count);
    for actor in &actors {
        assert_eq!(actor.call("lock acquire 30"), "held");
        actor.begin_to_wait("condition wait");
    }
    actors
}

/// Does something with the lock held.
fn with_lock(actor: &Actor, command: &str) {
    assert_eq!(actor.call("lock acquire 30"), "held");
    assert_eq!(actor.call(command), "");
    assert_eq!(actor.call("lock release"), "");
}

/// As many as asked for, and the rest waits on.
pub fn notify_wakes_exactly_n(stage: &mut Stage) {
    stage.make("lock lock");
    stage.make("condition condition lock");
    let mut actors = waiting(stage, 4);
    let mut woken = 0;
    for (count, in_all) in [(1, 1), (2, 3), (5, 4)] {
        with_lock(stage.main(), &format!("condition notify {count}"));
        while woken < in_all {
            // Whose turn it is, is not said.
            let before = woken;
            actors.retain(|actor| {
                let sleeps = !actor.answers();
                if !sleeps {
                    assert_eq!(actor.answer(), "notified");
                    assert_eq!(actor.call("lock release"), "");
                    woken += 1;
                }
                sleeps
            });
            assert!(before < woken || !actors.is_empty());
        }
        assert_eq!(woken, in_all);
        for actor in &actors {
            actor.is_waiting();
        }
    }
}

/// And each has the lock when it returns.
pub fn notify_all_wakes_all(stage: &mut Stage) {
    stage.make("rlock lock");
    stage.make("condition condition lock");
    let mut actors = waiting(stage, 3);
    with_lock(stage.main(), "condition notify_all");
    while !actors.is_empty() {
        let at = loop {
            if let Some(at) = actors.iter().position(Actor::answers) {
                break at;
            }
        };
        let actor = actors.swap_remove(at);
        assert_eq!(actor.answer(), "notified");
        assert_eq!(stage.main().call("lock try"), "no");
        for other in &actors {
            other.is_waiting();
        }
        assert_eq!(actor.call("lock release"), "");
    }
}

/// A notification is for those who wait.
pub fn nobody_hears_of_an_earlier_notification(stage: &mut Stage) {
    stage.make("lock lock");
    stage.make("condition condition lock");
    let one = stage.start("one");
    with_lock(stage.main(), "condition notify 1");
    with_lock(stage.main(), "condition notify_all");
    assert_eq!(one.call("lock acquire"), "held");
    assert_eq!(one.call("condition wait 0.2"), "timed_out");
}

/// However it ended.
pub fn a_wait_that_times_out_holds_the_lock_again(stage: &mut Stage) {
    stage.make("lock lock");
    stage.make("condition condition lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock acquire"), "held");
    one.begin("condition wait 0.2");
    assert_eq!(two.call("lock acquire"), "held");
    // The time is up before the lock is free.
    std::thread::sleep(std::time::Duration::from_millis(300));
    one.is_waiting();
    assert_eq!(two.call("lock release"), "");
    assert_eq!(one.answer(), "timed_out");
    assert_eq!(two.call("lock try"), "no");
    assert_eq!(one.call("lock release"), "");
}

/// However often it was acquired, and gets it back so.
pub fn a_wait_gives_an_rlock_up_altogether(stage: &mut Stage) {
    stage.make("rlock lock");
    stage.make("condition condition lock");
    let one = stage.start("one");
    for _ in 0..3 {
        assert_eq!(one.call("lock acquire"), "held");
    }
    one.begin_to_wait("condition wait");
    with_lock(stage.main(), "condition notify 1");
    assert_eq!(one.answer(), "notified");
    for _ in 0..3 {
        assert_eq!(stage.main().call("lock try"), "no");
        assert_eq!(one.call("lock release"), "");
    }
    assert_eq!(stage.main().call("lock try"), "held");
}

/// A killed waiter gets none.
pub fn a_notification_goes_to_the_living(stage: &mut Stage) {
    stage.make("lock lock");
    stage.make("condition condition lock");
    let mut actors = waiting(stage, 3);
    let last = actors.pop().expect("the third");
    for actor in actors {
        actor.kill();
    }
    with_lock(stage.main(), "condition notify 1");
    assert_eq!(last.answer(), "notified");
}

/// Who was notified gets the lock that the notifier died with.
pub fn the_lock_of_a_killed_notifier_is_recovered(stage: &mut Stage) {
    stage.make("lock lock");
    stage.make("condition condition lock");
    let one = waiting(stage, 1).remove(0);
    let two = stage.start("two");
    assert_eq!(two.call("lock acquire 30"), "held");
    assert_eq!(two.call("condition notify 1"), "");
    one.is_waiting();
    let dead = two.kill();
    assert_eq!(one.answer(), format!("notified {}", recovered(dead)));
    assert_eq!(stage.main().call("lock try"), "no");
    assert_eq!(one.call("lock release"), "");
    until(stage.main(), "lock try", "held");
}

/// Neither waiting nor notifying goes without it.
pub fn a_wait_needs_the_lock(stage: &mut Stage) {
    for lock in ["lock", "rlock"] {
        stage.make(&format!("{lock} {lock}"));
        stage.make(&format!("condition {lock}_condition {lock}"));
    }
    let (one, two) = (stage.start("one"), stage.start("two"));
    for lock in ["lock", "rlock"] {
        for held in [false, true] {
            if held {
                assert_eq!(two.call(format_args!("{lock} acquire")), "held");
            }
            for command in ["wait 0.2", "notify 1", "notify_all"] {
                assert_eq!(one.call(format_args!("{lock}_condition {command}")), "error not_held");
            }
        }
    }
}
