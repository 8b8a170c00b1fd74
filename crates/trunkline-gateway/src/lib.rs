//! The HTTP door of a bus: any program that speaks HTTP can publish and follow events.
//!
//! | request | does |
//! |---|---|
//! | `POST /v1/events` | publishes one event or many; each has its own outcome |
//! | `GET /v1/events?filter=&from=&limit=&follow=` | reads stored events, or follows them |
//! | `GET /v1/engine` | a WebSocket for `Bus::connect("http://…")` of other programs |
//! | `GET /healthz`, `GET /readyz` | tell whether the process lives, and whether the bus can be reached |
//!
//! In a URL the `>` of a filter is written `%3E`. Most clients do that themselves; `curl` does with
//! `-G --data-urlencode 'filter=order.>'`.
//!
//! A [`Door`] is an [`axum::Router`] to be used inside another program, or [`serve`]d on its own.
//! **Invariant:** nothing here knows how events are stored, ordered or retried; that is the bus's.
//!
//! Every request's `Host` must be a loopback name or address, the address that is listened on, or
//! one that [`DoorConfig`] allows, and an `Origin` must be the door's own or allowed: otherwise any
//! web page could talk to a bus on loopback.

mod config;
mod door;
mod serve;

mod guard;
mod health;

mod body;
mod publish;

mod engine;

mod feed;
mod read;
mod start;

mod problem;

pub use config::DoorConfig;
pub use door::Door;
pub use serve::serve;
