//! `Barrier`.

use super::until;
use crate::stage::{Actor, Stage};

/// Has all of them pass, and makes sure that each gets another place.
fn pass(actors: &[Actor]) {
    for actor in actors {
        actor.begin("barrier wait");
    }
    let mut places: Vec<_> = actors.iter().map(Actor::answer).collect();
    places.sort();
    let all: Vec<_> = (0..actors.len()).map(|place| place.to_string()).collect();
    assert_eq!(places, all);
}

/// Nobody before the last one is there.
pub fn all_parties_pass_together_each_with_a_place_of_its_own(stage: &mut Stage) {
    stage.make("barrier barrier 3");
    let actors = stage.crowd(3);
    actors[0].begin_to_wait("barrier wait");
    actors[1].begin_to_wait("barrier wait");
    assert_eq!(actors[2].call("barrier waiting"), "2");
    assert_eq!(actors[2].call("barrier wait"), "2");
    let mut places = [actors[0].answer(), actors[1].answer()];
    places.sort();
    assert_eq!(places, ["0", "1"]);
    until(&actors[2], "barrier waiting", "0");
}

/// At once, by who is fast.
pub fn a_barrier_is_used_again_and_again(stage: &mut Stage) {
    stage.make("barrier barrier 3");
    let actors = stage.crowd(3);
    for _ in 0..30 {
        pass(&actors);
    }
}

/// While all others wait for it; if it fails, nobody passes.
pub fn the_action_runs_once_before_all_pass(stage: &mut Stage) {
    stage.make("event acted");
    stage.make("barrier barrier 2 acted");
    let actors = stage.crowd(2);
    pass(&actors);
    assert_eq!(actors[0].call("acted is_set"), "true");
    // Once more, it fails.
    actors[0].begin_to_wait("barrier wait");
    assert!(actors[1].call("barrier wait").starts_with("error "));
    assert_eq!(actors[0].answer(), "error broken");
    assert_eq!(actors[0].call("barrier broken"), "true");
}

/// Who waits hears of it, and who comes.
pub fn a_timeout_breaks_the_barrier_for_all(stage: &mut Stage) {
    stage.make("barrier barrier 3");
    let actors = stage.crowd(3);
    actors[0].begin_to_wait("barrier wait");
    assert_eq!(actors[1].call("barrier wait 0.2"), "error broken");
    assert_eq!(actors[0].answer(), "error broken");
    assert_eq!(actors[2].call("barrier wait"), "error broken");
    assert_eq!(actors[2].call("barrier broken"), "true");
    assert_eq!(actors[2].call("barrier reset"), "");
    pass(&actors);
}

/// Then it is as new.
pub fn an_abort_breaks_the_barrier_until_it_is_reset(stage: &mut Stage) {
    stage.make("barrier barrier 2");
    let actors = stage.crowd(2);
    actors[0].begin_to_wait("barrier wait");
    assert_eq!(actors[1].call("barrier abort"), "");
    assert_eq!(actors[0].answer(), "error broken");
    assert_eq!(actors[0].call("barrier wait"), "error broken");
    assert_eq!(actors[0].call("barrier reset"), "");
    assert_eq!(actors[1].call("barrier broken"), "false");
    pass(&actors);
}

/// And the barrier is not broken by it.
pub fn a_reset_sends_the_waiting_away(stage: &mut Stage) {
    stage.make("barrier barrier 2");
    let actors = stage.crowd(2);
    actors[0].begin_to_wait("barrier wait");
    assert_eq!(actors[1].call("barrier reset"), "");
    assert_eq!(actors[0].answer(), "error broken");
    until(&actors[1], "barrier broken", "false");
    pass(&actors);
}

/// The others pass without it, and go on without it once it is replaced.
pub fn a_killed_party_has_arrived(stage: &mut Stage) {
    stage.make("barrier barrier 3");
    let mut actors = stage.crowd(3);
    actors[0].begin_to_wait("barrier wait");
    actors.swap_remove(0).kill();
    actors[0].begin_to_wait("barrier wait");
    assert_eq!(actors[1].call("barrier wait"), "2");
    assert_eq!(actors[0].answer(), "1");
    actors.push(stage.start("another"));
    pass(&actors);
}

/// The others wait, and can give up.
pub fn a_party_killed_before_it_arrives_is_missing(stage: &mut Stage) {
    stage.make("barrier barrier 2");
    let (one, two) = (stage.start("one"), stage.start("two"));
    one.kill();
    two.begin_to_wait("barrier wait");
    assert_eq!(stage.main().call("barrier abort"), "");
    assert_eq!(two.answer(), "error broken");
}
