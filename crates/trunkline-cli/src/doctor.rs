//! `trunkline doctor`: what is mis-wired on a NATS server, ours or not.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use trunkline::config::mask_url;
use trunkline::core::engine::LinkOptions;
use trunkline::{Config, Error, ErrorKind, Filter, Result};
use trunkline_nats::NatsOptions;
use trunkline_nats::doctor::snapshot::Expected;
use trunkline_nats::doctor::{Denials, Finding, Options, Severity, Snapshot, examine, judge};

use crate::console::Console;
use crate::exit::Exit;
use crate::global::Global;
use crate::look::Style;
use crate::open;
use crate::table::Facts;

/// How long a sample may last: an hour is plenty for whoever waits in front of it.
const MOST_SECONDS: u64 = 3_600;

#[derive(Debug, Args)]
#[command(after_help = "\
It changes nothing. It ends with 0 when nothing was found, 1 with findings, 4 when the server
cannot be reached, and 5 when its credentials allow no look.

  trunkline doctor --url nats://127.0.0.1:4222
  trunkline doctor --url nats://127.0.0.1:4222 --monitor http://127.0.0.1:8222 --seconds 10")]
pub(crate) struct Doctor {
    /// The server's monitoring endpoint, for live subscriptions and disk settings.
    #[arg(long, value_name = "URL")]
    monitor: Option<String>,
    /// Listen to what is published for so long. Requests that nobody hears then time out for their
    /// senders, where else they would fail at once.
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=MOST_SECONDS))]
    seconds: u64,
    /// Listen to these subjects only, with their root.
    #[arg(long, value_name = "FILTER", default_value = ">", value_parser = filter)]
    watch: Filter,
    /// What the project means to do: a JSON file with filters under `durable`, `ephemeral`,
    /// `requests` and `replayed`.
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
}

fn filter(text: &str) -> std::result::Result<Filter, String> {
    Filter::new(text).map_err(|error| error.message().to_owned())
}

/// Looks, and says what it found.
///
/// # Errors
/// [`ErrorKind::InvalidUrl`] for what is no NATS server, [`ErrorKind::InvalidConfig`] for what
/// `--expect` names, and those of a connection.
pub(crate) async fn run(options: &Doctor, global: &Global, console: &mut Console) -> Result<Exit> {
    let config = open::configuration(global)?.config;
    let url = global.url.as_deref().unwrap_or(config.url.reveal());
    let (reach, link) = reach(&config, url)?;
    let denials = Denials::default();
    let mut look = Options::default();
    look.monitor.clone_from(&options.monitor);
    look.watch = options.watch.clone();
    look.sample = Duration::from_secs(options.seconds);
    look.expected = expected(options)?;
    look.denials = Some(denials.clone());
    let client = denials.connect(&reach, &link).await?;
    if options.seconds > 0 {
        console.note(format!(
            "listening to {} for {} s",
            options.watch, options.seconds
        ));
    }
    let snapshot = examine(&client, look).await?;
    report(&snapshot, &judge(&snapshot), console)
}

fn expected(options: &Doctor) -> Result<Expected> {
    let Some(path) = &options.expect else {
        return Ok(Expected::default());
    };
    let refused = |why: &str| {
        let path = path.display();
        Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "{path} {why}; write it like {{\"durable\": [\"events.>\"], \"ephemeral\": [\"live.>\"]}}"
            ),
        )
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| refused("cannot be read").caused_by(error))?;
    let expected: Expected = serde_json::from_str(&text)
        .map_err(|error| refused("does not say what is expected").caused_by(error))?;
    let all = [
        &expected.durable,
        &expected.ephemeral,
        &expected.requests,
        &expected.replayed,
    ];
    for filter in all.into_iter().flatten() {
        Filter::new(filter).map_err(|error| error.at(path.display()))?;
    }
    Ok(expected)
}

