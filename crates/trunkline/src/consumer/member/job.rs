//! What a member's pool runs: a turn.

use std::sync::Arc;

use trunkline_core::Name;
use trunkline_core::engine::{Seq, StoredEvent};

use crate::consumer::Shared;
use crate::consumer::pool::Job;
use crate::consumer::turn::{Turn, run};
use crate::failure::Failure;
use crate::handler::MemberContext;

/// What the turns of a member have in common.
pub(in crate::consumer) struct Hands {
    pub(super) shared: Arc<Shared>,
    pub(super) context: Arc<MemberContext>,
}

impl Job for Turn {
    type Hands = Hands;
    type Input = (usize, StoredEvent, u32);

    fn input(&self) -> Self::Input {
        (self.source, self.event.clone(), self.failures + 1)
    }

    async fn run((source, event, attempt): Self::Input, hands: &Hands) -> Result<(), Failure> {
        let stream = hands.shared.streams[source].clone();
        run(&hands.shared, stream, event, attempt, None, &hands.context).await
    }

    fn is_trouble(failure: &Failure, hands: &Hands) -> bool {
        hands.shared.policy.is_trouble(failure)
    }

    fn bytes(&self) -> usize {
        self.event.body.rough_bytes()
    }

    /// Nothing here counts starts, so nobody is suspected.
    fn runs_alone(&self) -> bool {
        false
    }

    fn place(&self, hands: &Hands) -> (Name, Seq) {
        (hands.shared.streams[self.source].clone(), self.event.seq)
    }
}
