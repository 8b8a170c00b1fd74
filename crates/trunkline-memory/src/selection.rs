//! Filters made ready for reading a stream: what can be looked up is not searched for.

use trunkline_core::{Filter, Subject};

/// Which events of a stream a reader wants.
#[derive(Clone, Debug)]
pub(crate) enum Selection {
    /// All of them.
    All,
    /// Those of these subjects, found by the index.
    Subjects(Vec<Subject>),
    /// Those that match one of these, found by looking at each.
    Filters(Vec<Filter>),
}

impl Selection {
    /// The selection of `filters` in a stream that stores `stored`.
    pub(crate) fn new(filters: &[Filter], stored: &[Filter]) -> Self {
        if stored
            .iter()
            .all(|subjects| filters.iter().any(|filter| filter.covers(subjects)))
        {
            return Self::All;
        }
        match filters.iter().map(Filter::literal).collect() {
            Some(subjects) => Self::Subjects(subjects),
            None => Self::Filters(filters.to_vec()),
        }
    }

    pub(crate) fn matches(&self, subject: &Subject) -> bool {
        match self {
            Self::All => true,
            Self::Subjects(subjects) => subjects.contains(subject),
            Self::Filters(filters) => filters.iter().any(|filter| filter.matches(subject)),
        }
    }
}
