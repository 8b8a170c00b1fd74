//! Files that are wrong, each in one way, and the violation that each must show.

use super::*;
use crate::record::{Role, Start};
use crate::script::{ATTEMPTS, Ending, Script};

const SEED: u64 = 7;
const SECOND: u64 = 1_000_000;

fn worker(slot: u32) -> Who {
    Who {
        role: Role::Worker,
        slot,
        life: 1,
    }
}

/// The first event of this lane whose script ends so, from that number on.
fn number(lane: &str, ending: Ending) -> u32 {
    (0..100_000)
        .find(|n| Script::of(SEED, lane, *n).ending == ending)
        .unwrap()
}

/// Files of a run, written event by event.
struct Book {
    evidence: Evidence,
    /// The time of the next line.
    at: u64,
    run: u64,
}

impl Book {
    fn new() -> Self {
        let evidence = Evidence {
            seed: SEED,
            on: On::File,
            effects: Vec::new(),
            published: Vec::new(),
            faults: Vec::new(),
            stored: Vec::new(),
            dead: Vec::new(),
            closing: Closing::default(),
        };
        Self {
            evidence,
            at: 1_000 * SECOND,
            run: 0,
        }
    }

    /// Publishes the events of a lane up to `count` and has them acknowledged; sequences go on.
    fn publish(mut self, lane: &str, count: u32) -> Self {
        for n in 0..count {
            let id = event::id(lane, n);
            let seq = self.evidence.stored.len() as u64 + 1;
            self.evidence.stored.push(Stored {
                seq,
                id: id.clone(),
            });
            self.tell(Publishing::Ask { id: id.clone() });
            self.tell(Publishing::Ack { id, seq });
        }
        self
    }

    fn tell(&mut self, what: Publishing) {
        let who = Who {
            role: Role::Publisher,
            slot: 0,
            life: 1,
        };
        let at = self.at;
        self.evidence.published.push(Told { at, who, what });
    }

    fn write(&mut self, slot: u32, what: What) {
        self.at += 1_000;
        let (at, who) = (self.at, worker(slot));
        self.evidence.effects.push(Effect { at, who, what });
    }

    fn after(mut self, seconds: u64) -> Self {
        self.at += seconds * SECOND;
        self
    }

    /// A run begins; its number is for `ends`.
    fn begins(&mut self, slot: u32, lane: &str, n: u32, epoch: u64, attempt: u32) -> u64 {
        self.run += 1;
        let run = self.run;
        let id = event::id(lane, n);
        let stored = self.evidence.stored.iter().find(|stored| stored.id == id);
        let consumer = event::consumer_of(lane);
        self.write(
            slot,
            What::Start(Start {
                run,
                consumer,
                seq: stored.map_or(0, |stored| stored.seq),
                id,
                epoch: (consumer == Consumer::Ordered).then_some((0, epoch)),
                attempt,
            }),
        );
        run
    }

    fn ends(&mut self, slot: u32, run: u64, how: How) {
        self.write(slot, What::End { run, how });
    }

    /// All runs that the script of an event asks for, by one worker under one epoch.
    fn handle(mut self, slot: u32, lane: &str, numbers: std::ops::Range<u32>, epoch: u64) -> Self {
        for n in numbers {
            let script = Script::of(SEED, lane, n);
            for attempt in 1..=ATTEMPTS {
                let run = self.begins(slot, lane, n, epoch, attempt);
                let how = match script.ending {
                    _ if script.works(attempt) => How::Ok,
                    Ending::Permanent => How::Permanent,
                    _ => How::Failed,
                };
                self.ends(slot, run, how);
                if script.works(attempt) {
                    break;
                }
                if script.gives_up_at(attempt) {
                    self.bury(lane, n, "failed");
                    break;
                }
            }
        }
        self
    }

    fn bury(&mut self, lane: &str, n: u32, reason: &str) {
        let id = event::id(lane, n);
        let stored = self.evidence.stored.iter().find(|stored| stored.id == id);
        self.evidence.dead.push(Dead {
            consumer: event::consumer_of(lane).name().to_owned(),
            seq: stored.map_or(0, |stored| stored.seq),
            reason: reason.to_owned(),
        });
    }

    /// Something happens now, to one worker or to everybody.
    fn fault(mut self, kind: Kind, slot: Option<u32>, seconds: u64) -> Self {
        self.at += 1_000;
        let from = self.at;
        self.at += seconds * SECOND;
        self.evidence.faults.push(Done {
            kind,
            who: slot.map(worker),
            from,
            to: self.at,
        });
        self
    }

    /// Exactly these properties are violated.
    #[track_caller]
    fn shows(self, expected: &[&str]) -> Verdict {
        let verdict = judge(&self.evidence);
        let found: BTreeSet<&str> = verdict
            .violations
            .iter()
            .map(|violation| violation.property)
            .collect();
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        assert_eq!(found, expected, "{:#?}", verdict.violations);
        verdict
    }
}

