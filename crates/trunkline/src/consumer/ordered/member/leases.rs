//! Keeping the leases of what this member holds, and letting go of what is not its own any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;
use trunkline_core::engine::{Batch, Delivery, Settle, Settler, Token};
use trunkline_core::{ErrorKind, Result};

use super::tasks::Done;
use super::{Member, PAUSE};

/// How often a lease is renewed in the time that it lasts.
pub(super) const RENEWALS: u32 = 3;

/// Starts leases anew and tells which were over. An engine that is away is asked until it answers.
///
/// # Errors
/// What will not be otherwise with time.
pub(super) async fn lost_of(
    settler: &dyn Settler,
    mut unknown: Vec<Token>,
) -> Result<BTreeSet<Token>> {
    let mut lost = BTreeSet::new();
    loop {
        let batch = unknown.iter().map(|token| (*token, Settle::Extend));
        let mut last = None;
        match settler.settle(batch.collect(), true).completed().await {
            Ok(extended) => {
                for (token, extended) in std::mem::take(&mut unknown).into_iter().zip(extended) {
                    match extended {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::StaleLease => {
                            lost.insert(token);
                        }
                        Err(error) => {
                            unknown.push(token);
                            last = Some(error);
                        }
                    }
                }
            }
            Err(error) => last = Some(error),
        }
        match last {
            None => return Ok(lost),
            Some(error) if error.retryable() => {
                tracing::debug!(%error, again_in = ?PAUSE, "it is not known whether leases hold");
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
        intake.in_doubt = came.len();
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
        intake.in_doubt = 0;
        let lost = lost?;
        came.retain(|delivery| !lost.contains(&delivery.token));
        // In the order in which they came.
        came.append(&mut intake.fetched);
        intake.fetched = came;
        if !paused && !stopping {
            self.delivered(now);
            return Ok(());
        }
        let back = self.put_back();
        self.report.given_back += if stopping { back } else { 0 };
        Ok(())
    }
}
