//! One file of the simulated disk: what is seen of it, and what a crash leaves.

use super::random::Random;

/// What a disk writes as a whole or not at all.
pub(super) const SECTOR: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Node {
    visible: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// Room reserved; what was written takes room beside.
    allocated: u64,
}

/// A change that is not durable yet.
#[derive(Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Node {
    pub(super) fn durable(content: Vec<u8>) -> Self {
        Self {
            allocated: content.len() as u64,
            durable: content.clone(),
            visible: content,
            pending: Vec::new(),
        }
    }

    pub(super) fn visible(&self) -> &[u8] {
        &self.visible
    }

    pub(super) fn taken(&self) -> u64 {
        self.allocated
    }

    pub(super) fn unsynced(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        write(&mut self.visible, bytes, offset);
        self.allocated = self.allocated.max((offset + bytes.len()) as u64);
        self.pending.push(Pending::Write(offset, bytes.to_vec()));
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.visible.resize(len, 0);
        self.allocated = self.allocated.min(len as u64);
        self.pending.push(Pending::Resize(len));
    }

    pub(super) fn allocate(&mut self, len: u64) {
        self.allocated = self.allocated.max(len);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if self.visible.len() < len {
            self.visible.resize(len, 0);
            self.pending.push(Pending::Resize(len));
        }
    }

    pub(super) fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(&mut self.durable);
        }
    }

    /// Of what was to be synced some is durable, some waits for the next sync, and some is in
    /// memory only, marked as clean: no later sync writes it.
    pub(super) fn fail_sync(&mut self, random: &mut Random) {
        for change in std::mem::take(&mut self.pending) {
            match random.below(3) {
                0 => change.apply(&mut self.durable),
                1 => self.pending.push(change),
                _ => {}
            }
        }
    }

    /// Each sector has seen some first part of the pending writes to it, whatever the others saw.
    pub(super) fn crash(&mut self, random: &mut Random) {
        let pending = std::mem::take(&mut self.pending);
        // In quarters: now and then all or nothing is left.
        let kept = random.below(5);
        let mut seen = std::collections::BTreeMap::new();
        for change in &pending {
            let Pending::Write(offset, bytes) = change else {
                if random.coin() {
                    change.apply(&mut self.durable);
                }
                continue;
            };
            let mut at = 0;
            while at < bytes.len() {
                let sector = (offset + at) / SECTOR;
                let end = ((sector + 1) * SECTOR - offset).min(bytes.len());
                let goes_on = seen.entry(sector).or_insert(true);
                *goes_on &= random.below(4) < kept;
                if *goes_on {
                    write(&mut self.durable, &bytes[at..end], offset + at);
                }
                at = end;
            }
        }
        self.visible.clone_from(&self.durable);
    }

    pub(super) fn damage(&mut self, how: impl Fn(&mut Vec<u8>) -> bool) -> bool {
        how(&mut self.visible) & how(&mut self.durable)
    }
}

impl Pending {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Pending::Write(offset, bytes) => write(content, bytes, *offset),
            Pending::Resize(len) => content.resize(*len, 0),
        }
    }
}

fn write(content: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}
