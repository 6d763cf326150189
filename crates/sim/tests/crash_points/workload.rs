//! A fixed history of appends and syncs that meets every corner of the log, and what the log may hold after each element.

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Config, Entry, GroupId, Kind, LogOp, NodeId, ProposalId, ReplicaId, Slot, SnapshotMeta,
};
use conclave_sim::{disk::SimDisk, rng::Rng};
use conclave_storage::{
    HOST_GROUP, LogError, LogStore, MemoryLog, Preparation, Wal, WalOptions,
    conformance::{LogContents, log_contents},
};

/// The groups that write: two that are busy, and one that falls silent and must not pin old segments.
const BUSY: GroupId = GroupId(1);
const CHANGING: GroupId = GroupId(2);
const SILENT: GroupId = GroupId(9);

/// One atomic part of an append.
pub(crate) type Element = (GroupId, Vec<LogOp>);

/// Appends, each a batch; a sync follows where it says so.
pub(crate) struct Workload {
    segment_bytes: u64,
    batches: Vec<(Vec<Element>, bool)>,
    /// What the log is after so many elements.
    history: Vec<LogContents>,
}

/// How far a run came: so many elements were synced, so many begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) synced: usize,
    pub(crate) begun: usize,
}

impl Workload {
    /// `rounds` rounds of puts, cuts, truncations, resets and records, in segments of `segment_bytes`, some of which are left, used again
    /// and copied out of.
    pub(crate) fn new(segment_bytes: u64, rounds: u64) -> Self {
        let large = (segment_bytes / 4) as usize;
        let mut batches = vec![(
            vec![
                (HOST_GROUP, vec![LogOp::Meta(Bytes::from_static(b"host"))]),
                (SILENT, vec![LogOp::Meta(Bytes::from_static(b"silent")), put(1, 1, 20), put(3, 1, 30)]),
            ],
            true,
        )];
        for round in 1..=rounds {
            let payload_bytes = if round % 5 == 0 { large } else { 9 };
            let first = vec![
                put(2 * round - 1, round, 60),
                put(2 * round, round, payload_bytes),
                LogOp::CutBelow(Slot((2 * round).saturating_sub(5))),
            ];
            let mut second = vec![put(round + 1, round, 100), put(round + 2, round, 10)];
            match round % 6 {
                2 => second.insert(0, LogOp::TruncateFrom(Slot(round))),
                4 => second.push(LogOp::CutBelow(Slot(round.saturating_sub(2)))),
                5 => second.push(LogOp::Reset(Box::new(snapshot(round + 1, round - round % 2)))),
                _ => {}
            }
            let meta = LogOp::Meta(Bytes::from(format!("round {round}")));
            batches.push((vec![(BUSY, first), (CHANGING, second)], round % 3 != 0));
            batches.push((vec![(BUSY, vec![meta])], round % 2 == 0));
        }
        if let Some(last) = batches.last_mut() {
            last.1 = true;
        }
        let model = MemoryLog::new();
        let mut history = vec![log_contents(&model)];
        for element in batches.iter().flat_map(|(batch, _)| batch) {
            model.append(std::slice::from_ref(element)).unwrap();
            history.push(log_contents(&model));
        }
        Self { segment_bytes, batches, history }
    }

    /// Opens the log on a disk.
    pub(crate) fn open(&self, disk: &SimDisk) -> Result<Wal, LogError> {
        let options = WalOptions {
            log_id: 0x1234_5678_9abc_def0,
            segment_bytes: self.segment_bytes,
            pinned_segments_max: 3,
            preparation: Preparation::Inline,
            observer: None,
        };
        Wal::open(disk.mount(), options)
    }

    /// All elements, in order.
    pub(crate) fn elements(&self) -> Vec<Element> {
        self.batches.iter().flat_map(|(batch, _)| batch.clone()).collect()
    }

    /// How many elements there are before the last batch: what the log itself proves to be synced.
    pub(crate) fn proven(&self) -> usize {
        self.len() - self.batches.last().map_or(0, |(batch, _)| batch.len())
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.history.len() - 1
    }

    /// Runs it to its end or to the first error.
    pub(crate) fn run(&self, log: &Wal) -> Reached {
        let mut reached = Reached { synced: 0, begun: 0 };
        for (batch, sync) in &self.batches {
            reached.begun += batch.len();
            if log.append(batch).is_err() {
                return reached;
            }
            if *sync {
                if log.sync().is_err() {
                    return reached;
                }
                reached.synced = reached.begun;
            }
        }
        reached
    }

    /// Runs it on an empty disk until the power goes inside operation `cut_at`, which may be while the log is opened.
    pub(crate) fn run_until_cut(&self, cut_at: u64, seed: u64) -> (SimDisk, Reached) {
        let disk = SimDisk::new(Rng::new(seed));
        disk.cut_in(cut_at);
        let reached = self.open(&disk).map_or(Reached { synced: 0, begun: 0 }, |log| self.run(&log));
        (disk, reached)
    }

    /// After how many elements, of those that may be held, the log is what it is.
    pub(crate) fn position(&self, log: &Wal, reached: Reached) -> Option<usize> {
        let contents = log_contents(log);
        (reached.synced..=reached.begun).rev().find(|count| self.history[*count] == contents)
    }
}

fn put(slot: u64, round: u64, payload_bytes: usize) -> LogOp {
    let entry = Entry {
        slot: Slot(slot),
        ballot: Ballot::term(round),
        kind: Kind::Command,
        id: ProposalId { node: NodeId(slot << 32), sequence: slot },
        payload: Bytes::from(vec![(slot * 31 + round) as u8; payload_bytes]),
    };
    LogOp::Put(entry.into())
}

fn snapshot(slot: u64, round: u64) -> SnapshotMeta {
    SnapshotMeta {
        slot: Slot(slot),
        ballot: Ballot::term(round),
        config: Config::of_voters([(ReplicaId(1), NodeId(7))]),
        generation: slot,
    }
}
