//! What one value cannot tell: settings that contradict each other.

use std::collections::BTreeSet;
use std::time::Duration;

use trunkline_core::engine::{Retention, StreamSpec};

use super::load::{Given, Section, Values};
use super::problem::{Fault, Problem};
use super::units::{duration_text, size_value};
use super::{Config, ConsumerSettings, Loaded, Origin};
use crate::connect::{COMMANDS, DEAD_LETTERS, EVENTS};

/// What a dead letter adds to its event: the story of its failures.
const STORY_BYTES: usize = 32 << 10;

/// Adds what contradicts. Keys in `unread` are left out: their values are not what was written.
pub(super) fn check(
    loaded: &Loaded,
    given: &Given,
    unread: &BTreeSet<String>,
    problems: &mut Vec<Problem>,
) {
    let mut check = Check {
        loaded,
        given,
        unread,
        problems,
    };
    let config = &loaded.config;
    for stream in config.streams.values() {
        check.stream(config, stream);
    }
    check.overlaps(config);
    let built_in = ConsumerSettings::built_in();
    check.retries(
        &Section::Consumers,
        &config.consumers,
        &built_in,
        &given.consumers,
    );
    check.pauses(&Section::Consumers, &config.consumers, &built_in);
    for (name, consumer) in &config.named_consumers {
        if let Some(values) = given.named.get(name) {
            let section = Section::Consumer(name.clone());
            check.retries(&section, consumer, &config.consumers, values);
            check.pauses(&section, consumer, &config.consumers);
        }
    }
}

