//! A nats-server of one test, on ports of its own, gone with it.

use trunkline_nats_server::{NatsServer, ServerOptions, obtain};

pub(super) struct Server {
    pub(super) url: String,
    pub(super) monitor: String,
    _running: NatsServer,
}

/// JetStream as it should be.
pub(super) fn jetstream() -> ServerOptions {
    ServerOptions {
        sync_always: true,
        ..ServerOptions::default()
    }
}

impl Server {
    pub(super) fn start(options: ServerOptions) -> Self {
        let running = NatsServer::start(&obtain().unwrap(), options).unwrap();
        Self {
            url: running.url(),
            monitor: running.monitor_url().unwrap(),
            _running: running,
        }
    }
}
