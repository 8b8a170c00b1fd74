//! A set of 10 000 mixed subscriptions, and subjects that are published into it.
//!
//! Both sides of the routing pairs use these. The mix is that of a service landscape: nine exact
//! filters in ten, the rest with a wildcard in some place.

pub const SUBSCRIPTIONS: usize = 10_000;
pub const SUBJECTS: usize = 4_096;

/// The filters, in a fixed order.
pub fn filters() -> Vec<String> {
    (0..SUBSCRIPTIONS)
        .map(|at| {
            let (service, region, entity) = (at % 50, at / 50 % 20, at / 10);
            match at % 100 {
                0 => format!("s{service}.>"),
                10 | 20 => format!("s{service}.r{region}.>"),
                30 | 40 => format!("s{service}.*.e{entity}.placed"),
                50 | 60 => format!("*.r{region}.e{entity}.*"),
                70 | 80 => format!("s{service}.r{region}.*.placed"),
                90 => format!("*.*.e{entity}.paid"),
                _ => format!("s{service}.r{region}.e{entity}.placed"),
            }
        })
        .collect()
}

/// The subjects, all different, most of them with a few subscribers.
pub fn subjects() -> Vec<String> {
    (0..SUBJECTS)
        .map(|at| {
            // A stride that shares no factor with the set spreads them over all filters.
            let at = at * 7 % SUBSCRIPTIONS;
            let verb = if at.is_multiple_of(5) {
                "paid"
            } else {
                "placed"
            };
            format!("s{}.r{}.e{}.{verb}", at % 50, at / 50 % 20, at / 10)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn subjects_are_all_different() {
        let subjects = super::subjects();
        assert_eq!(
            subjects.iter().collect::<HashSet<_>>().len(),
            super::SUBJECTS
        );
    }
}
