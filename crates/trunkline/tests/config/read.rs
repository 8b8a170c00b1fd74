//! What is read, what goes before what, and what is written.

use std::time::Duration;

use trunkline::config::{Origin, example, load};
use trunkline::core::engine::{LinkOptions, Retention};
use trunkline::{Config, Idempotency, Name, Start, TopologyMode};

use crate::support::{name, read, refused, secs, setting, try_read};

#[test]
fn without_a_file_everything_is_as_it_is_documented() {
    let loaded = load(None, []).unwrap();
    let config = &loaded.config;
    assert_eq!(*config, Config::default());
    assert_eq!(config.url.reveal(), "memory:");
    assert_eq!(config.source, "/trunkline");
    assert_eq!(config.prefix, "events");
    assert_eq!(config.topology, TopologyMode::Ensure);
    assert_eq!(config.listener_capacity, 10_000);
    assert_eq!(config.drain_deadline, secs(25));
    assert_eq!(config.link, LinkOptions::default());
    assert_eq!(config.door.listen.to_string(), "127.0.0.1:7400");
    let streams: Vec<_> = config.streams.keys().map(Name::as_str).collect();
    assert_eq!(streams, ["COMMANDS", "EVENTS", "EVENTS_DLQ"]);
    assert_eq!(config.consumers.attempts, Some(5));
    assert_eq!(config.named_consumers.len(), 0);
    assert!(
        loaded
            .values
            .iter()
            .all(|value| value.origin == Origin::Default)
    );
}

#[test]
fn a_file_is_read_setting_by_setting() {
    let config = read(
        r#"
            url = "memory:jobs"
            source = "/billing"
            prefix = "secretary"
            topology = "verify"
            listener_capacity = 5
            drain_deadline = "1m"

            [connection]
            connect_timeout = "250ms"
            request_timeout = "1s"
            publish_timeout = "2s"
            first_connect = "forever"
            reconnect_wait = "3s"
            reconnect_attempts = 7

            [door]
            listen = "localhost:0"
            expose = true
            allow_hosts = ["bus.lan"]
            allow_origins = ["https://console.lan"]
            max_body = "2MiB"
            max_events = 10
            keep_alive = "1s"
            drain_deadline = "0s"

            [streams.EVENTS]
            max_age = "unlimited"
            max_bytes = "1GB"
            max_events = 1_000_000
            duplicate_window = "1h30m"
            retention = "refuse_when_full"

            [streams.EVENTS_DLQ]
            max_age = "90d"

            [consumers]
            ack_wait = "1m"
            concurrency = 4
            attempts = 3
            delays = ["1s", "2s"]
            jitter = 0.5
            window_events = 100
            window_bytes = "1MiB"
            partitions = 64
            time_out = "90s"
            breaker = false
            breaker_runs = 20
            breaker_share = 0.25
            breaker_first_pause = "2s"
            breaker_longest_pause = "5m"
            idempotent = "2h"
            hold_key = true
            start = "last:10"

            [consumers.billing-eu]
            attempts = 2
            window_events = "auto"
            time_out = "forever"
            breaker = true
            start = 17

            [consumers.audit]
            start = 2026-01-31T12:00:00Z
        "#,
        &[],
    );
    assert_eq!(config.url.reveal(), "memory:jobs");
    assert_eq!(config.topology, TopologyMode::Verify);
    assert_eq!(
        (config.listener_capacity, config.drain_deadline),
        (5, secs(60))
    );
    let link = LinkOptions {
        connect_timeout: Duration::from_millis(250),
        request_timeout: secs(1),
        publish_timeout: secs(2),
        first_connect: None,
        reconnect_wait: secs(3),
        reconnect_attempts: Some(7),
    };
    assert_eq!(config.link, link);
    assert_eq!(config.door.listen.to_string(), "127.0.0.1:0");
    assert!(config.door.expose);
    assert_eq!(config.door.allow_hosts, ["bus.lan"]);
    assert_eq!(
        (config.door.max_body, config.door.max_events),
        (2 << 20, 10)
    );
    let events = &config.streams[&name("EVENTS")];
    assert_eq!(events.subjects[0].as_str(), "secretary.>");
    assert_eq!(events.max_age, None);
    assert_eq!(events.max_bytes, Some(1_000_000_000));
    assert_eq!(events.max_events, Some(1_000_000));
    assert_eq!(events.duplicate_window, secs(5_400));
    assert_eq!(events.retention, Retention::RefuseWhenFull);
    let dead = &config.streams[&name("EVENTS_DLQ")];
    assert_eq!(dead.max_age, Some(secs(90 * 24 * 60 * 60)));
    assert_eq!(dead.max_message, 2 << 20);
    assert_eq!(config.consumers.delays, Some(vec![secs(1), secs(2)]));
    assert_eq!(config.consumers.jitter, Some(0.5));
    assert_eq!(
        (
            config.consumers.window_events,
            config.consumers.window_bytes
        ),
        (Some(Some(100)), Some(1 << 20))
    );
    assert_eq!(config.consumers.partitions, Some(64));
    assert_eq!(
        (config.consumers.time_out, config.consumers.breaker),
        (Some(Some(secs(90))), Some(false))
    );
    assert_eq!(
        (
            config.consumers.breaker_runs,
            config.consumers.breaker_share,
            config.consumers.breaker_first_pause,
            config.consumers.breaker_longest_pause
        ),
        (Some(20), Some(0.25), Some(secs(2)), Some(secs(300)))
    );
    let hours = Idempotency::For(secs(2 * 3_600));
    assert_eq!(config.consumers.idempotency, Some(hours));
    assert_eq!(config.consumers.hold_key, Some(true));
    let billing = &config.named_consumers[&name("billing-eu")];
    assert_eq!(
        (billing.attempts, billing.start),
        (Some(2), Some(Start::Seq(17)))
    );
    assert_eq!(
        (billing.window_events, billing.time_out, billing.breaker),
        (Some(None), Some(None), Some(true))
    );
    assert_eq!((billing.ack_wait, billing.concurrency), (None, None));
    assert_eq!(billing.hold_key, None);
    let audit = config.named_consumers[&name("audit")].start.unwrap();
    assert_eq!(audit.to_string(), "2026-01-31T12:00:00Z");
}

