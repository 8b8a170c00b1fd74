//! Under which keys the records are, and how a consumer is divided into partitions.

use smol_str::{SmolStr, format_smolstr};
use trunkline_core::engine::{Seq, StateKey};
use trunkline_core::{Name, Result};

/// The first token of what is known of all consumers, which can be no consumer's name.
pub(in crate::consumer) const CONTROL: &str = "control";

/// The keys of one consumer on one stream.
#[derive(Clone, Debug)]
pub(in crate::consumer) struct Keys {
    root: SmolStr,
}

impl Keys {
    pub(in crate::consumer) fn new(consumer: &Name, stream: &Name) -> Self {
        Self {
            root: format_smolstr!("{consumer}.{stream}"),
        }
    }

    fn key(&self, rest: std::fmt::Arguments<'_>) -> Result<StateKey> {
        StateKey::new(format!("{}.{rest}", self.root))
    }

    fn control_key(&self, rest: std::fmt::Arguments<'_>) -> Result<StateKey> {
        StateKey::new(format!("{CONTROL}.{}.{rest}", self.root))
    }

    /// Below it is what members watch.
    pub(in crate::consumer) fn control(&self) -> Result<StateKey> {
        StateKey::new(format!("{CONTROL}.{}", self.root))
    }

    pub(in crate::consumer) fn definition(&self) -> Result<StateKey> {
        self.control_key(format_args!("def"))
    }

    pub(in crate::consumer) fn member(&self, member: &str) -> Result<StateKey> {
        self.control_key(format_args!("m.{member}"))
    }

    pub(in crate::consumer) fn owner(&self, layout: Layout, partition: u16) -> Result<StateKey> {
        self.control_key(format_args!("o.{layout}.{partition:03}"))
    }

    /// What a key below `control` is about.
    pub(in crate::consumer) fn about(&self, key: &StateKey) -> Option<About> {
        let rest = key.as_str().strip_prefix(CONTROL)?.strip_prefix('.')?;
        let rest = rest.strip_prefix(&*self.root)?.strip_prefix('.')?;
        let mut tokens = rest.split('.');
        let about = match (tokens.next()?, tokens.next()) {
            ("def", None) => About::Definition,
            ("m", Some(member)) => About::Member(member.into()),
            ("o", Some(generation)) => About::Owner(
                Layout {
                    generation: generation.parse().ok()?,
                    partitions: tokens.next()?.strip_prefix('P')?.parse().ok()?,
                },
                tokens.next()?.parse().ok()?,
            ),
            _ => return None,
        };
        Some(about)
    }

    /// Below it is everything but what members watch.
    pub(in crate::consumer) fn root(&self) -> Result<StateKey> {
        StateKey::new(&self.root)
    }

    /// Below it is everything that a reset leaves behind.
    pub(in crate::consumer) fn generation(&self, generation: u64) -> Result<StateKey> {
        self.key(format_args!("{generation}"))
    }

    /// Below it every partition has how far it got.
    pub(in crate::consumer) fn progresses(&self, layout: Layout) -> Result<StateKey> {
        self.key(format_args!("{layout}"))
    }

    pub(in crate::consumer) fn progress(&self, layout: Layout, partition: u16) -> Result<StateKey> {
        self.key(format_args!("{layout}.{partition:03}"))
    }

    /// Below it is every event that left the main flow.
    pub(in crate::consumer) fn sides(&self, generation: u64) -> Result<StateKey> {
        self.key(format_args!("{generation}.s"))
    }

    pub(in crate::consumer) fn side(
        &self,
        generation: u64,
        slot: u8,
        seq: Seq,
    ) -> Result<StateKey> {
        self.key(format_args!("{generation}.s.{slot:03}.{seq:020}"))
    }

    /// Below it are the pieces of one event's body.
    pub(in crate::consumer) fn body(&self, generation: u64, seq: Seq) -> Result<StateKey> {
        self.key(format_args!("{generation}.b.{seq:020}"))
    }

    pub(in crate::consumer) fn piece(
        &self,
        generation: u64,
        seq: Seq,
        piece: usize,
    ) -> Result<StateKey> {
        self.key(format_args!("{generation}.b.{seq:020}.{piece:03}"))
    }
}

/// What a key that members watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum About {
    Definition,
    Member(SmolStr),
    Owner(Layout, u16),
}

/// The slot and the sequence that the key of a side record names.
pub(in crate::consumer) fn slot_and_seq(key: &StateKey) -> Option<(u8, Seq)> {
    let mut tokens = key.as_str().rsplit('.');
    let seq = tokens.next()?.parse().ok()?;
    Some((tokens.next()?.parse().ok()?, seq))
}

/// How a consumer's events are divided: into so many partitions, in this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) struct Layout {
    pub(in crate::consumer) generation: u64,
    pub(in crate::consumer) partitions: u16,
}

impl Layout {
    /// The partition of a slot.
    pub(in crate::consumer) fn partition(self, slot: u8) -> u16 {
        u16::from(slot) % self.partitions
    }

    /// The slots of a partition.
    pub(in crate::consumer) fn slots(self, partition: u16) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |slot| self.partition(*slot) == partition)
    }

    /// The partitions of this layout that have slots of a partition of another one.
    pub(in crate::consumer) fn sharing(
        self,
        other: Layout,
        partition: u16,
    ) -> impl Iterator<Item = u16> {
        // Both are powers of two, so that the smaller divides the larger.
        let common = self.partitions.min(other.partitions);
        (0..self.partitions).filter(move |one| one % common == partition % common)
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.P{}", self.generation, self.partitions)
    }
}
