//! Publishing lines as they come: one batch is under way while the next one is read. A second one
//! under way could overtake the first where streams differ, and order is worth more here.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use trunkline::{Bus, Error, ErrorKind, Link, Published, RawEvent, Result};

use super::outcome::{Outcome, Report, never_arrived};
use super::told::Told;
use super::{Pub, of_line};
use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{grouped, rate};
use crate::interrupt::Interrupt;
use crate::lines::{Block, Line};
use crate::link::LinkNews;

/// Bytes of lines that wait for their turn; beyond it reading stops until a batch is done.
const MAX_WAITING_BYTES: usize = 4 << 20;

pub(super) async fn run(
    bus: &Bus,
    options: &Pub,
    mut input: mpsc::Receiver<Block>,
    console: &mut Console,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    let mut work = Work::new(bus, options);
    let mut link = LinkNews::of(bus);
    let mut end: Option<End> = None;
    loop {
        let goes_on = end.as_ref().is_none_or(End::lets_waiting_go);
        if goes_on && work.under_way.is_none() {
            work.start(bus);
        }
        if end.is_some() && work.under_way.is_none() {
            break;
        }
        let reads = end.is_none() && work.has_room();
        tokio::select! {
            biased;
            () = interrupt.asked(), if goes_on => end = Some(End::Interrupted),
            answer = answered(&mut work.under_way), if work.under_way.is_some() => {
                let gone = work.tell(console, answer?)?;
                if gone || *bus.link().borrow() == Link::Closed {
                    end = Some(End::BusGone);
                }
            }
            news = link.next() => console.note(news),
            block = input.recv(), if reads => match block {
                Some(Ok(lines)) => work.read(options, lines, bus.source()),
                Some(Err(error)) => end = Some(End::InputFailed(error)),
                None => end = Some(End::Input),
            },
        }
    }
    work.finish(console, end.unwrap_or(End::Input))
}

/// Why no more is read.
enum End {
    Input,
    InputFailed(io::Error),
    Interrupted,
    BusGone,
}

impl End {
    /// Whether what was read is still published.
    fn lets_waiting_go(&self) -> bool {
        matches!(self, Self::Input | Self::InputFailed(_))
    }
}

/// A line that was read: its event, or why it is none.
struct Waiting {
    number: u64,
    bytes: usize,
    event: Result<RawEvent>,
}

/// A batch that the bus has.
struct Batch {
    /// The lines in it, and why they are no events.
    lines: Vec<(u64, Option<Error>)>,
    publishing: JoinHandle<Vec<Published>>,
}

type Answer = (Vec<(u64, Option<Error>)>, Vec<Published>);

struct Work {
    began: Instant,
    max_batch: usize,
    max_line: usize,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    under_way: Option<Batch>,
    report: Report,
    told: Told,
    /// The first line of a batch of which, from there on, nothing reached the bus.
    never_arrived: Option<u64>,
    /// Lines are CloudEvents with ids of their own, and not data that gets a new id each time.
    own_ids: bool,
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    report: Report,
    seconds: f64,
    per_second: u64,
    /// The first line that was read and not tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_before_line: Option<u64>,
}

impl Work {
    fn new(bus: &Bus, options: &Pub) -> Self {
        let limits = bus.engine().limits();
        Self {
            began: Instant::now(),
            max_batch: limits.max_batch.max(1),
            max_line: limits.max_message,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            under_way: None,
            report: Report::default(),
            told: Told::default(),
            never_arrived: None,
            own_ids: options.lines_type.is_none(),
        }
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < self.max_batch && self.waiting_bytes < MAX_WAITING_BYTES
    }

    fn read(&mut self, options: &Pub, lines: Vec<Line>, bus_source: &str) {
        for Line { number, text } in lines {
            let bytes = text.as_ref().map_or(0, bytes::Bytes::len);
            let event = match text {
                Some(line) => of_line(options, &line, bus_source).map(RawEvent::from),
                None => Err(Error::new(
                    ErrorKind::TooLarge,
                    format!("the line is far above the limit of {} bytes", self.max_line),
                )),
            };
            self.waiting_bytes += bytes;
            self.waiting.push_back(Waiting {
                number,
                bytes,
                event,
            });
        }
    }

