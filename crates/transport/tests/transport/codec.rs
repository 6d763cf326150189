//! Packets as bytes: every packet survives, no bytes hurt, and the format never changes by accident.

use bytes::{Buf, Bytes, BytesMut};
use conclave_consensus::{
    Ballot, Class, Entry, Epoch, GroupId, Kind, Message, NodeId, Outcome, Proposal, ProposalId, ReplicaId,
    Slot,
};
use conclave_transport::{
    Packet, SnapshotPrefix, VERSION_MAX, VERSION_MIN,
    codec::{Decoder, ELEMENT_BYTES_MIN, Encoder, FrameError, HEADER_BYTES, INLINE_BYTES_MAX},
};
use proptest::{collection::vec, prelude::*};

use crate::inbox::{append, every_kind};

const MAX: usize = 1 << 20;

fn encoded(packets: &[Packet]) -> BytesMut {
    encoded_by(Encoder::new(), packets)
}

fn encoded_by(mut encoder: Encoder, packets: &[Packet]) -> BytesMut {
    for packet in packets {
        encoder.push(packet, MAX).expect("short enough");
    }
    BytesMut::from(&*encoder.copy_to_bytes(encoder.remaining()))
}

fn decoded(bytes: &[u8]) -> Result<(Vec<Packet>, usize), FrameError> {
    let (mut buffer, mut packets) = (BytesMut::from(bytes), Vec::new());
    let missing = Decoder::new(MAX).decode(&mut buffer, &mut packets)?;
    Ok((packets, missing))
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        1 => (INLINE_BYTES_MAX - 2..INLINE_BYTES_MAX + 900).prop_map(|len| Bytes::from(vec![len as u8; len])),
    ]
}

fn proposal_id() -> impl Strategy<Value = ProposalId> {
    any::<(u64, u64)>().prop_map(|(node, sequence)| ProposalId { node: NodeId(node), sequence })
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![Just(Kind::Command), Just(Kind::Noop), Just(Kind::Config)];
    (any::<[u64; 4]>(), kind, proposal_id(), payload()).prop_map(
        |([slot, config, round, replica], kind, id, payload)| Entry {
            slot: Slot(slot),
            ballot: Ballot { config, round, replica: ReplicaId(replica) },
            kind,
            id,
            payload,
        },
    )
}

/// Entries as a leader sends them, more or less: here and there something does not follow on what is before it.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let step = (0..6_u8, 0..6_u8, 0..6_u8, 0..4_u64);
    let run = (entry(), vec((step, payload()), 0..12)).prop_map(|(first, steps)| {
        let mut entries = vec![first];
        for ((slot, round, node, gap), payload) in steps {
            let mut entry = entries.last().cloned().expect("it has a first");
            entry.payload = payload;
            entry.slot.0 = entry.slot.0.wrapping_add(1 + u64::from(slot == 0));
            entry.ballot.round = entry.ballot.round.wrapping_add(u64::from(round == 0));
            entry.id.node.0 ^= u64::from(node == 0);
            // Mostly one more, sometimes several, sometimes the same again.
            entry.id.sequence = entry.id.sequence.wrapping_add([1, 1, 0, 5][gap as usize]);
            entries.push(entry);
        }
        entries
    });
    prop_oneof![vec(entry(), 0..6), run]
}

fn message() -> impl Strategy<Value = Message> {
    let class = prop_oneof![Just(Class::Beat), Just(Class::Control), Just(Class::Append), Just(Class::Bulk)];
    (any::<(u64, u64)>(), class, payload(), entries()).prop_map(|((from, to), class, head, entries)| {
        let (head, entries) = (head.into(), entries.into());
        Message { from: ReplicaId(from), to: ReplicaId(to), class, head, entries }
    })
}

fn prefix() -> impl Strategy<Value = SnapshotPrefix> {
    any::<(u64, u64, u128)>().prop_map(|(slot, pieces, digest)| SnapshotPrefix { slot, pieces, digest })
}

