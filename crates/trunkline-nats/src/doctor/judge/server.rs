//! The server, the account and the disk.

use super::Report;
use crate::doctor::rules::*;
use crate::doctor::snapshot::Snapshot;
use crate::gauge;

pub(super) fn judge(snapshot: &Snapshot, report: &mut Report) {
    let server = &snapshot.server;
    let object = || format!("server {}", server.name);
    if !server.jetstream {
        report.add(
            JETSTREAM_OFF,
            object(),
            "JetStream is off",
            "no stream can exist: every durable event is lost or refused",
            "start it with `nats-server -js`, or enable JetStream for this account in its configuration",
        );
    }
    match version(&server.version) {
        Some(found) if found < (2, 12, 2) => report.add(
            OLD_SERVER,
            object(),
            format!("version {}", server.version),
            "acknowledged writes can be lost in ways that are mended since; Trunkline refuses to connect",
            "upgrade nats-server to 2.15.1 or later, one server of a cluster at a time",
        ),
        Some(found) if found < (2, 15, 0) => report.add(
            UNTESTED_SERVER,
            object(),
            format!("version {}", server.version),
            match found < gauge::OLDEST_SERVER {
                true => {
                    "limits differ from what is tested, `sync_interval: always` costs far more, and natscli, \
                     exporters and autoscalers do not see the lag of consumers in key order"
                }
                false => {
                    "limits differ from what is tested, and `sync_interval: always` costs far more"
                }
            },
            "upgrade nats-server to 2.15.1 or later, one server of a cluster at a time",
        ),
        _ => {}
    }
    if let Some(account) = &snapshot.account {
        let limits = &account.limits;
        let streams = u64::try_from(account.streams).unwrap_or(0);
        for (what, used, limit) in [
            ("disk", account.storage, limits.max_storage),
            ("memory", account.memory, limits.max_memory),
            ("streams", streams, limits.max_streams),
        ] {
            nearly(report, "account", what, used, limit);
        }
    }
    let Some(jetstream) = snapshot
        .monitor
        .as_ref()
        .and_then(|monitor| monitor.jetstream.as_ref())
    else {
        return;
    };
    nearly(
        report,
        &object(),
        "disk",
        jetstream.storage,
        jetstream.max_storage,
    );
    if !jetstream.sync_always {
        report.add(
            SYNC_INTERVAL,
            object(),
            format!(
                "writes are flushed every {}, not before the ack",
                super::span(jetstream.sync_interval)
            ),
            "what was acknowledged since the last flush is lost when power fails",
            "set `sync_interval: always` under `jetstream` in the server's configuration and restart it",
        );
    }
}

fn nearly(report: &mut Report, object: &str, what: &str, used: u64, limit: i64) {
    let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit > 0) else {
        return;
    };
    if used > limit / 5 * 4 {
        report.add(
            ACCOUNT_NEAR_LIMIT,
            object,
            format!("{what}: {used} of {limit} used"),
            "at the limit every stream refuses what is published",
            "purge or delete what is not needed (`nats stream report`), or raise the limit",
        );
    }
}

/// The numbers of a version; what follows a dash is left out.
fn version(text: &str) -> Option<(i64, i64, i64)> {
    let text = text.trim_start_matches('v');
    let plain = text.split(['-', '+']).next()?;
    let mut parts = plain.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}
