//! Routing without an index: what a list of filters costs, and what a cache of results saves.

use std::collections::HashMap;
use std::hint::black_box;

use crate::pair::{Result, Side};
use crate::stopwatch::Stopwatch;
use crate::subjects::{filters, subjects};

/// Compares each subject with all 10 000 filters, one after the other.
pub fn linear() -> Result<impl Side> {
    let filters: Vec<Vec<String>> = filters().iter().map(|filter| tokens(filter)).collect();
    let subjects = subjects();
    let mut turn = subjects.into_iter().cycle();
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let asked: Vec<String> = turn.by_ref().take(usize::try_from(events)?).collect();
        let found = watch.time(|| {
            asked
                .iter()
                .map(|subject| matching(&filters, black_box(subject)).len())
                .sum::<usize>()
        });
        if found == 0 {
            Err("no filter matched".into())
        } else {
            Ok(())
        }
    })
}

/// Looks each subject up in a map of earlier results, which is as hot as a cache can be.
pub fn cached() -> Result<impl Side> {
    let filters: Vec<Vec<String>> = filters().iter().map(|filter| tokens(filter)).collect();
    let subjects = subjects();
    let results: HashMap<String, Vec<usize>> = subjects
        .iter()
        .map(|subject| (subject.clone(), matching(&filters, subject)))
        .collect();
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let found = watch.time(|| {
            let mut left = events;
            let mut found = 0;
            while left > 0 {
                for subject in subjects
                    .iter()
                    .take(usize::try_from(left).unwrap_or(usize::MAX))
                {
                    found += results.get(black_box(subject)).map_or(0, Vec::len);
                    left -= 1;
                }
            }
            found
        });
        if found == 0 {
            Err("no filter matched".into())
        } else {
            Ok(())
        }
    })
}

fn matching(filters: &[Vec<String>], subject: &str) -> Vec<usize> {
    let subject: Vec<&str> = subject.split('.').collect();
    filters
        .iter()
        .enumerate()
        .filter(|(_, filter)| matches(filter, &subject))
        .map(|(at, _)| at)
        .collect()
}

fn matches(filter: &[String], subject: &[&str]) -> bool {
    for (at, token) in filter.iter().enumerate() {
        match (token.as_str(), subject.get(at)) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(&name)) if token == name => {}
            _ => return false,
        }
    }
    filter.len() == subject.len()
}

fn tokens(filter: &str) -> Vec<String> {
    filter.split('.').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{matches, tokens};

    fn check(filter: &str, subject: &str, expect: bool) {
        let subject: Vec<&str> = subject.split('.').collect();
        assert_eq!(
            matches(&tokens(filter), &subject),
            expect,
            "{filter} against {subject:?}"
        );
    }

    #[test]
    fn filters_match_as_on_nats() {
        check("a.b", "a.b", true);
        check("a.b", "a.b.c", false);
        check("a.*", "a.b", true);
        check("a.*", "a", false);
        check("a.>", "a.b.c", true);
        check("a.>", "a", false);
        check("*.b", "a.c", false);
    }
}
