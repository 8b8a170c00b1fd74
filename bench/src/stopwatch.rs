//! Wall time, CPU time and latencies of the part of a round that is compared.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::machine;

/// Adds up what it is asked to time; everything between two calls is free.
#[derive(Debug, Default)]
pub struct Stopwatch {
    wall: Duration,
    cpu: Duration,
    server: Option<u32>,
    server_cpu: Duration,
    latencies_ns: Vec<u64>,
}

impl Stopwatch {
    /// One that also looks at a server's CPU time, by its process id.
    pub fn with_server(server: Option<u32>) -> Self {
        Self {
            server,
            ..Self::default()
        }
    }

    /// Times `work`, on all threads of the process.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (cpu, server_cpu) = (cpu_time(), self.server_time());
        let wall = Instant::now();
        let done = work();
        self.wall += wall.elapsed();
        self.cpu += cpu_time().saturating_sub(cpu);
        self.server_cpu += self.server_time().saturating_sub(server_cpu);
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

    /// What the server has used meanwhile, in steps of 10 ms; `None` without a server.
    pub fn server_cpu(&self) -> Option<Duration> {
        self.server.map(|_| self.server_cpu)
    }

    fn server_time(&self) -> Duration {
        self.server
            .and_then(machine::cpu_time_of)
            .unwrap_or_default()
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
