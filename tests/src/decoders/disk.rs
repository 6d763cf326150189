//! What a disk gives back: memberships, the records of term and vote and of the host, segments of the log and the frames in them.

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Boot, Config, Entry, GroupId, Kind, LogOp, LogSlice, LogState, NodeId, ProposalId, ReplicaId,
    Slot, SlotRange, SnapshotMeta, Time,
};
use conclave_raft::{Raft, RaftConfig};
use conclave_replica::begin_epoch;
use conclave_sim::{disk::SimDisk, rng::Rng};
use conclave_storage::{HOST_GROUP, LogError, LogStore, MemoryLog, Preparation, Wal, WalOptions};

use super::Source;

/// What is accepted is what would be written.
pub(super) fn membership(data: &[u8]) {
    if let Ok(config) = Config::decode(data) {
        assert_eq!(config.encode(), data);
    }
}

fn configs() -> Vec<Config> {
    let mut joint = Config::of_voters((1..=4).map(|id| (ReplicaId(id), NodeId(id * 11))));
    joint.outgoing = (1..=3).map(ReplicaId).collect();
    joint.voters.remove(&ReplicaId(1));
    joint.voters.remove(&ReplicaId(4));
    joint.learners.insert(ReplicaId(4));
    vec![Config::default(), Config::of_voters([(ReplicaId(1), NodeId(5))]), joint]
}

pub(super) fn membership_seeds() -> Vec<Vec<u8>> {
    configs().iter().map(|config| config.encode().to_vec()).collect()
}

/// The bytes as a replica's record and as the host's: a boot or an error.
pub(super) fn records(data: &[u8]) {
    let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
    let boot = Boot {
        replica: ReplicaId(1),
        meta: Bytes::copy_from_slice(data),
        state: SnapshotMeta { config, ..SnapshotMeta::default() },
        entries: Vec::new(),
        first: Slot(1),
        now: Time(0),
        seed: 1,
    };
    let _ = Raft::new(boot, RaftConfig::default());
    let log = MemoryLog::new();
    let meta = LogOp::Meta(Bytes::copy_from_slice(data));
    log.append(&[(HOST_GROUP, vec![meta])]).expect("memory takes it");
    if let Ok(epoch) = begin_epoch(&log, 9, NodeId(2)) {
        let next = begin_epoch(&log, 9, NodeId(2)).expect("its own record");
        assert!(next > epoch, "boots are counted");
    }
}

pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    let log = MemoryLog::new();
    begin_epoch(&log, 9, NodeId(2)).expect("a first boot");
    // Version 1, term 7, vote for 3.
    vec![Vec::new(), log.state(HOST_GROUP).meta.to_vec(), vec![0x08, 1, 0x10, 7, 0x18, 3]]
}

const LOG_ID: u64 = 0x1234;
const SEGMENT_BYTES: usize = 2048;

fn open(disk: &SimDisk) -> Result<Wal, LogError> {
    let options = WalOptions {
        log_id: LOG_ID,
        segment_bytes: SEGMENT_BYTES as u64,
        preparation: Preparation::Inline,
        ..WalOptions::default()
    };
    Wal::open(disk.mount(), options)
}

/// What a log holds of each group. Slots may lie far apart, so of a group that is wide only the beginning is read.
fn contents(log: &Wal) -> Vec<(LogState, Vec<Entry>)> {
    const SLOTS_MAX: u64 = 4096;
    let of = |group| {
        let state = log.state(group);
        let upto = state.last.0.min(state.first.0.saturating_add(SLOTS_MAX)).min(u64::MAX - 1);
        let mut entries = Vec::new();
        for slot in (state.first.0..=upto).map(Slot) {
            match log.read(group, SlotRange { from: slot, to: slot.next() }, 1) {
                Ok(LogSlice::Entries(found)) => entries.extend(found),
                // A gap.
                Err(LogError::Misuse(_)) => {}
                other => panic!("slot {slot} cannot be read: {other:?}"),
            }
        }
        (state, entries)
    };
    log.groups().into_iter().map(of).collect()
}

