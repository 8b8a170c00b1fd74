//! A placeholder that is part of a token.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "agent.message", subject = "agent.role-{role}")]
struct AgentMessage {
    role: String,
}

fn main() {}