const KEY: &str = "k.p0.0";
const NO_KEY: &str = "u.p0.0";

/// One key with 40 events and as many without a key, all done as they should be.
fn good() -> Book {
    Book::new()
        .publish(KEY, 40)
        .publish(NO_KEY, 40)
        .handle(0, KEY, 0..40, 5)
        .handle(1, NO_KEY, 0..40, 0)
}

#[test]
fn a_run_as_it_should_be_shows_nothing() {
    let verdict = good().shows(&[]);
    assert_eq!((verdict.acknowledged, verdict.stored), (80, 80));
    assert!(verdict.repeats.is_empty() && verdict.overlaps == 0);
    // All endings are among them, or else the others would prove less.
    let long = Book::new().publish(KEY, 600).handle(0, KEY, 0..600, 5);
    assert!(!long.evidence.dead.is_empty());
    long.shows(&[]);
}

#[test]
fn p4_what_was_acknowledged_is_stored_once_and_in_order() {
    let mut book = good();
    book.evidence.stored.remove(3);
    book.shows(&["P4 acknowledged is stored", "P4 handled is stored"]);

    let mut book = good();
    let mut twice = book.evidence.stored[3].clone();
    twice.seq = 1_000;
    book.evidence.stored.push(twice);
    // The later one was handled by nobody, which the ids alone would not show.
    let verdict = judge(&book.evidence);
    let has = |property| {
        verdict
            .violations
            .iter()
            .any(|one| one.property == property)
    };
    assert!(has("P4 stored once") && has("P3 stored in order"));

    let mut book = good();
    book.evidence.published.retain(|told| match &told.what {
        Publishing::Ask { id } | Publishing::Ack { id, .. } => id != "k.p0.0-3",
        _ => true,
    });
    book.shows(&["P4 stored is published"]);

    let mut book = good();
    book.tell(Publishing::Refused {
        id: "k.p0.0-99".to_owned(),
        why: "no".to_owned(),
    });
    book.shows(&["P4 published"]);
}

#[test]
fn p3_a_lane_that_is_stored_in_another_order_is_found() {
    let mut book = Book::new().publish(KEY, 3).handle(0, KEY, 0..3, 5);
    book.evidence.stored.swap(1, 2);
    book.shows(&["P3 stored in order"]);
}

#[test]
fn c1_an_event_that_nobody_handled_is_found() {
    let missing = Book::new().publish(NO_KEY, 3).handle(0, NO_KEY, 0..2, 0);
    missing.shows(&["C1, D1 each event ends as it should"]);
    // Begun is not done.
    let mut book = Book::new().publish(NO_KEY, 1);
    book.begins(0, NO_KEY, 0, 0, 1);
    book.shows(&["C1, D1 each event ends as it should"]);
}

#[test]
fn d1_dead_letters_are_those_that_scripts_ask_for() {
    let lane = "u.p0.1";
    let dies = number(lane, Ending::Permanent);
    let all = || Book::new().publish(lane, dies + 1);
    let done = || all().handle(0, lane, 0..dies + 1, 0);
    done().shows(&[]);

    let mut book = done();
    book.evidence.dead.clear();
    book.shows(&["C1, D1 each event ends as it should"]);

    let mut book = done();
    let again = book.evidence.dead[0].clone();
    book.evidence.dead.push(again);
    book.shows(&["C1, D1 each event ends as it should"]);

    for reason in ["crash_loop", "timed_out"] {
        let mut book = done();
        book.evidence.dead.clear();
        book.bury(lane, dies, reason);
        book.shows(&["C1, D1 each event ends as it should"]);
    }

    let mut book = good();
    book.bury(NO_KEY, number(NO_KEY, Ending::Works), "failed");
    book.shows(&["C1, D1 each event ends as it should"]);

    let mut book = good();
    book.bury(NO_KEY, 70_000, "failed");
    book.shows(&["P4 dead is stored"]);
}

#[test]
fn c4_c5_attempts_are_counted_by_all_together() {
    let lane = "k.p0.2";
    let never = number(lane, Ending::NeverWorks);
    let begun = || {
        Book::new()
            .publish(lane, never + 1)
            .handle(0, lane, 0..never, 5)
    };
    begun().handle(0, lane, never..never + 1, 5).shows(&[]);

    // Given up before its last attempt.
    let mut book = begun();
    let run = book.begins(0, lane, never, 5, 1);
    book.ends(0, run, How::Failed);
    book.bury(lane, never, "failed");
    book.shows(&["C5 dead at its last attempt"]);

    // One attempt more than there are, under one owner.
    let mut book = begun();
    for attempt in [1, 2, 2, 3, 4] {
        let run = book.begins(0, lane, never, 5, attempt);
        book.ends(0, run, How::Failed);
    }
    book.bury(lane, never, "failed");
    book.shows(&["C4 attempts"]);

    let mut book = begun();
    for attempt in 1..=ATTEMPTS + 1 {
        let run = book.begins(0, lane, never, 5, attempt);
        book.ends(0, run, How::Failed);
    }
    book.bury(lane, never, "failed");
    book.shows(&["C4 attempts"]);

    // A failure that its owner could not note before it was killed counts for nobody.
    let mut book = begun();
    let run = book.begins(0, lane, never, 5, 1);
    book.ends(0, run, How::Failed);
    book.fault(Kind::Kill, Some(0), 0)
        .after(4)
        .handle(1, lane, never..never + 1, 9)
        .shows(&[]);
}