/// How the doctor connects: it gives up where a program would wait.
fn reach(config: &Config, url: &str) -> Result<(NatsOptions, LinkOptions)> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("nats" | "tls")) {
        let masked = mask_url(url);
        return Err(Error::new(
            ErrorKind::InvalidUrl,
            format!(
                "the doctor looks at NATS servers, and {masked} is none; name one like --url nats://HOST:4222"
            ),
        ));
    }
    let options = NatsOptions {
        name: "trunkline doctor".to_owned(),
        ..config.nats.options()?.with_url(url)?
    };
    let link = LinkOptions {
        first_connect: Some(Duration::ZERO),
        ..config.link
    };
    Ok((options, link))
}

fn report(snapshot: &Snapshot, findings: &[Finding], console: &mut Console) -> Result<Exit> {
    let denied = snapshot.not_seen.iter().any(|not| not.denied);
    if denied && snapshot.account.is_none() && snapshot.streams.is_empty() {
        return Err(Error::new(
            ErrorKind::NotPermitted,
            "these credentials allow no look at JetStream; allow them to publish to $JS.API.INFO, \
             $JS.API.STREAM.LIST, $JS.API.STREAM.INFO.*, $JS.API.STREAM.MSG.GET.* and $JS.API.CONSUMER.LIST.*",
        ));
    }
    let exit = if findings.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    };
    if console.json {
        console.json_document(&document(snapshot, findings))?;
        return Ok(exit);
    }
    let look = console.look;
    for severity in Severity::ALL {
        let group: Vec<&Finding> = of(findings, severity).collect();
        if group.is_empty() {
            continue;
        }
        let heading = look.paint(style(severity), &severity.as_str().to_uppercase());
        let text = format!("{heading}: {}\n\n", severity.meaning());
        console.out.text(text)?;
        for finding in group {
            let mut facts = Facts::default();
            facts.styled(finding.code, Style::Strong, &finding.object);
            facts.add("seen", &finding.what);
            facts.add("so", &finding.consequence);
            facts.styled("mend", Style::Good, &finding.remedy);
            console.out.text(facts.render(look))?;
            console.out.text("\n")?;
        }
    }
    let server = &snapshot.server;
    console.out.line(format!(
        "{}: {} on {} ({}), {} streams, {} consumers",
        if findings.is_empty() {
            "healthy"
        } else {
            "unwell"
        },
        totals(findings),
        // A name of the server's own choice.
        crate::plain::without_controls(&server.name),
        crate::plain::without_controls(&server.version),
        snapshot.streams.len(),
        snapshot.consumers.len(),
    ))?;
    for not in &snapshot.not_seen {
        let text = format!("not seen: {} ({})", not.part, not.why);
        console
            .out
            .line(look.paint(Style::Faint, &crate::plain::without_controls(&text)))?;
    }
    console.out.flush()?;
    Ok(exit)
}

fn of(findings: &[Finding], severity: Severity) -> impl Iterator<Item = &Finding> {
    findings
        .iter()
        .filter(move |finding| finding.severity == severity)
}

