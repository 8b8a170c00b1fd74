//! A session: frames in order, each once, over connections that may break between any two bytes.
//!
//! Frames travel in numbered packets. Whoever sends a packet keeps it until the other end has said
//! that it has it; after a new connection both say how far they got, and what is missing is sent
//! again. This is a state machine without input and output, so that every interleaving can be tried.
//!
//! ```text
//! packet   number (8 bytes) │ received (8 bytes) │ a piece of: length, frame, length, frame, …
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

/// Bytes of one packet at most. A frame that has more goes in several.
pub(crate) const PACKET_BYTES: usize = 64 << 10;
/// Bytes of one frame at most; it is whole in memory at both ends.
pub(crate) const MAX_FRAME_BYTES: usize = 256 << 20;
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
    /// What is left of a frame that was sent in part.
    begun: Bytes,
    /// Sent at least once and not confirmed.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// The last packet that was made.
    made: PacketNumber,
    /// The last packet that was sent over the present connection.
    sent: PacketNumber,
    /// The last packet that came in.
    received: PacketNumber,
    /// What has come of a frame that is not whole yet.
    partial: BytesMut,
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
        if !self.is_waiting() || self.kept_bytes >= WINDOW_BYTES {
            return std::mem::take(&mut self.due).then(|| self.confirmation());
        }
        let mut packet = BytesMut::with_capacity(PACKET_BYTES.min(self.waiting_bytes + (1 << 10)));
        self.made += 1;
        self.sent = self.made;
        packet.put_u64_le(self.made);
        packet.put_u64_le(self.tell());
        while packet.len() < PACKET_BYTES {
            if self.begun.is_empty() {
                let Some((_, frame)) = self.waiting.pop_front() else {
                    break;
                };
                frame.len().put(&mut packet);
                self.begun = frame;
            }
            let room = PACKET_BYTES.saturating_sub(packet.len());
            let piece = self.begun.split_to(room.min(self.begun.len()));
            self.waiting_bytes -= piece.len();
            packet.put_slice(&piece);
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
        let frames = self.whole_frames(packet.slice_ref(rest))?;
        self.received = number;
        self.untold_bytes += packet.len();
        self.due |=
            self.received - self.told >= CONFIRM_EVERY || self.untold_bytes >= CONFIRM_BYTES;
        Ok(frames)
    }

    /// The frames that are whole with these bytes. What is left waits for the next packet.
    fn whole_frames(&mut self, bytes: Bytes) -> Result<Vec<Bytes>, Malformed> {
        let mut bytes = match self.partial.is_empty() {
            true => bytes,
            false => {
                self.partial.extend_from_slice(&bytes);
                match length(&self.partial)? {
                    // Not looked at again and again while a large frame comes in.
                    Some((prefix, length)) if self.partial.len() >= prefix + length => {
                        std::mem::take(&mut self.partial).freeze()
                    }
                    _ => return Ok(Vec::new()),
                }
            }
        };
        let mut frames = Vec::new();
        while let Some((prefix, length)) = length(&bytes)?
            && bytes.len() >= prefix + length
        {
            let mut frame = bytes.split_to(prefix + length);
            frames.push(frame.split_off(prefix));
        }
        self.partial.extend_from_slice(&bytes);
        Ok(frames)
    }

    /// How far this end has received, to be told to the other over a new connection.
    pub(crate) fn received(&self) -> PacketNumber {
        self.received
    }

    /// Counts what came in and what arrived at the other end.
    pub(crate) fn progress(&self) -> u64 {
        self.received + self.made - self.kept.len() as u64
    }

    /// Whether something should be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.due || self.is_waiting()
    }

    /// Whether there are frames that no packet has in full.
    fn is_waiting(&self) -> bool {
        !self.begun.is_empty() || !self.waiting.is_empty()
    }

    /// Whether everything was sent over the present connection.
    pub(crate) fn is_sent(&self) -> bool {
        !self.is_waiting() && self.sent == self.made
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
        self.sent = self.sent.max(confirmed);
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

/// The length that stands first, and how many bytes it takes; none while not all of it is there.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    const LONGEST_PREFIX: usize = 10;
    let mut rest = bytes;
    match usize::get(&mut rest) {
        Ok(length) if length > MAX_FRAME_BYTES => Err(Malformed("a frame is too large")),
        Ok(length) => Ok(Some((bytes.len() - rest.len(), length))),
        Err(_) if bytes.len() < LONGEST_PREFIX => Ok(None),
        Err(malformed) => Err(malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Most are small, some empty, and some take several packets.
    fn frame(number: usize) -> Bytes {
        match number % 50 {
            48 => Bytes::new(),
            49 => vec![number as u8; PACKET_BYTES * (1 + number % 3) + number].into(),
            _ => Bytes::from(number.to_string()),
        }
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
