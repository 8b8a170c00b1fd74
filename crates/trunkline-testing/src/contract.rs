//! The delivery contract as data: every promise a [`Property`], run unchanged on every engine.
//!
//! An engine joins with a [`Harness`] and [`contract_suite!`](crate::contract_suite). A property
//! whose capability the engine does not declare becomes the check that using the feature is
//! refused with a typed error, or, where there is nothing to use, is listed as not declared.
//!
//! Nothing here sleeps in order to wait. Absence is shown by a marker event that comes later on
//! the same way. Where the engine allows it time is virtual, so that a test that would hang runs
//! into the end of its (virtual) hour at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a property that panics has failed: that is its report"
)]

mod harness;
mod log;
mod matrix;
mod nats;
mod remote;

mod consume;
mod dead_letters;
mod publish;
mod replay;
mod seam;
mod secrets;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use trunkline::core::engine::{Boxed, Capabilities, Durability};

pub use harness::{Harness, MemoryHarness, Trial};
pub use log::LogHarness;
pub use matrix::matrix;
pub use nats::NatsHarness;
pub use remote::RemoteHarness;

/// How long a property may take: of virtual time, where nothing waits in earnest, and of real.
const VIRTUAL_LIMIT: Duration = Duration::from_secs(3_600);
const REAL_LIMIT: Duration = Duration::from_secs(30);
/// For what moves millions of messages, on a machine that others use too.
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// One promise of the contract.
pub struct Property {
    /// Its number in the contract: `P1`, `C14`; `E…` are promises of the seam.
    pub id: &'static str,
    /// The name of its test.
    pub name: &'static str,
    /// What it promises, in a sentence.
    pub title: &'static str,
    /// Whether an engine with these capabilities makes the promise.
    pub needs: fn(&Capabilities) -> bool,
    /// Which time it runs in.
    pub time: Time,
    /// Panics unless the engine keeps the promise.
    pub run: fn(Trial) -> Boxed<'static, ()>,
    /// For an engine that does not make the promise: panics unless the feature is refused.
    pub refused: Option<fn(Trial) -> Boxed<'static, ()>>,
}

/// Which time a property runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Virtual, on one thread, where the engine allows it.
    Virtual,
    /// Real, on several threads: for what is about running at once.
    Real,
    /// As [`Real`](Self::Real), with more to do.
    Load,
}

/// What became of a property on an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Declared and kept.
    Kept,
    /// Not declared, and using it is refused with a typed error.
    Refused,
    /// Not declared, and there is nothing to use.
    NotDeclared,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Kept => "yes",
            Verdict::Refused => "refused",
            Verdict::NotDeclared => "—",
        })
    }
}

impl Property {
    /// What it comes to on an engine with these capabilities that is as it should be.
    pub fn verdict(&self, capabilities: &Capabilities) -> Verdict {
        match ((self.needs)(capabilities), self.refused) {
            (true, _) => Verdict::Kept,
            (false, Some(_)) => Verdict::Refused,
            (false, None) => Verdict::NotDeclared,
        }
    }

    /// Runs it on an engine, on a runtime of its own.
    ///
    /// # Panics
    /// When the engine does not keep the promise.
    pub fn check(&self, harness: &Arc<dyn Harness>) -> Verdict {
        let is_virtual = self.time == Time::Virtual && harness.allows_virtual_time();
        let runtime = if is_virtual {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
        } else {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(4)
                .enable_all()
                .build()
        };
        let limit = match self.time {
            _ if is_virtual => VIRTUAL_LIMIT,
            Time::Load => LOAD_LIMIT,
            _ => REAL_LIMIT,
        };
        runtime.expect("a runtime").block_on(async {
            let trial = Trial::new(Arc::clone(harness), is_virtual);
            let verdict = self.verdict(&trial.engine().await.capabilities());
            let run = match (verdict, self.refused) {
                (Verdict::Kept, _) => self.run,
                (Verdict::Refused, Some(refused)) => refused,
                _ => return verdict,
            };
            // On a task, as programs run: what is not `Send` or starves others shows.
            let running = tokio::spawn(run(trial));
            match tokio::time::timeout(limit, running).await {
                Ok(Ok(())) => verdict,
                Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                Err(_) => panic!(
                    "{} on {} was not done after {limit:?}",
                    self.name,
                    harness.name()
                ),
            }
        })
    }
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Property")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The property of that name.
///
/// # Panics
/// When there is none.
pub fn property(name: &str) -> &'static Property {
    PROPERTIES
        .iter()
        .find(|property| property.name == name)
        .unwrap_or_else(|| panic!("there is no property {name}"))
}