struct Check<'a> {
    loaded: &'a Loaded,
    given: &'a Given,
    unread: &'a BTreeSet<String>,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn origin(&self, key: &str) -> Origin {
        let setting = self.loaded.values.iter().find(|setting| setting.key == key);
        setting.map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Refuses two settings that do not go together, at the first of them that somebody wrote.
    fn refuse(&mut self, keys: [&str; 2], fault: Fault) {
        if keys.iter().any(|key| self.unread.contains(*key)) {
            return;
        }
        let [first, second] = keys.map(|key| (key, self.origin(key)));
        let (key, place) = if first.1 == Origin::Default {
            second
        } else {
            first
        };
        self.problems.push(Problem::new(&place, key, fault));
    }

    fn stream(&mut self, config: &Config, stream: &StreamSpec) {
        let section = Section::Stream(stream.name.clone());
        let name = stream.name.as_str();
        let subjects = section.key("subjects");
        if stream.subjects.is_empty() && ![EVENTS, COMMANDS, DEAD_LETTERS].contains(&name) {
            let place = self.place_of(&section);
            if !self.unread.contains(&subjects) {
                let fault = Fault::new(
                    "the stream does not say what it stores",
                    "write its subjects with their root, as subjects = [\"events.order.>\"]",
                );
                self.problems.push(Problem::new(&place, &subjects, fault));
            }
        }
        let window = section.key("duplicate_window");
        let publish = "connection.publish_timeout";
        let timeout = config.link.publish_timeout;
        if timeout >= stream.duplicate_window {
            let text = |duration: Duration| format!("\"{}\"", duration_text(duration));
            let fault = Fault::new(
                format!(
                    "{publish} of {} is not shorter than {window} of {}, so that an event published again after it may be stored twice",
                    text(timeout),
                    text(stream.duplicate_window)
                ),
                format!(
                    "write a {publish} below {}, or a longer window",
                    text(stream.duplicate_window)
                ),
            );
            // One window that nobody changed stands for all such.
            let said = self.origin(&window) == Origin::Default
                && self.problems.iter().any(|known| known.key == publish);
            if !said {
                self.refuse([&window, publish], fault);
            }
        }
        if let Some(age) = stream.max_age
            && stream.duplicate_window > age
        {
            let fault = Fault::new(
                format!(
                    "ids are remembered for longer than events are kept, which is \"{}\"",
                    duration_text(age)
                ),
                format!(
                    "write a duplicate_window of at most \"{}\"",
                    duration_text(age)
                ),
            );
            self.refuse([&window, &section.key("max_age")], fault);
        }
        let retention = section.key("retention");
        if name == COMMANDS && stream.retention != Retention::WorkQueue {
            let fault = Fault::new(
                "commands leave when they are done",
                "write \"work_queue\", or take the setting away",
            );
            self.refuse([&retention, &retention], fault);
        }
        if name == DEAD_LETTERS && stream.retention == Retention::WorkQueue {
            let fault = Fault::new(
                "dead letters stay until somebody deals with them",
                "write \"refuse_when_full\", or take the setting away",
            );
            self.refuse([&retention, &retention], fault);
        }
        self.fits_as_dead_letter(config, stream, &section);
    }

    /// An event that is too large for the dead-letter stream could never be given up.
    fn fits_as_dead_letter(&mut self, config: &Config, stream: &StreamSpec, section: &Section) {
        let dead = config
            .streams
            .values()
            .find(|spec| spec.name.as_str() == DEAD_LETTERS);
        let Some(dead) = dead.filter(|dead| dead.name != stream.name) else {
            return;
        };
        let needed = stream.max_message.saturating_add(STORY_BYTES);
        if dead.max_message < needed {
            let limit = Section::Stream(dead.name.clone()).key("max_message");
            let needed = size_value(u64::try_from(needed).unwrap_or(u64::MAX));
            let fault = Fault::new(
                format!(
                    "an event of that size does not fit the dead-letter stream together with its story of 32 KiB ({limit})"
                ),
                format!("write a {limit} of at least {needed}, or a smaller max_message"),
            );
            self.refuse([&section.key("max_message"), &limit], fault);
        }
    }

    fn overlaps(&mut self, config: &Config) {
        let streams: Vec<_> = config.streams.values().collect();
        for (index, stream) in streams.iter().enumerate() {
            for other in &streams[index + 1..] {
                let both = stream.subjects.iter().find_map(|subjects| {
                    let theirs = other
                        .subjects
                        .iter()
                        .find(|theirs| theirs.overlaps(subjects))?;
                    Some((subjects, theirs))
                });
                if let Some((ours, theirs)) = both {
                    let fault = Fault::new(
                        format!(
                            "streams {} and {} would both store what matches {ours} and {theirs}",
                            stream.name, other.name
                        ),
                        "give each subject to one stream",
                    );
                    let key =
                        |stream: &StreamSpec| Section::Stream(stream.name.clone()).key("subjects");
                    self.refuse([&key(other), &key(stream)], fault);
                }
            }
        }
    }

    fn retries(
        &mut self,
        section: &Section,
        consumer: &ConsumerSettings,
        defaults: &ConsumerSettings,
        given: &Values,
    ) {
        let (attempts, delays) = (section.key("attempts"), section.key("delays"));
        let tried = consumer.attempts.or(defaults.attempts).unwrap_or(1);
        let pauses = consumer
            .delays
            .as_ref()
            .or(defaults.delays.as_ref())
            .map_or(0, Vec::len);
        if tried > 1 && pauses == 0 {
            let fault = Fault::new(
                format!("{tried} attempts without a pause would run hot"),
                "write at least one delay, as [\"1s\"], or attempts = 1",
            );
            self.refuse([&delays, &attempts], fault);
        }
        let both = given.contains_key("attempts") && given.contains_key("delays");
        let used = usize::try_from(tried.saturating_sub(1)).unwrap_or(usize::MAX);
        if both && pauses > used {
            let fault = Fault::new(
                format!("of the {pauses} delays, {tried} attempts use only {used}"),
                format!("write attempts = {}, or fewer delays", pauses + 1),
            );
            self.refuse([&delays, &attempts], fault);
        }
    }

    /// A pause of the breaker that is longer than the longest could not be kept.
    fn pauses(
        &mut self,
        section: &Section,
        consumer: &ConsumerSettings,
        defaults: &ConsumerSettings,
    ) {
        let [first, longest] =
            ["breaker_first_pause", "breaker_longest_pause"].map(|key| section.key(key));
        let of = |own: Option<Duration>, all: Option<Duration>| own.or(all).unwrap_or_default();
        let shorter = of(consumer.breaker_first_pause, defaults.breaker_first_pause);
        let longer = of(
            consumer.breaker_longest_pause,
            defaults.breaker_longest_pause,
        );
        if shorter > longer {
            let fault = Fault::new(
                format!(
                    "the first pause of \"{}\" is longer than the longest, \"{}\"",
                    duration_text(shorter),
                    duration_text(longer)
                ),
                format!(
                    "write at most \"{}\", or a longer {longest}",
                    duration_text(longer)
                ),
            );
            self.refuse([&first, &longest], fault);
        }
    }

    /// Where a section begins: in the file, or else with the first variable.
    fn place_of(&self, section: &Section) -> Origin {
        let prefix = section.key("");
        if let Some(place) = self.given.headers.get(&prefix) {
            return place.clone();
        }
        let written = self.loaded.values.iter().filter(|setting| {
            setting.key.starts_with(&prefix) && setting.origin != Origin::Default
        });
        let places = written.map(|setting| setting.origin.clone());
        places.min().unwrap_or(Origin::Default)
    }
}
