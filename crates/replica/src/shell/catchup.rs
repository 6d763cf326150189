//! The `catchup` thread: log read-back and snapshots, so that nothing slow stands in the way of the rest.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{GroupId, LogReadId, NodeId, Slot, SlotRange};
use conclave_storage::{LogStore, SnapshotSink, StateError};
use conclave_transport::Packet;

use super::{Shared, ShellInput, apply::ApplyJob, clock};
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
    while shared.catchups.take(Some(SWEEP_EVERY), &mut jobs) {
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
                    let began = clock::now();
                    let mut open = || {
                        let (answer, source) = mpsc::sync_channel(1);
                        shared.applies.push(ApplyJob::Snapshot { group, answer });
                        source.recv().ok().flatten()
                    };
                    let served =
                        servers.entry(group).or_default().piece(to, fetch, at_least, piece, &mut open);
                    let (body, last) = served.unwrap_or_else(|error| {
                        tracing::warn!(%group, %error, "snapshot cannot be read");
                        (Bytes::new(), true)
                    });
                    tracing::debug!(%group, %to, fetch, piece, bytes = body.len(), last, took = ?clock::now().since(began), "snapshot piece served");
                    let packet = Packet::SnapshotPiece { group, fetch, piece, body, last };
                    shared.transport().send(to, &mut vec![packet]);
                }
            }
        }
    }
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
