//! Packets as bytes: what a node sends goes through the transport's own encoder, and what arrives through its decoder.
//!
//! Each time a node boots it may be of another release: an old one that speaks an earlier version of the protocol, the present one, or a
//! later one whose engine says in its heads what no present reader knows. Two nodes speak the lower of their versions, as their handshake
//! would have it, and a reader skips what it does not know.
//!
//! Now and then a copy of the bytes has one bit flipped, as a stranger's or a broken link's have: the decoder must refuse it or ask for no more
//! than a frame may be, and never read another packet out of it. What was sent arrives all the same.

use std::collections::BTreeMap;

use bytes::{Buf as _, BytesMut};
use conclave_consensus::Head;
use conclave_transport::{
    Packet, VERSION_MAX, VERSION_MIN,
    codec::{Decoder, Encoder, HEADER_BYTES},
};

use crate::{check::Violation, rng::Rng};

/// The longest frame: far above what a simulated node sends.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// A field that no message has, as protobuf says it: number 2047, of three bytes.
const UNKNOWN_FIELD: &[u8] = &[0xfa, 0x7f, 3, b'n', b'e', b'w'];

/// What a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Release {
    /// The newest version of the protocol that it speaks.
    version: u32,
    /// Its engine says more than is known here.
    later: bool,
}

/// The encoders and the decoder, for all links.
#[derive(Debug)]
pub(super) struct Wire {
    /// Draws the releases.
    rng: Rng,
    /// Draws what is garbled.
    noise: Rng,
    releases: BTreeMap<u64, Release>,
    /// One a version, from the oldest.
    encoders: Vec<Encoder>,
    decoder: Decoder,
}

impl Wire {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            noise: rng.clone().fork(),
            rng,
            releases: BTreeMap::new(),
            encoders: (VERSION_MIN..=VERSION_MAX).map(Encoder::speaking).collect(),
            decoder: Decoder::new(FRAME_BYTES_MAX),
        }
    }

    /// The node boots, perhaps with another release than before.
    pub(super) fn boots(&mut self, node: u64) {
        let version = self.rng.between(u64::from(VERSION_MIN), u64::from(VERSION_MAX) + 1);
        let later = version > u64::from(VERSION_MAX);
        let version = if later { VERSION_MAX } else { version as u32 };
        self.releases.insert(node, Release { version, later });
    }

    /// The packets as their receiver reads them.
    ///
    /// # Errors
    /// If that is not what was sent.
    pub(super) fn pass(
        &mut self,
        from: u64,
        to: u64,
        mut packets: Vec<Packet>,
        garbled_ppm: u64,
    ) -> Result<Vec<Packet>, Violation> {
        let broken = |what: String| Violation::new("wire", what);
        let newest = Release { version: VERSION_MAX, later: false };
        let of = |node: u64| self.releases.get(&node).copied().unwrap_or(newest);
        let (sender, receiver) = (of(from), of(to));
        if sender.later {
            packets.iter_mut().for_each(say_more);
        }
        let version = sender.version.min(receiver.version);
        let encoder = &mut self.encoders[(version - VERSION_MIN) as usize];
        encoder.clear();
        for packet in &packets {
            encoder.push(packet, FRAME_BYTES_MAX).map_err(|error| broken(error.to_string()))?;
        }
        let bytes = encoder.copy_to_bytes(encoder.remaining());
        if self.noise.chance(garbled_ppm) {
            garble(&mut self.noise, &bytes, &packets)?;
        }
        let mut bytes = BytesMut::from(bytes);
        let mut received = Vec::with_capacity(packets.len());
        let decoded = self.decoder.decode(&mut bytes, &mut received);
        decoded.map_err(|error| broken(error.to_string()))?;
        if received == packets {
            return Ok(received);
        }
        Err(broken(format!("version {version}: sent {packets:?}, received {received:?}")))
    }
}

/// Reads the bytes with one bit flipped, in the first header half of the time: its length is believed before its checksum can be.
fn garble(noise: &mut Rng, bytes: &[u8], sent: &[Packet]) -> Result<(), Violation> {
    let mut garbled = BytesMut::from(bytes);
    let within = if noise.chance(500_000) { HEADER_BYTES.min(bytes.len()) } else { bytes.len() };
    let bit = noise.below(within as u64 * 8) as usize;
    garbled[bit / 8] ^= 1 << (bit % 8);
    let mut received = Vec::new();
    let decoded = Decoder::new(FRAME_BYTES_MAX).decode(&mut garbled, &mut received);
    let what = match decoded {
        Ok(missing) if missing > FRAME_BYTES_MAX + HEADER_BYTES => {
            format!("asks for {missing} more bytes, though a frame has at most {FRAME_BYTES_MAX}")
        }
        Ok(_) if received.len() == sent.len() => "takes it for whole".to_owned(),
        _ if !sent.starts_with(&received) => format!("reads {received:?} instead of {sent:?}"),
        _ => return Ok(()),
    };
    Err(Violation::new("wire", format!("bit {bit} is flipped, and the decoder {what}")))
}

/// The engine's part of a message as a later release may write it.
fn say_more(packet: &mut Packet) {
    if let Packet::Consensus { message, .. } = packet {
        message.head = Head::from(&[&*message.head, UNKNOWN_FIELD].concat()[..]);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Ballot, Class, Entry, GroupId, Kind, Message, ProposalId, ReplicaId, Slot};

    use super::*;

    fn packet() -> Packet {
        let entry = |slot| Entry {
            slot: Slot(slot),
            ballot: Ballot::default(),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload: Bytes::from_static(b"payload"),
        };
        let message = Message {
            from: ReplicaId(1),
            to: ReplicaId(2),
            class: Class::Append,
            head: Head::from(&[8, 1][..]),
            entries: vec![entry(1), entry(2)].into(),
        };
        Packet::Consensus { group: GroupId(1), message }
    }

    #[test]
    fn releases_of_every_kind_talk_to_each_other() {
        let mut wire = Wire::new(Rng::new(1));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            wire.boots(1);
            wire.boots(2);
            let (sender, receiver) = (wire.releases[&1], wire.releases[&2]);
            seen.insert((sender.version, sender.later, receiver.version, receiver.later));
            let received = wire.pass(1, 2, vec![packet()], 1_000_000).expect("they understand each other");
            let says_more = received != vec![packet()];
            assert_eq!(says_more, sender.later);
        }
        let kinds = (VERSION_MAX - VERSION_MIN + 2) as usize;
        assert_eq!(seen.len(), kinds * kinds);
    }
}