#[test]
fn c10_overtaking_is_found() {
    let mut book = Book::new().publish(KEY, 3).handle(0, KEY, 0..1, 5);
    let first = book.begins(0, KEY, 1, 5, 1);
    book = book.fault(Kind::Kill, Some(0), 0).after(4);
    // The run of 1 had no end, and 2 comes all the same.
    let _ = first;
    book.handle(1, KEY, 2..3, 9)
        .handle(1, KEY, 1..2, 9)
        .shows(&["C10 no overtaking", "C10 key order"]);
}

#[test]
fn c10_two_of_a_key_at_once_are_found() {
    let mut book = Book::new().publish(KEY, 2);
    let first = book.begins(0, KEY, 0, 5, 1);
    let second = book.begins(0, KEY, 1, 5, 1);
    book.ends(0, first, How::Ok);
    book.ends(0, second, How::Ok);
    book.shows(&["C10 one of a key at a time", "C10 no overtaking"]);
}

#[test]
fn c10_an_epoch_has_one_owner_and_the_ordered_consumer_has_epochs() {
    let mut book = Book::new().publish(KEY, 1);
    let first = book.begins(0, KEY, 0, 5, 1);
    let second = book.begins(1, KEY, 0, 5, 1);
    book.ends(0, first, How::Ok);
    book.ends(1, second, How::Ok);
    book.shows(&["C10 an epoch has one owner"]);

    let mut book = Book::new().publish(KEY, 1);
    let run = book.begins(0, KEY, 0, 5, 1);
    book.ends(0, run, How::Ok);
    if let What::Start(start) = &mut book.evidence.effects[0].what {
        start.epoch = None;
    }
    book.shows(&["C10 ownership"]);
}

/// A former owner's run beside that of the new one.
fn zombie() -> (Book, u64) {
    let mut book = Book::new().publish(KEY, 2);
    let old = book.begins(0, KEY, 0, 5, 1);
    (book, old)
}

#[test]
fn c10_a_zombie_overlaps_only_with_a_reason_and_is_fenced() {
    let (book, old) = zombie();
    let mut book = book.after(4).handle(1, KEY, 0..2, 9);
    book.ends(0, old, How::Ok);
    book.shows(&["C10 one owner at a time"]);

    let (book, old) = zombie();
    let mut book = book.fault(Kind::Stop, Some(0), 5).handle(1, KEY, 0..2, 9);
    // Late, and of a former owner: to a store that fences it is nothing.
    book.ends(0, old, How::Ok);
    let verdict = book.shows(&[]);
    assert_eq!(verdict.overlaps, 1);

    // It begins something when another has the key already.
    let book = Book::new()
        .publish(KEY, 2)
        .handle(1, KEY, 0..2, 9)
        .after(20)
        .handle(0, KEY, 1..2, 5);
    book.shows(&["C10 a former owner begins nothing", "C2 progress survives"]);

    // It was stopped between its look at the lease and the start of the handler, or long before that.
    let late = |seconds| {
        Book::new()
            .publish(KEY, 2)
            .handle(1, KEY, 0..2, 9)
            .fault(Kind::Stop, Some(0), 5)
            .after(seconds)
            .handle(0, KEY, 1..2, 5)
    };
    late(0).shows(&[]);
    late(3).shows(&["C10 a former owner begins nothing"]);
}

