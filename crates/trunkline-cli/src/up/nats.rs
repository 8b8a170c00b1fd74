//! `trunkline up --nats`: the nats-server that is installed here, as a child of this process.
//!
//! **Invariant:** nothing is downloaded, and the server listens on loopback, whatever the door does.

#[cfg(unix)]
mod child;
#[cfg(not(unix))]
mod nowhere;
#[cfg(unix)]
mod row;

use std::path::PathBuf;

use clap::Args;
use trunkline::config::{Loaded, Origin};
use trunkline::{Error, ErrorKind, Result};

use crate::global::Global;
use crate::open::origin;

#[cfg(unix)]
pub(super) use child::Child;
#[cfg(not(unix))]
pub(super) use nowhere::Child;

#[derive(Clone, Debug, Args)]
pub(super) struct Nats {
    /// Keep events on disk: run the nats-server that is installed here, for as long as this runs.
    /// TRUNKLINE_NATS_SERVER names one that is not on the PATH.
    #[arg(long)]
    nats: bool,
    /// The port of that server, on loopback; port 0 takes a free one.
    #[arg(long, value_name = "PORT", requires = "nats", default_value_t = 4222)]
    nats_port: u16,
    /// The folder of that server's data, configuration and log; made if missing.
    #[arg(
        long,
        value_name = "FOLDER",
        requires = "nats",
        default_value = "./trunkline-nats"
    )]
    nats_dir: PathBuf,
}

impl Nats {
    /// Refuses `--nats` beside a URL, which would name another bus than the one that it runs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] with the one who named it.
    pub(super) fn alone(&self, global: &Global, loaded: &Loaded) -> Result<()> {
        if !self.nats {
            return Ok(());
        }
        let (named, remove) = match (&global.url, origin(loaded, "url")) {
            (Some(_), _) => ("--url".to_owned(), "leave one of the two out"),
            (None, Some(Origin::Environment { name })) => {
                (name.clone(), "unset it, or leave --nats out")
            }
            (None, Some(place @ Origin::File { .. })) => (
                format!("`url` in {place}"),
                "remove that line, or leave --nats out",
            ),
            (None, Some(Origin::Default) | None) => return Ok(()),
            // Wherever else it may come from one day.
            (None, Some(place)) => (place.to_string(), "leave one of the two out"),
        };
        Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "--nats runs a server of its own for the bus, and {named} names a bus; {remove}"
            ),
        ))
    }

    /// Starts the server and waits until it answers, if it is wanted.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when there is none to start, [`ErrorKind::WrongVersion`] when it
    /// is too old, [`ErrorKind::InUse`] when the port or the folder is another's, and
    /// [`ErrorKind::Disconnected`] when it ended or did not answer in time.
    pub(super) async fn start(self, global: &Global) -> Result<Option<Child>> {
        if !self.nats {
            return Ok(None);
        }
        let child = Child::start(self.nats_dir, self.nats_port, global).await?;
        Ok(Some(child))
    }
}

#[cfg(test)]
mod tests {
    use trunkline::config::load;

    use super::*;
    use crate::parsed;

    fn check(arguments: &[&str], url: Option<&str>, file: &str, env: &[&str], expected: &[&str]) {
        let variable = |value: &&str| ("TRUNKLINE_URL".to_owned(), (*value).to_owned());
        let loaded = load(Some(("bus.toml", file)), env.iter().map(variable)).unwrap();
        let global = Global {
            url: url.map(str::to_owned),
            ..Global::default()
        };
        let outcome = parsed::<Nats>(arguments).alone(&global, &loaded);
        match outcome {
            Ok(()) => assert!(expected.is_empty(), "{expected:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidConfig);
                assert!(!expected.is_empty(), "{error}");
                for part in expected {
                    assert!(error.to_string().contains(part), "{part} in {error}");
                }
            }
        }
    }

    #[test]
    fn a_url_beside_the_server_is_refused_by_the_name_of_who_gave_it() {
        let file = "source = \"/shop\"\nurl = \"memory:\"";
        let nats = &["--nats"];
        check(nats, None, "", &[], &[]);
        check(nats, Some("memory:"), "", &[], &["--nats", "--url"]);
        check(nats, None, "", &["memory:"], &["--nats", "TRUNKLINE_URL"]);
        check(nats, None, file, &[], &["--nats", "`url` in bus.toml:2"]);
        check(&[], Some("memory:"), file, &["memory:"], &[]);
    }

    #[test]
    fn the_server_has_the_usual_port_and_a_folder_beside_us() {
        let nats = parsed::<Nats>(&["--nats"]);
        assert_eq!(nats.nats_port, 4222);
        assert_eq!(nats.nats_dir, PathBuf::from("./trunkline-nats"));
    }
}
