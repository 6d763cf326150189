//! A fixed history of appends and syncs that meets every corner of the log, and what it may be after each element.

use std::sync::Arc;

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Config, Entry, GroupId, Kind, LogOp, NodeId, ProposalId, ReplicaId, Slot, SnapshotMeta,
};

use super::fault_disk::FaultDisk;
use crate::{
    HOST_GROUP, LogError, LogStore, MemoryLog, Preparation, Wal, WalOptions,
    conformance::{LogContents, log_contents},
};

pub(super) fn options() -> WalOptions {
    WalOptions {
        log_id: 0x1234_5678_9abc_def0,
        segment_bytes: 2048,
        pinned_segments_max: 3,
        preparation: Preparation::Inline,
        observer: None,
    }
}

pub(super) fn open(disk: &FaultDisk) -> Result<Wal, LogError> {
    Wal::open(Arc::new(disk.clone()), options())
}

pub(super) fn put(slot: u64, round: u64, payload_bytes: usize) -> LogOp {
    let entry = Entry {
        slot: Slot(slot),
        ballot: Ballot::term(round),
        kind: Kind::Command,
        id: ProposalId { node: NodeId(slot << 32), sequence: slot },
        payload: Bytes::from(vec![(slot * 31 + round) as u8; payload_bytes]),
    };
    LogOp::Put(entry.into())
}

pub(super) type Element = (GroupId, Vec<LogOp>);

/// Appends, each a batch; a sync follows where it says so.
pub(super) struct Workload {
    pub(super) batches: Vec<(Vec<Element>, bool)>,
    /// What the log is after so many elements.
    pub(super) history: Vec<LogContents>,
}

impl Workload {
    /// Two busy groups that cut behind themselves, one that truncates and is reset, one that falls silent, and the host's record.
    pub(super) fn busy(rounds: u64) -> Self {
        let mut batches = vec![(
            vec![
                (HOST_GROUP, vec![LogOp::Meta(Bytes::from_static(b"host"))]),
                (GroupId(9), vec![LogOp::Meta(Bytes::from_static(b"silent")), put(1, 1, 20), put(3, 1, 30)]),
            ],
            true,
        )];
        for round in 1..=rounds {
            let mut first = vec![
                put(2 * round - 1, round, 60),
                put(2 * round, round, 600 * usize::from(round % 5 == 0) + 9),
            ];
            first.push(LogOp::CutBelow(Slot((2 * round).saturating_sub(5))));
            let mut second = vec![put(round + 1, round, 100), put(round + 2, round, 10)];
            match round % 6 {
                2 => second.insert(0, LogOp::TruncateFrom(Slot(round))),
                4 => second.push(LogOp::CutBelow(Slot(round.saturating_sub(2)))),
                5 => second.push(LogOp::Reset(Box::new(snapshot(round + 1, round - round % 2)))),
                _ => {}
            }
            let meta = LogOp::Meta(Bytes::from(format!("round {round}")));
            batches.push((vec![(GroupId(1), first), (GroupId(2), second)], round % 3 != 0));
            batches.push((vec![(GroupId(1), vec![meta])], round % 2 == 0));
        }
        Self::of(batches)
    }

    pub(super) fn of(mut batches: Vec<(Vec<Element>, bool)>) -> Self {
        if let Some(last) = batches.last_mut() {
            last.1 = true;
        }
        let model = MemoryLog::new();
        let mut history = vec![log_contents(&model)];
        for element in batches.iter().flat_map(|(batch, _)| batch) {
            model.append(std::slice::from_ref(element)).unwrap();
            history.push(log_contents(&model));
        }
        Self { batches, history }
    }

    pub(super) fn elements(&self) -> Vec<Element> {
        self.batches.iter().flat_map(|(batch, _)| batch.clone()).collect()
    }

    /// Runs it to its end or to the first error. Returns how many elements were synced and how many were begun.
    pub(super) fn run(&self, log: &Wal) -> (usize, usize) {
        let (mut synced, mut begun) = (0, 0);
        for (batch, sync) in &self.batches {
            begun += batch.len();
            if log.append(batch).is_err() {
                return (synced, begun);
            }
            if *sync {
                if log.sync().is_err() {
                    return (synced, begun);
                }
                synced = begun;
            }
        }
        (synced, begun)
    }

    /// After how many elements, between the two, the log is what it is.
    pub(super) fn position(&self, log: &Wal, synced: usize, begun: usize) -> Option<usize> {
        let contents = log_contents(log);
        (synced..=begun).rev().find(|count| self.history[*count] == contents)
    }
}

fn snapshot(slot: u64, round: u64) -> SnapshotMeta {
    SnapshotMeta {
        slot: Slot(slot),
        ballot: Ballot::term(round),
        config: Config::of_voters([(ReplicaId(1), NodeId(7))]),
        generation: slot,
    }
}