    /// Hands over what waits, as much as is one batch.
    fn start(&mut self, bus: &Bus) {
        if self.waiting.is_empty() {
            return;
        }
        let count = self.waiting.len().min(self.max_batch);
        let mut lines = Vec::with_capacity(count);
        let mut events = Vec::with_capacity(count);
        for waiting in self.waiting.drain(..count) {
            self.waiting_bytes -= waiting.bytes;
            match waiting.event {
                Ok(event) => {
                    lines.push((waiting.number, None));
                    events.push(event);
                }
                Err(error) => lines.push((waiting.number, Some(error))),
            }
        }
        let bus = bus.clone();
        let publishing = tokio::spawn(async move { bus.publish_raw(events).await });
        self.under_way = Some(Batch { lines, publishing });
    }

    /// Tells what became of a batch, and whether the bus seems to be gone: of nothing that it was
    /// given the outcome is known, or the last of it never arrived there.
    fn tell(&mut self, console: &mut Console, (lines, published): Answer) -> Result<bool> {
        let tried = published.len() as u64;
        let unknown_before = self.report.unknown();
        let mut published = published.into_iter();
        let mut outcomes: Vec<(u64, bool, Published)> = Vec::with_capacity(lines.len());
        for (number, refused) in lines {
            let was_given = refused.is_none();
            let outcome = match refused {
                Some(error) => Published::Refused(error),
                None => published.next().unwrap_or_else(unanswered),
            };
            outcomes.push((number, was_given, outcome));
        }
        let arrived = |(_, was_given, outcome): &(u64, bool, Published)| {
            *was_given && !never_arrived(outcome)
        };
        let after = outcomes
            .iter()
            .rposition(arrived)
            .map_or(0, |last| last + 1);
        let first_lost = outcomes[after..]
            .iter()
            .position(|(_, was_given, _)| *was_given);
        if let Some(first) = first_lost {
            // Not tried, as what waits behind it.
            self.never_arrived = Some(outcomes[after + first].0);
            outcomes.truncate(after + first);
        }
        for (number, _, outcome) in outcomes {
            self.report.count(&outcome);
            if !matches!(outcome, Published::Stored(_) | Published::Sent(_)) {
                self.tell_one(console, number, &outcome)?;
            }
        }
        console.out.flush()?;
        let (report, began) = (&self.report, self.began);
        console.progress(|| {
            format!(
                "{} lines · {}/s",
                grouped(report.all()),
                grouped(rate(report.all(), began.elapsed()))
            )
        });
        let unknown = self.report.unknown() - unknown_before;
        Ok(self.never_arrived.is_some() || (tried > 0 && unknown >= tried))
    }

    fn tell_one(&mut self, console: &mut Console, number: u64, outcome: &Published) -> Result<()> {
        let outcome = Outcome::of(Some(number), outcome);
        if console.json {
            return console.json_line(&outcome);
        }
        self.told.tell(console, number, &outcome);
        Ok(())
    }

    fn finish(self, console: &mut Console, end: End) -> Result<Exit> {
        self.told.finish(console);
        if self.report.unknown() > 0 {
            console.say(if self.own_ids {
                "unknown: perhaps stored; publish them again with the same ids"
            } else {
                "unknown: perhaps stored; look for their ids first, because these lines get new ones when they are published again"
            });
        }
        let waiting = self.waiting.front().map(|waiting| waiting.number);
        let stopped_before_line = self.never_arrived.or(waiting);
        let what = match &end {
            End::Input | End::InputFailed(_) => None,
            End::Interrupted => Some("stopped"),
            End::BusGone => Some("the bus went away"),
        };
        match (what, stopped_before_line) {
            (Some(what), Some(line)) => {
                console.say(format_args!(
                    "{what}; line {line} and what follows was not tried"
                ));
            }
            (Some(what), None) => console.say(what),
            (None, _) => {}
        }
        console.clear_progress();
        let elapsed = self.began.elapsed();
        if console.json {
            console.json_line(&Summary {
                report: self.report,
                seconds: elapsed.as_secs_f64(),
                per_second: rate(self.report.all(), elapsed),
                stopped_before_line,
            })?;
        } else {
            console.out.line(self.report.summary(elapsed))?;
        }
        console.out.flush()?;
        match (self.report.exit(), end) {
            (Exit::Unreachable, _) | (_, End::BusGone) => Ok(Exit::Unreachable),
            (_, End::Interrupted) => Ok(Exit::Interrupted),
            (_, End::InputFailed(error)) => Err(Error::new(
                ErrorKind::InvalidConfig,
                "the input cannot be read to its end",
            )
            .caused_by(error)),
            (exit, End::Input) => Ok(exit),
        }
    }
}

/// What the bus answers to the batch under way. Dropping the future loses nothing.
async fn answered(under_way: &mut Option<Batch>) -> Result<Answer> {
    let Some(batch) = under_way else {
        return std::future::pending().await;
    };
    let published = (&mut batch.publishing).await;
    let lines = std::mem::take(&mut batch.lines);
    *under_way = None;
    let published = published.map_err(|error| {
        Error::new(ErrorKind::Internal, "publishing a batch failed").caused_by(error)
    })?;
    Ok((lines, published))
}

