//! `Event`.

use super::times_out;
use crate::stage::Stage;

/// All of them at once.
pub fn a_set_wakes_all_who_wait(stage: &mut Stage) {
    stage.make("event event");
    let actors = stage.crowd(3);
    for actor in &actors {
        actor.begin_to_wait("event wait");
    }
    assert_eq!(stage.main().call("event set"), "");
    for actor in &actors {
        assert_eq!(actor.answer(), "true");
    }
}

/// And then nobody.
pub fn a_set_event_lets_everybody_pass_until_it_is_cleared(stage: &mut Stage) {
    stage.make("event event");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("event is_set"), "false");
    assert_eq!(one.call("event set"), "");
    assert_eq!(two.call("event is_set"), "true");
    assert_eq!(two.call("event wait"), "true");
    assert_eq!(one.call("event wait 0"), "true");
    assert_eq!(two.call("event clear"), "");
    assert_eq!(one.call("event is_set"), "false");
    one.begin_to_wait("event wait");
    assert_eq!(two.call("event set"), "");
    assert_eq!(one.answer(), "true");
}

/// Not before the time is up.
pub fn a_timeout_of_an_event_is_honoured(stage: &mut Stage) {
    stage.make("event event");
    let one = stage.start("one");
    times_out(&one, "event wait", "false");
    assert_eq!(stage.main().call("event set"), "");
    assert_eq!(one.call("event wait 30"), "true");
}

/// Neither for the others who wait nor for who sets.
pub fn a_killed_waiter_for_an_event_is_no_hindrance(stage: &mut Stage) {
    stage.make("event event");
    let (one, two) = (stage.start("one"), stage.start("two"));
    one.begin_to_wait("event wait");
    two.begin_to_wait("event wait");
    one.kill();
    assert_eq!(stage.main().call("event set"), "");
    assert_eq!(two.answer(), "true");
    assert_eq!(stage.main().call("event clear"), "");
    two.begin_to_wait("event wait");
    assert_eq!(stage.main().call("event set"), "");
    assert_eq!(two.answer(), "true");
}
