//! The server's configuration file.

use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::options::ServerOptions;

/// Where a server listens and with whom it talks.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) client: u16,
    pub(crate) monitor: Option<u16>,
    pub(crate) cluster: Option<Routes>,
}

/// A server's part in a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    pub(crate) cluster: String,
    pub(crate) own: u16,
    pub(crate) all: Vec<u16>,
}

/// The configuration of `trunkline up --nats`: what a server in that folder is told. Only a port
/// of 0 is replaced, by the one that it takes.
pub fn safe_config(dir: &Path, port: u16, max_file_store: u64) -> String {
    let addresses = Addresses {
        client: port,
        monitor: None,
        cluster: None,
    };
    render(
        &ServerOptions::safe(dir, port, max_file_store),
        dir,
        &addresses,
    )
}

/// The configuration of a server whose folder that is.
pub(crate) fn render(options: &ServerOptions, dir: &Path, addresses: &Addresses) -> String {
    let mut text = Text(String::new());
    text.line("# Written by Trunkline at every start; changes here are lost.");
    if let Some(name) = &options.name {
        text.line(format_args!("server_name: {}", quoted(name)));
    }
    text.line("");
    text.line("# Loopback only: without accounts it asks nobody who they are.");
    text.line(format_args!("listen: \"127.0.0.1:{}\"", addresses.client));
    if let Some(port) = addresses.monitor {
        text.line(format_args!("http: \"127.0.0.1:{port}\""));
    }
    text.line("# Where it tells on which ports it listens, once it does.");
    text.line(format_args!("ports_file_dir: {}", path(dir)));
    limits(&mut text, options);
    if options.jetstream {
        jetstream(&mut text, options, dir);
    }
    text.line("");
    text.line("# 30 s is the least that it accepts; few connections are closed much sooner.");
    let duration = Spell(options.lame_duck_duration);
    let grace = Spell(options.lame_duck_grace);
    text.line(format_args!("lame_duck_grace_period: \"{grace}\""));
    text.line(format_args!("lame_duck_duration: \"{duration}\""));
    if let Some(routes) = &addresses.cluster {
        cluster(&mut text, routes);
    }
    if !options.extra.is_empty() {
        text.line("");
        text.line(&options.extra);
    }
    text.0
}

fn limits(text: &mut Text, options: &ServerOptions) {
    text.line("");
    text.line("# A message with its headers; 1 MiB of data and all that goes with it fit.");
    text.line(format_args!("max_payload: {}", options.max_payload));
    if let Some(limit) = options.max_connections {
        text.line("# A program that connects in a loop must not take all files of this machine.");
        text.line(format_args!("max_connections: {limit}"));
    }
    if let Some(limit) = options.max_subscriptions {
        text.line("# Of one connection; each costs memory.");
        text.line(format_args!("max_subscriptions: {limit}"));
    }
    if let Some(deadline) = options.write_deadline {
        text.line("# A client that does not read for so long is cut off, before its data fills the memory.");
        text.line(format_args!("write_deadline: \"{}\"", Spell(deadline)));
    }
}

fn jetstream(text: &mut Text, options: &ServerOptions, dir: &Path) {
    let store = options.store_dir.as_deref().unwrap_or(dir);
    text.line("");
    text.line("jetstream {");
    text.line(format_args!("  store_dir: {}", path(store)));
    if options.sync_always {
        text.line(
            "  # On disk before it is acknowledged. The default is every two minutes, so that a",
        );
        text.line("  # power failure would lose acknowledged events.");
        text.line("  sync_interval: always");
    }
    if let Some(bytes) = options.max_file_store {
        text.line(
            "  # Less than the volume has: when this is reached, publishers are told and purging",
        );
        text.line("  # works; when the volume is full, neither does before a restart.");
        text.line(format_args!("  max_file_store: {bytes}"));
    }
    if let Some(bytes) = options.max_memory_store {
        text.line(
            "  # For streams that others make in memory; the default is most of the machine's.",
        );
        text.line(format_args!("  max_memory_store: {bytes}"));
    }
    text.line("}");
}

fn cluster(text: &mut Text, routes: &Routes) {
    text.line("");
    text.line("cluster {");
    text.line(format_args!("  name: {}", quoted(&routes.cluster)));
    text.line(format_args!("  listen: \"127.0.0.1:{}\"", routes.own));
    let urls: Vec<String> = routes
        .all
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .collect();
    text.line(format_args!("  routes: [{}]", urls.join(", ")));
    text.line("}");
}

struct Text(String);

impl Text {
    fn line(&mut self, line: impl fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// A duration as the server reads it.
struct Spell(Duration);

impl fmt::Display for Spell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            write!(f, "{}ms", self.0.as_millis())
        }
    }
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// In quotes, with what would end them escaped.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_safe_configuration_is_the_one_that_was_reviewed() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/safe.conf");
        let text = safe_config(Path::new("/srv/shop/trunkline-nats"), 4222, 80_000_000_000);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &text).unwrap();
        }
        let expected = std::fs::read_to_string(golden).unwrap();
        assert_eq!(text, expected, "UPDATE_GOLDEN=1 writes it anew");
    }

    #[test]
    fn a_path_cannot_end_its_quotes() {
        assert_eq!(path(Path::new("/a\"b\\c d")), "\"/a\\\"b\\\\c d\"");
    }
}
