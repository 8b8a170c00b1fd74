//! redb: a table by sequence, and one by id, which says whether an id was there.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::store::{Id, Record, Store, body, encode};
use crate::pair::Result;

const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
const IDS: TableDefinition<Id, u64> = TableDefinition::new("ids");

pub struct Redb {
    database: Database,
    count: u64,
    value: Vec<u8>,
}

impl Store for Redb {
    const LABEL: &'static str = "redb";

    fn open(dir: &Path) -> Result<Self> {
        let database = Database::create(dir.join("events.redb"))?;
        let count = match database.begin_read()?.open_table(EVENTS) {
            Ok(events) => events.last()?.map_or(0, |(seq, _)| seq.value()),
            Err(TableError::TableDoesNotExist(_)) => {
                let making = database.begin_write()?;
                making.open_table(EVENTS)?;
                making.open_table(IDS)?;
                making.commit()?;
                0
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            database,
            count,
            value: Vec::new(),
        })
    }

    fn append(&mut self, group: &[Record]) -> Result<()> {
        let mut writing = self.database.begin_write()?;
        writing.set_durability(Durability::Immediate)?;
        let mut count = self.count;
        {
            let mut events = writing.open_table(EVENTS)?;
            let mut ids = writing.open_table(IDS)?;
            for record in group {
                let before = ids.insert(record.id, count + 1)?.map(|seq| seq.value());
                if let Some(before) = before {
                    ids.insert(record.id, before)?;
                    continue;
                }
                count += 1;
                self.value.clear();
                encode(record, &mut self.value);
                events.insert(count, self.value.as_slice())?;
            }
        }
        writing.commit()?;
        self.count = count;
        Ok(())
    }

    fn scan(&self, events: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let reading = self.database.begin_read()?;
        let table = reading.open_table(EVENTS)?;
        let mut seen = 0;
        for entry in table.iter()?.take(usize::try_from(events)?) {
            each(body(entry?.1.value())?)?;
            seen += 1;
        }
        Ok(seen)
    }

    fn count(&self) -> u64 {
        self.count
    }
}
