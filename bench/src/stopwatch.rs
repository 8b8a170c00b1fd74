//! Wall time, CPU time and latencies of the part of a round that is compared.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Adds up what it is asked to time; everything between two calls is free.
#[derive(Debug, Default)]
pub struct Stopwatch {
    wall: Duration,
    cpu: Duration,
    latencies_ns: Vec<u64>,
}

impl Stopwatch {
    /// Times `work`, on all threads of the process.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let cpu = cpu_time();
        let wall = Instant::now();
        let done = work();
        self.wall += wall.elapsed();
        self.cpu += cpu_time().saturating_sub(cpu);
        done
    }

    /// Takes the latencies of single events.
    pub fn latencies(&mut self, latencies_ns: impl IntoIterator<Item = u64>) {
        self.latencies_ns.extend(latencies_ns);
    }

    pub fn wall(&self) -> Duration {
        self.wall
    }

    pub fn cpu(&self) -> Duration {
        self.cpu
    }

    /// The latency that `percent` of the events stayed within, if there are any.
    pub fn percentile_ns(&mut self, percent: usize) -> Option<u64> {
        self.latencies_ns.sort_unstable();
        let last = self.latencies_ns.len().checked_sub(1)?;
        self.latencies_ns.get(last * percent / 100).copied()
    }
}

/// CPU time that all threads of this process have used.
pub fn cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        spent.tv_sec.unsigned_abs(),
        u32::try_from(spent.tv_nsec).unwrap_or(0),
    )
}