#[test]
fn c2_repeats_need_a_reason_that_is_near() {
    let done = || good().fault(Kind::Term, Some(0), 0);
    // A clean stop is none.
    done()
        .after(1)
        .handle(1, KEY, 39..40, 9)
        .shows(&["C2 progress survives"]);

    let verdict = good()
        .fault(Kind::Kill, Some(0), 0)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&[]);
    assert_eq!(verdict.repeats["ordered: kill"], 1);

    // It was committed long before the kill.
    good()
        .after(10)
        .fault(Kind::Kill, Some(0), 0)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&["C2 progress survives"]);

    // The kill of another explains nothing.
    good()
        .fault(Kind::Kill, Some(2), 0)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&["C2 progress survives"]);

    // Connections that go through proxies are those of every second worker.
    good()
        .fault(Kind::Cut, None, 0)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&["C2 progress survives"]);
    let verdict = good()
        .fault(Kind::Cut, None, 0)
        .after(4)
        .handle(0, NO_KEY, 39..40, 0)
        .shows(&[]);
    assert_eq!(verdict.repeats["shared: connection"], 1);

    let verdict = good()
        .fault(Kind::ServerKill, None, 1)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&[]);
    assert_eq!(verdict.repeats["ordered: server"], 1);

    // But that of whoever has the directory takes the bus away from everybody.
    let mut book = good();
    let (at, who, what) = (book.at, worker(2), Publishing::Serves);
    book.evidence.published.push(Told { at, who, what });
    let verdict = book
        .fault(Kind::Kill, Some(2), 0)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&[]);
    assert_eq!(verdict.repeats["ordered: server"], 1);
}

#[test]
fn c2_a_lone_server_may_forget_acknowledgements_of_shared_consumers_only() {
    let book = |on| {
        let mut book = good();
        book.evidence.on = on;
        book.after(60).fault(Kind::ServerKill, None, 1).after(5)
    };
    book(On::Nats).handle(0, NO_KEY, 39..40, 0).shows(&[]);
    book(On::File)
        .handle(0, NO_KEY, 39..40, 0)
        .shows(&["C2 progress survives"]);
    book(On::Nats)
        .handle(0, KEY, 39..40, 9)
        .shows(&["C2 progress survives"]);
}

#[test]
fn c10_what_is_done_again_is_done_again_in_order() {
    // 38 and 39 were done and not committed; only 38 came again.
    good()
        .fault(Kind::Kill, Some(0), 0)
        .after(4)
        .handle(1, KEY, 38..39, 9)
        .shows(&["C10 key order"]);
    good()
        .fault(Kind::Kill, Some(0), 0)
        .after(4)
        .handle(1, KEY, 38..40, 9)
        .shows(&[]);
}

#[test]
fn c1_two_members_at_one_event_of_a_shared_consumer_are_found() {
    let twice = |book: Book| {
        let mut book = book.publish(NO_KEY, 1);
        let first = book.begins(0, NO_KEY, 0, 0, 1);
        let second = book.begins(1, NO_KEY, 0, 0, 1);
        book.ends(0, first, How::Ok);
        book.ends(1, second, How::Ok);
        book
    };
    twice(Book::new()).shows(&["C1 each event to one member"]);
    let verdict = twice(Book::new().fault(Kind::Stop, Some(0), 6)).shows(&[]);
    assert_eq!(verdict.overlaps, 1);
}

#[test]
fn a_process_that_ends_by_itself_or_badly_is_found() {
    let with = |what: What| {
        let mut book = good();
        book.write(0, what);
        book
    };
    with(What::Gone {
        consumer: Consumer::Ordered,
        why: "deleted".to_owned(),
    })
    .shows(&["C13 a member lives as long as its bus"]);
    with(What::Refused {
        why: "no".to_owned(),
    })
    .shows(&["F1 a worker can join at any time"]);
    let left = || What::Left {
        why: Some("handlers were still running".to_owned()),
    };
    with(left()).shows(&["C9 stopping"]);
    let mut disturbed = good().fault(Kind::ServerStop, None, 5);
    disturbed.write(0, left());
    disturbed.shows(&[]);
    good()
        .fault(Kind::Died, Some(0), 0)
        .shows(&["F1 processes live until they are ended"]);
}

#[test]
fn f1_what_did_not_come_about_at_the_end_is_told() {
    let mut book = good();
    book.evidence.closing.faults.push("it hangs".to_owned());
    book.shows(&["F1 all is well again"]);
}

#[test]
fn p1_an_event_that_is_another_is_found() {
    let mut book = good();
    if let What::Start(start) = &mut book.evidence.effects[0].what {
        start.seq += 1;
    }
    book.shows(&["P1 an event is what it was"]);

    let mut book = good();
    if let What::Start(start) = &mut book.evidence.effects[0].what {
        start.consumer = Consumer::Shared;
    }
    let verdict = judge(&book.evidence);
    let mut found = verdict.violations.iter();
    assert!(found.any(|one| one.property == "C1 a consumer gets its own events"));
}

#[test]
fn the_time_to_the_next_owner_is_measured_from_the_kill_or_from_the_work() {
    let verdict = good()
        .fault(Kind::Kill, Some(0), 0)
        .after(4)
        .handle(1, KEY, 39..40, 9)
        .shows(&[]);
    assert_eq!(verdict.take_overs.observed, 1);
    let ms = verdict.take_overs.longest_ms.unwrap();
    assert!((4_000..4_100).contains(&ms), "{ms}");
    assert_eq!(verdict.take_overs.longest_alone_ms, Some(ms));
}
