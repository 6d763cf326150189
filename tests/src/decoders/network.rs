//! What other nodes send: frames, their heads, the handshake, and messages of Raft.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use conclave_consensus::{
    Ballot, Boot, Class, Config, Consensus, Effect, Entry, GroupId, Input, Kind, Message, NodeId, Outcome,
    Proposal, ProposalId, ReplicaId, Slot, SnapshotMeta, StepError, Time,
};
use conclave_raft::{Raft, RaftConfig, describe};
use conclave_transport::{
    ClusterId, Inbound, Packet, SnapshotPrefix, TcpOptions, TcpTransport,
    codec::{Decoder, Encoder},
};

use super::{Source, piece};

const FRAME_BYTES_MAX: usize = 1 << 20;

fn encoded(packets: &[Packet]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    for packet in packets {
        encoder.push(packet, FRAME_BYTES_MAX).expect("a frame that was read can be written");
    }
    encoder.copy_to_bytes(encoder.remaining()).to_vec()
}

/// Decodes all at once and in two parts: both must say the same, and what was understood must survive being said again.
pub(super) fn frames(data: &[u8]) {
    let (mut whole, mut packets) = (BytesMut::from(data), Vec::new());
    let outcome = Decoder::new(FRAME_BYTES_MAX).decode(&mut whole, &mut packets);
    let mut parts = Decoder::new(FRAME_BYTES_MAX);
    let (mut buffer, mut in_parts) = (BytesMut::from(&data[..data.len() / 2]), Vec::new());
    let mut outcome_in_parts = parts.decode(&mut buffer, &mut in_parts);
    if outcome_in_parts.is_ok() {
        buffer.extend_from_slice(&data[data.len() / 2..]);
        outcome_in_parts = parts.decode(&mut buffer, &mut in_parts);
    }
    assert_eq!((outcome.is_ok(), &packets), (outcome_in_parts.is_ok(), &in_parts));
    let (mut again, mut same) = (BytesMut::from(&encoded(&packets)[..]), Vec::new());
    let missing = Decoder::new(FRAME_BYTES_MAX).decode(&mut again, &mut same);
    assert!(missing.is_ok() && again.is_empty());
    assert_eq!(packets, same);
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let packets = packets();
    packets.iter().map(|packet| encoded(std::slice::from_ref(packet))).chain([encoded(&packets)]).collect()
}

/// Puts the bytes into a frame whose header is as it must be: kind, length of the head, the rest.
pub(super) fn heads(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = source.byte();
    let head_len = (usize::from(source.byte()) << 8 | usize::from(source.byte())).min(source.bytes.len());
    let mut checked = Vec::new();
    checked.extend_from_slice(&(source.bytes.len() as u32).to_le_bytes());
    checked.extend_from_slice(&(head_len as u32).to_le_bytes());
    checked.extend_from_slice(&[kind, 0, 0, 0]);
    checked.extend_from_slice(source.bytes);
    let mut frame = crc32fast::hash(&checked).to_le_bytes().to_vec();
    frame.extend(checked);
    frames(&frame);
}

pub(super) fn head_seeds() -> Vec<Vec<u8>> {
    let seed = |packet: &Packet| {
        let frame = encoded(std::slice::from_ref(packet));
        let mut seed = vec![frame[12], frame[9], frame[8]];
        seed.extend_from_slice(&frame[16..]);
        seed
    };
    packets().iter().map(seed).collect()
}

fn entry(slot: u64, term: u64, kind: Kind, payload: &[u8]) -> Entry {
    Entry {
        slot: Slot(slot),
        ballot: Ballot::term(term),
        kind,
        id: ProposalId { node: NodeId(7), sequence: slot },
        payload: Bytes::copy_from_slice(payload),
    }
}

fn packets() -> Vec<Packet> {
    let (group, body) = (GroupId(3), Bytes::from_static(b"some body"));
    let id = ProposalId { node: NodeId(1), sequence: 9 };
    let message = Message {
        from: ReplicaId(1),
        to: ReplicaId(2),
        class: Class::Append,
        head: Bytes::from_static(b"head").into(),
        entries: vec![entry(4, 2, Kind::Command, b"command"), entry(5, 2, Kind::Noop, b"")].into(),
    };
    let batch = vec![Proposal { id, payload: body.clone() }, Proposal { id, payload: Bytes::new() }];
    let have = SnapshotPrefix { slot: 301, pieces: 4, digest: 7 };
    vec![
        Packet::Consensus { group, message },
        Packet::Alive { epoch: conclave_consensus::Epoch(5) },
        Packet::Forward { group, batch },
        Packet::Refused { group, ids: vec![id], outcome: Outcome::Unknown, busy: true },
        Packet::Request { id: 1, body: body.clone() },
        Packet::Response { id: 1, body: body.clone() },
        Packet::SnapshotPull { group, fetch: 2, at_least: 300, piece: 5, have },
        Packet::SnapshotPiece { group, fetch: 2, after: have, body, last: true },
    ]
}

#[derive(Debug)]
struct Nowhere;

impl Inbound for Nowhere {
    fn receive(&self, _from: NodeId, _packets: Vec<Packet>) {}
}

/// A node that listens for as long as the process lives.
fn listener() -> SocketAddr {
    static LISTENER: OnceLock<(tokio::runtime::Runtime, TcpTransport)> = OnceLock::new();
    let (_, transport) = LISTENER.get_or_init(|| {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        let runtime = threads.worker_threads(1).enable_all().build().expect("a runtime");
        let options = TcpOptions::new(NodeId(2), ClusterId(9), vec!["127.0.0.1:0".to_owned()]);
        let transport = runtime.block_on(async {
            let transport = TcpTransport::bind(options).await.expect("a free port");
            transport.start(Arc::new(Nowhere));
            transport
        });
        (runtime, transport)
    });
    transport.addresses()[0]
}