fn totals(findings: &[Finding]) -> String {
    let counts: Vec<String> = Severity::ALL
        .into_iter()
        .map(|severity| (severity, of(findings, severity).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(severity, count)| format!("{count} {}", severity.as_str()))
        .collect();
    if counts.is_empty() {
        "nothing found".to_owned()
    } else {
        counts.join(", ")
    }
}

fn document(snapshot: &Snapshot, findings: &[Finding]) -> serde_json::Value {
    let totals: serde_json::Map<_, _> = Severity::ALL
        .into_iter()
        .map(|severity| {
            let count = of(findings, severity).count();
            (severity.as_str().to_owned(), count.into())
        })
        .collect();
    json!({
        "server": snapshot.server,
        "streams": snapshot.streams.len(),
        "consumers": snapshot.consumers.len(),
        "findings": findings,
        "totals": totals,
        "not_seen": snapshot.not_seen,
    })
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Losing => Style::Bad,
        Severity::Stalling | Severity::Wasting => Style::Warning,
        Severity::Risking => Style::Name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;

    /// A stream a token short, and a hostile name.
    fn unwell() -> Snapshot {
        serde_json::from_value(json!({
            "server": {"name": "n1\u{1b}[2J", "version": "2.15.1", "jetstream": true},
            "streams": [{
                "config": {
                    "name": "W", "subjects": ["workflow.*"], "retention": "limits",
                    "max_age": 604_800_000_000_000_u64, "duplicate_window": 1_000_000_000
                }
            }],
            "expected": {"durable": ["workflow.execution.requested"]},
            "not_seen": [{"part": "what is published", "why": "nothing was sampled"}]
        }))
        .unwrap()
    }

    #[test]
    fn findings_are_told_in_order_of_harm_with_what_mends_them() {
        let snapshot = unwell();
        let (mut console, out, _) = kept(200);
        let exit = report(&snapshot, &judge(&snapshot), &mut console).unwrap();
        assert_eq!(exit, Exit::Failed);
        assert_eq!(
            out.text(),
            "LOSING: events are lost or never arrive\n\n\
             TD-01: stream W\n\
             seen:  workflow.* does not take workflow.execution.requested; workflow.> would\n\
             so:    these events are stored nowhere: `*` is one token\n\
             mend:  nats stream edit W --subjects 'workflow.>'\n\n\
             RISKING: it holds until something else fails\n\n\
             TD-16: stream W\n\
             seen:  ids are remembered for 1 s\n\
             so:    a publish that is repeated after that is stored twice\n\
             mend:  nats stream edit W --dupe-window 2m\n\n\
             unwell: 1 losing, 1 risking on n1␛[2J (2.15.1), 1 streams, 0 consumers\n\
             not seen: what is published (nothing was sampled)\n"
        );
    }

    #[test]
    fn a_program_gets_one_document() {
        let snapshot = unwell();
        let (mut console, out, _) = kept(80);
        console.json = true;
        report(&snapshot, &judge(&snapshot), &mut console).unwrap();
        let document: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(document["findings"][0]["code"], "TD-01");
        assert_eq!(document["findings"][0]["severity"], "losing");
        assert_eq!(document["totals"]["losing"], 1);
        assert_eq!(document["totals"]["stalling"], 0);
        assert_eq!(document["not_seen"][0]["part"], "what is published");
    }

    #[test]
    fn health_is_said_and_ends_with_zero() {
        let snapshot = Snapshot {
            streams: Vec::new(),
            ..unwell()
        };
        let (mut console, out, _) = kept(80);
        let exit = report(&snapshot, &[], &mut console).unwrap();
        assert_eq!(exit, Exit::Done);
        assert!(out.text().starts_with("healthy: nothing found on n1"));
    }

    #[test]
    fn credentials_that_see_nothing_are_an_error_and_no_health() {
        let mut snapshot = Snapshot::default();
        snapshot.not_seen.push(
            serde_json::from_value(json!({"part": "the account", "why": "no", "denied": true}))
                .unwrap(),
        );
        let error = report(&snapshot, &[], &mut kept(80).0).unwrap_err();
        assert_eq!(Exit::from(error.kind()), Exit::NotPermitted);
    }

    async fn refused(url: &str) -> Error {
        match reach(&Config::default(), url) {
            Err(error) => error,
            Ok((options, link)) => Denials::default()
                .connect(&options, &link)
                .await
                .unwrap_err(),
        }
    }

    #[tokio::test]
    async fn what_is_no_nats_server_is_refused_without_telling_secrets() {
        for url in [
            "memory:",
            "http://ann:hunter2@h:7400",
            "file:./data",
            "h:4222",
            "nats://ann:hunter2@h:x",
        ] {
            let error = refused(url).await;
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("nats://ann:hunter2@{}", listener.local_addr().unwrap());
        drop(listener);
        let error = refused(&url).await;
        assert_eq!(Exit::from(error.kind()), Exit::Unreachable);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
