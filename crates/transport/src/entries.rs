//! The entries of a core's message, as its head says them.
//!
//! From version 2 of the protocol on they are *runs*: entries at successive slots under one ballot, of one kind and from one
//! proposer share what they have in common, and what is left of an entry is the length of its payload and, where ids do not
//! follow one on the other, the gap between them: a byte or two instead of two dozen. Version 1 says each in full.

use bytes::Bytes;
use conclave_consensus::{Ballot, Entry, Kind, NodeId, ProposalId, ReplicaId, Slot};

use crate::{
    codec::FrameError,
    wire::{ConsensusHead, EntryHead, RunHead},
};

/// A head that says many entries keeps memory for so many.
const KEPT: usize = 1024;

impl ConsensusHead {
    /// Says the entries as version 1 does.
    pub(crate) fn say_each(&mut self, entries: &[Entry]) {
        self.forget_entries();
        self.entries.extend(entries.iter().map(|entry| EntryHead {
            slot: entry.slot.0,
            ballot_round: entry.ballot.round,
            kind: u32::from(entry.kind.code()),
            id_node: entry.id.node.0,
            id_sequence: entry.id.sequence,
            payload_len: payload_len(&entry.payload),
            ballot_config: entry.ballot.config,
            ballot_replica: entry.ballot.replica.0,
        }));
    }

    /// Says the entries as runs.
    pub(crate) fn say_runs(&mut self, entries: &[Entry]) {
        self.forget_entries();
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let mut before = first;
            let follow = rest[1..].iter().take_while(|entry| {
                let follows = follows(before, entry);
                before = entry;
                follows
            });
            let (run, others) = rest.split_at(1 + follow.count());
            self.say_run(entries.len() - rest.len(), first, run);
            rest = others;
        }
        self.payload_lens.extend(entries.iter().map(|entry| payload_len(&entry.payload)));
    }

    /// Says a run before which `said` entries were said.
    fn say_run(&mut self, said: usize, first: &Entry, run: &[Entry]) {
        self.runs.push(RunHead {
            slot: first.slot.0,
            count: u32::try_from(run.len()).unwrap_or(u32::MAX),
            ballot_round: first.ballot.round,
            kind: u32::from(first.kind.code()),
            id_node: first.id.node.0,
            id_sequence: first.id.sequence,
            ballot_config: first.ballot.config,
            ballot_replica: first.ballot.replica.0,
        });
        let gap = |pair: &[Entry]| pair[1].id.sequence - pair[0].id.sequence - 1;
        if !self.id_gaps.is_empty() || run.windows(2).any(|pair| gap(pair) > 0) {
            // Those of earlier runs, if they had none, and this one's first.
            self.id_gaps.resize(said + 1, 0);
            self.id_gaps.extend(run.windows(2).map(gap));
        }
    }

    /// The entries that the head says, with their payloads from the front of `payloads`.
    pub(crate) fn take_entries(&self, payloads: &mut Bytes) -> Result<Vec<Entry>, FrameError> {
        let count = self.payload_lens.len();
        if self.runs.iter().map(|run| u64::from(run.count)).sum::<u64>() != count as u64 {
            return Err(FrameError::Malformed("runs and payloads differ in number"));
        }
        if !self.id_gaps.is_empty() && self.id_gaps.len() != count {
            return Err(FrameError::Malformed("gaps and payloads differ in number"));
        }
        let mut entries = Vec::with_capacity(self.entries.len() + count);
        for entry in &self.entries {
            entries.push(Entry {
                slot: Slot(entry.slot),
                ballot: Ballot {
                    config: entry.ballot_config,
                    round: entry.ballot_round,
                    replica: ReplicaId(entry.ballot_replica),
                },
                kind: kind_of(entry.kind)?,
                id: ProposalId { node: NodeId(entry.id_node), sequence: entry.id_sequence },
                payload: take_payload(payloads, entry.payload_len)?,
            });
        }
        let (mut lens, mut gaps) = (&self.payload_lens[..], &self.id_gaps[..]);
        for run in &self.runs {
            let (run_lens, later_lens) = lens.split_at(run.count as usize);
            let (run_gaps, later_gaps) = gaps.split_at(gaps.len().min(run.count as usize));
            (lens, gaps) = (later_lens, later_gaps);
            take_run(run, run_lens, run_gaps, payloads, &mut entries)?;
        }
        Ok(entries)
    }

    /// Says no entries, and keeps a moderate amount of memory for the next time.
    pub(crate) fn forget_entries(&mut self) {
        self.entries.clear();
        self.entries.shrink_to(KEPT);
        self.runs.clear();
        self.runs.shrink_to(KEPT);
        self.payload_lens.clear();
        self.payload_lens.shrink_to(KEPT);
        self.id_gaps.clear();
        self.id_gaps.shrink_to(KEPT);
    }
}

/// Whether `entry` belongs to the run that ends with `before`.
fn follows(before: &Entry, entry: &Entry) -> bool {
    before.slot.0.checked_add(1) == Some(entry.slot.0)
        && before.ballot == entry.ballot
        && before.kind == entry.kind
        && before.id.node == entry.id.node
        && before.id.sequence < entry.id.sequence
}

fn take_run(
    run: &RunHead,
    lens: &[u32],
    gaps: &[u64],
    payloads: &mut Bytes,
    entries: &mut Vec<Entry>,
) -> Result<(), FrameError> {
    let kind = kind_of(run.kind)?;
    let replica = ReplicaId(run.ballot_replica);
    let ballot = Ballot { config: run.ballot_config, round: run.ballot_round, replica };
    let past = |number: Option<u64>| number.ok_or(FrameError::Malformed("a run leaves the number space"));
    let gaps = gaps.iter().copied().chain(std::iter::repeat(0));
    let (mut slot, mut sequence) = (run.slot, run.id_sequence);
    for (place, (len, gap)) in lens.iter().zip(gaps).enumerate() {
        if place > 0 {
            slot = past(slot.checked_add(1))?;
            sequence = past(sequence.checked_add(1))?;
        }
        sequence = past(sequence.checked_add(gap))?;
        entries.push(Entry {
            slot: Slot(slot),
            ballot,
            kind,
            id: ProposalId { node: NodeId(run.id_node), sequence },
            payload: take_payload(payloads, *len)?,
        });
    }
    Ok(())
}

fn kind_of(code: u32) -> Result<Kind, FrameError> {
    u8::try_from(code).ok().and_then(Kind::from_code).ok_or(FrameError::Malformed("unknown kind of entry"))
}

/// The next payload of that length.
pub(crate) fn take_payload(payloads: &mut Bytes, len: u32) -> Result<Bytes, FrameError> {
    let len = len as usize;
    if payloads.len() < len {
        return Err(FrameError::Malformed("payloads end early"));
    }
    Ok(payloads.split_to(len))
}

/// Saturates: a payload of 4 GiB fails the bound on frames in the same call.
pub(crate) fn payload_len(payload: &Bytes) -> u32 {
    u32::try_from(payload.len()).unwrap_or(u32::MAX)
}
