//! In the place of the server on a platform where none is run.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;

use serde_json::Value;
use trunkline::{Error, ErrorKind, Result};

use crate::global::Global;

/// Never there.
#[derive(Debug)]
pub(crate) struct Child(Infallible);

impl Child {
    pub(crate) async fn start(_: PathBuf, _: u16, _: &Global) -> Result<Self> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "--nats needs Unix; start a nats-server here yourself, and name it with --url",
        ))
    }

    pub(crate) fn url(&self) -> String {
        match self.0 {}
    }

    pub(crate) fn json(&self) -> Value {
        match self.0 {}
    }

    pub(crate) async fn gave_up(&mut self) {
        match self.0 {}
    }

    pub(crate) async fn stop(self) -> Result<()> {
        match self.0 {}
    }
}

impl fmt::Display for Child {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}
