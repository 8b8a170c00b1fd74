//! Which events a reader wants.

use trunkline_core::{Filter, Subject};

/// Which events of a stream a reader wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selection {
    /// All of them.
    All,
    /// Those of these subjects.
    Subjects(Vec<Subject>),
    /// Those that match one of these.
    Filters(Vec<Filter>),
}

impl Selection {
    /// The selection of `filters` in a stream that stores, or has stored, `stored`.
    pub fn new(filters: &[Filter], stored: &[Filter]) -> Self {
        let is_covered = |stored: &Filter| filters.iter().any(|filter| filter.covers(stored));
        if stored.iter().all(is_covered) {
            return Self::All;
        }
        match filters.iter().map(Filter::literal).collect() {
            Some(subjects) => Self::Subjects(subjects),
            None => Self::Filters(filters.to_vec()),
        }
    }

    /// Whether events of this subject are wanted.
    pub fn matches(&self, subject: &Subject) -> bool {
        match self {
            Self::All => true,
            Self::Subjects(subjects) => subjects.contains(subject),
            Self::Filters(filters) => filters.iter().any(|filter| filter.matches(subject)),
        }
    }
}
