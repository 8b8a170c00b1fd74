//! What is refused: every message with its place, its key and what to write.

use crate::support::{read, refused, setting, try_read};

#[test]
fn a_value_of_the_wrong_form_is_refused_with_its_place_and_what_to_write() {
    let check = |line: &str, expected: &str| {
        assert_eq!(
            refused(&format!("\n{line}"), &[]),
            [format!("trunkline.toml:2: {expected}")],
            "{line}"
        );
    };
    check(
        "connection.request_timeout = 5",
        r#"connection.request_timeout: 5 has no unit; give a unit, as in "5s""#,
    );
    check(
        r#"connection.request_timeout = "5""#,
        r#"connection.request_timeout: 5 has no unit; give a unit, as in "5s""#,
    );
    check(
        r#"connection.first_connect = "eternal""#,
        r#"connection.first_connect: "eternal" is not a duration; write whole numbers with the units d, h, m, s or ms, the longest first, as in "5s" or "1h30m", or "forever""#,
    );
    check(
        r#"connection.reconnect_attempts = "often""#,
        r#"connection.reconnect_attempts: "often" is not what belongs here; write a whole number, or "forever""#,
    );
    check(
        "connection.reconnect_attempts = -2",
        r#"connection.reconnect_attempts: -2 is not what belongs here; write a whole number, or "forever""#,
    );
    check(
        "listener_capacity = 0",
        "listener_capacity: 0 is out of range; write 1 to 100_000_000",
    );
    check(
        r#"listener_capacity = "16""#,
        r#"listener_capacity: "16" is a text; write 16 without quotes"#,
    );
    check(
        "source = 7",
        "source: 7 is not what belongs here; write a text in quotes",
    );
    check(
        r#"source = "a b""#,
        r#"source: "a b" is no source; write 1 to 200 characters without white space, as "/billing""#,
    );
    check(
        r#"topology = "make""#,
        r#"topology: "make" is not one of the choices; write "ensure" or "verify""#,
    );
    check(
        r#"door.expose = "yes""#,
        r#"door.expose: "yes" is not what belongs here; write true or false"#,
    );
    check(
        r#"door.max_body = "2 MiB""#,
        r#"door.max_body: "2 MiB" is not a size; write a whole number of bytes, or one with the unit KiB, MiB, GiB, kB, MB or GB, as in "2MiB""#,
    );
    check(
        r#"door.listen = "7400""#,
        r#"door.listen: "7400" is not what belongs here; write an address and a port, as "127.0.0.1:7400" or "[::1]:7400""#,
    );
    check(
        r#"door.allow_hosts = "a""#,
        r#"door.allow_hosts: "a" is not what belongs here; write a list of texts, as ["a", "b"]"#,
    );
    check(
        r#"consumers.ack_wait = "100ms""#,
        r#"consumers.ack_wait: "100ms" is out of range; write "1s" to "1d""#,
    );
    check(
        r#"consumers.billing.ack_wait = "2d""#,
        r#"consumers.billing.ack_wait: "2d" is out of range; write "1s" to "1d""#,
    );
    check(
        "consumers.jitter = 2",
        "consumers.jitter: 2 is out of range; write 0 to 1",
    );
    check(
        "consumers.window_events = 20001",
        "consumers.window_events: 20001 is out of range; write 1 to 20_000, or \"auto\"",
    );
    for number in [0, 12, 512, 70_000] {
        check(
            &format!("consumers.partitions = {number}"),
            &format!(
                "consumers.partitions: {number} is no power of two up to 256; write 1, 2, 4, 8, 16, 32, 64, 128 or 256"
            ),
        );
    }
    check(
        r#"consumers.time_out = "0s""#,
        r#"consumers.time_out: "0s" is out of range; write "1ms" to "365d", or "forever""#,
    );
    check(
        "consumers.breaker_share = 0",
        "consumers.breaker_share: 0 is out of range; write more than 0, up to 1, or breaker = false",
    );
    check(
        r#"consumers.breaker_first_pause = "2m""#,
        r#"consumers.breaker_first_pause: the first pause of "2m" is longer than the longest, "1m"; write at most "1m", or a longer consumers.breaker_longest_pause"#,
    );
    check(
        r#"consumers.delays = ["1s", 5]"#,
        r#"consumers.delays: 5 has no unit; give a unit, as in "5s""#,
    );
    check(
        r#"consumers.start = "sometime""#,
        r#"consumers.start: "sometime" is not what belongs here; write "first", "new", "last:N", "last-per-subject", a sequence or an RFC 3339 time"#,
    );
    check(
        r#"streams.EVENTS.subjects = ["events.>.x"]"#,
        r#"streams.EVENTS.subjects: "events.>.x" is not a filter over subjects; write tokens with dots between, where `*` is one token and `>` at the end is one or more, as "events.order.>""#,
    );
    check(
        "streams.EVENTS.max_bytes = 0",
        r#"streams.EVENTS.max_bytes: 0 is out of range; write 1 to 9223372036854775807, or "unlimited""#,
    );
    check(
        "url = 7",
        r#"url: what is given cannot be read; write a URL in quotes, as "memory:", without white space"#,
    );
}