/// The bytes as the only segment of a log. If it opens it is read whole, written on, and the same after another boot.
pub(super) fn segment(data: &[u8]) {
    let disk = SimDisk::new(Rng::new(1));
    let mounted = disk.mount();
    let file = mounted.create("00000001.wal", data.len() as u64).expect("an empty disk");
    file.write_at(0, data).and_then(|()| file.sync()).expect("a disk without faults");
    mounted.sync_names().expect("a disk without faults");
    let Ok(log) = open(&disk) else { return };
    let found = contents(&log);
    drop(log);
    let log = open(&disk).expect("what was opened once opens again");
    assert_eq!(contents(&log), found);
    let meta = LogOp::Meta(Bytes::from_static(b"on"));
    if log.append(&[(GroupId(1), vec![meta])]).and_then(|()| log.sync()).is_ok() {
        let written = contents(&log);
        drop(log);
        assert_eq!(contents(&open(&disk).expect("a log that was written")), written);
    }
}

pub(super) fn segment_seeds() -> Vec<Vec<u8>> {
    let disk = SimDisk::new(Rng::new(1));
    let log = open(&disk).expect("an empty disk");
    let entry = |slot| Entry {
        slot: Slot(slot),
        ballot: Ballot::term(1),
        kind: Kind::Command,
        id: ProposalId { node: NodeId(1), sequence: slot },
        payload: Bytes::from_static(b"payload"),
    };
    let reset = SnapshotMeta { slot: Slot(9), config: configs().remove(2), ..SnapshotMeta::default() };
    let batches = [
        (HOST_GROUP, vec![LogOp::Meta(Bytes::from_static(b"host"))]),
        (
            GroupId(1),
            vec![LogOp::Put(entry(1).into()), LogOp::Put(entry(2).into()), LogOp::TruncateFrom(Slot(2))],
        ),
        (GroupId(1), vec![LogOp::Put(entry(2).into()), LogOp::CutBelow(Slot(2))]),
        (GroupId(2), vec![LogOp::Reset(Box::new(reset))]),
    ];
    let mut seeds = Vec::new();
    for batch in batches {
        log.append(std::slice::from_ref(&batch)).and_then(|()| log.sync()).expect("a disk without faults");
        let file = disk.mount().open("00000001.wal").expect("the first segment");
        let mut bytes = vec![0; SEGMENT_BYTES];
        file.read_at(0, &mut bytes).expect("a whole segment");
        seeds.push(bytes);
    }
    seeds
}

/// The bytes as payloads of frames whose headers and checksums are as they must be, one after the other, in one segment.
pub(super) fn log_frames(data: &[u8]) {
    let mut segment = b"CNCLVWAL".to_vec();
    segment.extend_from_slice(&1_u32.to_le_bytes());
    segment.extend_from_slice(&1_u32.to_le_bytes());
    segment.extend_from_slice(&LOG_ID.to_le_bytes());
    segment.extend_from_slice(&(SEGMENT_BYTES as u64).to_le_bytes());
    segment.resize(60, 0);
    segment.extend_from_slice(&crc32fast::hash(&segment).to_le_bytes());
    let mut source = Source::new(data);
    let mut lsn = 1_u64;
    while !source.is_empty() {
        let durable_upto = (lsn - 1).saturating_sub(source.number());
        let mut payload = source.piece().to_vec();
        payload.resize(payload.len().next_multiple_of(8), 0);
        if segment.len() + 32 + payload.len() > SEGMENT_BYTES {
            break;
        }
        let mut header = crc32fast::hash(&payload).to_le_bytes().to_vec();
        header.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&lsn.to_le_bytes());
        header.extend_from_slice(&durable_upto.to_le_bytes());
        let mut stamped = LOG_ID.to_le_bytes().to_vec();
        stamped.extend_from_slice(&1_u32.to_le_bytes());
        stamped.extend_from_slice(&header);
        segment.extend_from_slice(&crc32fast::hash(&stamped).to_le_bytes());
        segment.extend_from_slice(&header);
        segment.extend_from_slice(&payload);
        lsn += 1;
    }
    segment.resize(SEGMENT_BYTES, 0);
    self::segment(&segment);
}

pub(super) fn log_frame_seeds() -> Vec<Vec<u8>> {
    let segments = segment_seeds();
    let whole = segments.last().expect("some seeds");
    let (mut at, mut seed) = (64, Vec::new());
    while whole[at..at + 4] != [0; 4] {
        let length =
            u32::from_le_bytes([whole[at + 8], whole[at + 9], whole[at + 10], whole[at + 11]]) as usize;
        seed.push(0);
        seed.extend(super::piece(&whole[at + 32..at + 32 + length]));
        at += 32 + length;
    }
    // An entry of group 1 at slot 2^42: the gap before it costs nothing.
    let mut far = vec![0];
    far.extend(super::piece(&[
        1, 2, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0,
    ]));
    vec![seed, far]
}
