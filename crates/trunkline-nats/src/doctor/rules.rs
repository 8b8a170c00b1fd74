//! The table of rules. `docs/doctor.md` is generated from it.

use super::Severity::{self, Losing, Risking, Stalling, Wasting};

/// One thing that can be wrong.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rule {
    /// Stable, never reused.
    pub code: &'static str,
    /// A few words.
    pub title: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// When it is reported, when not, and why it matters.
    pub explanation: &'static str,
}

impl Rule {
    /// The rule of a code.
    pub fn of(code: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.code == code)
    }
}

macro_rules! rules {
    ($( $name:ident = $code:literal, $severity:ident, $title:literal, $explanation:literal; )*) => {
        $( pub(super) const $name: &str = $code; )*

        /// Every rule, by code.
        pub const RULES: &[Rule] = &[
            $( Rule {
                code: $code,
                title: $title,
                severity: $severity,
                explanation: $explanation,
            }, )*
        ];
    };
}

rules! {
    STREAM_SHORT = "TD-01", Losing, "a stream's filter is a token short",
        "A subject was published, is declared, or is what a consumer of the stream asks for, no stream stores it, and a stream's filter would with another depth: `workflow.*` next to `workflow.execution.requested`. `*` is exactly one token, `>` one or more. Another word in the filter is no slip and is not reported.";
    DLQ_SHORT = "TD-02", Losing, "dead letters fall beside their stream",
        "A stream for dead letters (its subjects begin with `dlq`, `dead`, `deadletter` or `dead-letter`) takes one more token only, nothing was ever stored in it, and the subjects of other streams have two tokens or more, so that `dlq.<subject>` has three. Whoever then acknowledges the original has lost it.";
    STREAM_WITHOUT_SUBJECTS = "TD-03", Losing, "a stream has no subjects but its name",
        "JetStream gives a stream that was made without subjects its own name as the only one. Reported while nothing was ever stored in it; mirrors and streams with sources need no subjects.";
    AGE_TOO_SMALL = "TD-04", Losing, "events are forgotten within a minute",
        "`max_age` is below a minute, or is whole days if it is read as microseconds: it is given in nanoseconds, and 7 days counted in milliseconds are 0.6 s. Buckets are left out, because short lives are usual there.";
    EPHEMERAL_STORED = "TD-05", Losing, "ephemeral events are stored",
        "A stream takes `*` or `>` alone, or subjects below `live`, or what is declared ephemeral. They are stored all the same and push durable events out at a limit. Streams for tokens, chunks or heartbeats are only reported when those were seen to be nine tenths of what a stream with other subjects took.";
    REQUEST_STORED = "TD-06", Stalling, "requests are on a subject that is stored",
        "The stream's publish ack arrives as the answer. Reported when one request was seen to get both a publish ack and an answer, when declared requests lie in a stream, or when a client (monitor) listens in a queue group to a literal subject that is stored: as a responder it loses the race, as a handler it misses what comes while it is away.";
    DURABLE_WITHOUT_FILTER = "TD-07", Wasting, "a durable consumer gets every type",
        "A durable consumer has no filter and its stream holds several subjects, so that a handler of one type receives all. Whoever wants everything says so with a filter such as `>`; then it is not reported.";
    QUEUE_TAKEN = "TD-08", Risking, "a work queue has room for one consumer only",
        "A work queue with wildcards or several subjects has a consumer without a filter, or with one that covers them all. The server refuses every second consumer: fan-out is impossible.";
    QUEUE_WITHOUT_CONSUMER = "TD-09", Stalling, "nobody takes from a work queue",
        "A work queue holds messages and no consumer's filter matches any of them. The server refuses consumers of a work queue that start at *new* or *last*, or that overlap another; from outside such a refusal is seen only by what it leaves behind.";
    NOTHING_TO_REPLAY = "TD-10", Losing, "events are removed when they are handled",
        "A work queue or interest stream stores subjects below `events`, or what is declared durable or replayed. Once handled nothing is left to replay, and a new consumer starts with nothing. Commands belong there, events do not.";
    FILTER_OUTSIDE_STREAM = "TD-11", Stalling, "a consumer asks for what its stream never holds",
        "A filter overlaps none of the stream's subjects. The server accepts it and nothing ever arrives. When the stream's own filter is a token short of it, TD-01 is reported instead.";
    FILTER_A_TOKEN_OFF = "TD-12", Stalling, "a consumer's filter is a token off",
        "A filter matches no stored subject though the stream has others that differ in depth only (`agent.message.*` next to `agent.message.writer.done`), and nothing was ever delivered. A type that has not occurred yet has other words and is not reported.";
    LISTENER_A_TOKEN_OFF = "TD-13", Stalling, "a live subscription is a token off",
        "As TD-12, for a client's plain subscription (monitor), compared with stored, sampled and declared subjects. Subjects that begin with `_` or `$` are left out.";
    DURABLE_PER_REPLICA = "TD-14", Wasting, "each replica has a durable consumer of its own",
        "Durable consumers of one stream have equal filters and names that differ by a number, a UUID or a pod's hash only. Each of them gets every event. Versions (`-v1`, `-v2`) are not taken for replicas.";
    NO_MESSAGE_ID = "TD-15", Wasting, "events are stored without a message id",
        "None of the last messages of a stream has `Nats-Msg-Id` or an expected sequence, so that a publish that is repeated after a time-out is stored twice. Looked at are up to five; buckets, mirrors and streams with sources are left out.";
    WINDOW_TOO_SMALL = "TD-16", Risking, "ids are remembered for too short a time",
        "`duplicate_window` is below 2 minutes, or below `max_age` where that is shorter. A publisher that repeats longer than that stores twice.";
    NOBODY_PULLS = "TD-17", Stalling, "nobody takes what a consumer has before it",
        "A durable consumer has events before it, no pull is waiting (or no client is bound to a push consumer), nothing is under a lease, and nothing was delivered for a minute: its handler ended or was never started. Paused consumers are TD-35. Durables that only show how far a consumer of Trunkline is are left out.";
    NO_GROUP = "TD-18", Wasting, "instances of one service listen without a group",
        "Several connections of the same client name subscribe to one subject without a queue group (monitor): each instance handles every event. That is right for caches and gateways that show events to their own users, and wrong for handlers that act.";
    NOT_LISTENED_NOT_STORED = "TD-19", Losing, "what is published goes nowhere",
        "A subject was seen in the sample, no stream stores it and no client listens to it (monitor). Without the monitoring endpoint listeners cannot be seen and this is not reported; in a cluster only the listeners of the asked server are seen, and it is not reported either.";
    STALLED = "TD-20", Stalling, "a consumer has all that it may have in flight",
        "`num_ack_pending` has reached `max_ack_pending` and more is pending: nothing is delivered until something is acknowledged.";
    NEAR_LIMIT = "TD-21", Risking, "a stream is nearly full",
        "More than 80 % of `max_bytes` or `max_msgs` are used by a stream whose consumers are not through: the oldest leave, read or not. A stream whose consumers have no backlog, or that has none, is a ring on purpose and not reported unless it refuses when full.";
    ACCOUNT_NEAR_LIMIT = "TD-22", Risking, "storage is nearly full",
        "More than 80 % of the account's or server's storage, memory or number of streams is used.";
    FULL_REFUSES = "TD-23", Stalling, "a full stream refuses what is published",
        "`discard: new` and a limit is reached, or a 50th of the bytes is left. Whoever does not wait for the publish ack does not know.";
    ONE_REPLICA = "TD-24", Risking, "one replica in a cluster",
        "A stream on disk has one replica though its server is in a cluster: when that server is away so is the stream, when its disk is lost so are the events.";
    CONSUMER_REPLICAS = "TD-25", Risking, "a consumer has fewer replicas than its stream",
        "Its progress is lost with fewer servers than its events.";
    SYNC_INTERVAL = "TD-26", Risking, "acknowledged events may be lost when power fails",
        "The server flushes to disk every so often (2 minutes by default) and not before it acknowledges (monitor). Since 2.15 `sync_interval: always` is affordable with three replicas.";
    CONSUMERS_NEAR_CAP = "TD-27", Risking, "a stream has nearly as many consumers as it may",
        "More than 80 % of `max_consumers`, or of the 1000 that a server since 2.15 allows where none is set. The next one is refused.";
    GIVES_UP = "TD-28", Losing, "a consumer gives up in silence",
        "A durable consumer with a finite `max_deliver`: after that many attempts an event is never delivered again. The only word of it is an advisory that is not stored and not sent while nobody pulls; on a work queue the event stays and no lag shows it.";
    BACKOFF = "TD-29", Risking, "a consumer's back-off adds to its delays",
        "`backoff` is set: it adds to the delay of a negative ack, does nothing for a plain one, and replaces the ack wait.";
    ACK_WAIT_TOO_SMALL = "TD-30", Wasting, "events come again while they are handled",
        "`ack_wait` is below a second. It is given in nanoseconds; 30 s counted in milliseconds are 0.03 s.";
    NO_LEADER = "TD-31", Stalling, "a stream or consumer has no leader",
        "Nothing is stored or delivered until most of its servers are back.";
    REPLICA_BEHIND = "TD-32", Risking, "a replica is offline or behind",
        "A follower is offline, or is not current and more than 1000 operations behind. One more fault may stop the stream.";
    OLD_SERVER = "TD-33", Risking, "the server is too old",
        "Below 2.12.2 Trunkline refuses the server: faults that lose acknowledged writes or lock up a stream are known.";
    UNTESTED_SERVER = "TD-34", Risking, "the server is older than what is tested",
        "Below 2.15 the limits and the cost of flushing differ from what Trunkline is tested with. Below 2.14 natscli, exporters and autoscalers do not see the lag of consumers in key order.";
    PAUSED = "TD-35", Stalling, "a consumer is paused",
        "It gets nothing until the time that it is paused to. One that only shows how far a consumer of Trunkline is stops nothing.";
    SEALED = "TD-36", Losing, "a stream is sealed",
        "It takes nothing more, for ever, yet it has subjects: what is published there is refused.";
    JETSTREAM_OFF = "TD-37", Losing, "JetStream is off",
        "The server, or this account, has no JetStream: nothing is stored.";
    NO_ACK = "TD-38", Losing, "a stream does not acknowledge",
        "`no_ack` is set: no publisher knows whether its event was stored, and a refusal is silent.";
    INTEREST_WITHOUT_CONSUMER = "TD-39", Losing, "an interest stream without consumers stores nothing",
        "With interest retention an event that no consumer's filter matches is dropped as it comes. Reported when there is no consumer at all.";
    COPY_BEHIND = "TD-40", Stalling, "a mirror or source does not keep up",
        "It has an error, was never heard of or not for a minute, or is more than 1000 messages behind.";
    NOT_EXPLICIT = "TD-41", Losing, "a consumer does not acknowledge one by one",
        "A durable consumer with ack policy `none` loses what its handler fails at; with `all` an ack settles earlier events that are still being handled.";
    IN_MEMORY = "TD-42", Losing, "a stream is in memory only",
        "It is empty after a restart of its server. Reported for streams with one replica; with more it takes several servers at once. Buckets are left out.";
    UNLIMITED = "TD-43", Risking, "a stream grows until the disk is full",
        "It has no limit in age, bytes or messages and keeps what is handled. A full volume makes publishes time out and only a restart heals it. Buckets and streams for dead letters that nobody fills are left out.";
    EXPECTED_NOT_STORED = "TD-44", Losing, "what is declared durable is not stored",
        "A declared subject lies in no stream, or only partly, and no filter is merely a token short of it.";
    DURABLE_EXPIRES = "TD-45", Risking, "a durable consumer is deleted when it is idle",
        "`inactive_threshold` is set on a durable consumer: a service that is down for longer loses its progress and starts anew.";
    UNANSWERED = "TD-46", Stalling, "requests get no answer",
        "Every request seen on a subject went unanswered for two seconds or more: nobody is there, or the answer goes out as an event on a subject of its own and not to the reply inbox. Needs a sample that may hear the reply inboxes. Requests on stored subjects are left out, because a publish that waits for its ack looks the same.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_ascending() {
        assert!(RULES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert_eq!(Rule::of(UNANSWERED).unwrap().severity, Stalling);
    }
}
