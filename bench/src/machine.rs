//! What the machine tells about itself: cores, memory, and the CPU that others used meanwhile.
//!
//! The figures come from `/proc`; elsewhere they are missing, and reported as such.

use std::time::{Duration, Instant};

use crate::stopwatch::cpu_time;

/// Length of one tick in `/proc/stat`: a constant of the kernel's interface.
const TICK: Duration = Duration::from_millis(10);

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The most memory this process ever held, in bytes.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// CPU time that a process has used, in steps of 10 ms.
pub fn cpu_time_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may have spaces; user and system time are the twelfth and
    // thirteenth word after it.
    let (_, words) = stat.rsplit_once(')')?;
    let ticks = |word: &str| word.parse::<u32>().ok();
    let mut words = words.split_whitespace().skip(11);
    Some(TICK * (ticks(words.next()?)? + ticks(words.next()?)?))
}

/// Watches how much of the machine other processes use.
pub struct Others {
    began: Instant,
    busy: Option<Duration>,
    ours: Duration,
}

impl Others {
    pub fn watch() -> Self {
        Self {
            began: Instant::now(),
            busy: busy_time(),
            ours: cpu_time(),
        }
    }

    /// The share of all cores that others used since the watch began, 0 to 1. A `server` that was
    /// started since then is none of them. Over a few ticks the
    /// kernel's rounding would be most of the answer, so there is none.
    pub fn share(&self, server: Option<u32>) -> Option<f64> {
        if self.began.elapsed() < TICK * 10 {
            return None;
        }
        let busy = busy_time()?.checked_sub(self.busy?)?;
        let server = server.and_then(cpu_time_of).unwrap_or_default();
        let ours = cpu_time().saturating_sub(self.ours) + server;
        let others = busy.saturating_sub(ours);
        let capacity = self.began.elapsed().as_secs_f64() * cores() as f64;
        Some(others.as_secs_f64() / capacity)
    }
}

/// CPU time that the whole machine has spent on anything but waiting, the hypervisor included.
fn busy_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u32> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal guest guest_nice; guests are part of user.
    let busy: u32 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|&at| ticks.get(at))
        .sum();
    Some(TICK * busy)
}