#[test]
fn the_environment_goes_before_the_file_and_each_value_tells_where_it_came_from() {
    let file =
        "source = \"/file\"\n[connection]\nrequest_timeout = \"1s\"\nconnect_timeout = \"1s\"";
    let env = [
        ("TRUNKLINE_CONNECTION__REQUEST_TIMEOUT", "2s"),
        ("TRUNKLINE_CONNECTION__RECONNECT_ATTEMPTS", "-1"),
        ("TRUNKLINE_DOOR__ALLOW_HOSTS", "a.lan, b.lan"),
        ("TRUNKLINE_DOOR__EXPOSE", "true"),
        ("TRUNKLINE_LISTENER_CAPACITY", "20_000"),
        ("TRUNKLINE_STREAMS__EVENTS__MAX_AGE", "7d"),
        ("TRUNKLINE_CONSUMERS__DELAYS", "1s,2s"),
        ("TRUNKLINE_CONSUMERS__START", "17"),
        ("TRUNKLINE_CONFIG", "elsewhere.toml"),
        ("TRUNKLINE_LOG", "debug"),
        // A command that a worker runs may well run `trunkline`.
        ("TRUNKLINE_KEY", "o-1"),
        ("HOME", "/root"),
    ];
    let loaded = try_read(file, &env).unwrap();
    let config = &loaded.config;
    assert_eq!(config.link.request_timeout, secs(2));
    assert_eq!(config.link.reconnect_attempts, None);
    assert_eq!(config.door.allow_hosts, ["a.lan", "b.lan"]);
    assert_eq!(config.listener_capacity, 20_000);
    assert_eq!(config.consumers.start, Some(Start::Seq(17)));
    let check = |key: &str, value: &str, origin: &str| {
        let setting = setting(&loaded, key);
        assert_eq!(setting.value, value, "{key}");
        assert_eq!(setting.origin.to_string(), origin, "{key}");
    };
    check("source", r#""/file""#, "trunkline.toml:1");
    check("connection.connect_timeout", r#""1s""#, "trunkline.toml:4");
    check(
        "connection.request_timeout",
        r#""2s""#,
        "TRUNKLINE_CONNECTION__REQUEST_TIMEOUT",
    );
    check("connection.publish_timeout", r#""10s""#, "default");
    check(
        "streams.EVENTS.max_age",
        r#""7d""#,
        "TRUNKLINE_STREAMS__EVENTS__MAX_AGE",
    );
    check("streams.COMMANDS.retention", r#""work_queue""#, "default");
    check(
        "consumers.delays",
        r#"["1s", "2s"]"#,
        "TRUNKLINE_CONSUMERS__DELAYS",
    );
}

#[test]
fn a_name_in_a_variable_finds_its_section() {
    let check = |section: &str, variable: &str, expected: &str| {
        let file = format!("[consumers.{section}]");
        let variable = format!("TRUNKLINE_CONSUMERS__{variable}__ACK_WAIT");
        let config = read(&file, &[(&variable, "1m")]);
        let found = &config.named_consumers[&name(expected)];
        assert_eq!(found.ack_wait, Some(secs(60)), "{section} {variable}");
    };
    check("BILLING", "BILLING", "BILLING");
    check("billing", "BILLING", "billing");
    check("other", "BILLING", "BILLING");
    check("other", "billing", "billing");
    check("billing-eu", "BILLING_EU", "billing-eu");
    check("billing-eu", "billing_eu", "billing-eu");
    check("billing_eu", "BILLING_EU", "billing_eu");
    check("a__b", "A__B", "a__b");
    assert_eq!(
        refused(
            "[consumers.a-b_c]\n[consumers.a_b-c]",
            &[("TRUNKLINE_CONSUMERS__A_B_C__ACK_WAIT", "1m")]
        ),
        [
            "TRUNKLINE_CONSUMERS__A_B_C__ACK_WAIT: it may mean each consumer of a-b_c, a_b-c; write it into their sections of the file"
        ]
    );
    assert_eq!(
        refused(
            "[consumers.b]",
            &[
                ("TRUNKLINE_CONSUMERS__B__ACK_WAIT", "1m"),
                ("TRUNKLINE_CONSUMERS__b__ACK_WAIT", "2m")
            ]
        ),
        [
            "TRUNKLINE_CONSUMERS__b__ACK_WAIT: TRUNKLINE_CONSUMERS__B__ACK_WAIT gives the same setting; keep one of the two"
        ]
    );
}

/// Example lines that are settings, without their mark.
fn uncommented(example: &str) -> String {
    let lines = example.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_says_exactly_the_defaults() {
    let text = example();
    assert_eq!(read(&text, &[]), Config::default());
    let text = uncommented(&text);
    let loaded = try_read(&text, &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    let defaults = load(None, []).unwrap().values;
    assert_eq!(loaded.values.len(), defaults.len());
    for (written, default) in loaded.values.iter().zip(&defaults) {
        assert_eq!(
            (&written.key, &written.value),
            (&default.key, &default.value)
        );
        let shown = !["COMMANDS", "EVENTS_DLQ"]
            .iter()
            .any(|name| written.key.starts_with(&format!("streams.{name}.")));
        assert_eq!(written.origin != Origin::Default, shown, "{}", written.key);
    }
}

#[test]
fn what_is_printed_reads_as_the_same_configuration() {
    let file = "prefix = \"\"\nsource = \"/a\\\"\\\\b\"\n[consumers.x]\njitter = 1\nstart = 3\n[streams.A]\nsubjects = [\"a.>\"]\nmax_bytes = 1001";
    let loaded = try_read(file, &[]).unwrap();
    let printed: Vec<String> = loaded
        .values
        .iter()
        .map(|setting| format!("{} = {}", setting.key, setting.value))
        .collect();
    assert_eq!(read(&printed.join("\n"), &[]), loaded.config);
}

#[test]
fn the_committed_example_is_what_the_table_says() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trunkline.example.toml");
    if std::env::var_os("TRUNKLINE_BLESS").is_some() {
        std::fs::write(&path, example()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == example(),
        "trunkline.example.toml is out of date; run this test with TRUNKLINE_BLESS=1"
    );
}
