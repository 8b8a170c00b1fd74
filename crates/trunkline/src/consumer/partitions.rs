//! Into how many partitions a consumer is divided that keeps the order of keys.

use trunkline_core::{Error, ErrorKind, Result};

use super::Consumer;

/// Unless somebody says otherwise.
pub(super) const PARTITIONS: u16 = 16;
/// Of a consumer whose events go to whoever is free: only what failed is divided, and every start and stop of
/// a member costs some writes for each.
pub(super) const SHARED_PARTITIONS: u16 = 4;
/// As many as there are slots.
pub(crate) const MOST: u16 = 256;
/// What may be said, in words.
pub(crate) const ALLOWED: &str = "1, 2, 4, 8, 16, 32, 64, 128 or 256";

/// Refuses a number of partitions into which slots cannot be divided evenly.
pub(crate) fn check(partitions: u16) -> Result<()> {
    if partitions.is_power_of_two() && partitions <= MOST {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!("{partitions} partitions; use {ALLOWED}"),
    ))
}

impl Consumer {
    /// The default is nobody's wish, so that a consumer that has become another one is no surprise.
    pub(super) fn with_default_partitions(mut self) -> Self {
        self.partitions = self.partitions.filter(|said| *said != PARTITIONS);
        self
    }

    /// Into how many partitions the consumer's keys are divided when it is made: 1, 2, 4, and so on to
    /// 256; 16 unless set. A partition is what one member works on, so that more members than
    /// partitions are of no use, and each partition costs some writes a second.
    ///
    /// A consumer that is there already keeps the number that it has, and a warning says so;
    /// [`Bus::divide_consumer`](crate::Bus::divide_consumer) changes it. It means nothing to a consumer
    /// whose events go to whoever is free.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.partitions = Some(partitions);
        self
    }
}