/// Dials a node, says the bytes, raw or as a word of the handshake, and waits for it to hang up.
pub(super) fn handshake(data: &[u8]) {
    let mut source = Source::new(data);
    let said = if source.byte().is_multiple_of(2) { source.bytes.to_vec() } else { word(source.bytes) };
    let mut connection = TcpStream::connect(listener()).expect("the listener lives");
    connection.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    // It may hang up while it is still spoken to.
    let _ = connection.write_all(&said).and_then(|()| connection.shutdown(Shutdown::Write));
    if let Err(error) = connection.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the listener does not hang up");
    }
}

fn word(body: &[u8]) -> Vec<u8> {
    let mut word = b"CONCLAVE".to_vec();
    word.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    word.extend_from_slice(&(body.len() as u32).to_le_bytes());
    word.extend_from_slice(body);
    word
}

pub(super) fn handshake_seeds() -> Vec<Vec<u8>> {
    // Versions 1 to 1, cluster 9, from 1, to 2, lane 0, as varints of fields 1 to 6.
    let hello = [0x08, 1, 0x10, 1, 0x18, 9, 0x20, 1, 0x28, 2, 0x30, 0];
    let mut raw = vec![0];
    raw.extend(word(&hello));
    let mut framed = vec![1];
    framed.extend(hello);
    vec![raw, framed, b"\0GET / HTTP/1.1\r\n\r\n".to_vec()]
}

fn boot(seed: u64) -> Raft {
    let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
    let boot = Boot {
        replica: ReplicaId(1),
        meta: Bytes::new(),
        state: SnapshotMeta { config, ..SnapshotMeta::default() },
        entries: Vec::new(),
        first: Slot(1),
        now: Time(0),
        seed,
    };
    Raft::new(boot, RaftConfig::default()).expect("a first boot")
}

/// Steps two cores alike with messages made of the bytes, and with time, proposals and completions between them: no panic, no broken
/// core, a refused message changes nothing, and both do the same.
pub(super) fn raft(data: &[u8]) {
    let (mut core, mut twin) = (boot(1), boot(1));
    let mut source = Source::new(data);
    let (mut now, mut effects, mut same) = (0, Vec::new(), Vec::new());
    while !source.is_empty() {
        let action = source.byte();
        let input = match action % 8 {
            0 => {
                now = core.next_deadline().map_or(now, |due| due.0.max(now));
                Input::Tick
            }
            1 => {
                let id = ProposalId { node: NodeId(1), sequence: source.number() };
                let payload = Bytes::copy_from_slice(source.piece());
                Input::Propose { batch: vec![Proposal { id, payload }], only_in: None }
            }
            2 => {
                now += source.number().min(1 << 20) * 100_000_000;
                Input::Tick
            }
            _ => Input::Message(message(&mut source, action)),
        };
        let before = core.status();
        let is_message = matches!(input, Input::Message(_));
        let stepped = core.step(Time(now), input.clone());
        assert_eq!(stepped, twin.step(Time(now), input));
        match stepped {
            Err(StepError::Broken(why)) => panic!("{why}"),
            Err(_) if is_message => assert_eq!(core.status(), before, "a refused message changes nothing"),
            _ => {}
        }
        core.drain(&mut effects);
        twin.drain(&mut same);
        assert_eq!(effects, same);
        same.clear();
        // What is written is done at once, or never.
        for effect in effects.drain(..) {
            let done = match effect {
                Effect::Persist { mark, .. } if action & 0x80 == 0 => Input::Persisted(mark),
                Effect::Commit(entries) => match entries.last() {
                    Some(last) => Input::Applied(last.slot),
                    None => continue,
                },
                _ => continue,
            };
            let stepped = core.step(Time(now), done.clone());
            assert_eq!(stepped, twin.step(Time(now), done));
            stepped.expect("a completion is never refused");
        }
    }
}

fn message(source: &mut Source<'_>, action: u8) -> Message {
    let from = ReplicaId(source.number());
    let head = source.piece().into();
    let entries = (0..source.byte() % 4)
        .map(|_| {
            let kind = Kind::from_code(source.byte() % 3).unwrap_or(Kind::Noop);
            let (slot, term) = (source.number(), source.number());
            entry(slot, term, kind, source.piece())
        })
        .collect();
    let to = if action == 0x7f { ReplicaId(2) } else { ReplicaId(1) };
    let message = Message { from, to, class: Class::Control, head, entries };
    assert!(!describe(&message).is_empty());
    message
}

/// Everything that three cores say to the first while they elect a leader and choose a command, as one input.
pub(super) fn raft_seeds() -> Vec<Vec<u8>> {
    // Term 1, version 1, and a body of a few small fields for each kind of message there is.
    let kinds = 3..16_u8;
    let mut all = Vec::new();
    let mut seeds = Vec::new();
    for kind in kinds {
        let body = [0x08, 1, 0x10, 1, 0x18, 1];
        let mut head = vec![0x08, 1, 0x10, 1, kind << 3 | 2, body.len() as u8];
        head.extend(body);
        let mut seed = vec![3, 2];
        seed.extend(piece(&head));
        seed.extend([1, 0, 1, 1]);
        seed.extend(piece(b"payload"));
        all.extend(&seed);
        seeds.push(seed);
    }
    seeds.push(all);
    // A deadline, the votes of another, a proposal.
    let vote = [0x08, 1, 0x10, 1, 0x32, 4, 0x08, 1, 0x10, 1];
    let mut elected = vec![0, 3, 2];
    elected.extend(piece(&vote));
    elected.extend([0, 1, 1, 3, b'a', b'b', b'c', 0]);
    seeds.push(elected);
    seeds
}
