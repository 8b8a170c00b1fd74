//! The event of the example on real data: a commit of a git repository.
//!
//! `history` writes them, `handle_history` handles them, on a bus of its own or as one member of a
//! consumer of a bus that runs elsewhere; `examples/real-data/run.sh` runs both around such a bus.

use serde::{Deserialize, Serialize};
use trunkline::Event;

/// A commit. Commits of one author keep their order.
#[derive(Debug, Serialize, Deserialize, Event)]
#[event(type = "git.commit", key = "author_email")]
pub struct GitCommit {
    /// The commit's hash; also the id of the event.
    pub hash: String,
    /// Who wrote it.
    pub author_name: String,
    /// By what address they are known; never empty.
    pub author_email: String,
    /// The first line of the message.
    pub subject: String,
    /// Files that it changes; none are told for a merge.
    pub file_count: u64,
    /// Lines added in all of them.
    pub added: u64,
    /// Lines deleted in all of them.
    pub deleted: u64,
    /// The first of the files, as many as fit [`GitCommit::MAX_FILES`] and
    /// [`GitCommit::MAX_PATH_BYTES`].
    pub files: Vec<FileChange>,
}

impl GitCommit {
    /// Files that are listed at most; the counts are always those of all.
    pub const MAX_FILES: usize = 1_000;
    /// Bytes that all listed paths have at most, so that the largest commit still fits a message.
    pub const MAX_PATH_BYTES: usize = 256 << 10;
}

/// What a commit does to one file.
#[derive(Debug, Serialize, Deserialize)]
pub struct FileChange {
    /// Its path in the repository.
    pub path: String,
    /// Lines added; none for a binary file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<u64>,
    /// Lines deleted; none for a binary file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u64>,
}
