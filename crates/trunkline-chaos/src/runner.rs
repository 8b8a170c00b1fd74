//! A run: starts everything, carries out the plan, lets it heal, and closes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};

use crate::closing;
use crate::crew::{Crew, Urls};
use crate::plan::{Fault, On, PUBLISHERS, Step, WORKERS, plan};
use crate::proxy::Proxies;
use crate::record::{CLOSING, Closing, Done, FAULTS, Kind, Lines, Role, Who, now};
use crate::site::{Act, Site};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) on: On,
    pub(crate) length: Duration,
    /// The folder of the run; it exists.
    pub(crate) dir: PathBuf,
    /// This very program.
    pub(crate) program: PathBuf,
}

/// What is to be undone later.
#[derive(Clone, Copy, Debug)]
struct Undo {
    at: Instant,
    fault: Fault,
    who: Option<Who>,
    from: u64,
}

struct Run {
    on: On,
    dir: PathBuf,
    site: Site,
    crew: Crew,
    proxies: Proxies,
    faults: Lines,
    undo: Vec<Undo>,
    began: Instant,
    closing: Closing,
}

/// Runs it; what happened is in the folder.
///
/// # Errors
/// In words, when it could not be set up or a server cannot be started again.
pub(crate) async fn run(setup: &Setup) -> Result<(), String> {
    let length_ms = u64::try_from(setup.length.as_millis()).unwrap_or(u64::MAX);
    let steps = plan(setup.seed, setup.on, length_ms);
    let words = |error: std::io::Error| format!("{}: {error}", setup.dir.display());
    fs::create_dir_all(setup.dir.join("log")).map_err(words)?;
    tell(&format!(
        "seed {} on {}: {} faults in {:.0} s, in {}",
        setup.seed,
        setup.on.name(),
        steps.len(),
        setup.length.as_secs_f64(),
        setup.dir.display()
    ));
    let site = block_in_place(|| Site::start(setup.on, &setup.program, &setup.dir))?;
    let proxies = Proxies::start(&site.addresses()).await.map_err(words)?;
    let urls = Urls {
        direct: site.direct(),
        proxied: site.through(proxies.addresses()),
    };
    let crew = Crew::new(
        setup.program.clone(),
        setup.dir.clone(),
        setup.seed,
        urls.clone(),
    );
    let mut run = Run {
        on: setup.on,
        dir: setup.dir.clone(),
        site,
        crew,
        proxies,
        faults: Lines::open(&setup.dir.join(FAULTS)).map_err(words)?,
        undo: Vec::new(),
        began: Instant::now(),
        closing: Closing::default(),
    };
    for slot in 0..WORKERS {
        run.crew.start(Role::Worker, slot)?;
    }
    for slot in 0..PUBLISHERS {
        run.crew.start(Role::Publisher, slot)?;
    }
    closing::until_ready(&run.dir, WORKERS).await?;
    run.began = Instant::now();
    run.carry_out(&steps, setup.length).await?;
    run.heal()?;
    tell("all faults are over");
    let closed = closing::close(
        &run.dir,
        setup.seed,
        &urls.direct,
        &mut run.crew,
        &run.faults,
    )
    .await;
    run.closing.faults.extend(closed);
    let text = serde_json::to_vec(&run.closing).map_err(|error| error.to_string())?;
    fs::write(run.dir.join(CLOSING), text).map_err(words)
}

#[expect(clippy::print_stderr, reason = "progress is for whoever watches")]
pub(crate) fn tell(text: &str) {
    eprintln!("chaos: {text}");
}

impl Run {
    async fn carry_out(&mut self, steps: &[Step], length: Duration) -> Result<(), String> {
        let mut steps = steps.iter().peekable();
        let mut progress = closing::Progress::default();
        let mut next_tell = self.began + TELL_EVERY;
        let end = self.began + length;
        loop {
            let next_step = steps
                .peek()
                .map(|step| self.began + Duration::from_millis(step.at_ms));
            let next_undo = self.undo.iter().map(|undo| undo.at).min();
            let due = [next_step, next_undo, Some(next_tell), Some(end)];
            let due = due.into_iter().flatten().min().unwrap_or(end);
            // Those that end by themselves are found soon, so that their places are not empty for long.
            sleep_until(due.min(Instant::now() + Duration::from_millis(200))).await;
            self.replace_dead()?;
            let now = Instant::now();
            if now >= end && next_undo.is_none() {
                return Ok(());
            }
            let is_due = |undo: &mut Undo| undo.at <= now;
            let undo: Vec<Undo> = self.undo.extract_if(.., is_due).collect();
            for undo in undo {
                block_in_place(|| self.undo(undo))?;
            }
            if let Some(step) = steps.next_if(|_| next_step.is_some_and(|at| at <= now)) {
                tell(&format!(
                    "{:6.1} s  {}",
                    (now - self.began).as_secs_f64(),
                    step.fault
                ));
                block_in_place(|| self.inflict(step.fault))?;
            }
            if now >= next_tell {
                next_tell = now + TELL_EVERY;
                progress.read(&self.dir)?;
                tell(&format!(
                    "{:6.1} s  {progress}",
                    (now - self.began).as_secs_f64()
                ));
            }
        }
    }

    /// Fills the places of those that ended and should not have; the checker will ask why.
    fn replace_dead(&mut self) -> Result<(), String> {
        for died in self.crew.died() {
            self.faults.write(&died);
            if let Some(Who { role, slot, .. }) = died.who {
                self.crew.start(role, slot)?;
            }
        }
        Ok(())
    }