fn packet() -> impl Strategy<Value = Packet> {
    let group = || any::<u64>().prop_map(GroupId);
    let proposal = (proposal_id(), payload()).prop_map(|(id, payload)| Proposal { id, payload });
    let outcome = prop_oneof![Just(Outcome::Dropped), Just(Outcome::Unknown)];
    prop_oneof![
        4 => (group(), message()).prop_map(|(group, message)| Packet::Consensus { group, message }),
        1 => any::<u64>().prop_map(|epoch| Packet::Alive { epoch: Epoch(epoch) }),
        2 => (group(), vec(proposal, 0..6)).prop_map(|(group, batch)| Packet::Forward { group, batch }),
        1 => (group(), vec(proposal_id(), 0..6), outcome, any::<bool>())
            .prop_map(|(group, ids, outcome, busy)| Packet::Refused { group, ids, outcome, busy }),
        1 => (any::<u64>(), payload()).prop_map(|(id, body)| Packet::Request { id, body }),
        1 => (any::<u64>(), payload()).prop_map(|(id, body)| Packet::Response { id, body }),
        1 => (group(), any::<[u64; 3]>(), prefix()).prop_map(|(group, [fetch, at_least, piece], have)| {
            Packet::SnapshotPull { group, fetch, at_least, piece, have }
        }),
        1 => (group(), any::<u64>(), prefix(), payload(), any::<bool>()).prop_map(
            |(group, fetch, after, body, last)| Packet::SnapshotPiece { group, fetch, after, body, last }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn packets_survive_in_whatever_pieces_they_arrive(
        packets in vec(packet(), 0..8),
        cuts in vec(1_usize..6000, 1..20),
    ) {
        let bytes = encoded(&packets);
        let (mut decoder, mut buffer, mut received) = (Decoder::new(MAX), BytesMut::new(), Vec::new());
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (piece, later) = rest.split_at(rest.len().min(*cut));
            buffer.extend_from_slice(piece);
            let missing = decoder.decode(&mut buffer, &mut received).unwrap();
            prop_assert!(missing > 0, "something is always still to come");
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(received, packets);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn every_version_says_the_same(packets in vec(packet(), 1..6)) {
        for version in VERSION_MIN..=VERSION_MAX {
            let (received, _) = decoded(&encoded_by(Encoder::speaking(version), &packets)).unwrap();
            prop_assert_eq!(&received, &packets);
        }
    }

    #[test]
    fn vectored_chunks_are_the_same_bytes(packets in vec(packet(), 1..6), step in 1_usize..5000) {
        let expected = encoded(&packets);
        let mut encoder = Encoder::new();
        for packet in &packets {
            encoder.push(packet, MAX).unwrap();
        }
        let mut written = Vec::new();
        while encoder.has_remaining() {
            let mut chunks = [std::io::IoSlice::new(&[]); 3];
            let count = encoder.chunks_vectored(&mut chunks);
            prop_assert!(count > 0 && chunks[..count].iter().all(|chunk| !chunk.is_empty()));
            let mut room = step;
            for chunk in &chunks[..count] {
                let taken = room.min(chunk.len());
                written.extend_from_slice(&chunk[..taken]);
                room -= taken;
            }
            encoder.advance(step - room);
        }
        prop_assert_eq!(&written[..], &expected[..]);
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decoded(&bytes);
    }

    #[test]
    fn a_valid_frame_around_garbage_never_panics(
        kind in any::<u8>(),
        body in vec(any::<u8>(), 0..120),
        head_len in 0_usize..120,
    ) {
        let _ = decoded(&frame(kind, head_len.min(body.len()), &body));
    }

    #[test]
    fn a_changed_byte_is_noticed(packets in vec(packet(), 1..3), at in any::<prop::sample::Index>(), by in 1_u8..) {
        let mut bytes = encoded(&packets);
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        // A changed length may announce more than there is; then the frame is never delivered.
        if let Ok((received, missing)) = decoded(&bytes) {
            prop_assert!(received.len() < packets.len() && missing > 0);
        }
    }
}

/// A frame whose checksum fits, whatever is in it.
fn frame(kind: u8, head_len: usize, body: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    rest.extend_from_slice(&(body.len() as u32).to_le_bytes());
    rest.extend_from_slice(&(head_len as u32).to_le_bytes());
    rest.extend_from_slice(&[kind, 0, 0, 0]);
    rest.extend_from_slice(body);
    [&crc32fast::hash(&rest).to_le_bytes()[..], &rest].concat()
}

#[test]
fn truncated_frames_wait_for_the_rest() {
    let bytes = encoded(&every_kind());
    for len in 0..bytes.len() {
        let (packets, missing) = decoded(&bytes[..len]).unwrap();
        assert!(packets.len() < every_kind().len() && missing > 0);
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_allocated() {
    let mut header = [0; HEADER_BYTES];
    header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decoded(&header), Err(FrameError::TooLong { length: u32::MAX as usize, max: MAX }));
    assert_eq!(decoded(&frame(1, 9, b"12345678")), Err(FrameError::Header), "a head longer than its frame");
    let mut reserved = frame(2, 0, b"");
    reserved[14] = 1;
    assert_eq!(decoded(&reserved), Err(FrameError::Header));
}

/// Elements take a byte or two in a head and dozens in memory: their number is judged before any is read.
#[test]
fn elements_are_bounded_before_anything_is_allocated() {
    const FRAME_BYTES_MAX: usize = 32 << 20;
    let decoded = |kind, head: &[u8]| {
        let mut bytes = BytesMut::from(&frame(kind, head.len(), head)[..]);
        Decoder::new(FRAME_BYTES_MAX).decode(&mut bytes, &mut Vec::new())
    };
    let packed = |field: u8, value: u8, count: usize| {
        let mut head = vec![field << 3 | 2];
        prost::encode_length_delimiter(count, &mut head).unwrap();
        head.resize(head.len() + count, value);
        head
    };
    let too_many = Err(FrameError::TooMany { max: FRAME_BYTES_MAX / ELEMENT_BYTES_MIN });
    let count = FRAME_BYTES_MAX / ELEMENT_BYTES_MIN + 1;
    // Of consensus: entries, runs, lengths and gaps, packed or each by itself. Then proposals, and ids.
    assert_eq!(decoded(1, &[0x32, 0].repeat(count)), too_many);
    assert_eq!(decoded(1, &[0x3a, 0].repeat(count)), too_many);
    assert_eq!(decoded(1, &packed(8, 0, count)), too_many);
    assert_eq!(decoded(1, &packed(9, 0, count)), too_many);
    assert_eq!(decoded(1, &[0x40, 0].repeat(count)), too_many);
    assert_eq!(decoded(3, &[0x12, 0].repeat(count)), too_many);
    assert_eq!(decoded(4, &[0x12, 0].repeat(count)), too_many);
    assert_eq!(decoded(4, &[0x12, 0].repeat(count - 1)), Ok(HEADER_BYTES));
    assert_eq!(decoded(1, &packed(5, 0, count)), Ok(HEADER_BYTES), "the engine's own part is one element");
}

#[test]
fn what_is_encoded_has_no_more_elements_than_can_be_decoded() {
    let id = |sequence| ProposalId { node: NodeId(1), sequence };
    let (group, payload) = (GroupId(1), Bytes::new());
    let of = |count: u64| {
        let batch = (1..=count).map(|n| Proposal { id: id(n), payload: payload.clone() }).collect();
        let ids = (1..=count).map(id).collect();
        let refused = Packet::Refused { group, ids, outcome: Outcome::Dropped, busy: false };
        [append(1..1 + count, &payload), Packet::Forward { group, batch }, refused]
    };
    let max = (MAX / ELEMENT_BYTES_MIN) as u64;
    for (most, more) in of(max).into_iter().zip(of(max + 1)) {
        let bytes = encoded(std::slice::from_ref(&most));
        assert_eq!(decoded(&bytes), Ok((vec![most], HEADER_BYTES)));
        for version in VERSION_MIN..=VERSION_MAX {
            assert!(Encoder::speaking(version).push(&more, MAX).is_err());
        }
    }
}

#[test]
fn packets_before_broken_bytes_are_delivered() {
    let mut bytes = encoded(&[Packet::Alive { epoch: Epoch(1) }]);
    bytes.extend_from_slice(&[0xff; HEADER_BYTES]);
    let mut packets = Vec::new();
    assert!(Decoder::new(MAX).decode(&mut bytes, &mut packets).is_err());
    assert_eq!(packets, [Packet::Alive { epoch: Epoch(1) }]);
}

#[test]
fn unknown_kinds_are_passed_over_and_unknown_fields_ignored() {
    let mut bytes = BytesMut::from(&frame(200, 0, b"of a later version")[..]);
    // Field 1 is the epoch; field 15 is of a later version.
    bytes.extend_from_slice(&frame(2, 4, &[0x08, 5, 0x78, 1]));
    let (mut decoder, mut packets) = (Decoder::new(MAX), Vec::new());
    decoder.decode(&mut bytes, &mut packets).unwrap();
    assert_eq!(packets, [Packet::Alive { epoch: Epoch(5) }]);
    assert_eq!((decoder.take_unknown(), decoder.take_unknown()), (1, 0));
}

#[test]
fn payload_lengths_must_fit_exactly() {
    for (len, error) in [(3, "payloads end early"), (1, "bytes behind the last payload")] {
        // One proposal whose payload is announced as `len`, with two bytes behind the head.
        let body = [&[0x12, 2, 0x18, len][..], b"xy"].concat();
        assert_eq!(decoded(&frame(3, 4, &body)), Err(FrameError::Malformed(error)));
    }
}

#[test]
fn a_packet_too_long_is_refused_and_leaves_nothing() {
    let mut encoder = Encoder::new();
    let long = Packet::Request { id: 1, body: Bytes::from(vec![0; 1000]) };
    assert!(encoder.push(&long, 999).is_err());
    assert_eq!(encoder.remaining(), 0);
    encoder.push(&long, 1002).unwrap();
    assert_eq!(encoder.remaining(), HEADER_BYTES + 1002);
}

#[test]
fn long_payloads_are_slices_of_what_was_received_and_short_ones_let_go_of_it() {
    for (len, shared) in [(16, false), (INLINE_BYTES_MAX / 3, false), (INLINE_BYTES_MAX / 3 + 1, true)] {
        let payload = Bytes::from(vec![7; len]);
        let mut buffer = encoded(&[append(1..4, &payload)]);
        let range = buffer.as_ptr_range();
        let mut packets = Vec::new();
        Decoder::new(MAX).decode(&mut buffer, &mut packets).unwrap();
        let Packet::Consensus { message, .. } = &packets[0] else { panic!() };
        assert!(message.entries.iter().all(|entry| entry.payload == payload), "{len}");
        let lies_there = |entry: &Entry| range.contains(&entry.payload.as_ptr());
        assert!(message.entries.iter().all(|entry| lies_there(entry) == shared), "{len}");
    }
}

/// The head of a message with two entries, in runs: their number, the lengths of payloads, the gaps.
fn runs(head: &[u8]) -> Result<(Vec<Packet>, usize), FrameError> {
    decoded(&frame(1, head.len(), &[head, b"xy"].concat()))
}

#[test]
fn runs_that_contradict_their_payloads_are_refused() {
    // Field 7, a run, with slot 5, a count, and sequence 9; field 8, lengths; field 9, gaps.
    let run = |count| [0x3a, 6, 0x08, 5, 0x10, count, 0x30, 9];
    let (lens, gaps) = ([0x42, 2, 1, 1], [0x4a, 2, 0, 3]);
    let (packets, _) = runs(&[&run(2)[..], &lens, &gaps].concat()).unwrap();
    let Packet::Consensus { message, .. } = &packets[0] else { panic!() };
    let ids: Vec<_> = message.entries.iter().map(|entry| (entry.slot.0, entry.id.sequence)).collect();
    assert_eq!(ids, [(5, 9), (6, 13)]);

    let number = Err(FrameError::Malformed("runs and payloads differ in number"));
    assert_eq!(runs(&[&run(1)[..], &lens].concat()), number);
    assert_eq!(runs(&[&run(3)[..], &lens].concat()), number);
    assert_eq!(runs(&[&run(127)[..], &run(2), &lens].concat()), number);
    assert_eq!(
        runs(&[&run(2)[..], &lens, &[0x4a, 1, 0]].concat()),
        Err(FrameError::Malformed("gaps and payloads differ in number"))
    );
    let past = Err(FrameError::Malformed("a run leaves the number space"));
    let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let last_slot = [&[0x3a, 13, 0x10, 2, 0x08][..], &most].concat();
    assert_eq!(runs(&[&last_slot[..], &lens].concat()), past);
    let last_sequence = [&[0x3a, 13, 0x10, 2, 0x30][..], &most].concat();
    assert_eq!(runs(&[&last_sequence[..], &lens].concat()), past);
    assert_eq!(runs(&[&run(2)[..], &lens, &[0x4a, 11, 0], &most].concat()), past);
}

#[test]
fn an_entry_that_follows_on_another_costs_a_byte() {
    let len = |count: u64| encoded(&[append(1..1 + count, &Bytes::from_static(b"0123456789abcdef"))]).len();
    assert_eq!(len(64) - len(2), 62 * (16 + 1));
}

#[test]
fn the_format_never_changes() {
    let goldens =
        [(1, include_str!("golden_frames.txt")), (2, include_str!("golden_frames_of_version_2.txt"))];
    assert_eq!(goldens.map(|(version, _)| version).to_vec(), (VERSION_MIN..=VERSION_MAX).collect::<Vec<_>>());
    for (version, golden) in goldens {
        let hex = |packet: &Packet| {
            let bytes = encoded_by(Encoder::speaking(version), std::slice::from_ref(packet));
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let packets = if version == 1 { every_kind() } else { vec![in_runs(), every_kind().remove(0)] };
        let golden: Vec<_> = golden.lines().filter(|line| !line.starts_with('#')).collect();
        let written: Vec<_> = packets.iter().map(hex).collect();
        assert_eq!(
            written,
            golden,
            "nodes of two versions would not understand each other:\n{}",
            written.join("\n")
        );
    }
}

/// Two runs, in one of which an id is skipped.
fn in_runs() -> Packet {
    let Packet::Consensus { group, mut message } = append(1..5, &Bytes::from_static(b"put")) else {
        panic!()
    };
    let mut entries = message.entries.to_vec();
    entries[2].id.sequence += 2;
    entries[3].id.sequence += 2;
    let mut later = entries[3].clone();
    (later.slot, later.ballot) = (Slot(5), Ballot::term(4));
    entries.push(later);
    message.entries = entries.into();
    Packet::Consensus { group, message }
}
