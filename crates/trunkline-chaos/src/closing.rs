//! What comes after the faults: everything drains, everybody does more, and what is left is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};
use trunkline::consumer::ConsumerStatus;
use trunkline::dead_letter::{Id, Page, Selection};
use trunkline::{Bus, Filter, Item, Start};

use crate::client::{AFTER_COMMAND, AFTER_EVENTS, STOP_COMMAND, is_passing, patient};
use crate::crew::Crew;
use crate::event;
use crate::record::{
    Consumer, DEAD, Dead, EFFECTS, Effect, How, Lines, PUBLISHED, Publishing, Role, STORED, Stored,
    Told, What, Who,
};
use crate::runner::tell;
use crate::script::{AFTER, Script};

/// How long everybody may take to be ready, and publishers to learn what became of their last events.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long nothing at all may happen while something is left to be done.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one question to the bus may take, faults being over.
const ASKED_WITHIN: Duration = Duration::from_secs(60);
/// How often everybody does more until each worker was among those who handled it.
const ROUNDS: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The new lines of a file that others append to.
#[derive(Debug, Default)]
struct Reader {
    at: u64,
    rest: Vec<u8>,
}

impl Reader {
    fn read<T: serde::de::DeserializeOwned>(&mut self, path: &Path) -> Result<Vec<T>, String> {
        let words = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.map_err(words)?,
        };
        file.seek(SeekFrom::Start(self.at)).map_err(words)?;
        let read = file.read_to_end(&mut self.rest).map_err(words)?;
        self.at += read as u64;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let whole: Vec<u8> = self.rest.drain(..whole.map_or(0, |at| at + 1)).collect();
        let lines = whole.split(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                serde_json::from_slice(line).map_err(|error| format!("{}: {error}", path.display()))
            })
            .collect()
    }
}

/// What the files say so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    effects: Reader,
    published: Reader,
    running: BTreeMap<(Who, u64), String>,
    done: BTreeSet<String>,
    failed: usize,
    acknowledged: usize,
    ready: BTreeSet<Who>,
    stopped: BTreeSet<Who>,
    /// How often each said that it did more, and what each worker handled of it.
    after: BTreeMap<Who, u32>,
    handled_after: BTreeMap<Who, u32>,
}

impl Progress {
    /// Reads on; says whether there was anything.
    pub(crate) fn read(&mut self, dir: &Path) -> Result<bool, String> {
        let effects: Vec<Effect> = self.effects.read(&dir.join(EFFECTS))?;
        let published: Vec<Told> = self.published.read(&dir.join(PUBLISHED))?;
        let is_new = !effects.is_empty() || !published.is_empty();
        for Effect { who, what, .. } in effects {
            match what {
                What::Ready { .. } => {
                    self.ready.insert(who);
                }
                What::Start(start) => {
                    self.running.insert((who, start.run), start.id);
                }
                What::End { run, how } => {
                    let Some(id) = self.running.remove(&(who, run)) else {
                        continue;
                    };
                    if how != How::Ok {
                        self.failed += 1;
                        continue;
                    }
                    if id.contains(AFTER) {
                        *self.handled_after.entry(who).or_default() += 1;
                    }
                    self.done.insert(id);
                }
                What::Stall { .. }
                | What::Gone { .. }
                | What::Refused { .. }
                | What::Left { .. } => {}
            }
        }
        for Told { who, what, .. } in published {
            match what {
                Publishing::Ack { .. } => self.acknowledged += 1,
                Publishing::Stopped => {
                    self.stopped.insert(who);
                }
                Publishing::After { .. } => *self.after.entry(who).or_default() += 1,
                Publishing::Ask { .. } | Publishing::Refused { .. } | Publishing::Serves => {}
            }
        }
        Ok(is_new)
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged, {} handled, {} runs failed",
            self.acknowledged,
            self.done.len(),
            self.failed
        )
    }
}

/// Waits until so many workers consume.
///
/// # Errors
/// In words, when they do not in time.
pub(crate) async fn until_ready(dir: &Path, workers: u32) -> Result<(), String> {
    let mut progress = Progress::default();
    let end = Instant::now() + READY_WITHIN;
    while progress.ready.len() < workers as usize {
        if Instant::now() > end {
            let ready = progress.ready.len();
            return Err(format!(
                "only {ready} of {workers} workers are ready; their logs say why"
            ));
        }
        sleep(LOOK_EVERY).await;
        progress.read(dir)?;
    }
    Ok(())
}

