//! Keeping the leases of what this member holds, and letting go of what is not its own any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use trunkline_core::engine::{Batch, Delivery, Settle, Settler, Token};
use trunkline_core::{ErrorKind, Result};

use super::tasks::Done;
use super::{Member, PAUSE};

/// How often a lease is renewed in the time that it lasts.
pub(super) const RENEWALS: u32 = 3;

/// How long what a fetch brings may have waited in the engine's client, where its lease runs.
///
/// A look that finds nothing there says that what comes next came after it. Where nobody looked for a while,
/// as in a pause, as much may be old as was ever asked for.
#[derive(Debug)]
pub(super) struct Wait {
    looked: Instant,
    /// Whether the last look found nothing.
    found_nothing: bool,
    /// Events that were asked for at once, at most.
    asked: usize,
    /// So many of those that come next may be old.
    doubtful: usize,
}

impl Wait {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            looked: now,
            found_nothing: false,
            asked: 0,
            doubtful: 0,
        }
    }

    /// One is about to look, with room for so many.
    pub(super) fn look(&mut self, room: usize, patience: Duration, now: Instant) {
        if now.duration_since(self.looked) > patience {
            self.doubtful = self.asked;
        }
        self.looked = now;
        self.asked = self.asked.max(room);
    }

    pub(super) fn looked(&mut self, found_nothing: bool) {
        self.found_nothing = found_nothing;
    }

    /// So many have come since one looked. Whether some of them may be old.
    pub(super) fn brought(&mut self, count: usize) -> bool {
        if count == 0 && self.found_nothing {
            self.doubtful = 0;
        }
        let is_doubtful = count > 0 && self.doubtful > 0;
        self.doubtful = self.doubtful.saturating_sub(count);
        is_doubtful
    }
}

/// Starts leases anew and tells which were over. An engine that is away is asked until it answers.
///
/// # Errors
/// What will not be otherwise with time.
pub(super) async fn lost_of(
    settler: &dyn Settler,
    mut tokens: Vec<Token>,
) -> Result<BTreeSet<Token>> {
    let mut lost = BTreeSet::new();
    loop {
        // Each time all of them, so that those that were extended do not end while one asks for others.
        let batch = tokens.iter().map(|token| (*token, Settle::Extend));
        let mut unknown = None;
        match settler.settle(batch.collect(), true).completed().await {
            Ok(extended) => {
                for (token, extended) in tokens.iter().zip(extended) {
                    match extended {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::StaleLease => {
                            lost.insert(*token);
                        }
                        Err(error) => unknown = Some(error),
                    }
                }
            }
            Err(error) => unknown = Some(error),
        }
        match unknown {
            None => return Ok(lost),
            Some(error) if error.retryable() => {
                tracing::debug!(%error, again_in = ?PAUSE, "it is not known whether leases hold");
                tokens.retain(|token| !lost.contains(token));
                tokio::time::sleep(PAUSE).await;
            }
            Some(error) => return Err(error),
        }
    }
}

impl Member {
    /// Renews the lease on everything that this member holds.
    pub(super) fn renew(&mut self, now: Instant) {
        let Some(intake) = &mut self.intake else {
            return;
        };
        intake.renew_at = now + intake.ack_wait / RENEWALS;
        let mut held: Batch<(Token, Settle)> = Batch::new();
        let mut extend = |token| held.push((token, Settle::Extend));
        // What is stuck is let go, so not everything that is held is renewed.
        self.runs.each_leased(&mut extend);
        intake.each_kept(extend);
        if held.is_empty() {
            return;
        }
        intake.is_renewing = true;
        let settler = Arc::clone(&intake.settler);
        self.tasks.spawn(async move {
            let renewed = settler.settle(held.clone(), false).completed().await;
            Done::Renewed(held, renewed)
        });
    }

    /// Drops the turns whose leases have ended: their events are somebody else's, who must not find
    /// this member at work on them, nor be told of its failures.
    pub(super) fn renewed(
        &mut self,
        batch: &Batch<(Token, Settle)>,
        renewed: Result<Vec<Result<()>>>,
    ) {
        let Some(intake) = &mut self.intake else {
            return;
        };
        intake.is_renewing = false;
        let renewed = match renewed {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::warn!(
                    consumer = %self.shared.name, stream = %self.place.stream, %error, "leases were not renewed"
                );
                return;
            }
        };
        let is_stale = |renewed: &Result<()>| matches!(renewed, Err(error) if error.kind() == ErrorKind::StaleLease);
        let lost: Vec<Token> = batch
            .iter()
            .zip(renewed)
            .filter(|(_, renewed)| is_stale(renewed))
            .map(|((token, _), _)| *token)
            // What was settled while it was asked for is nobody's loss.
            .filter(|token| intake.has(*token))
            .collect();
        if lost.is_empty() {
            return;
        }
        tracing::warn!(
            consumer = %self.shared.name, stream = %self.place.stream, events = lost.len(),
            "leases have ended, so other members get their events; what runs of them is cancelled"
        );
        intake.lose(&lost);
        self.runs.lose_leased(|token| lost.contains(&token));
    }

    /// Asks whether what came is still this member's: to run what has become another's would be to run it
    /// twice.
    pub(super) fn doubt(&mut self) {
        let Some(intake) = &mut self.intake else {
            return;
        };
        let came = std::mem::take(&mut intake.fetched);
        intake.is_in_doubt = true;
        let settler = Arc::clone(&intake.settler);
        self.tasks.spawn(async move {
            let tokens = came.iter().map(|delivery| delivery.token).collect();
            let lost = lost_of(&*settler, tokens).await;
            Done::Doubted(came, lost)
        });
    }

    /// Takes what is this member's; what is not comes again, to it or to another.
    pub(super) fn doubted(
        &mut self,
        mut came: Vec<Delivery>,
        lost: Result<BTreeSet<Token>>,
        now: Instant,
    ) -> Result<()> {
        let (paused, stopping) = (self.is_paused(), *self.stopping.borrow());
        let Some(intake) = &mut self.intake else {
            return Ok(());
        };
        intake.is_in_doubt = false;
        let lost = lost?;
        came.retain(|delivery| !lost.contains(&delivery.token));
        // Nothing was fetched meanwhile.
        intake.fetched = came;
        if !paused && !stopping {
            self.take_in(now);
            return Ok(());
        }
        let back = self.put_back();
        self.report.given_back += if stopping { back } else { 0 };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_waited_for_long_is_doubted_until_a_look_finds_nothing_or_all_of_it_has_come() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wait = Wait::new(start);
        let mut look = |second, found_nothing, count| {
            wait.look(100, PATIENCE, at(second));
            wait.looked(found_nothing);
            wait.brought(count)
        };
        assert!(!look(1, false, 100));
        assert!(!look(11, true, 0));
        // Nobody looks for 11 s. As many may be old as were asked for, however they come.
        assert!(look(22, false, 1));
        assert!(look(23, false, 98));
        assert!(look(24, false, 100));
        assert!(!look(25, false, 100));
        // Or none, where nothing is there after all.
        assert!(!look(50, true, 0));
        assert!(!look(51, false, 1));
        // What is pending may have brought something before.
        assert!(look(70, true, 1));
    }
}
