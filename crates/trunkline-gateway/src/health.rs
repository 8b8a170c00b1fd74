//! Whether the process lives, and whether it can do its work.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use trunkline::Link;
use trunkline::core::engine::Durability;

use crate::door::Door;

/// The answer of both.
#[derive(Debug, Serialize)]
pub(crate) struct Health {
    status: &'static str,
    engine: &'static str,
    /// What a stored event survives: the end of nothing but a request (`process`), a crash, or a
    /// loss of power.
    durability: &'static str,
}

impl Health {
    fn of(door: &Door, status: &'static str) -> Self {
        let engine = door.shared.bus.engine();
        let durability = match engine.capabilities().durability {
            Durability::Process => "process",
            Durability::Crash => "crash",
            Durability::Power => "power",
            _ => "unknown",
        };
        Self {
            status,
            engine: engine.name(),
            durability,
        }
    }
}

/// The process answers, whatever the bus does: a supervisor that restarts it would mend nothing.
pub(crate) async fn healthz(State(door): State<Door>) -> Json<Health> {
    Json(Health::of(&door, "alive"))
}

pub(crate) async fn readyz(State(door): State<Door>) -> (StatusCode, Json<Health>) {
    let closing = *door.closing().borrow();
    let (code, status) = match &*door.shared.bus.link().borrow() {
        Link::Connected if !closing => (StatusCode::OK, "ready"),
        Link::Disconnected { .. } if !closing => (StatusCode::SERVICE_UNAVAILABLE, "disconnected"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "closing"),
    };
    (code, Json(Health::of(&door, status)))
}
