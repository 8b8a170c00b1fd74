//! Numbers and texts as bytes, and back without trusting them.

use bytes::Bytes;
use smol_str::SmolStr;
use trunkline_core::engine::StateKey;
use trunkline_core::{Filter, Name, Timestamp};

/// Why bytes are no record.
pub(super) type Fault = &'static str;

/// Appends fields to a buffer.
pub(super) trait Put {
    fn varint(&mut self, number: u64);
    fn time(&mut self, time: Timestamp);
    fn blob(&mut self, bytes: &[u8]);

    fn count(&mut self, count: usize) {
        self.varint(count as u64);
    }

    fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T))
    where
        Self: Sized,
    {
        self.varint(u64::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }
}

impl Put for Vec<u8> {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.push(number as u8);
    }

    fn time(&mut self, time: Timestamp) {
        self.extend_from_slice(&time.as_nanos().to_le_bytes());
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }
}

/// Takes fields off the front of bytes that may be anything.
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.bytes(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        let bytes = self.bytes(4)?.try_into();
        Ok(u32::from_le_bytes(bytes.map_err(|_| "it ends too early")?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number has more than 64 bits")
    }

    pub(super) fn size(&mut self) -> Result<usize, Fault> {
        usize::try_from(self.varint()?).map_err(|_| "a number is too large")
    }

    /// How many items follow, each of one byte at least: so memory is never taken for more than
    /// there can be.
    pub(super) fn count(&mut self) -> Result<usize, Fault> {
        let count = self.size()?;
        if count > self.0.len() {
            return Err("it counts more items than it has bytes");
        }
        Ok(count)
    }

    pub(super) fn items<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let count = self.count()?;
        // An item in memory may be far larger than the byte that it takes at least.
        let mut items = Vec::with_capacity(count.min(256));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    pub(super) fn option<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<Option<T>, Fault> {
        match self.varint()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            _ => Err("an option is neither there nor not there"),
        }
    }

    pub(super) fn time(&mut self) -> Result<Timestamp, Fault> {
        let bytes = self.bytes(8)?.try_into();
        let nanos = i64::from_le_bytes(bytes.map_err(|_| "it ends too early")?);
        Ok(Timestamp::from_nanos(nanos))
    }

    pub(super) fn blob(&mut self) -> Result<&'a [u8], Fault> {
        let len = self.size()?;
        self.bytes(len)
    }

    /// A copy, so that a small value does not keep the chunk that it was read with.
    pub(super) fn value(&mut self) -> Result<Bytes, Fault> {
        self.blob().map(Bytes::copy_from_slice)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.blob()?).map_err(|_| "a text is not UTF-8")
    }

    pub(super) fn short(&mut self) -> Result<SmolStr, Fault> {
        self.text().map(SmolStr::new)
    }

    pub(super) fn name(&mut self) -> Result<Name, Fault> {
        Name::new(self.text()?).map_err(|_| "a name has characters that no name has")
    }

    pub(super) fn key(&mut self) -> Result<StateKey, Fault> {
        StateKey::new(self.text()?).map_err(|_| "a key has characters that no key has")
    }

    pub(super) fn filter(&mut self) -> Result<Filter, Fault> {
        Filter::new(self.text()?).map_err(|_| "a filter is not one")
    }

    pub(super) fn end(self) -> Result<(), Fault> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("it is longer than its fields")
        }
    }
}