/// Lets everything drain, has everybody do more, ends everybody, and writes down what the bus has.
/// What does not come about is returned in words.
pub(crate) async fn close(
    dir: &Path,
    seed: u64,
    url: &str,
    crew: &mut Crew,
    lines: &Lines,
) -> Vec<String> {
    let mut closing = Closing {
        dir,
        seed,
        lines,
        progress: Progress::default(),
        faults: Vec::new(),
    };
    let outcome = closing.close(url, crew).await;
    closing.faults.extend(outcome.err());
    closing.faults
}

struct Closing<'a> {
    dir: &'a Path,
    seed: u64,
    /// The file of faults.
    lines: &'a Lines,
    progress: Progress,
    faults: Vec<String>,
}

impl Closing<'_> {
    async fn close(&mut self, url: &str, crew: &mut Crew) -> Result<(), String> {
        let bus = asking("connecting", || {
            let connecting = Bus::connect(url).source("/chaos/runner").link(patient());
            async move { connecting.await }
        })
        .await?;
        crew.tell(Role::Publisher, STOP_COMMAND);
        let publishers = crew.all(Role::Publisher);
        self.until("publishers know what became of their events", |progress| {
            publishers.iter().all(|who| progress.stopped.contains(who))
        })
        .await?;
        tell("everything is published");
        let settled = self.settle(&bus, crew).await;
        self.faults.extend(settled.err());
        let stored = asking("reading what is stored", || stored(&bus)).await?;
        let dead = asking("listing dead letters", || dead(&bus)).await?;
        if self.faults.is_empty() {
            self.at_rest(&bus, &stored).await?;
        }
        for role in [Role::Worker, Role::Publisher] {
            self.faults.extend(block_in_place(|| crew.end(role)));
        }
        let words = |error: std::io::Error| error.to_string();
        let lines = Lines::open(&self.dir.join(STORED)).map_err(words)?;
        stored.iter().for_each(|stored| lines.write(stored));
        let lines = Lines::open(&self.dir.join(DEAD)).map_err(words)?;
        dead.iter().for_each(|dead| lines.write(dead));
        let _ = timeout(ASKED_WITHIN, bus.close()).await;
        Ok(())
    }

    /// Everything drains, and everything that comes then does.
    async fn settle(&mut self, bus: &Bus, crew: &mut Crew) -> Result<(), String> {
        self.drain(bus, crew).await?;
        tell("everything is drained; everybody does more");
        self.more(crew).await?;
        self.drain(bus, crew).await
    }

    /// Fills the places of those that end by themselves, as an orchestrator would; the checker asks why.
    fn replace_dead(&mut self, crew: &mut Crew) -> Result<(), String> {
        for died in crew.died() {
            self.lines.write(&died);
            if let Some(Who { role, slot, .. }) = died.who {
                crew.start(role, slot)?;
            }
        }
        Ok(())
    }

    /// Waits until the files say so.
    async fn until(&mut self, what: &str, so: impl Fn(&Progress) -> bool) -> Result<(), String> {
        let mut last = Instant::now();
        loop {
            if self.progress.read(self.dir)? {
                last = Instant::now();
            }
            if so(&self.progress) {
                return Ok(());
            }
            if last.elapsed() > PATIENCE {
                return Err(format!(
                    "nothing happened for {PATIENCE:?} before this was so: {what}"
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every stored event is handled, or dead where its script says so.
    async fn drain(&mut self, bus: &Bus, crew: &mut Crew) -> Result<(), String> {
        let stored = asking("reading what is stored", || stored(bus)).await?;
        let seed = self.seed;
        let (mut last, mut dead_before) = (Instant::now(), 0);
        loop {
            self.replace_dead(crew)?;
            if self.progress.read(self.dir)? {
                last = Instant::now();
            }
            let dead = asking("listing dead letters", || dead(bus)).await?;
            if dead.len() != dead_before {
                (last, dead_before) = (Instant::now(), dead.len());
            }
            let is_dead: BTreeSet<u64> = dead.iter().map(|dead| dead.seq).collect();
            let is_left = |stored: &&Stored| {
                let dies = event::parts(&stored.id)
                    .is_some_and(|(lane, n)| Script::of(seed, lane, n).dies());
                let done = self.progress.done.contains(&stored.id);
                !is_dead.contains(&stored.seq) && (dies || !done)
            };
            let left: Vec<&Stored> = stored.iter().filter(is_left).collect();
            let Some(first) = left.first() else {
                return Ok(());
            };
            if last.elapsed() > PATIENCE {
                return Err(format!(
                    "{} events are neither handled nor dead and nothing happened for {PATIENCE:?}; \
                     the first is {} at {}",
                    left.len(),
                    first.id,
                    first.seq
                ));
            }
            sleep(LOOK_EVERY * 2).await;
        }
    }

    /// Everybody publishes more, again and again until each worker has handled enough of it.
    async fn more(&mut self, crew: &mut Crew) -> Result<(), String> {
        for round in 1..=ROUNDS {
            for role in [Role::Publisher, Role::Worker] {
                crew.tell(role, AFTER_COMMAND);
            }
            let mut everybody = crew.all(Role::Publisher);
            let workers = crew.all(Role::Worker);
            everybody.extend(&workers);
            let what = "every client published more when all was well again";
            self.until(what, |progress| {
                let published = |who| progress.after.get(who).copied().unwrap_or(0);
                everybody.iter().all(|who| published(who) >= round)
            })
            .await?;
            sleep(LOOK_EVERY * 5).await;
            self.progress.read(self.dir)?;
            let handled = |who: &Who| self.progress.handled_after.get(who).copied();
            let has_enough = |who: &Who| handled(who).unwrap_or(0) >= AFTER_EVENTS;
            if workers.iter().all(has_enough) {
                return Ok(());
            }
        }
        let handled = &self.progress.handled_after;
        Err(format!(
            "not every worker handled {AFTER_EVENTS} events when all was well again: {handled:?}"
        ))
    }

    /// Waits until the ordered consumer itself says that nothing is before it, and compares its count.
    async fn at_rest(&mut self, bus: &Bus, stored: &[Stored]) -> Result<(), String> {
        let matched = stored
            .iter()
            .filter(|stored| event::consumer_of(&stored.id) == Consumer::Ordered)
            .count() as u64;
        let began = Instant::now();
        loop {
            let all = asking("asking consumers", || bus.consumer_status()).await?;
            let ordered = all
                .into_iter()
                .find(|one| one.name.as_str() == Consumer::Ordered.name());
            let Some(status) = ordered else {
                return Err("the ordered consumer is not listed".to_owned());
            };
            let ConsumerStatus {
                pending_at_most,
                waiting,
                running,
                handled,
                dead,
                ..
            } = status;
            if (pending_at_most, waiting, running) == (0, 0, 0) && handled + dead == matched {
                return Ok(());
            }
            if began.elapsed() > PATIENCE / 2 {
                self.faults.push(format!(
                    "B1: at rest the ordered consumer counts {handled} handled and {dead} dead of {matched}, \
                     {pending_at_most} pending at most, {waiting} waiting, {running} running"
                ));
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Asks until there is an answer.
async fn asking<T, F: Future<Output = trunkline::Result<T>>>(
    what: &str,
    ask: impl Fn() -> F,
) -> Result<T, String> {
    let end = Instant::now() + ASKED_WITHIN;
    loop {
        match timeout(ASKED_WITHIN, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if is_passing(&error) && Instant::now() < end => {
                sleep(LOOK_EVERY).await;
            }
            Ok(Err(error)) => return Err(format!("{what}: {error}")),
            Err(_) => return Err(format!("{what}: no answer within {ASKED_WITHIN:?}")),
        }
    }
}

async fn stored(bus: &Bus) -> trunkline::Result<Vec<Stored>> {
    let filter = Filter::new("chaos.>")?;
    let mut history = bus.history(&[filter], Start::First).await?;
    let mut stored = Vec::new();
    while let Some(page) = history.next_page().await? {
        for item in page {
            if let Item::Event(incoming) = item {
                stored.push(Stored {
                    seq: incoming.stored.as_ref().map_or(0, |stored| stored.seq),
                    id: incoming.envelope.id().to_string(),
                });
            }
        }
    }
    Ok(stored)
}

async fn dead(bus: &Bus) -> trunkline::Result<Vec<Dead>> {
    let (mut dead, mut after) = (Vec::new(), None);
    loop {
        let page = Page {
            limit: 500,
            oldest_first: true,
            after,
        };
        let list = bus.dead_letters().list(&Selection::new(), &page).await?;
        for letter in &list.letters {
            let (consumer, seq) = match &letter.id {
                Id::Event { consumer, seq, .. } => (consumer.to_string(), *seq),
                Id::Entry(seq) => ("nobody".to_owned(), *seq),
                other => (other.to_string(), 0),
            };
            let reason = match &letter.record {
                Ok(record) => record.reason.to_string(),
                Err(error) => format!("unreadable: {error}"),
            };
            dead.push(Dead {
                consumer,
                seq,
                reason,
            });
        }
        match list.next {
            Some(next) => after = Some(next),
            None => return Ok(dead),
        }
    }
}
