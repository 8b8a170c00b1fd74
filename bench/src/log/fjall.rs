//! fjall: a keyspace by sequence, and one by id in which a repeat is looked up.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::store::{Record, Store, body, encode};
use crate::pair::Result;

pub struct Fjall {
    database: Database,
    events: Keyspace,
    ids: Keyspace,
    count: u64,
}

impl Store for Fjall {
    const LABEL: &'static str = "fjall";

    fn open(dir: &Path) -> Result<Self> {
        let database = Database::builder(dir).open()?;
        let events = database.keyspace("events", KeyspaceCreateOptions::default)?;
        let ids = database.keyspace("ids", KeyspaceCreateOptions::default)?;
        let count = match events.last_key_value() {
            None => 0,
            Some(last) => u64::from_be_bytes(last.key()?[..].try_into()?),
        };
        Ok(Self {
            database,
            events,
            ids,
            count,
        })
    }

    fn append(&mut self, group: &[Record]) -> Result<()> {
        // fdatasync, as everybody else.
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        let mut count = self.count;
        for record in group {
            if self.ids.contains_key(record.id)? {
                continue;
            }
            count += 1;
            let mut value = Vec::with_capacity(64 + record.body.len());
            encode(record, &mut value);
            batch.insert(&self.events, count.to_be_bytes(), value);
            batch.insert(&self.ids, record.id, count.to_be_bytes());
        }
        batch.commit()?;
        self.count = count;
        Ok(())
    }

    fn scan(&self, events: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut seen = 0;
        for entry in self.events.iter().take(usize::try_from(events)?) {
            each(body(&entry.value()?)?)?;
            seen += 1;
        }
        Ok(seen)
    }

    fn count(&self) -> u64 {
        self.count
    }
}
