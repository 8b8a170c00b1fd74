//! The way of a packet: sent, late or lost or held up, and delivered.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::super::host::Standing;
use super::super::hub::{Arrival, Call, Cargo, Packet};
use super::{AT_ONCE, HostId, What, World};

impl World {
    /// Decides what becomes of what was sent in the last step.
    pub(super) fn collect(&mut self) {
        for packet in self.hub.take_sent() {
            self.route(packet);
        }
    }

    pub(super) fn is_cut(&self, id: HostId) -> bool {
        self.is_out || self.hosts[id].is_cut
    }

    fn route(&mut self, packet: Packet) {
        let (call, hub) = (packet.call, Arc::clone(&self.hub));
        let is_up = matches!(packet.cargo, Cargo::Up(_));
        let (lost, late) = match call {
            Call::Ack => (self.faults.lost_acks, self.faults.late),
            _ if is_up => (self.faults.lost_requests, self.faults.late),
            _ => (self.faults.lost_answers, 0.0),
        };
        if call.may_be_lost() && hub.chance(lost) {
            return self.lose(packet);
        }
        let mut wait = hub.between(Duration::from_micros(300), self.faults.latency);
        if hub.chance(self.faults.slow) {
            wait += hub.between(Duration::ZERO, Duration::from_millis(1_500));
        }
        if call.may_be_lost() && hub.chance(late) {
            wait += hub.between(Duration::from_secs(1), Duration::from_secs(15));
        }
        if call == Call::Told && hub.chance(self.faults.lagging_readers) {
            wait += hub.between(Duration::ZERO, Duration::from_secs(2));
        }
        let at = self.now.max(packet.sent + wait);
        self.forward(packet, at);
    }

    /// Lets a packet arrive at that time, or behind those of its lane.
    fn forward(&mut self, packet: Packet, mut at: Duration) {
        if let Some(lane) = packet.lane {
            let last = self.lanes.entry(lane).or_default();
            at = at.max(*last);
            *last = at;
        }
        self.push(at, What::Packet(packet));
    }

    fn lose(&mut self, packet: Packet) {
        let (name, call) = (&self.hosts[packet.host].name, packet.call);
        let way = match packet.cargo {
            Cargo::Up(_) => "to",
            Cargo::Down(_) => "from",
        };
        self.hub.note(self.now, name, 12, || {
            format!("{call:?} {way} the server is lost")
        });
        self.lost.push(packet);
    }

    pub(super) fn arrive(&mut self, packet: Packet) {
        let id = packet.host;
        if self.is_cut(id) {
            // What a connection mends itself is held up, the rest is lost in half of all cases.
            if packet.call.may_be_lost() && self.hub.chance(0.5) {
                return self.lose(packet);
            }
            if !packet.call.may_be_lost() {
                return self.hosts[id].held.push(packet);
            }
            let again = self.hub.between(AT_ONCE, Duration::from_millis(500));
            return self.push(self.now + again, What::Packet(packet));
        }
        self.deliver(packet);
    }

    pub(super) fn deliver(&mut self, packet: Packet) {
        let id = packet.host;
        match packet.cargo {
            Cargo::Up(work) => {
                self.run_server();
                let entered = self.server.runtime.enter();
                let mut work = work(Arc::clone(&self.site));
                let mut context = Context::from_waker(Waker::noop());
                if work.as_mut().poll(&mut context).is_pending() {
                    self.server.runtime.spawn(work);
                }
                drop(entered);
                self.collect();
                self.wake_server(self.now + AT_ONCE);
            }
            Cargo::Down(answer) => {
                let host = &mut self.hosts[id];
                let current = host.lives == packet.life && host.running.is_some();
                match host.standing {
                    _ if !current => {}
                    Standing::Frozen(_) => host.mail.push(Packet {
                        cargo: Cargo::Down(answer),
                        ..packet
                    }),
                    Standing::Runs | Standing::Down => {
                        self.run(id);
                        let told = packet.call == Call::Told;
                        let arrival = match told && self.hub.chance(self.faults.broken_readers) {
                            true => Arrival::Broken,
                            false => Arrival::Whole,
                        };
                        answer(arrival);
                        self.wake(id, self.now + AT_ONCE);
                    }
                }
            }
        }
    }
}
