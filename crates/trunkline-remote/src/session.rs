//! A session: frames in order, each once, over connections that may break between any two bytes.
//!
//! Frames travel in numbered packets. Whoever sends a packet keeps it until the other end has said
//! that it has it; after a new connection both say how far they got, and what is missing is sent
//! again. This is a state machine without input and output, so that every interleaving can be tried.
//!
//! ```text
//! packet   number (8 bytes) │ received (8 bytes) │ length, frame │ length, frame │ …
//!          0 for one that only tells how far its sender has received
//! ```

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, Wire, take};
use crate::frame::CallId;

/// The number of a packet, from 1.
pub(crate) type PacketNumber = u64;

/// What a frame is to whoever pushed it, for as long as it was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// A call, which may be taken back, and goes into the next session if this one is lost.
    Call(CallId),
    /// Live messages, which go into the next session too.
    Messages,
    /// About this session and no other.
    Session,
}

/// Bytes of frames in one packet, unless a single frame has more.
const PACKET_BYTES: usize = 64 << 10;
/// Bytes that may be under way without being confirmed; beyond it nothing more is sent.
const WINDOW_BYTES: usize = 4 << 20;
/// Packets that may be received before their sender is told at the latest.
const CONFIRM_EVERY: u64 = 16;
/// Bytes that may be received before their sender is told at the latest.
const CONFIRM_BYTES: usize = WINDOW_BYTES / 8;
/// Two numbers.
const HEADER_BYTES: usize = 16;

/// One end of a session.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Frames that are in no packet yet.
    waiting: VecDeque<(Tag, Bytes)>,
    waiting_bytes: usize,
    /// Sent at least once and not confirmed.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// The last packet that was made.
    made: PacketNumber,
    /// The last packet that was sent over the present connection.
    sent: PacketNumber,
    /// The last packet that came in.
    received: PacketNumber,
    /// What was last told of that.
    told: PacketNumber,
    untold_bytes: usize,
    /// A confirmation is due even though there is nothing to send.
    due: bool,
}

impl Session {
    /// Adds a frame, to be sent when its turn comes.
    pub(crate) fn push(&mut self, tag: Tag, frame: Bytes) {
        self.waiting_bytes += frame.len();
        self.waiting.push_back((tag, frame));
    }

    /// Takes back a call that was never sent. It gives false if it may have been.
    pub(crate) fn take_back(&mut self, call: CallId) -> bool {
        let found = self
            .waiting
            .iter()
            .position(|(tag, _)| *tag == Tag::Call(call));
        let Some((_, frame)) = found.and_then(|index| self.waiting.remove(index)) else {
            return false;
        };
        self.waiting_bytes -= frame.len();
        true
    }

    /// Every frame that was never sent, to begin another session with.
    pub(crate) fn into_waiting(self) -> VecDeque<(Tag, Bytes)> {
        self.waiting
    }

    /// The next packet to be sent over the present connection, if there is one and room for it.
    pub(crate) fn next_packet(&mut self) -> Option<Bytes> {
        if self.sent < self.made {
            // After a new connection: what the other end does not have.
            let missing = self.made - self.sent;
            let index = self.kept.len() - usize::try_from(missing).ok()?;
            self.sent += 1;
            return self.kept.get(index).cloned();
        }
        if self.waiting.is_empty() || self.kept_bytes >= WINDOW_BYTES {
            return std::mem::take(&mut self.due).then(|| self.confirmation());
        }
        let mut packet = BytesMut::with_capacity(1 << 10);
        self.made += 1;
        self.sent = self.made;
        packet.put_u64_le(self.made);
        packet.put_u64_le(self.tell());
        while let Some((_, frame)) = self.waiting.front() {
            if packet.len() > HEADER_BYTES && packet.len() + frame.len() > PACKET_BYTES {
                break;
            }
            frame.len().put(&mut packet);
            packet.put_slice(frame);
            self.waiting_bytes -= frame.len();
            self.waiting.pop_front();
        }
        let packet = packet.freeze();
        self.kept_bytes += packet.len();
        self.kept.push_back(packet.clone());
        Some(packet)
    }

    /// A packet that says how far this end has received, and shows that it lives.
    pub(crate) fn confirmation(&mut self) -> Bytes {
        let mut packet = BytesMut::with_capacity(HEADER_BYTES);
        packet.put_u64_le(0);
        packet.put_u64_le(self.tell());
        packet.freeze()
    }

    fn tell(&mut self) -> PacketNumber {
        self.told = self.received;
        self.untold_bytes = 0;
        self.due = false;
        self.received
    }