    fn done(&self, kind: Kind, who: Option<Who>, from: u64) {
        self.faults.write(&Done {
            kind,
            who,
            from,
            to: now(),
        });
    }

    fn inflict(&mut self, fault: Fault) -> Result<(), String> {
        let from = now();
        let who = match fault {
            Fault::KillWorker { slot, .. }
            | Fault::TermWorker { slot, .. }
            | Fault::StopWorker { slot, .. } => self.crew.who(Role::Worker, slot),
            Fault::KillPublisher { slot, .. } => self.crew.who(Role::Publisher, slot),
            _ => None,
        };
        match fault {
            Fault::KillWorker { slot, .. } => {
                self.crew.kill(Role::Worker, slot);
                self.done(Kind::Kill, who, from);
            }
            Fault::TermWorker { slot, .. } => {
                self.crew.terminate(Role::Worker, slot);
                self.done(Kind::Term, who, from);
            }
            Fault::StopWorker { slot, .. } => self.crew.stop(Role::Worker, slot),
            Fault::JoinWorker { slot, .. } => {
                let who = self.crew.start(Role::Worker, slot)?;
                self.done(Kind::Join, Some(who), from);
            }
            Fault::KillPublisher { slot, .. } => {
                self.crew.kill(Role::Publisher, slot);
                self.done(Kind::Kill, who, from);
            }
            Fault::KillServer { node, .. } => self.site.does(Act::Kill, node)?,
            Fault::RestartServer { node, .. } => self.site.does(Act::Terminate, node)?,
            Fault::StopServer { node, .. } => self.site.does(Act::Stop, node)?,
            Fault::LameDuck { node, .. } => self.site.does(Act::LameDuck, node)?,
            Fault::Cut => {
                self.proxies.cut();
                self.done(Kind::Cut, None, from);
                return Ok(());
            }
            Fault::Slow { delay_ms, .. } => self.proxies.slow(Duration::from_millis(delay_ms)),
            Fault::Block { .. } => self.proxies.block(true),
        }
        self.undo.push(Undo {
            at: Instant::now() + Duration::from_millis(fault.ms()),
            fault,
            who,
            from,
        });
        Ok(())
    }

    /// Lets every worker go on that stands still: one of them may own the directory, and whoever is
    /// started could not come in until it does.
    fn free_directory(&mut self) -> Result<(), String> {
        let stands = |undo: &mut Undo| matches!(undo.fault, Fault::StopWorker { .. });
        let stopped: Vec<Undo> = self.undo.extract_if(.., stands).collect();
        stopped.into_iter().try_for_each(|undo| self.undo(undo))
    }

    fn start_server(&mut self, node: usize) -> Result<(), String> {
        if self.on == On::File {
            self.free_directory()?;
        }
        self.site.does(Act::Start, node)
    }

    fn undo(&mut self, undo: Undo) -> Result<(), String> {
        let Undo {
            fault, who, from, ..
        } = undo;
        match fault {
            Fault::KillWorker { slot, .. } | Fault::TermWorker { slot, .. } => {
                self.crew.start(Role::Worker, slot)?;
            }
            Fault::KillPublisher { slot, .. } => {
                self.crew.start(Role::Publisher, slot)?;
            }
            Fault::StopWorker { slot, .. } => {
                self.crew.resume(Role::Worker, slot);
                self.done(Kind::Stop, who, from);
            }
            Fault::JoinWorker { slot, .. } => {
                let (who, from) = (self.crew.who(Role::Worker, slot), now());
                self.crew.terminate(Role::Worker, slot);
                self.done(Kind::Term, who, from);
            }
            Fault::KillServer { node, .. } => {
                self.start_server(node)?;
                self.done(Kind::ServerKill, None, from);
            }
            Fault::RestartServer { node, .. } => {
                self.start_server(node)?;
                self.done(Kind::ServerRestart, None, from);
            }
            Fault::LameDuck { node, .. } => {
                self.start_server(node)?;
                self.done(Kind::LameDuck, None, from);
            }
            Fault::StopServer { node, .. } => {
                self.site.does(Act::Resume, node)?;
                self.done(Kind::ServerStop, None, from);
            }
            Fault::Slow { .. } => {
                self.proxies.slow(Duration::ZERO);
                self.done(Kind::Slow, None, from);
            }
            Fault::Block { .. } => {
                self.proxies.block(false);
                self.done(Kind::Block, None, from);
            }
            Fault::Cut => {}
        }
        Ok(())
    }

    /// Everything that is still wrong ends now.
    fn heal(&mut self) -> Result<(), String> {
        for undo in std::mem::take(&mut self.undo) {
            block_in_place(|| self.undo(undo))?;
        }
        if let (On::Cluster, Site::Cluster(cluster)) = (self.on, &self.site) {
            block_in_place(|| cluster.wait_for_leader()).map_err(|error| error.to_string())?;
        }
        self.closing.healed = now();
        Ok(())
    }
}

/// A new folder for a run, below the one for temporary files.
///
/// # Errors
/// When there is no room for it.
pub(crate) fn folder(seed: u64, on: On) -> Result<PathBuf, String> {
    let name = format!(
        "trunkline-chaos-{}-{seed}-{}",
        on.name(),
        std::process::id()
    );
    let dir = std::env::temp_dir().join(name);
    fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(dir)
}

/// Removes the folder of a run that showed nothing.
pub(crate) fn forget(dir: &Path) {
    // What is left of it harms nobody.
    let _ = fs::remove_dir_all(dir);
}
