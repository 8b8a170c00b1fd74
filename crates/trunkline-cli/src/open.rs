//! Opening the bus that a command works on: the one place where a URL becomes a `Bus`.

use trunkline::config::{Loaded, Origin};
use trunkline::{Bus, Config, Connect, Result, Topology, TopologyMode};

use crate::global::Global;

/// The configuration that this command was started with.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`](trunkline::ErrorKind::InvalidConfig) with all that is wrong.
pub(crate) fn configuration(global: &Global) -> Result<Loaded> {
    Config::load_file(global.config.as_deref())
}

/// The bus of every command but `up` and `topology`. It attaches: nothing of a bus that others own is made,
/// changed or compared.
///
/// # Errors
/// Those of [`configuration`] and [`Bus::connect`].
pub(crate) async fn bus(global: &Global) -> Result<Bus> {
    let loaded = configuration(global)?;
    let url = url(global, &loaded);
    let unsaid = origin(&loaded, "source") == Some(&Origin::Default);
    let mut config = loaded.config;
    if unsaid {
        config.source = "/trunkline/cli".to_owned();
    }
    if url.starts_with("file:") {
        let as_found = attached(config.clone(), url.clone()).await?;
        if !as_found.inspect().await?.streams.is_empty() {
            return Ok(as_found);
        }
        // A directory that nobody has used yet: without streams it could store nothing.
        as_found.close().await?;
    }
    connect(config, url).await
}

/// The streams of the bus themselves, with what the configuration declares of them.
///
/// # Errors
/// Those of [`configuration`] and [`Connect::manage`].
pub(crate) async fn topology(global: &Global) -> Result<Topology> {
    let mut loaded = configuration(global)?;
    loaded.config.url = url(global, &loaded).into();
    loaded.connect().manage().await
}

fn connect(mut config: Config, url: String) -> Connect {
    // A bus in this process is nobody else's, and without streams it could store nothing.
    if !is_own(&url) {
        return attached(config, url);
    }
    config.url = url.into();
    Bus::from_config(&config)
}

/// With what is there, whatever the configuration declares.
fn attached(mut config: Config, url: String) -> Connect {
    config.topology = TopologyMode::AsFound;
    config.streams.clear();
    config.url = url.into();
    Bus::from_config(&config)
}

/// Whether the URL is that of a bus that lives in the process which names it.
fn is_own(url: &str) -> bool {
    ["memory:", "file:"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
}

/// What `--url` or `TRUNKLINE_URL` says. A file says which bus `up` is to run, so that a bus that
/// lives in its process is attached to by its door.
fn url(global: &Global, loaded: &Loaded) -> String {
    if let Some(url) = &global.url {
        return url.clone();
    }
    let url = loaded.config.url.reveal();
    let said = matches!(origin(loaded, "url"), Some(Origin::Environment { .. }));
    if is_own(url) && !said {
        return loaded.config.door_url();
    }
    url.to_owned()
}

/// Where a setting of the bus has its value from.
pub(crate) fn origin<'a>(loaded: &'a Loaded, key: &str) -> Option<&'a Origin> {
    let setting = loaded.values.iter().find(|setting| setting.key == key);
    setting.map(|setting| &setting.origin)
}

#[cfg(test)]
mod tests {
    use trunkline::config::load;

    use super::*;

    #[test]
    fn a_command_finds_the_bus_that_up_would_run() {
        let check = |flag: Option<&str>, file: &str, env: &[(&str, &str)], expected: &str| {
            let env = env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let loaded = load(Some(("trunkline.toml", file)), env).unwrap();
            let global = Global {
                url: flag.map(str::to_owned),
                ..Global::default()
            };
            assert_eq!(url(&global, &loaded), expected, "{flag:?} {file}");
        };
        let listen = "[door]\nlisten = \"0.0.0.0:8000\"";
        check(None, "", &[], "http://127.0.0.1:7400");
        check(None, listen, &[], "http://127.0.0.1:8000");
        check(None, "url = \"memory:jobs\"", &[], "http://127.0.0.1:7400");
        check(None, "url = \"file:./data\"", &[], "http://127.0.0.1:7400");
        check(None, "url = \"http://bus.lan:1\"", &[], "http://bus.lan:1");
        check(None, listen, &[("TRUNKLINE_URL", "memory:")], "memory:");
        check(
            Some("memory:"),
            listen,
            &[("TRUNKLINE_URL", "http://bus.lan:1")],
            "memory:",
        );
    }
}
