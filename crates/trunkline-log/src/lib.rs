//! The embedded durable log behind `file:` URLs.
//!
//! One process owns a directory of files; one thread of it writes, others read. `FORMAT.md` at the
//! root of the repository says what each byte of the files means.

pub mod disk;
mod engine;
mod format;
pub mod frame;
pub mod inspect;
pub mod journal;

mod segment;
mod selection;
#[cfg(feature = "simulation")]
pub mod sim;
pub mod stream;

pub use disk::{Disk, File, Open, RealDisk};
pub use engine::{LogEngine, LogOptions, SyncPolicy};
pub use selection::Selection;
