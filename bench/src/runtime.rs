//! The two kinds of tokio runtime that matter: everything on one thread, and one thread for each of
//! producer and consumer.

use std::fmt;

use tokio::runtime::{Builder, Runtime};

use crate::pair::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    OneThread,
    AcrossThreads,
}

impl Flavour {
    pub const ALL: [Self; 2] = [Self::OneThread, Self::AcrossThreads];

    pub fn runtime(self) -> Result<Runtime> {
        let runtime = match self {
            Self::OneThread => Builder::new_current_thread().enable_all().build(),
            Self::AcrossThreads => Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build(),
        };
        runtime.map_err(Into::into)
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneThread => "one thread",
            Self::AcrossThreads => "across threads",
        })
    }
}
