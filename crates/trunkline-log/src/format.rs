//! The file `FORMAT`, by which a directory says whose it is, in which version, and which one.

use std::path::Path;

use trunkline_core::{Error, ErrorKind, Result};

/// The file's name.
pub(crate) const FORMAT: &str = "FORMAT";
/// More bytes than the file ever has.
pub(crate) const MOST_BYTES: usize = 128;
/// The version of the format that is read and written.
pub(crate) const VERSION: u64 = 1;
const PROGRAM: &str = "trunkline-log ";
const ID: &str = "id ";
const ID_DIGITS: usize = 32;

/// What the file of a new directory says, with its id.
pub(crate) fn write(id: u128) -> String {
    format!("{PROGRAM}{VERSION}\n{ID}{id:032x}\n")
}

/// The id that the file gives.
///
/// # Errors
/// [`ErrorKind::WrongVersion`], [`ErrorKind::Damaged`], and [`ErrorKind::InvalidConfig`] for what is not
/// ours.
pub(crate) fn read(path: &Path, content: &[u8]) -> Result<String> {
    let text = String::from_utf8_lossy(content);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let Some(version) = line.strip_prefix(PROGRAM) else {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "{} says something else than ours do, so this is no directory of ours; name another one",
                path.display()
            ),
        ));
    };
    if version != VERSION.to_string() {
        return Err(Error::new(
            ErrorKind::WrongVersion,
            format!(
                "{} says version {version}, and this release knows {VERSION}; use the release that made the directory, or a newer one",
                path.display()
            ),
        ));
    }
    let id = rest
        .strip_prefix(ID)
        .and_then(|rest| rest.strip_suffix('\n'));
    let is_id =
        |id: &&str| id.len() == ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    id.filter(is_id).map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorKind::Damaged,
            format!(
                "{} is damaged at offset {}: its second line is `{ID}` and {ID_DIGITS} hexadecimal digits; bring it back from a copy, or write other digits, with which readers begin anew",
                path.display(),
                line.len() + 1
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_all_else_refused() {
        let path = Path::new("data/FORMAT");
        let written = write(0xab);
        assert!(written.len() < MOST_BYTES);
        let id = read(path, written.as_bytes()).unwrap();
        assert_eq!(id, "000000000000000000000000000000ab");
        for (text, kind, part) in [
            ("", ErrorKind::InvalidConfig, "no directory of ours"),
            ("else 1\n", ErrorKind::InvalidConfig, "no directory of ours"),
            (
                "trunkline-log 7\n",
                ErrorKind::WrongVersion,
                "says version 7,",
            ),
            ("trunkline-log 1", ErrorKind::Damaged, "offset 16"),
            ("trunkline-log 1\nid x\n", ErrorKind::Damaged, "offset 16"),
        ] {
            let error = read(path, text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), kind, "{text:?}");
            assert!(error.message().contains(part), "{error}");
        }
    }
}
