//! Who should own what: pure functions of what a member sees.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;

/// A partition as a member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nobody has had it, its owner gave it up, or its owner is dead.
    Free,
    Owned(SmolStr),
}

/// What a member should do about its partitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Free ones that it may claim at once, because it has less than its share.
    pub(super) claim: Vec<u16>,
    /// Free ones beyond its share: to be claimed only if nobody else does for a while.
    pub(super) spare: Vec<u16>,
    /// Its own that somebody with less than a share can take.
    pub(super) release: Vec<u16>,
}

/// What `me` should do. `alive` has every member that wants partitions, `me` among them.
///
/// With P partitions and n members everybody's share is ⌊P/n⌋ or ⌈P/n⌉, and whoever has a share
/// keeps what it has: a partition moves only to a member that would else have less than ⌊P/n⌋.
pub(super) fn advise(
    me: &SmolStr,
    alive: &BTreeSet<SmolStr>,
    partitions: &BTreeMap<u16, Seen>,
) -> Advice {
    let mut owned: BTreeMap<&SmolStr, Vec<u16>> =
        alive.iter().map(|member| (member, Vec::new())).collect();
    let mut free = Vec::new();
    for (partition, seen) in partitions {
        match seen {
            Seen::Free => free.push(*partition),
            Seen::Owned(member) => owned.entry(member).or_default().push(*partition),
        }
    }
    let Some(mine) = owned.get(me).map(Vec::len) else {
        return Advice::default();
    };
    let members = alive.len().max(1);
    let least = partitions.len() / members;
    let most = partitions.len().div_ceil(members);
    // Each member begins with another of the free ones, so that they do not race for the same.
    let turn = alive.iter().position(|member| member == me).unwrap_or(0);
    let skip = (free.len() * turn / members) % free.len().max(1);
    free.rotate_left(skip);
    let claim = free.len().min(most.saturating_sub(mine));
    let spare = free.split_off(claim);
    // What others lack and no free partition will fill.
    let lacking: usize = owned
        .iter()
        .filter(|(member, _)| alive.contains(**member))
        .map(|(_, theirs)| least.saturating_sub(theirs.len()))
        .sum();
    let wanted = lacking.saturating_sub(claim + spare.len());
    // One after another from whoever has most: all see the same and agree on who that is.
    let mut sizes: BTreeMap<&SmolStr, usize> = owned
        .iter()
        .filter(|(member, _)| alive.contains(**member))
        .map(|(member, theirs)| (*member, theirs.len()))
        .collect();
    let mut release = 0;
    for _ in 0..wanted {
        let most = sizes
            .iter_mut()
            .max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(a.0)));
        if let Some((member, size)) = most.filter(|(_, size)| **size > least) {
            *size -= 1;
            release += usize::from(*member == me);
        }
    }
    let mine = owned.remove(me).unwrap_or_default();
    Advice {
        claim: free,
        spare,
        release: mine[mine.len() - release..].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Owners by letter, `-` for none; members likewise.
    fn check(me: &str, alive: &str, partitions: &str, claim: usize, spare: usize, release: usize) {
        let name = |letter: char| SmolStr::from(letter.to_string());
        let alive = alive.chars().map(name).collect();
        let seen = |(at, owner): (usize, char)| {
            let seen = match owner {
                '-' => Seen::Free,
                owner => Seen::Owned(name(owner)),
            };
            (u16::try_from(at).unwrap(), seen)
        };
        let partitions = partitions.chars().enumerate().map(seen).collect();
        let advice = advise(&me.into(), &alive, &partitions);
        assert_eq!(
            (advice.claim.len(), advice.spare.len(), advice.release.len()),
            (claim, spare, release),
            "{me} of {alive:?} at {partitions:?}: {advice:?}"
        );
    }

    #[test]
    fn a_share_is_claimed_kept_and_given_up_only_to_who_lacks_one() {
        check("a", "a", "--------", 8, 0, 0);
        check("a", "ab", "--------", 4, 4, 0);
        check("a", "ab", "aaaaaaaa", 0, 0, 4);
        check("b", "ab", "aaaaaaaa", 0, 0, 0);
        check("a", "ab", "aaaa----", 0, 4, 0);
        check("b", "ab", "aaaa----", 4, 0, 0);
        check("a", "abc", "aaaabbbb", 0, 0, 1);
        check("b", "abc", "aaaabbbb", 0, 0, 1);
        check("a", "abc", "aaabbbcc", 0, 0, 0);
        // Nobody lacks a share of ⌊8/3⌋, so nothing moves.
        check("a", "abc", "aaaabbcc", 0, 0, 0);
        // More members than partitions: some have none, and nobody gives up the only one.
        check("c", "abc", "ab", 0, 0, 0);
        check("a", "abc", "ab", 0, 0, 0);
        // Who is not alive has nothing to say.
        check("x", "ab", "ab--", 0, 0, 0);
    }

    /// Whatever the start, following the advice one member at a time ends in shares and stays there.
    #[test]
    fn advice_ends_in_shares() {
        for members in 1..=9_usize {
            for owner in 0..members {
                let names: Vec<SmolStr> = (0..members).map(|n| format!("m{n}").into()).collect();
                let alive: BTreeSet<_> = names.iter().cloned().collect();
                let mut partitions: BTreeMap<u16, Seen> = (0..16)
                    .map(|at| match usize::from(at) % 3 {
                        0 => (at, Seen::Free),
                        _ => (at, Seen::Owned(names[owner].clone())),
                    })
                    .collect();
                let mut calm = 0;
                for round in 0.. {
                    assert!(
                        round < 1_000,
                        "{members} members, owner {owner}: {partitions:?}"
                    );
                    let me = &names[round % members];
                    let advice = advise(me, &alive, &partitions);
                    calm += 1;
                    for partition in &advice.claim {
                        partitions.insert(*partition, Seen::Owned(me.clone()));
                        calm = 0;
                    }
                    for partition in &advice.release {
                        partitions.insert(*partition, Seen::Free);
                        calm = 0;
                    }
                    if calm > members {
                        break;
                    }
                }
                for name in &names {
                    let has = partitions
                        .values()
                        .filter(|seen| **seen == Seen::Owned(name.clone()))
                        .count();
                    assert!(
                        has >= 16 / members && has <= 16_usize.div_ceil(members),
                        "{name} of {members} has {has}"
                    );
                }
            }
        }
    }
}