/// Runs one property: the body of each test that [`contract_suite!`](crate::contract_suite) makes.
///
/// # Panics
/// When the engine does not keep the promise.
pub fn run_one(harness: &Arc<dyn Harness>, name: &str) {
    let property = property(name);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| property.check(harness))) {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let failure = text.unwrap_or_else(|| "(no message)".to_owned());
        panic!("{name} on {}: {failure}", harness.name());
    }
}

fn always(_: &Capabilities) -> bool {
    true
}

fn survives_crash(capabilities: &Capabilities) -> bool {
    capabilities.durability >= Durability::Crash
}

fn shares_values(capabilities: &Capabilities) -> bool {
    capabilities.shares_values
}

macro_rules! contract {
    (($d:tt) $($name:ident in $group:ident, $time:ident, $needs:ident $(else $refused:ident)?: $id:literal $title:literal;)*) => {
        /// Every promise, in the order of the contract.
        pub const PROPERTIES: &[Property] = &[$(
            Property {
                id: $id,
                name: stringify!($name),
                title: $title,
                needs: $needs,
                time: Time::$time,
                run: |trial| Box::pin($group::$name(trial)),
                refused: contract!(@refused $group $($refused)?),
            },
        )*];

        /// Makes one `#[test]` for each property of the [`contract`](crate::contract), run against
        /// the engine of a harness, which is an `Arc` of a [`Harness`](crate::contract::Harness).
        #[macro_export]
        macro_rules! contract_suite {
            ($d harness:expr) => {$(
                #[test]
                fn $name() {
                    let harness: ::std::sync::Arc<dyn $d crate::contract::Harness> = $d harness;
                    $d crate::contract::run_one(&harness, stringify!($name));
                }
            )*};
        }
    };
    (@refused $group:ident) => { None };
    (@refused $group:ident $refused:ident) => { Some(|trial| Box::pin($group::$refused(trial))) };
}

