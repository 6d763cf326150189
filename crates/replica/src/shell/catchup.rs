//! The `catchup` thread: log read-back and snapshots, so that nothing slow stands in the way of the rest.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{GroupId, LogReadId, NodeId, Slot, SlotRange};
use conclave_storage::{LogStore, SnapshotSink, StateError};
use conclave_transport::Packet;

use super::{Shared, ShellInput, apply::ApplyJob, budget::Budget, clock};
use crate::{HostInput, SnapshotServer};

/// How long a fetch may rest before it is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Work for the catch-up thread.
#[derive(Debug)]
pub(crate) enum CatchupJob {
    ReadLog { group: GroupId, id: LogReadId, range: SlotRange, bytes_max: u32 },
    Store { group: GroupId, fetch: u64, piece: u64, generation: u64, body: Bytes, last: bool },
    Serve { to: NodeId, group: GroupId, fetch: u64, at_least: Slot, piece: u64 },
}

pub(super) fn run(shared: &Arc<Shared>, log: &dyn LogStore) {
    let mut jobs = Vec::new();
    let mut servers: BTreeMap<GroupId, SnapshotServer> = BTreeMap::new();
    let mut sinks: BTreeMap<GroupId, (u64, Box<dyn SnapshotSink>)> = BTreeMap::new();
    let mut swept = clock::now();
    let mut budget = Budget::new(shared.serve_bytes_per_second);
    let mut waiting = Waiting::default();
    loop {
        let pause = budget.wait(clock::now()).filter(|_| !waiting.is_empty());
        if !shared.catchups.take(Some(pause.unwrap_or(SWEEP_EVERY)), &mut jobs) {
            return;
        }
        if clock::now().since(swept) >= SWEEP_EVERY {
            swept = clock::now();
            servers.values_mut().for_each(SnapshotServer::sweep);
        }
        for job in jobs.drain(..) {
            match job {
                CatchupJob::ReadLog { group, id, range, bytes_max } => {
                    match log.read(group, range, bytes_max as usize) {
                        Ok(result) => tell(shared, HostInput::LogRead { group, id, result }),
                        Err(error) => return shared.halt(error.into()),
                    }
                }
                CatchupJob::Store { group, fetch, piece, generation, body, last } => {
                    tracing::debug!(%group, fetch, piece, bytes = body.len(), last, "snapshot piece arrived");
                    let input = match store(shared, &mut sinks, group, fetch, piece, generation, body, last) {
                        Ok(input) => input,
                        Err(error) => {
                            tracing::warn!(%group, %error, "snapshot piece refused");
                            sinks.remove(&group);
                            HostInput::SnapshotBroken { group, fetch }
                        }
                    };
                    tell(shared, input);
                }
                CatchupJob::Serve { to, group, fetch, at_least, piece } => {
                    waiting.ask(to, group, Piece { fetch, at_least, piece });
                }
            }
        }
        while budget.wait(clock::now()).is_none()
            && let Some((to, group, piece)) = waiting.next()
        {
            budget.spend(clock::now(), serve(shared, &mut servers, to, group, piece));
        }
    }
}

/// Which piece is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    fetch: u64,
    at_least: Slot,
    piece: u64,
}

/// Who waits for a piece, in the order of asking. Who asks again takes the place that it has: so a node has one place in each group.
#[derive(Debug, Default)]
struct Waiting(VecDeque<(NodeId, GroupId, Piece)>);

/// How many may wait; who finds no place asks again.
const WAITING_MAX: usize = 1_024;

impl Waiting {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn ask(&mut self, to: NodeId, group: GroupId, piece: Piece) {
        if let Some(place) = self.0.iter_mut().find(|(node, of, _)| (*node, *of) == (to, group)) {
            place.2 = piece;
        } else if self.0.len() < WAITING_MAX {
            self.0.push_back((to, group, piece));
        }
    }

    fn next(&mut self) -> Option<(NodeId, GroupId, Piece)> {
        self.0.pop_front()
    }
}

/// Sends a piece, and says how long it was.
fn serve(
    shared: &Shared,
    servers: &mut BTreeMap<GroupId, SnapshotServer>,
    to: NodeId,
    group: GroupId,
    Piece { fetch, at_least, piece }: Piece,
) -> usize {
    let began = clock::now();
    let mut open = || {
        let (answer, source) = mpsc::sync_channel(1);
        shared.applies.push(ApplyJob::Snapshot { group, answer });
        source.recv().ok().flatten()
    };
    let served = servers.entry(group).or_default().piece(to, fetch, at_least, piece, &mut open);
    let (body, last) = served.unwrap_or_else(|error| {
        tracing::warn!(%group, %error, "snapshot cannot be read");
        (Bytes::new(), true)
    });
    tracing::debug!(%group, %to, fetch, piece, bytes = body.len(), last, took = ?clock::now().since(began), "snapshot piece served");
    let bytes = body.len();
    shared.transport().send(to, &mut vec![Packet::SnapshotPiece { group, fetch, piece, body, last }]);
    bytes
}

fn tell(shared: &Shared, input: HostInput) {
    shared.inbox.push(ShellInput::Host(input));
}

#[expect(clippy::too_many_arguments, reason = "the parts of one piece")]
fn store(
    shared: &Shared,
    sinks: &mut BTreeMap<GroupId, (u64, Box<dyn SnapshotSink>)>,
    group: GroupId,
    fetch: u64,
    piece: u64,
    generation: u64,
    body: Bytes,
    last: bool,
) -> Result<HostInput, StateError> {
    if piece == 0 {
        // Dropped before the next one is begun: an unfinished sink leaves nothing.
        sinks.remove(&group);
        let (answer, sink) = mpsc::sync_channel(1);
        shared.applies.push(ApplyJob::Receive { group, generation, answer });
        let Ok(sink) = sink.recv() else { return Ok(HostInput::SnapshotBroken { group, fetch }) };
        sinks.insert(group, (fetch, sink?));
    }
    let Some((_, mut sink)) = sinks.remove(&group).filter(|(of, _)| *of == fetch) else {
        return Ok(HostInput::SnapshotBroken { group, fetch });
    };
    sink.piece(body)?;
    if last {
        return Ok(HostInput::SnapshotStored { group, fetch, meta: sink.finish()? });
    }
    sinks.insert(group, (fetch, sink));
    Ok(HostInput::PieceStored { group, fetch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_again_keeps_its_place_and_takes_no_second() {
        let mut waiting = Waiting::default();
        let piece = |piece| Piece { fetch: 1, at_least: Slot(1), piece };
        waiting.ask(NodeId(1), GroupId(1), piece(0));
        waiting.ask(NodeId(2), GroupId(1), piece(0));
        waiting.ask(NodeId(1), GroupId(1), piece(1));
        assert_eq!(waiting.next(), Some((NodeId(1), GroupId(1), piece(1))));
        assert_eq!(waiting.next(), Some((NodeId(2), GroupId(1), piece(0))));
        assert!(waiting.is_empty());
        for node in 0..2_000 {
            waiting.ask(NodeId(node), GroupId(1), piece(0));
        }
        assert_eq!(waiting.0.len(), WAITING_MAX);
    }
}