/// The bus answers for each event; were an answer missing, the outcome would be unknown.
fn unanswered() -> Published {
    Published::Unknown(Error::new(ErrorKind::Internal, "the bus gave no outcome"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::sink::tests::Kept;
    use std::io::Read;
    use trunkline::core::engine::Boxed;
    use trunkline::layer::{Outgoing, PublishLayer, PublishNext};
    use trunkline::{Filter, Item, Start};

    struct Done {
        exit: Result<Exit>,
        out: String,
        talk: String,
        stored: Vec<(String, Option<String>)>,
    }

    /// Publishes the text as lines and looks at what is stored then.
    async fn published(arguments: &[&str], json: bool, text: &str) -> Done {
        let bus = Bus::connect("memory:").await.unwrap();
        let options = crate::parsed::<Pub>(arguments);
        let (mut console, out, talk): (_, Kept, Kept) = kept(80);
        console.json = json;
        let input = crate::lines::read(io::Cursor::new(text.to_owned().into_bytes()), 200);
        let exit = run(&bus, &options, input, &mut console, Interrupt::never()).await;
        let mut stored = Vec::new();
        let mut history = bus.history(&[Filter::all()], Start::First).await.unwrap();
        while let Some(page) = history.next_page().await.unwrap() {
            for item in page {
                let Item::Event(event) = item else {
                    panic!("no event")
                };
                let data = event.envelope.data().to_bytes().unwrap();
                stored.push((
                    String::from_utf8(data.to_vec()).unwrap(),
                    event.envelope.key().map(str::to_owned),
                ));
            }
        }
        Done {
            exit,
            out: out.text(),
            talk: talk.text(),
            stored,
        }
    }

    fn event(id: &str, data: &str) -> String {
        format!(
            "{{\"specversion\":\"1.0\",\"id\":\"{id}\",\"source\":\"/s\",\"type\":\"a.b\",\"data\":{data}}}"
        )
    }

    #[tokio::test]
    async fn cloud_events_are_stored_in_order_and_bad_lines_told_by_number() {
        let long = event("x", &format!("\"{}\"", "x".repeat(300)));
        let text = [
            event("1", "1"),
            String::new(),
            event("2", "2") + "\r",
            "{\"half\":".to_owned(),
            long,
            event("1", "1"),
            event("3", "3"), // Without an end of line.
        ]
        .join("\n");
        let done = published(&["-"], false, &text).await;
        assert_eq!(done.exit.unwrap(), Exit::PartlyRefused);
        let data: Vec<_> = done.stored.iter().map(|(data, _)| data.as_str()).collect();
        assert_eq!(data, ["1", "2", "3"]);
        assert!(
            done.out
                .starts_with("stored 4 (1 duplicates) · refused 2 · unknown 0 · ")
        );
        let told: Vec<_> = done.talk.lines().collect();
        assert!(
            told[0].starts_with("line 4: refused: TL-0005: "),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("line 5: refused: TL-0101: "),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn bare_json_takes_its_key_from_a_member() {
        let text = "{\"id\":\"o-1\"}\n{\"id\":2}\n{\"no\":1}\nnonsense\n";
        let arguments = ["-", "--type", "a.b", "--key-field", "id"];
        let done = published(&arguments, true, text).await;
        assert_eq!(done.exit.unwrap(), Exit::PartlyRefused);
        let own = |data: &str, key: &str| (data.to_owned(), Some(key.to_owned()));
        assert_eq!(
            done.stored,
            [own("{\"id\":\"o-1\"}", "o-1"), own("{\"id\":2}", "2")]
        );
        let lines: Vec<serde_json::Value> = done
            .out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let told = |index: usize| (&lines[index]["line"], &lines[index]["status"]);
        assert_eq!(told(0), (&3.into(), &"refused".into()));
        assert_eq!(told(1), (&4.into(), &"refused".into()));
        assert_eq!(
            (&lines[2]["stored"], &lines[2]["refused"]),
            (&2.into(), &2.into())
        );
        assert_eq!(done.talk, "");
    }

    #[tokio::test]
    async fn people_are_told_of_the_first_twenty() {
        let done = published(&["-"], false, &"nonsense\n".repeat(25)).await;
        assert_eq!(done.exit.unwrap(), Exit::Failed);
        assert_eq!(done.talk.lines().count(), 22);
        assert!(done.talk.contains("… and 5 more refused"), "{}", done.talk);
    }

    #[tokio::test]
    async fn more_lines_than_a_batch_holds_keep_their_order() {
        let text: String = (0..5_000).map(|n| format!("{n}\n")).collect();
        let done = published(&["-", "--type", "a.b"], false, &text).await;
        assert_eq!(done.exit.unwrap(), Exit::Done);
        let numbers: Vec<u32> = done
            .stored
            .iter()
            .map(|(data, _)| data.parse().unwrap())
            .collect();
        assert!(numbers.iter().copied().eq(0..5_000));
    }

    #[tokio::test]
    async fn a_partial_batch_goes_out_when_input_pauses() {
        let bus = Bus::connect("memory:").await.unwrap();
        let options = crate::parsed::<Pub>(&["-", "--type", "a.b"]);
        let (sender, input) = mpsc::channel(1);
        let (mut console, out, _) = kept(80);
        let running = run(&bus, &options, input, &mut console, Interrupt::never());
        let line = |number| Line {
            number,
            text: Some(bytes::Bytes::from_static(b"1")),
        };
        let feeding = async {
            let mut events = bus.follow(&Filter::all(), Start::First).await.unwrap();
            for number in 1..=2 {
                sender.send(Ok(vec![line(number)])).await.unwrap();
                // It comes although the input has not ended.
                assert!(matches!(events.recv().await, Some(Item::Event(_))));
            }
            drop(sender);
        };
        let (exit, ()) = tokio::join!(running, feeding);
        assert_eq!(exit.unwrap(), Exit::Done);
        assert!(out.text().starts_with("stored 2 "));
    }

    /// A bus whose answers get lost.
    struct Silent;

    impl PublishLayer for Silent {
        fn publish<'a>(
            &'a self,
            batch: Vec<Outgoing>,
            _: PublishNext<'a>,
        ) -> Boxed<'a, Vec<Published>> {
            let lost = |outgoing: Outgoing| {
                let error = Error::new(ErrorKind::TimedOut, "no answer came");
                Published::Unknown(error.about(outgoing.envelope.id()))
            };
            Box::pin(std::future::ready(batch.into_iter().map(lost).collect()))
        }
    }

    #[tokio::test]
    async fn what_is_perhaps_stored_is_told_with_its_id() {
        let bus = Bus::connect("memory:").publish_layer(Silent).await.unwrap();
        let text = format!("{}\nnonsense\n", event("my-id", "1"));
        let input = crate::lines::read(io::Cursor::new(text.into_bytes()), 200);
        let options = crate::parsed::<Pub>(&["-"]);
        let (mut console, out, talk) = kept(80);
        let exit = run(&bus, &options, input, &mut console, Interrupt::never()).await;
        assert_eq!(exit.unwrap(), Exit::Unreachable);
        let talk = talk.text();
        let lines: Vec<&str> = talk.lines().collect();
        assert_eq!(
            lines[0],
            "line 1: unknown: TL-0203: no answer came (id my-id)"
        );
        assert!(lines[1].starts_with("line 2: refused: TL-0005: "), "{talk}");
        assert_eq!(
            lines[2..],
            [
                "unknown: perhaps stored; publish them again with the same ids",
                "the bus went away"
            ]
        );
        assert!(
            out.text()
                .contains("stored 0 (0 duplicates) · refused 1 · unknown 1 · ")
        );
    }

    #[tokio::test]
    async fn a_bus_that_went_away_and_ctrl_c_end_it_with_a_summary() {
        let options = crate::parsed::<Pub>(&["-", "--type", "a.b"]);
        let endless = || crate::lines::read(io::repeat(b'1').take(10_000), 10);
        let bus = Bus::connect("memory:").await.unwrap();
        let (mut console, out, talk) = kept(80);
        let exit = run(
            &bus,
            &options,
            endless(),
            &mut console,
            Interrupt::asked_already(),
        )
        .await;
        assert_eq!(exit.unwrap(), Exit::Interrupted);
        assert!(out.text().starts_with("stored 0 "));
        assert_eq!(talk.text(), "stopped\n");

        bus.close().await.unwrap();
        let text: String = (0..2_500).map(|n| format!("{n}\n")).collect();
        let input = crate::lines::read(io::Cursor::new(text.into_bytes()), 10);
        let (mut console, _, talk) = kept(80);
        let exit = run(&bus, &options, input, &mut console, Interrupt::never()).await;
        assert_eq!(exit.unwrap(), Exit::Unreachable);
        assert!(talk.text().contains("the bus went away"), "{}", talk.text());
    }
}