contract! { ($)
    p1_a_published_event_arrives_once_and_whole in publish, Virtual, always: "P1"
        "A published event arrives once, with equal attributes, headers and payload";
    p1_sizes_up_to_the_limit_pass_and_one_byte_more_is_refused in publish, Virtual, always: "P1"
        "Messages from 0 bytes to the limit pass; one byte more is a typed error and harms nothing";
    p1_line_breaks_in_headers_are_refused in publish, Virtual, always: "P1"
        "A header with a line break is refused before anything is sent";
    p2_ten_thousand_mixed_subscriptions_get_exactly_their_own in publish, Virtual, always: "P2"
        "`*` is one token and `>` one or more: 10 000 mixed subscriptions get exactly their own";
    p3_a_batch_keeps_its_order_and_each_item_its_outcome in publish, Virtual, always: "P3"
        "A batch is stored in order; what is malformed or too large harms nobody else";
    p3_behind_a_refused_event_its_key_waits in publish, Virtual, always: "P3"
        "When a stream is full, later items of a refused item's key are held back";
    p4_a_repeated_id_is_stored_once in publish, Virtual, always: "P4"
        "Within the duplicate window an id is stored once";
    p4_stored_events_survive_a_crash in publish, Real, survives_crash: "P4"
        "What was stored is there after every connection is gone";
    p5_a_topology_that_would_lose_events_is_refused_at_start in publish, Virtual, always: "P5"
        "Types that no stream stores, overlapping streams and roots are refused when the bus starts";
    p6_a_slow_subscriber_loses_its_own_oldest_and_learns_of_it in publish, Virtual, always: "P6"
        "A slow ephemeral subscriber loses its own oldest and is told; a fast one gets everything";
    p7_closing_after_the_last_publish_loses_nothing in publish, Virtual, always: "P7"
        "Closing right after the last publish loses nothing; close is idempotent; later use is a typed error";
    p8_fifty_publishers_and_ten_subscribers_at_once in publish, Load, always: "P8"
        "50 publishers × 5 000 events × 10 subscribers at once: each gets every event once, in order";
    p8_twenty_subjects_at_once in publish, Real, always: "P8"
        "20 subjects × 100 events at once: each subscriber gets exactly its set";
    p9_shared_values_are_never_encoded in publish, Virtual, shares_values else an_unwritable_event_is_refused: "E1"
        "Values are handed over without encoding them";

    c1_two_consumers_each_get_every_event in consume, Virtual, always: "C1"
        "Two consumers each get every event";
    c1_members_of_a_consumer_share_its_events in consume, Virtual, always: "C1"
        "The members of a consumer share its events, each event to one member";
    c1_members_added_and_stopped_in_turn_lose_nothing in consume, Virtual, always: "C1"
        "Members added and stopped in turn lose nothing and repeat nothing";
    c2_a_cleanly_restarted_consumer_sees_no_finished_event_again in consume, Virtual, always: "C2"
        "Process 1 000, stop cleanly, start again: zero of them return";
    c3_concurrency_is_never_exceeded_and_follows_its_setting in consume, Virtual, always: "C3"
        "What runs never exceeds the concurrency; raising and lowering it takes effect";
    c3_what_a_member_holds_is_bounded in consume, Virtual, always: "C3"
        "What a member holds never exceeds its window";
    c3_what_a_member_holds_is_bounded_in_bytes_and_follows_its_setting in consume, Virtual, always: "C3"
        "What a member holds never exceeds its window in bytes; a smaller window takes effect";
    c4_a_handler_sees_its_attempts_counted in consume, Virtual, always: "C4"
        "A handler that fails twice and then succeeds sees attempts 1, 2, 3";
    c5_a_permanent_error_is_a_dead_letter_on_attempt_1 in consume, Virtual, always: "C5"
        "A permanent error dead-letters on attempt 1";
    c5_the_last_attempt_dead_letters_and_a_panic_is_a_failure in consume, Virtual, always: "C5"
        "The last allowed attempt dead-letters; a panic is a failure, not the end of the worker";
    c5_what_cannot_be_decoded_is_kept_byte_for_byte in consume, Virtual, always: "C5"
        "An undecodable payload dead-letters with its bytes intact";
    c6_a_waiting_retry_holds_no_slot in consume, Virtual, always: "C6"
        "An event that waits for another attempt does not keep others from running";
    c6_what_is_snoozed_until_a_time_comes_then_and_counts_nothing in consume, Virtual, always: "C6"
        "An event that is snoozed until a time comes then, and no attempt is counted";
    c6_where_too_much_fails_a_member_pauses_and_tries_one in consume, Virtual, always: "C6"
        "Where half of the latest runs failed, nothing starts for a while, and then one event is tried";
    c7_a_long_handler_is_delivered_once in consume, Virtual, always: "C7"
        "A handler longer than three ack waits is delivered once";
    c7_a_handler_that_hangs_is_cancelled_and_retried in consume, Virtual, always: "C7"
        "A handler that hangs is cancelled after its time-out, tried again, and given up by the policy";
    c7_a_handler_that_blocks_its_thread_is_reported_stuck in consume, Real, always: "C7"
        "A handler that blocks its thread is reported stuck, and its event goes to another member";
    c7_a_key_whose_handler_blocks_goes_on_with_another_member in consume, Real, always: "C7"
        "A key whose handler blocks its thread goes on with another member, in order";
    c8_a_crash_loop_is_given_up_and_its_neighbours_are_not in consume, Real, always: "C8"
        "An event that takes its process with it is given up after 5 starts; its neighbours are not, and no kill is a failure";
    c8_what_is_nobodys_fault_counts_for_nothing in consume, Virtual, always: "C8"
        "A snooze, a stop that cancels and an event that had not started raise no counter";
    c9_stopping_gives_back_at_once in consume, Virtual, always: "C9"
        "Stopping with a deadline gives back at once what has not started or was cancelled";
    c1_a_member_that_dies_is_replaced_and_order_is_kept in consume, Real, always: "C1"
        "When a member dies, another goes on in order; a kill is no failure and repeats only what was not committed";
    c6_a_waiting_retry_survives_its_member_and_attempts_count_for_all in consume, Virtual, always: "C6"
        "A waiting retry survives a restart, and the attempts of all members together are the policy's";
    c6_a_waiting_retry_of_a_shared_consumer_survives_its_member in consume, Virtual, always: "C6"
        "So does one of a consumer that gives its events to whoever is free";
    c4_a_shared_consumer_counts_attempts_over_all_of_its_members in consume, Virtual, always: "C4"
        "Attempts are counted whichever member makes them";
    c13_a_shared_consumer_rests_while_it_is_paused in consume, Virtual, always: "C13"
        "A consumer that gives its events to whoever is free rests while it is paused, and goes on";
    d3_a_dead_letter_of_a_shared_consumer_runs_again in consume, Virtual, always: "D3"
        "A replay of a shared consumer runs there, and is dead again if it fails";
    c10_members_that_come_and_go_keep_every_key_in_order in consume, Virtual, always: "C10"
        "Keyed events are handled in key order, once each, while members come and go";
    c10_a_failing_key_waits_in_order_and_holds_up_no_other in consume, Virtual, always: "C10"
        "A failing key waits in order under its retries and holds up no other key";
    c10_another_number_of_partitions_loses_and_repeats_nothing in consume, Virtual, always: "C10"
        "A consumer is divided into other partitions under load: nothing is lost, nothing is repeated, and order is kept";
    c10_order_without_a_key_is_refused in consume, Virtual, always: "C10"
        "A consumer that asks for key order on a type without a key does not start";
    c13_a_pause_holds_over_a_restart_until_its_last_reason_is_gone in consume, Virtual, always: "C13"
        "A pause is confirmed by every live member, survives a restart, and ends with its last reason";
    c13_a_reset_and_a_deletion_are_noticed_by_members_that_run in consume, Virtual, always: "C13"
        "Members that run follow a reset, and end loudly when their consumer is deleted";
    c13_dividing_is_done_once_and_refused_where_it_means_nothing in consume, Virtual, always: "C13"
        "Dividing a consumer leaves pauses alone, survives two operators at once, and is refused where it means nothing";
    c11_a_duplicate_of_a_done_event_is_acknowledged_unseen in consume, Virtual, always: "C11"
        "A duplicate of an event that was done is acknowledged unseen, whichever member gets it";
    c11_duplicates_at_once_run_once in consume, Virtual, always: "C11"
        "Of duplicates that come at once to several members one runs and the others wait";
    c11_consumers_are_idempotent_each_for_itself in consume, Virtual, always: "C11"
        "Two consumers of one event each run it, under keys of their own";
    c11_what_failed_may_run_again in consume, Virtual, always: "C11"
        "A run that failed or panicked does not keep its event from the next attempt";
    c11_a_reset_and_a_deletion_forget_what_was_done in consume, Virtual, always: "C11"
        "What was done before a reset, or by a consumer that was deleted, runs again";
    c11_a_long_run_keeps_its_claim in consume, Virtual, always: "C11"
        "A run longer than three leases keeps its duplicates waiting";
    c11_a_crash_before_the_record_repeats_the_run in consume, Virtual, always: "C11"
        "What a member was at when it died runs again, with the same idempotency key";
    c11_a_key_ends_with_its_time in consume, Virtual, always: "C11"
        "After its time to live a duplicate is an event like any other";
    c11_one_setting_makes_every_consumer_idempotent in consume, Virtual, always: "C11"
        "One setting makes every consumer idempotent; a time that is too short is refused at start";
    c12_outputs_follow_success_with_their_cause in consume, Virtual, always: "C12"
        "What a handler publishes is stored after its success, in order, with cause and correlation";
    c12_outputs_of_a_failed_run_are_dropped in consume, Virtual, always: "C12"
        "What a failed or panicked run published is dropped";
    c12_a_crash_between_output_and_ack_stores_it_once in consume, Virtual, always: "C12"
        "A crash between output and ack stores the same output once and swallows no other";
    c12_outputs_that_are_not_stored_fail_the_run in consume, Virtual, always: "C12"
        "A run whose outputs cannot be stored has failed, and is tried again";
    c12_too_many_outputs_are_a_dead_letter in consume, Virtual, always: "C12"
        "A run with more outputs than the limit is a dead letter, and none of them is stored";

    c14_replay_from_every_position_is_exact_and_ordered in replay, Virtual, always: "C14"
        "Replay from first, sequence, time, last n and last per subject is exact and ordered";
    c14_filters_apply in replay, Virtual, always: "C14"
        "Replay gives exactly what its filter matches";
    c14_replay_disturbs_no_consumer in replay, Virtual, always: "C14"
        "Replay leaves every durable consumer as it was";
    c14_a_trimmed_start_is_a_gap in replay, Virtual, always: "C14"
        "A trimmed start is reported as a gap, not skipped";

    d1_an_entry_is_the_event_and_its_story in dead_letters, Virtual, always: "D1"
        "A dead letter is the event byte for byte, with its headers and the story of its failures";
    d1_a_handler_is_told_of_dead_letters_until_it_is_done in dead_letters, Virtual, always: "D1"
        "A handler is told of dead letters over restarts, tried again when it fails, and not told of its own";
    d2_they_are_listed_shown_and_discarded in dead_letters, Virtual, always: "D2"
        "Dead letters are listed, selected, shown, and discarded with a reason that is kept";
    d3_a_replay_runs_once_for_the_consumer_that_failed in consume, Virtual, always: "D3"
        "A replay goes to the failing consumer alone, with attempt 1, and runs once however many ask for it";
    d3_a_dead_letter_from_before_a_reset_is_not_replayed_in_vain in consume, Virtual, always: "D3"
        "A dead letter from before a reset stays, and a replay of it is refused";
    d3_of_operators_who_ask_at_once_one_is_first in dead_letters, Virtual, always: "D3"
        "A dead letter that several operators replay at once is asked for once";
    d4_a_replay_runs_in_its_place_and_what_waited_for_it_after_it in consume, Virtual, always: "D4"
        "With `hold_key`, later events of a dead letter's key wait for it, over restarts, and run after its replay";
    d4_discarding_a_dead_letter_lets_go_what_waited_for_it in consume, Virtual, always: "D4"
        "With `hold_key`, discarding a dead letter lets what waited for it run in order";
    d4_a_consumer_that_stops_holding_lets_go_what_it_held in consume, Virtual, always: "D4"
        "A consumer that is started without `hold_key` lets go what was held";
    d4_holding_keys_without_key_order_is_refused in consume, Virtual, always: "D4"
        "A consumer that is to hold keys and keeps no key order does not start";
    d5_what_cannot_be_read_hides_no_other in dead_letters, Virtual, always: "D5"
        "What is no dead letter and lies among them is listed as such, and hides none";
    d5_what_is_stored_and_not_noted_down_is_dead in dead_letters, Virtual, always: "D5"
        "A dead letter whose state nobody wrote is listed, replayed and discarded like any";

    e2_append_keeps_expectations_and_atomic_batches_whole in seam, Virtual, always: "E2"
        "Expectations of an append hold; an atomic batch is stored whole or not at all";
    e3_follow_has_no_gaps_and_dropping_it_loses_nothing in seam, Virtual, always: "E3"
        "A follower sees every event once, in order, also when its calls are cancelled";
    e4_a_lease_that_ends_moves_the_event_to_whoever_waits in seam, Virtual, always: "E4"
        "When a lease ends, its event goes to a member that was waiting already";
    e4_leases_are_extended_given_back_and_never_settled_twice in seam, Virtual, always: "E4"
        "Extended leases hold, what is given back returns at once, stale leases settle nothing";
    e4_a_cancelled_fetch_leases_nothing in seam, Virtual, always: "E4"
        "A fetch that is cancelled leases nothing";
    e5_a_work_queue_forgets_what_is_done in seam, Virtual, always: "E5"
        "A command leaves its stream when it is acknowledged, and not before";
    e6_a_commit_happens_whole_or_not_at_all in seam, Virtual, always: "E6"
        "A commit whose fences do not hold changes nothing; one that repeats is recognised";
    e6_racing_commits_behind_one_fence_have_one_winner in seam, Real, always: "E6"
        "Of commits that race behind one fence, exactly one wins each round";
    e7_a_scan_has_everything_up_to_its_revision in seam, Virtual, always: "E7"
        "A scan has every key that was written up to the revision that it names";
    e7_a_scan_pages_through_everything_written in seam, Virtual, always: "E7"
        "A scan pages through every key once, and sees what its caller wrote";
    e8_a_watch_misses_nothing in seam, Virtual, always: "E8"
        "A watch tells the present state, then the latest change, deletion or expiry of every key";
    e9_live_groups_share_and_askers_learn_that_nobody_listens in seam, Virtual, always: "E9"
        "Of listeners that share, each message goes to one; a request that nobody hears says so";
    e10_a_closed_engine_says_so in seam, Virtual, always: "E10"
        "After closing, the link says so, waiting readers end and calls are typed errors";
    e11_a_stream_is_updated_in_place in seam, Virtual, always: "E11"
        "A stream gets other subjects, limits and metadata; its events and the progress of its consumers stay";

    b1_every_event_is_accounted_for in consume, Virtual, always: "B1"
        "At rest every event of an ordered consumer is handled, dead, beside the main flow, expired or pending; what cannot be counted is a bound";
    b2_no_credential_is_ever_printed in secrets, Virtual, always: "B2"
        "No error, description or log line prints a credential";
}
