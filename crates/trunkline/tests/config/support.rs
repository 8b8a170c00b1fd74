//! Reading a configuration as a test wants it.

use std::time::Duration;

use trunkline::config::{Loaded, Setting, load};
use trunkline::{Config, Error, ErrorKind, Name};

pub(crate) fn vars(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn try_read(file: &str, env: &[(&str, &str)]) -> Result<Loaded, Error> {
    load(Some(("trunkline.toml", file)), vars(env))
}

pub(crate) fn read(file: &str, env: &[(&str, &str)]) -> Config {
    try_read(file, env).unwrap().config
}

/// The lines of what is refused, without the head.
pub(crate) fn refused(file: &str, env: &[(&str, &str)]) -> Vec<String> {
    let error = try_read(file, env).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let mut lines = error.message().lines();
    let head = lines.next().unwrap();
    let lines: Vec<_> = lines.map(|line| line.trim_start().to_owned()).collect();
    match lines.len() {
        1 => assert_eq!(head, "the configuration has a problem"),
        count => assert_eq!(head, format!("the configuration has {count} problems")),
    }
    lines
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn setting<'a>(loaded: &'a Loaded, key: &str) -> &'a Setting {
    let found = loaded.values.iter().find(|setting| setting.key == key);
    found.unwrap_or_else(|| panic!("no {key}"))
}
