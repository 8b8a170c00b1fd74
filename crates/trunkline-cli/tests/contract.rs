//! The whole contract against the built command: each property has a `trunkline up` of its own, in
//! a process of its own, and attaches to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use trunkline::Result;
use trunkline::core::Clock;
use trunkline::core::engine::{Boxed, Change, Engine, LinkOptions};
use trunkline_remote::RemoteEngine;
use trunkline_testing::contract::Harness;

/// A process for each place.
#[derive(Default)]
struct Processes(Mutex<HashMap<String, Up>>);

/// A running bus, killed with the test that has it.
struct Up {
    child: Child,
    url: String,
}

impl Up {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TRUNKLINE_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["up", "--listen", "127.0.0.1:0", "--json", "--quiet"])
            .args(["--url", "memory:?max_bytes=1000000000"])
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let url = line["listening"].as_str().unwrap().to_owned();
        Self { child, url }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Harness for Processes {
    fn name(&self) -> &str {
        "trunkline up"
    }

    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>> {
        let mut processes = self.0.lock().unwrap();
        let is_new = !processes.contains_key(place);
        let up = processes.entry(place.to_owned()).or_insert_with(Up::start);
        let url = up.url.clone();
        Box::pin(async move {
            let engine = RemoteEngine::connect(&url, LinkOptions::default(), clock).await?;
            if is_new {
                // A place is empty when it is first used; the command made the usual streams.
                let found = engine.topology().inspect().await?;
                let names = found.streams.into_iter().map(|stream| stream.spec.name);
                let delete = names.map(Change::DeleteStream).collect();
                engine.topology().apply(delete).await?;
            }
            let engine: Arc<dyn Engine> = Arc::new(engine);
            Ok(engine)
        })
    }

    fn crash<'a>(&'a self, _: &'a str) -> Boxed<'a, ()> {
        Box::pin(async {})
    }

    fn allows_virtual_time(&self) -> bool {
        false
    }
}

trunkline_testing::contract_suite!(Arc::new(Processes::default()));
