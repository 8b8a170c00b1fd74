//! What an engine promises and accepts, as data.

/// What an engine promises. The contract suite runs a property only where it is declared, and
/// checks that the rest is refused with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What a stored event survives.
    pub durability: Durability,
    /// Who can share the bus.
    pub reach: Reach,
    /// Whether values are handed over without encoding them.
    pub shares_values: bool,
}

/// What an event that was stored survives, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Durability {
    /// Nothing: it is gone with the process.
    Process,
    /// A crash of the process, and of the engine's server if there is one.
    Crash,
    /// Loss of power.
    Power,
}

/// How far a bus reaches, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reach {
    /// One process.
    Process,
    /// The processes of one host.
    Host,
    /// Many hosts.
    Network,
}

/// What an engine accepts at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one encoded message, headers included.
    pub max_message: usize,
    /// Items of one batch.
    pub max_batch: usize,
    /// Bytes of one value of the state group.
    pub max_value: usize,
}

impl Default for Limits {
    /// What every engine enforces unless told otherwise: a NATS server's `max_payload` of 2 MiB
    /// less 32 KiB, so that 1 MiB of data fits and a program can change engines.
    fn default() -> Self {
        Self {
            max_message: (2 << 20) - (32 << 10),
            max_batch: 1_000,
            max_value: 64 << 10,
        }
    }
}
