//! One suite of scenarios for locks and queues, played over the core, the Rust face and the Python face.
//!
//! Whoever changes the core or a face finds out here whether a lock is still a lock on all sides, also when a process dies in
//! the wrong moment. `PROTOCOL.md` describes what a driver does.
//!
//! * [`scenarios`]: what is to hold, each scenario once, in terms of actors (processes) and what they have in common
//! * [`stage`]: starts a driver and talks to its actors
//! * [`serve`]: the other end, for the drivers that are written in Rust
//!
//! [`for_each_scenario`] has the list of scenarios, of which `tests/conformance.rs` makes a test for each driver.

pub mod scenarios;
pub mod serve;
pub mod stage;

/// Calls the macro `$call` with `$args` and the names of all scenarios: of those that are common to every implementation of
/// the interface, of those in which a process is killed, and of calls that the types of the Rust face don't allow.
#[macro_export]
macro_rules! for_each_scenario {
    ($call:ident $($args:tt)*) => {
        $call! {
            $($args)*
            common {
                lock {
                    a_second_process_cannot_acquire_a_held_lock
                    a_waiter_gets_the_lock_when_it_is_released
                    a_timeout_of_a_lock_is_honoured
                    any_process_may_release_a_lock
                    releasing_a_free_lock_is_an_error
                    sections_under_a_lock_do_not_overlap
                    an_rlock_is_acquired_again_by_its_owner
                    an_rlock_belongs_to_its_owner
                    sections_under_an_rlock_do_not_overlap
                }
                semaphore {
                    as_many_as_there_are_permits_acquire
                    a_waiter_gets_the_permit_that_is_released
                    a_timeout_of_a_semaphore_is_honoured
                    a_semaphore_signals_from_one_process_to_another
                    a_bounded_semaphore_is_not_released_beyond_its_value
                    sections_under_a_semaphore_of_one_do_not_overlap
                }
                condition {
                    notify_wakes_exactly_n
                    notify_all_wakes_all
                    nobody_hears_of_an_earlier_notification
                    a_wait_that_times_out_holds_the_lock_again
                    a_wait_gives_an_rlock_up_altogether
                }
                event {
                    a_set_wakes_all_who_wait
                    a_set_event_lets_everybody_pass_until_it_is_cleared
                    a_timeout_of_an_event_is_honoured
                }
                barrier {
                    all_parties_pass_together_each_with_a_place_of_its_own
                    a_barrier_is_used_again_and_again
                    the_action_runs_once_before_all_pass
                    a_timeout_breaks_the_barrier_for_all
                    an_abort_breaks_the_barrier_until_it_is_reset
                    a_reset_sends_the_waiting_away
                }
                queue {
                    a_queue_keeps_the_order_of_each_producer
                    each_message_goes_to_one_consumer
                    a_full_queue_times_out
                    an_empty_queue_times_out
                    a_waiting_consumer_gets_the_message
                    a_waiting_producer_gets_the_room
                    large_messages_arrive_whole
                    join_waits_for_the_tasks
                    task_done_is_called_too_often
                    an_unbounded_queue_never_waits
                }
            }
            deaths {
                lock {
                    a_killed_holder_is_recovered_by_who_waits
                    a_killed_holder_is_recovered_by_who_comes_later
                    a_killed_holder_is_found_however_short_the_wait
                    a_recovered_lock_is_a_lock_as_before
                    a_killed_waiter_is_no_hindrance
                    an_rlock_of_a_killed_owner_is_recovered_from_any_depth
                }
                semaphore {
                    the_permits_of_a_killed_holder_come_back
                    a_permit_of_a_living_holder_does_not
                    no_signal_is_made_up_for_the_dead
                }
                condition {
                    a_notification_goes_to_the_living
                    the_lock_of_a_killed_notifier_is_recovered
                }
                event {
                    a_killed_waiter_for_an_event_is_no_hindrance
                }
                barrier {
                    a_killed_party_has_arrived
                    a_party_killed_before_it_arrives_is_missing
                }
                queue {
                    a_message_outlives_its_producer
                    a_killed_consumer_takes_nothing_with_it
                    a_killed_producer_leaves_no_half_message
                }
            }
            misuse {
                condition {
                    a_wait_needs_the_lock
                }
            }
        }
    };
}
