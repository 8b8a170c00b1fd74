//! SQLite with its write-ahead log, synced at each commit, and an index over ids.

use std::path::Path;

use rusqlite::{Connection, params};

use super::store::{Record, Store};
use crate::pair::Result;

pub struct Sqlite {
    connection: Connection,
    count: u64,
}

impl Store for Sqlite {
    const LABEL: &'static str = "SQLite";

    fn open(dir: &Path) -> Result<Self> {
        let connection = Connection::open(dir.join("events.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute(
            "CREATE TABLE IF NOT EXISTS events (
                seq INTEGER PRIMARY KEY,
                subject TEXT NOT NULL,
                id BLOB NOT NULL UNIQUE,
                body BLOB NOT NULL
            )",
            (),
        )?;
        let last = "SELECT COALESCE(MAX(seq), 0) FROM events";
        let last: i64 = connection.query_row(last, (), |row| row.get(0))?;
        Ok(Self {
            connection,
            count: u64::try_from(last)?,
        })
    }

    fn append(&mut self, group: &[Record]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let mut count = self.count;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events (seq, subject, id, body) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO NOTHING",
            )?;
            for record in group {
                let seq = i64::try_from(count + 1)?;
                let values = params![seq, record.subject, &record.id[..], &record.body[..]];
                count += insert.execute(values)? as u64;
            }
        }
        transaction.commit()?;
        self.count = count;
        Ok(())
    }

    fn scan(&self, events: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let query = "SELECT body FROM events ORDER BY seq LIMIT ?1";
        let mut query = self.connection.prepare_cached(query)?;
        let mut rows = query.query([i64::try_from(events)?])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            each(row.get_ref(0)?.as_blob()?)?;
            seen += 1;
        }
        Ok(seen)
    }

    fn count(&self) -> u64 {
        self.count
    }
}
