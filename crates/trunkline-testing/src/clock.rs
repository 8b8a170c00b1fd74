//! A clock that stands still while tokio's time does.

use std::time::Duration;

use tokio::time::Instant;
use trunkline::Timestamp;
use trunkline::core::Clock;

/// The time of day as a base plus what has passed on tokio's clock since the clock was made, so
/// that with [`tokio::time::pause`] points in time and timers move together.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use std::time::Duration;
/// use trunkline::core::Clock;
/// use trunkline_testing::VirtualClock;
///
/// let clock = VirtualClock::default();
/// let before = clock.now();
/// tokio::time::advance(Duration::from_secs(60)).await;
/// assert_eq!(clock.now().since(before), Duration::from_secs(60));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct VirtualClock {
    base: Timestamp,
    start: Instant,
}

impl VirtualClock {
    /// A clock that shows `base` now.
    pub fn starting_at(base: Timestamp) -> Self {
        Self {
            base,
            start: Instant::now(),
        }
    }

    /// How much time has passed since the clock was made.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Default for VirtualClock {
    /// A clock that shows 2026-01-01T00:00:00Z now.
    fn default() -> Self {
        Self::starting_at(Timestamp::from_nanos(1_767_225_600_000_000_000))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.base.plus(self.elapsed())
    }
}
