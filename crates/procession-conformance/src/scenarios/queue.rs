//! `Queue` and `JoinableQueue`.

use std::collections::BTreeSet;

use super::times_out;
use crate::stage::Stage;

/// Several producers, one consumer: what each put comes in its order.
pub fn a_queue_keeps_the_order_of_each_producer(stage: &mut Stage) {
    const EACH: usize = 400;
    stage.make("queue queue");
    let producers = stage.crowd(3);
    let consumer = stage.start("consumer");
    for (letter, producer) in ["a", "b", "c"].into_iter().zip(&producers) {
        producer.begin(format_args!("queue put_many {letter} {EACH}"));
    }
    let taken = consumer.call(format_args!("queue get_many {}", 3 * EACH));
    for letter in ["a", "b", "c"] {
        let of_one: Vec<_> = taken.split(' ').filter(|text| text.starts_with(letter)).collect();
        let put: Vec<_> = (0..EACH).map(|number| format!("{letter}{number}")).collect();
        assert_eq!(of_one, put);
    }
    for producer in &producers {
        assert_eq!(producer.answer(), "");
    }
}

/// Nothing is taken twice, nothing gets lost.
pub fn each_message_goes_to_one_consumer(stage: &mut Stage) {
    const EACH: usize = 300;
    stage.make("queue queue 10");
    let actors = stage.crowd(4);
    let (producers, consumers) = actors.split_at(2);
    for consumer in consumers {
        consumer.begin(format_args!("queue get_many {EACH}"));
    }
    for (letter, producer) in ["a", "b"].into_iter().zip(producers) {
        producer.begin(format_args!("queue put_many {letter} {EACH}"));
    }
    let taken = [consumers[0].answer(), consumers[1].answer()];
    let different: BTreeSet<_> = taken.iter().flat_map(|texts| texts.split(' ')).collect();
    assert_eq!(different.len(), 2 * EACH);
}

/// Not before the time is up, and nothing is put.
pub fn a_full_queue_times_out(stage: &mut Stage) {
    stage.make("queue queue 2");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("queue put first"), "");
    assert_eq!(two.call("queue try_put second"), "");
    assert_eq!(one.call("queue try_put third"), "error full");
    times_out(&two, "queue put third", "error full");
    let mut texts = [two.call("queue get 30"), two.call("queue get 30")];
    texts.sort();
    assert_eq!(texts, ["first", "second"]);
    assert_eq!(one.call("queue try_get"), "error empty");
}

/// Not before the time is up.
pub fn an_empty_queue_times_out(stage: &mut Stage) {
    stage.make("queue queue");
    let one = stage.start("one");
    assert_eq!(one.call("queue try_get"), "error empty");
    times_out(&one, "queue get", "error empty");
    assert_eq!(stage.main().call("queue put message"), "");
    assert_eq!(one.call("queue get 30"), "message");
}

/// One message, one consumer.
pub fn a_waiting_consumer_gets_the_message(stage: &mut Stage) {
    stage.make("queue queue");
    let (one, two) = (stage.start("one"), stage.start("two"));
    one.begin_to_wait("queue get");
    assert_eq!(two.call("queue put message"), "");
    assert_eq!(one.answer(), "message");
    assert_eq!(two.call("queue try_get"), "error empty");
}

/// Once a message was taken.
pub fn a_waiting_producer_gets_the_room(stage: &mut Stage) {
    stage.make("queue queue 1");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("queue put first"), "");
    one.begin_to_wait("queue put second");
    assert_eq!(two.call("queue get 30"), "first");
    assert_eq!(one.answer(), "");
    assert_eq!(two.call("queue get 30"), "second");
}

/// Larger than any buffer on the way, and in their order.
pub fn large_messages_arrive_whole(stage: &mut Stage) {
    stage.make("queue queue");
    let (one, two) = (stage.start("one"), stage.start("two"));
    for text in ["x*3000000", "small", "y*20000000", "z*70000"] {
        one.begin(format_args!("queue put {text}"));
        assert_eq!(two.call("queue get 60"), text);
        assert_eq!(one.answer(), "");
    }
}

/// Until all are done, and not longer.
pub fn join_waits_for_the_tasks(stage: &mut Stage) {
    stage.make("joinable queue");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(two.call("queue join"), "");
    assert_eq!(one.call("queue put_many task 2"), "");
    two.begin_to_wait("queue join");
    for _ in 0..2 {
        two.is_waiting();
        assert!(one.call("queue get 30").starts_with("task"));
        two.is_waiting();
        assert_eq!(one.call("queue done"), "");
    }
    assert_eq!(two.answer(), "");
    assert_eq!(one.call("queue join"), "");
}

/// More often than there were tasks.
pub fn task_done_is_called_too_often(stage: &mut Stage) {
    stage.make("joinable queue");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("queue done"), "error too_many");
    assert_eq!(one.call("queue put task"), "");
    assert_eq!(two.call("queue get 30"), "task");
    assert_eq!(two.call("queue done"), "");
    assert_eq!(one.call("queue done"), "error too_many");
    assert_eq!(two.call("queue join"), "");
}

/// What was put is there, however the process ended.
pub fn a_message_outlives_its_producer(stage: &mut Stage) {
    stage.make("queue queue");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("queue put small"), "");
    assert_eq!(one.call("queue put x*5000000"), "");
    one.kill();
    assert_eq!(two.call("queue len"), "2");
    assert_eq!(two.call("queue get 30"), "small");
    assert_eq!(two.call("queue get 30"), "x*5000000");
}

/// Neither a message nor the turn.
pub fn a_killed_consumer_takes_nothing_with_it(stage: &mut Stage) {
    stage.make("queue queue");
    let (one, two, three) = (stage.start("one"), stage.start("two"), stage.start("three"));
    one.begin_to_wait("queue get");
    two.begin_to_wait("queue get");
    one.kill();
    assert_eq!(three.call("queue put message"), "");
    assert_eq!(two.answer(), "message");
}

/// It put the message, or it did not.
pub fn a_killed_producer_leaves_no_half_message(stage: &mut Stage) {
    stage.make("queue queue");
    let consumer = stage.start("consumer");
    for round in 0..10 {
        let producer = stage.start(&format!("producer{round}"));
        producer.begin("queue put_many message 1000000");
        std::thread::sleep(std::time::Duration::from_millis(3 * round));
        producer.kill();
        let count: u64 = consumer.call("queue len").parse().expect("a number");
        let taken = consumer.call(format_args!("queue get_many {count}"));
        let put = (0..count).map(|number| format!("message{number}")).collect::<Vec<_>>().join(" ");
        assert!(taken == put, "after {count} messages");
        assert_eq!(consumer.call("queue try_get"), "error empty");
    }
    assert_eq!(stage.main().call("queue put after"), "");
    assert_eq!(consumer.call("queue get 30"), "after");
}

/// Nobody takes anything, and the producer is done.
pub fn an_unbounded_queue_never_waits(stage: &mut Stage) {
    stage.make("queue queue");
    let (one, two) = (stage.start("one"), stage.start("two"));
    assert_eq!(one.call("queue put_many message 100000"), "");
    assert_eq!(one.call("queue put x*30000000"), "");
    assert_eq!(two.call("queue len"), "100001");
    assert_eq!(two.call("queue get"), "message0");
}
