//! The processes of a run: publishers and workers, each with a place that is filled again and again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::record::{Done, Kind, Role, Who, now};

/// How long a process that was told to end may take: its longest handler, and the drain of what it has.
const ENDS_WITHIN: Duration = Duration::from_secs(45);

/// Where clients find the bus. Every second one goes through the proxies.
#[derive(Clone, Debug)]
pub(crate) struct Urls {
    pub(crate) direct: String,
    pub(crate) proxied: String,
}

/// A process of ours; killed if nobody ends it.
#[derive(Debug)]
struct Member {
    who: Who,
    child: Child,
    stdin: Option<ChildStdin>,
    /// Somebody told it to end.
    is_leaving: bool,
}

impl Member {
    fn signal(&self, signal: Signal) {
        // One that has ended is not reaped yet, so the id is still its own.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It has mostly ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Crew {
    program: PathBuf,
    dir: PathBuf,
    seed: u64,
    urls: Urls,
    members: BTreeMap<(Role, u32), Member>,
    /// Those that were told to end while another already took their place.
    leaving: Vec<Member>,
    lives: BTreeMap<(Role, u32), u32>,
}

impl Crew {
    pub(crate) fn new(program: PathBuf, dir: PathBuf, seed: u64, urls: Urls) -> Self {
        Self {
            program,
            dir,
            seed,
            urls,
            members: BTreeMap::new(),
            leaving: Vec::new(),
            lives: BTreeMap::new(),
        }
    }

    /// Fills a place with a new process.
    ///
    /// # Errors
    /// When the system starts none.
    pub(crate) fn start(&mut self, role: Role, slot: u32) -> Result<Who, String> {
        let life = self.lives.entry((role, slot)).or_default();
        *life += 1;
        let who = Who {
            role,
            slot,
            life: *life,
        };
        let url = match slot % 2 {
            0 => &self.urls.direct,
            _ => &self.urls.proxied,
        };
        let (name, log) = (who.client(), format!("{}-{life}.log", who.client()));
        let failed = |error: std::io::Error| format!("starting {name}: {error}");
        let log = File::create(self.dir.join("log").join(log)).map_err(failed)?;
        let role_name = match role {
            Role::Publisher => "publisher",
            Role::Worker => "worker",
        };
        let mut child = Command::new(&self.program)
            .arg("process")
            .args(["--role", role_name, "--url", url])
            .args(["--slot", &slot.to_string(), "--life", &life.to_string()])
            .args(["--seed", &self.seed.to_string()])
            .arg("--dir")
            .arg(&self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let member = Member {
            who,
            stdin: child.stdin.take(),
            child,
            is_leaving: false,
        };
        if let Some(before) = self.members.insert((role, slot), member)
            && before.is_leaving
        {
            self.leaving.push(before);
        }
        Ok(who)
    }

    /// Who has the place and was not told to leave it.
    pub(crate) fn who(&self, role: Role, slot: u32) -> Option<Who> {
        let member = self.members.get(&(role, slot))?;
        (!member.is_leaving).then_some(member.who)
    }

    pub(crate) fn all(&self, role: Role) -> Vec<Who> {
        let members = self.members.values();
        members
            .filter(|member| member.who.role == role && !member.is_leaving)
            .map(|member| member.who)
            .collect()
    }

    /// SIGKILL, and it is gone when this returns.
    pub(crate) fn kill(&mut self, role: Role, slot: u32) {
        // Dropping it is what kills it.
        self.members.remove(&(role, slot));
    }

    pub(crate) fn terminate(&mut self, role: Role, slot: u32) {
        if let Some(member) = self.members.get_mut(&(role, slot)) {
            member.is_leaving = true;
            member.signal(Signal::TERM);
        }
    }

    pub(crate) fn stop(&self, role: Role, slot: u32) {
        if let Some(member) = self.members.get(&(role, slot)) {
            member.signal(Signal::STOP);
        }
    }

    pub(crate) fn resume(&self, role: Role, slot: u32) {
        if let Some(member) = self.members.get(&(role, slot)) {
            member.signal(Signal::CONT);
        }
    }

    /// Writes a command to everybody of a role.
    pub(crate) fn tell(&mut self, role: Role, command: &str) {
        for member in self.members.values_mut() {
            if member.who.role == role
                && !member.is_leaving
                && let Some(stdin) = &mut member.stdin
            {
                // One that has just died is found by `died`.
                let _ = stdin.write_all(format!("{command}\n").as_bytes());
            }
        }
    }

    /// Takes out those that ended although nobody had told them to.
    pub(crate) fn died(&mut self) -> Vec<Done> {
        let mut died = Vec::new();
        self.members.retain(|_, member| {
            if !member.has_ended() {
                return true;
            }
            if !member.is_leaving {
                died.push(Done {
                    kind: Kind::Died,
                    who: Some(member.who),
                    from: now(),
                    to: now(),
                });
            }
            false
        });
        self.leaving.retain_mut(|member| !member.has_ended());
        died
    }

    /// Ends everybody of a role with SIGTERM, and names those that took too long or did not end well.
    pub(crate) fn end(&mut self, role: Role) -> Vec<String> {
        let slots: Vec<_> = self.members.keys().copied().collect();
        for (of, slot) in slots.into_iter().filter(|(of, _)| *of == role) {
            self.terminate(of, slot);
        }
        let of_role = |who: &Who| who.role == role;
        let mut ending: Vec<Member> = Vec::new();
        ending.extend(self.leaving.extract_if(.., |one| of_role(&one.who)));
        let keys: Vec<_> = self.members.keys().copied().collect();
        for key in keys.into_iter().filter(|(of, _)| *of == role) {
            ending.extend(self.members.remove(&key));
        }
        let end = Instant::now() + ENDS_WITHIN;
        let mut faults = Vec::new();
        for mut member in ending {
            let name = format!("{} (life {})", member.who.client(), member.who.life);
            loop {
                match member.child.try_wait() {
                    Ok(Some(status)) if status.success() => break,
                    Ok(Some(status)) => {
                        faults.push(format!("{name} was told to end and did with {status}"));
                        break;
                    }
                    Ok(None) if Instant::now() < end => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    _ => {
                        faults.push(format!(
                            "{name} was told to end and had not after {ENDS_WITHIN:?}"
                        ));
                        break;
                    }
                }
            }
        }
        faults
    }
}
