//! `Lock` and `RLock`.

use super::{count_together, recovered, times_out};
use crate::stage::Stage;

/// One process has it, another does not get it.
pub fn a_second_process_cannot_acquire_a_held_lock(stage: &mut Stage) {
    stage.make("lock lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock try"), "held");
    assert_eq!(two.call("lock try"), "no");
    assert_eq!(two.call("lock acquire 0"), "no");
    two.begin_to_wait("lock acquire");
}

/// Who waits gets it, and nobody else has it then.
pub fn a_waiter_gets_the_lock_when_it_is_released(stage: &mut Stage) {
    stage.make("lock lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock acquire"), "held");
    two.begin_to_wait("lock acquire");
    assert_eq!(one.call("lock release"), "");
    assert_eq!(two.answer(), "held");
    assert_eq!(one.call("lock try"), "no");
}

/// Not before the time is up, and without the lock.
pub fn a_timeout_of_a_lock_is_honoured(stage: &mut Stage) {
    for kind in ["lock", "rlock"] {
        stage.make(&format!("{kind} {kind}"));
    }
    let (one, two) = (stage.start("one"), stage.start("two"));
    for kind in ["lock", "rlock"] {
        assert_eq!(one.call(format_args!("{kind} acquire")), "held");
        times_out(&two, &format!("{kind} acquire"), "no");
        assert_eq!(one.call(format_args!("{kind} release")), "");
        assert_eq!(two.call(format_args!("{kind} acquire 30")), "held");
    }
}

/// A `Lock` is released by whoever does it.
pub fn any_process_may_release_a_lock(stage: &mut Stage) {
    stage.make("lock lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock acquire"), "held");
    assert_eq!(two.call("lock release"), "");
    assert_eq!(two.call("lock try"), "held");
    assert_eq!(stage.main().call("lock release"), "");
    assert_eq!(one.call("lock try"), "held");
}

/// What nobody holds is not released.
pub fn releasing_a_free_lock_is_an_error(stage: &mut Stage) {
    stage.make("lock lock");
    stage.make("rlock rlock");
    let one = stage.start("one");
    assert_eq!(one.call("lock release"), "error too_many");
    assert_eq!(one.call("rlock release"), "error not_owner");
    assert_eq!(one.call("lock try"), "held");
    assert_eq!(one.call("lock release"), "");
    assert_eq!(one.call("lock release"), "error too_many");
}

/// What a lock is for.
pub fn sections_under_a_lock_do_not_overlap(stage: &mut Stage) {
    stage.make("counter counter");
    stage.make("lock lock");
    let actors = stage.crowd(4);
    count_together(&actors, "lock", 2000);
}

/// As often as it likes, and it is free after as many releases.
pub fn an_rlock_is_acquired_again_by_its_owner(stage: &mut Stage) {
    stage.make("rlock lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    for command in ["lock acquire", "lock try", "lock acquire 1"] {
        assert_eq!(one.call(command), "held");
    }
    for _ in 0..2 {
        assert_eq!(one.call("lock release"), "");
        assert_eq!(two.call("lock try"), "no");
    }
    assert_eq!(one.call("lock release"), "");
    assert_eq!(two.call("lock try"), "held");
    assert_eq!(one.call("lock release"), "error not_owner");
}

/// Nobody else releases it, not even the process that started its owner.
pub fn an_rlock_belongs_to_its_owner(stage: &mut Stage) {
    stage.make("rlock lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock acquire"), "held");
    assert_eq!(two.call("lock release"), "error not_owner");
    assert_eq!(stage.main().call("lock release"), "error not_owner");
    assert_eq!(stage.main().call("lock try"), "no");
    // Nor does a process own what the one held that started it.
    assert_eq!(one.call("lock release"), "");
    assert_eq!(stage.main().call("lock acquire"), "held");
    let three = stage.start("three");
    assert_eq!(three.call("lock try"), "no");
    assert_eq!(three.call("lock release"), "error not_owner");
}

/// What a lock is for.
pub fn sections_under_an_rlock_do_not_overlap(stage: &mut Stage) {
    stage.make("counter counter");
    stage.make("rlock lock");
    let actors = stage.crowd(4);
    count_together(&actors, "lock", 2000);
}

/// All who wait get it, one after the other; the first of them hears who died.
pub fn a_killed_holder_is_recovered_by_who_waits(stage: &mut Stage) {
    stage.make("lock lock");
    let (one, two, three) = (stage.start("one"), stage.start("two"), stage.start("three"));
    assert_eq!(one.call("lock acquire"), "held");
    two.begin_to_wait("lock acquire");
    let dead = one.kill();
    assert_eq!(two.answer(), recovered(dead));
    three.begin_to_wait("lock acquire");
    assert_eq!(two.call("lock release"), "");
    assert_eq!(three.answer(), "held");
}

/// Nobody waits when the holder is killed.
pub fn a_killed_holder_is_recovered_by_who_comes_later(stage: &mut Stage) {
    stage.make("lock lock");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock acquire"), "held");
    let dead = one.kill();
    assert_eq!(two.call("lock acquire 30"), recovered(dead));
}

/// Without any time to wait, too.
pub fn a_killed_holder_is_found_however_short_the_wait(stage: &mut Stage) {
    for object in ["lock", "rlock"] {
        stage.make(&format!("{object} {object}"));
    }
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("lock acquire"), "held");
    assert_eq!(one.call("rlock acquire"), "held");
    let dead = one.kill();
    assert_eq!(two.call("lock acquire 0"), recovered(dead));
    // The first attempt that fails looks.
    assert_eq!(two.call("rlock try"), recovered(dead));
}

/// The recovery is told once.
pub fn a_recovered_lock_is_a_lock_as_before(stage: &mut Stage) {
    stage.make("counter counter");
    stage.make("lock lock");
    let one = stage.start("one");
    assert_eq!(one.call("lock acquire"), "held");
    let dead = one.kill();
    let actors = stage.crowd(3);
    assert_eq!(actors[0].call("lock acquire"), recovered(dead));
    assert_eq!(actors[1].call("lock try"), "no");
    assert_eq!(actors[0].call("lock release"), "");
    assert_eq!(actors[1].call("lock acquire"), "held");
    assert_eq!(actors[1].call("lock release"), "");
    count_together(&actors, "lock", 500);
}

/// It takes neither the lock nor the wake with it.
pub fn a_killed_waiter_is_no_hindrance(stage: &mut Stage) {
    stage.make("lock lock");
    let (one, two, three) = (stage.start("one"), stage.start("two"), stage.start("three"));
    assert_eq!(one.call("lock acquire"), "held");
    two.begin_to_wait("lock acquire");
    three.begin_to_wait("lock acquire");
    two.kill();
    assert_eq!(one.call("lock release"), "");
    assert_eq!(three.answer(), "held");
}

/// It is free after one release.
pub fn an_rlock_of_a_killed_owner_is_recovered_from_any_depth(stage: &mut Stage) {
    stage.make("rlock lock");
    let (one, two, three) = (stage.start("one"), stage.start("two"), stage.start("three"));
    for _ in 0..3 {
        assert_eq!(one.call("lock acquire"), "held");
    }
    two.begin_to_wait("lock acquire");
    let dead = one.kill();
    assert_eq!(two.answer(), recovered(dead));
    assert_eq!(two.call("lock release"), "");
    assert_eq!(two.call("lock release"), "error not_owner");
    assert_eq!(three.call("lock try"), "held");
}
