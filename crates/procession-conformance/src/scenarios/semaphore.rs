//! `Semaphore` and `BoundedSemaphore`.

use super::{count_together, recovered, times_out};
use crate::stage::Stage;

/// No more, and as many again when permits were released.
pub fn as_many_as_there_are_permits_acquire(stage: &mut Stage) {
    stage.make("semaphore semaphore 2");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("semaphore try"), "held");
    assert_eq!(two.call("semaphore acquire"), "held");
    assert_eq!(one.call("semaphore value"), "0");
    assert_eq!(one.call("semaphore try"), "no");
    assert_eq!(two.call("semaphore acquire 0"), "no");
    assert_eq!(two.call("semaphore release"), "");
    assert_eq!(one.call("semaphore acquire"), "held");
    assert_eq!(one.call("semaphore release"), "");
    assert_eq!(one.call("semaphore release"), "");
    assert_eq!(two.call("semaphore value"), "2");
}

/// One permit, one waiter.
pub fn a_waiter_gets_the_permit_that_is_released(stage: &mut Stage) {
    stage.make("semaphore semaphore 1");
    let (one, two, three) = (stage.start("one"), stage.start("two"), stage.start("three"));
    assert_eq!(one.call("semaphore acquire"), "held");
    two.begin_to_wait("semaphore acquire");
    assert_eq!(one.call("semaphore release"), "");
    assert_eq!(two.answer(), "held");
    three.begin_to_wait("semaphore acquire");
    assert_eq!(two.call("semaphore release"), "");
    assert_eq!(three.answer(), "held");
}

/// Not before the time is up, and without a permit.
pub fn a_timeout_of_a_semaphore_is_honoured(stage: &mut Stage) {
    stage.make("semaphore semaphore 0");
    stage.make("bounded bounded 1");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("bounded acquire"), "held");
    for name in ["semaphore", "bounded"] {
        times_out(&two, &format!("{name} acquire"), "no");
        assert_eq!(one.call(format_args!("{name} release")), "");
        assert_eq!(two.call(format_args!("{name} acquire 30")), "held");
    }
}

/// One releases, another acquires, beyond the first value too.
pub fn a_semaphore_signals_from_one_process_to_another(stage: &mut Stage) {
    stage.make("semaphore semaphore 0");
    let (one, two) = (stage.start("one"), stage.start("two"));
    two.begin_to_wait("semaphore acquire");
    assert_eq!(one.call("semaphore release"), "");
    assert_eq!(two.answer(), "held");
    for _ in 0..3 {
        assert_eq!(one.call("semaphore release"), "");
    }
    for _ in 0..3 {
        assert_eq!(two.call("semaphore try"), "held");
    }
    assert_eq!(two.call("semaphore try"), "no");
}

/// By nobody.
pub fn a_bounded_semaphore_is_not_released_beyond_its_value(stage: &mut Stage) {
    stage.make("bounded semaphore 2");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("semaphore release"), "error too_many");
    assert_eq!(one.call("semaphore acquire"), "held");
    assert_eq!(two.call("semaphore release"), "");
    assert_eq!(two.call("semaphore release"), "error too_many");
    assert_eq!(two.call("semaphore value"), "2");
}

/// What a semaphore of one is for.
pub fn sections_under_a_semaphore_of_one_do_not_overlap(stage: &mut Stage) {
    stage.make("counter counter");
    stage.make("semaphore semaphore 1");
    let actors = stage.crowd(4);
    count_together(&actors, "semaphore", 2000);
}

/// All of them, to those who wait and to those who come.
pub fn the_permits_of_a_killed_holder_come_back(stage: &mut Stage) {
    for (kind, count) in [("semaphore", 3), ("bounded", 2)] {
        stage.make(&format!("{kind} {kind} {count}"));
        let (one, two) = (stage.start("one"), stage.start("two"));
        for _ in 0..count {
            assert_eq!(one.call(format_args!("{kind} acquire")), "held");
        }
        two.begin_to_wait(format_args!("{kind} acquire"));
        let dead = one.kill();
        assert_eq!(two.answer(), recovered(dead));
        for _ in 1..count {
            assert_eq!(two.call(format_args!("{kind} acquire 30")), "held");
        }
        assert_eq!(two.call(format_args!("{kind} try")), "no");
    }
}

/// Another's death is none of its business.
pub fn a_permit_of_a_living_holder_does_not(stage: &mut Stage) {
    stage.make("semaphore semaphore 2");
    let (one, two, three) = (stage.start("one"), stage.start("two"), stage.start("three"));
    assert_eq!(one.call("semaphore acquire"), "held");
    assert_eq!(two.call("semaphore acquire"), "held");
    let dead = one.kill();
    assert_eq!(three.call("semaphore acquire 30"), recovered(dead));
    assert_eq!(three.call("semaphore try"), "no");
    times_out(&three, "semaphore acquire", "no");
    assert_eq!(two.call("semaphore release"), "");
    assert_eq!(three.call("semaphore try"), "held");
}

/// Where permits are messages, a process that dies with one has read it.
pub fn no_signal_is_made_up_for_the_dead(stage: &mut Stage) {
    stage.make("semaphore semaphore 0");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(stage.main().call("semaphore release"), "");
    assert_eq!(one.call("semaphore acquire"), "held");
    one.kill();
    times_out(&two, "semaphore acquire", "no");
    assert_eq!(two.call("semaphore value"), "0");
}