#[test]
fn what_nobody_knows_is_refused_with_what_was_probably_meant() {
    let check = |line: &str, expected: &str| {
        assert_eq!(
            refused(line, &[]),
            [format!("trunkline.toml:1: {expected}")],
            "{line}"
        );
    };
    check(
        r#"sorce = "/x""#,
        "sorce: there is no such setting; write source, if that is meant",
    );
    check(
        r#"connection.request_timout = "5s""#,
        "connection.request_timout: there is no such setting; write request_timeout, if that is meant",
    );
    check(
        r#"request_timeout = "5s""#,
        "request_timeout: there is no such setting; write request_timeout below a line [connection]",
    );
    check(
        r#"ack_wait = "5s""#,
        "ack_wait: there is no such setting; write ack_wait below a line [consumers] or [consumers.NAME]",
    );
    check(
        r#"max_age = "5s""#,
        "max_age: there is no such setting; write max_age below a line [streams.NAME]",
    );
    check(
        "stream.EVENTS = {}",
        "stream: there is no such setting; write streams, if that is meant",
    );
    check(
        "zzz = 1",
        "zzz: there is no such setting; write one of url, source, prefix, topology, listener_capacity, drain_deadline, legacy, or a section [connection], [nats], [door], [streams.NAME] or [consumers]",
    );
    check(
        r#"streams.EVENTS.maxage = "7d""#,
        "streams.EVENTS.maxage: there is no such setting; write max_age, if that is meant",
    );
    check(
        "consumers.billing.retries = 3",
        "consumers.billing.retries: there is no such setting; write one of ack_wait, concurrency, window_events, window_bytes, partitions, attempts, delays, jitter, time_out, breaker, breaker_runs, breaker_share, breaker_first_pause, breaker_longest_pause, idempotent, hold_key, start",
    );
    check(
        "consumers.billing.url = 3",
        "consumers.billing.url: there is no such setting; write url above the first section",
    );
    check(
        "streams.EVENTS.ack_wait = 3",
        "streams.EVENTS.ack_wait: there is no such setting; write ack_wait below a line [consumers] or [consumers.NAME]",
    );
    check(
        r#""door.listen" = "127.0.0.1:1""#,
        "door.listen: there is no such setting; write it without quotes",
    );
    check(
        "door = 7",
        "door: this is a section, not a setting; write its settings below a line [door]",
    );
    check(
        "streams.EVENTS = 7",
        "streams.EVENTS: a stream is a section, not a setting; write its settings below a line with its name, as [streams.EVENTS]",
    );
    check(
        r#"streams."a b".max_age = "7d""#,
        r#"streams.a b: "a b" is not a name; write 1 to 64 characters of A-Z a-z 0-9 _ -"#,
    );
    let check = |variable: &str, expected: &str| {
        assert_eq!(
            refused("", &[(variable, "x")]),
            [format!("{variable}: {expected}")]
        );
    };
    check(
        "TRUNKLINE_CONNECTION_REQUEST_TIMEOUT",
        "there is no such setting; write TRUNKLINE_CONNECTION__REQUEST_TIMEOUT, if that is meant",
    );
    check(
        "TRUNKLINE_CONFG",
        "there is no such setting; write TRUNKLINE_CONFIG, if that is meant",
    );
    check(
        "TRUNKLINE_COLOUR_OF_THE_SKY",
        "there is no such setting; write a name that `trunkline config --example` lists, two underscores between section and setting, or take the variable away",
    );
    check(
        "TRUNKLINE_STREAMS__EVENTS__MAXAGE",
        "there is no such setting; end it with __MAX_AGE, if that is meant",
    );
    check(
        "TRUNKLINE_CONSUMERS__BILLING__COLOUR",
        "there is no such setting; end it with one of __ACK_WAIT, __CONCURRENCY, __WINDOW_EVENTS, __WINDOW_BYTES, __PARTITIONS, __ATTEMPTS, __DELAYS, __JITTER, __TIME_OUT, __BREAKER, __BREAKER_RUNS, __BREAKER_SHARE, __BREAKER_FIRST_PAUSE, __BREAKER_LONGEST_PAUSE, __IDEMPOTENT, __HOLD_KEY, __START",
    );
    check(
        "TRUNKLINE_STREAMS__a b__MAX_AGE",
        r#""a b" cannot be the name of a stream; write 1 to 64 characters of A-Z a-z 0-9 _"#,
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let check = |file: &str, expected: &[&str]| assert_eq!(refused(file, &[]), expected, "{file}");
    check(
        "[connection]\npublish_timeout = \"2m\"",
        &[
            r#"trunkline.toml:2: connection.publish_timeout: connection.publish_timeout of "2m" is not shorter than streams.COMMANDS.duplicate_window of "2m", so that an event published again after it may be stored twice; write a connection.publish_timeout below "2m", or a longer window"#,
        ],
    );
    check(
        "[streams.EVENTS]\nduplicate_window = \"10s\"",
        &[
            r#"trunkline.toml:2: streams.EVENTS.duplicate_window: connection.publish_timeout of "10s" is not shorter than streams.EVENTS.duplicate_window of "10s", so that an event published again after it may be stored twice; write a connection.publish_timeout below "10s", or a longer window"#,
        ],
    );
    check(
        "[streams.EVENTS]\nmax_age = \"1m\"",
        &[
            r#"trunkline.toml:2: streams.EVENTS.max_age: ids are remembered for longer than events are kept, which is "1m"; write a duplicate_window of at most "1m""#,
        ],
    );
    check(
        "[streams.COMMANDS]\nretention = \"discard_old\"\n[streams.EVENTS_DLQ]\nretention = \"work_queue\"",
        &[
            r#"trunkline.toml:2: streams.COMMANDS.retention: commands leave when they are done; write "work_queue", or take the setting away"#,
            r#"trunkline.toml:4: streams.EVENTS_DLQ.retention: dead letters stay until somebody deals with them; write "refuse_when_full", or take the setting away"#,
        ],
    );
    check(
        "[streams.EVENTS]\nmax_message = \"4MiB\"",
        &[
            r#"trunkline.toml:2: streams.EVENTS.max_message: an event of that size does not fit the dead-letter stream together with its story of 32 KiB (streams.EVENTS_DLQ.max_message); write a streams.EVENTS_DLQ.max_message of at least "4128KiB", or a smaller max_message"#,
        ],
    );
    check(
        "\n[streams.ORDERS]\nmax_age = \"1d\"",
        &[
            r#"trunkline.toml:2: streams.ORDERS.subjects: the stream does not say what it stores; write its subjects with their root, as subjects = ["events.order.>"]"#,
        ],
    );
    check(
        "[streams.A]\nsubjects = [\"events.a.>\"]\n[streams.B]\nsubjects = [\"events.*.x\"]",
        &[
            "trunkline.toml:4: streams.B.subjects: streams A and B would both store what matches events.a.> and events.*.x; give each subject to one stream",
        ],
    );
    check(
        "prefix = \"live\"",
        &[
            r#"trunkline.toml:1: prefix: "live" is no prefix: the roots of live (live) and events (live) overlap; give each a first token of its own; write tokens of one's own with dots between, as "events", or "" for none"#,
        ],
    );
    check(
        "[consumers]\nattempts = 2\ndelays = [\"1s\", \"2s\"]",
        &[
            "trunkline.toml:3: consumers.delays: of the 2 delays, 2 attempts use only 1; write attempts = 3, or fewer delays",
        ],
    );
    check(
        "[consumers.billing]\ndelays = []",
        &[
            r#"trunkline.toml:2: consumers.billing.delays: 5 attempts without a pause would run hot; write at least one delay, as ["1s"], or attempts = 1"#,
        ],
    );
    // Fewer attempts than the built-in pauses are no contradiction that anybody wrote.
    assert_eq!(
        read("consumers.attempts = 2", &[]).consumers.attempts,
        Some(2)
    );
}

#[test]
fn all_problems_are_told_at_once_by_their_lines() {
    let file = "sorce = 1\nurl = 7\n[connection]\nrequest_timeout = 5\n[consumers.x]\nack_wait = \"1ms\"\n";
    let env = [
        ("TRUNKLINE_DOR__LISTEN", "x"),
        ("TRUNKLINE_LISTENER_CAPACITY", "none"),
    ];
    let lines = refused(file, &env);
    let places: Vec<_> = lines
        .iter()
        .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    assert_eq!(
        places,
        [
            "trunkline.toml:1: sorce",
            "trunkline.toml:2: url",
            "trunkline.toml:4: connection.request_timeout",
            "trunkline.toml:6: consumers.x.ack_wait",
            "TRUNKLINE_DOR__LISTEN: there is no such setting; write TRUNKLINE_DOOR__LISTEN, if that is meant",
            "TRUNKLINE_LISTENER_CAPACITY: listener_capacity",
        ]
    );
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_every_such_line() {
    let lines = refused(
        "url = memory:\n[door\nlisten = \"a\"\nlisten = \"b\"\n",
        &[],
    );
    assert!(lines.len() >= 2, "{lines:?}");
    assert!(lines[0].starts_with("trunkline.toml:1: "), "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("trunkline.toml:2: ")),
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .all(|line| line.contains("; write `key = value` lines")),
        "{lines:?}"
    );
}

#[test]
fn b2_a_password_in_the_url_is_never_shown() {
    const SECRET: &str = "hunter2";
    let url = format!("nats://ann:{SECRET}@host:4222");
    let file = format!("url = \"{url}\"");
    let mut said = Vec::new();
    for loaded in [
        try_read(&file, &[]).unwrap(),
        try_read("", &[("TRUNKLINE_URL", &url)]).unwrap(),
    ] {
        assert_eq!(loaded.config.url.reveal(), url);
        let shown = setting(&loaded, "url");
        assert!(shown.secret);
        assert_eq!(shown.value, r#""nats://ann:***@host:4222""#);
        said.push(format!("{loaded:?} {loaded:#?} {}", loaded.config.url));
    }
    for (file, env) in [
        (format!("url = [\"{url}\"]"), ""),
        (format!("url = \"{url} \""), ""),
        (format!("url = {url}"), ""),
        (format!("url = \"{url}\nsource = \"x\""), ""),
        (format!("source = \"{url} \""), ""),
        (format!("topology = \"{url}\""), ""),
        (format!("drain_deadline = \"{url}\""), ""),
        (format!("url = \"{url}\"\nsorce = \"{url}\""), ""),
        (format!("door.listen = \"{url}\""), ""),
        (format!("\"{url}\" = 1"), ""),
        (format!("streams.\"{url}\" = {{}}"), ""),
        (format!("consumers.x.\"{url}\" = 1"), ""),
        (format!("door.max_body = \"{url}\""), ""),
        (format!("prefix = \"{url}\""), ""),
        (format!("streams.EVENTS.subjects = [\"{url} \"]"), ""),
        (String::new(), " spaced"),
    ] {
        let env = format!("{url}{env}");
        let error =
            try_read(&file, &[("TRUNKLINE_URL", &env), ("TRUNKLINE_ULR", &url)]).unwrap_err();
        said.push(format!("{error} {error:?} {error:#?}"));
    }
    for text in said {
        assert!(!text.contains(SECRET), "{text}");
    }
}