    /// Takes a packet in and gives its frames; none of one that was here before.
    pub(crate) fn receive(&mut self, packet: &Bytes) -> Result<Vec<Bytes>, Malformed> {
        let mut rest = &packet[..];
        let mut number = || {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(take(&mut rest, 8)?);
            Ok(u64::from_le_bytes(bytes))
        };
        let (number, confirmed) = (number()?, number()?);
        self.confirmed(confirmed)?;
        if number == 0 || number <= self.received {
            return Ok(Vec::new());
        }
        if number != self.received + 1 {
            return Err(Malformed("a packet is missing"));
        }
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let length = usize::get(&mut rest)?;
            frames.push(packet.slice_ref(take(&mut rest, length)?));
        }
        self.received = number;
        self.untold_bytes += packet.len();
        self.due |=
            self.received - self.told >= CONFIRM_EVERY || self.untold_bytes >= CONFIRM_BYTES;
        Ok(frames)
    }

    /// How far this end has received, to be told to the other over a new connection.
    pub(crate) fn received(&self) -> PacketNumber {
        self.received
    }

    /// Whether something should be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.due || !self.waiting.is_empty()
    }

    /// Bytes that were pushed and are not confirmed.
    pub(crate) fn unconfirmed_bytes(&self) -> usize {
        self.kept_bytes + self.waiting_bytes
    }

    /// Goes on over a new connection whose other end has received so much.
    pub(crate) fn resume(&mut self, received: PacketNumber) -> Result<(), Malformed> {
        self.confirmed(received)?;
        if received + 1 < self.made + 1 - self.kept.len() as u64 {
            return Err(Malformed("the other end forgot what it had received"));
        }
        self.sent = received;
        Ok(())
    }

    fn confirmed(&mut self, confirmed: PacketNumber) -> Result<(), Malformed> {
        if confirmed > self.made {
            return Err(Malformed("a packet is confirmed that was never sent"));
        }
        let first_kept = self.made + 1 - self.kept.len() as u64;
        // What was said earlier may come late.
        for _ in first_kept..=confirmed {
            if let Some(packet) = self.kept.pop_front() {
                self.kept_bytes -= packet.len();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(number: usize) -> Bytes {
        Bytes::from(number.to_string())
    }

    /// Moves packets one way, of which only so many arrive.
    fn deliver(from: &mut Session, to: &mut Session, arriving: usize, got: &mut Vec<Bytes>) {
        let mut arrived = 0;
        while let Some(packet) = from.next_packet() {
            if arrived < arriving {
                got.extend(to.receive(&packet).unwrap());
            }
            arrived += 1;
        }
    }

    fn reconnect(one: &mut Session, other: &mut Session) {
        let (one_has, other_has) = (one.received(), other.received());
        one.resume(other_has).unwrap();
        other.resume(one_has).unwrap();
    }

    proptest! {
        #[test]
        fn every_frame_arrives_once_and_in_order_however_often_the_connection_breaks(
            steps in prop::collection::vec((0..40_usize, 0..4_usize, 0..4_usize), 1..60)
        ) {
            let (mut client, mut server) = (Session::default(), Session::default());
            let (mut asked, mut answered) = (Vec::new(), Vec::new());
            let mut pushed = 0;
            for (frames, there, back) in steps {
                for _ in 0..frames {
                    client.push(Tag::Messages, frame(pushed));
                    server.push(Tag::Messages, frame(pushed));
                    pushed += 1;
                }
                deliver(&mut client, &mut server, there, &mut asked);
                deliver(&mut server, &mut client, back, &mut answered);
                reconnect(&mut client, &mut server);
            }
            deliver(&mut client, &mut server, usize::MAX, &mut asked);
            deliver(&mut server, &mut client, usize::MAX, &mut answered);
            let all: Vec<_> = (0..pushed).map(frame).collect();
            prop_assert_eq!(&asked, &all);
            prop_assert_eq!(&answered, &all);
        }

        #[test]
        fn what_is_no_packet_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut session = Session::default();
            let _ = session.receive(&Bytes::from(bytes));
        }
    }

    #[test]
    fn a_window_bounds_what_is_kept_and_confirmations_open_it() {
        let (mut sender, mut receiver) = (Session::default(), Session::default());
        let large = Bytes::from(vec![0; PACKET_BYTES]);
        for _ in 0..3 * WINDOW_BYTES / PACKET_BYTES {
            sender.push(Tag::Messages, large.clone());
        }
        let (mut frames, mut rounds) = (0, 0);
        while sender.is_due() {
            while let Some(packet) = sender.next_packet() {
                assert!(sender.kept_bytes <= WINDOW_BYTES + 2 * PACKET_BYTES);
                frames += receiver.receive(&packet).unwrap().len();
            }
            while let Some(packet) = receiver.next_packet() {
                sender.receive(&packet).unwrap();
            }
            rounds += 1;
        }
        assert_eq!(frames, 3 * WINDOW_BYTES / PACKET_BYTES);
        assert!(rounds >= 3, "the window did not hold anything back");
        assert!(
            sender.kept_bytes < WINDOW_BYTES / 2,
            "little is kept once all is confirmed"
        );
    }

    #[test]
    fn what_was_never_sent_can_be_taken_back_and_what_was_cannot() {
        let (mut client, mut server) = (Session::default(), Session::default());
        client.push(Tag::Call(7), frame(7));
        client.push(Tag::Call(8), frame(8));
        assert!(client.take_back(7) && !client.take_back(7));
        let mut got = Vec::new();
        deliver(&mut client, &mut server, 0, &mut got);
        assert!(!client.take_back(8));
        client.push(Tag::Call(9), frame(9));
        reconnect(&mut client, &mut server);
        deliver(&mut client, &mut server, usize::MAX, &mut got);
        assert_eq!(got, [frame(8), frame(9)]);
    }

    #[test]
    fn holes_and_confirmations_of_nothing_are_errors() {
        let (mut client, mut server) = (Session::default(), Session::default());
        client.push(Tag::Messages, frame(1));
        let _lost = client.next_packet();
        client.push(Tag::Messages, frame(2));
        let second = client.next_packet().unwrap();
        assert_eq!(
            server.receive(&second),
            Err(Malformed("a packet is missing"))
        );
        assert!(client.resume(3).is_err());
    }
}
