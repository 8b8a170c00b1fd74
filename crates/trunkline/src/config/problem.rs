//! What is wrong with a configuration: each problem with its place, its key and what to write.

use std::fmt;

use trunkline_core::{Error, ErrorKind};

use super::{Origin, mask_url};

/// What is wrong with one value, and what to write in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) wrong: String,
    pub(super) fix: String,
}

impl Fault {
    pub(super) fn new(wrong: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            wrong: wrong.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.wrong, self.fix)
    }
}

/// A fault and where it is.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) place: Origin,
    /// The setting; empty when it is the file as a whole that cannot be read.
    pub(super) key: String,
    pub(super) fault: Fault,
}

impl Problem {
    pub(super) fn new(place: &Origin, key: impl Into<String>, fault: Fault) -> Self {
        let key = key.into();
        Self {
            place: place.clone(),
            // A key in quotes may be anything, also what should have been a value.
            key: if key.contains('@') || key.contains(char::is_control) {
                quoted(&key)
            } else {
                key
            },
            fault,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.fault)
    }
}

/// All problems in one error: those of the file by line, then those of the environment.
pub(super) fn error(mut problems: Vec<Problem>) -> Error {
    problems.sort_by(|a, b| (&a.place, &a.key).cmp(&(&b.place, &b.key)));
    let mut message = match problems.len() {
        1 => "the configuration has a problem".to_owned(),
        count => format!("the configuration has {count} problems"),
    };
    for problem in problems {
        message.push_str(&format!("\n  {problem}"));
    }
    Error::new(ErrorKind::InvalidConfig, message)
}

/// A value in quotes. One that looks like a URL with credentials is somewhere by mistake, and is
/// masked all the same.
pub(super) fn quoted(text: &str) -> String {
    if text.contains('@') {
        format!("{:?}", mask_url(text))
    } else {
        format!("{text:?}")
    }
}

/// What was probably meant: the known name with the fewest typing errors, if they are few.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (distance(unknown, name), name))
        .filter(|(distance, name)| *distance <= name.len().max(unknown.len()) / 3)
        .min()
        .map(|(_, name)| name)
}

/// Characters to insert, delete or replace, ASCII case aside.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_nothing_far_off() {
        let check = |unknown: &str, expected: Option<&str>| {
            let known = ["url", "source", "request_timeout", "publish_timeout"];
            assert_eq!(nearest(unknown, known), expected, "{unknown}");
        };
        check("sorce", Some("source"));
        check("request-timeout", Some("request_timeout"));
        check("URL", Some("url"));
        check("colour", None);
        check("timeout", None);
    }
}
