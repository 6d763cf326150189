//! The `log` thread: group commit.

use std::{collections::BTreeMap, sync::Arc};

use conclave_consensus::{GroupId, LogOp, Mark, NodeId, SnapshotMeta};
use conclave_storage::LogStore;
use conclave_transport::Packet;

use super::{Shared, ShellInput, apply::ApplyJob};
use crate::HostInput;

/// Work for the log.
#[derive(Debug)]
pub(crate) enum LogJob {
    Append { group: GroupId, ops: Vec<LogOp>, mark: Option<Mark>, then: Vec<(NodeId, Packet)> },
    Install { group: GroupId, mark: Mark, meta: SnapshotMeta },
}

/// Everything that waits is appended and made durable by one sync. Only then do the promises in `then` leave.
pub(super) fn run(shared: &Arc<Shared>, log: &dyn LogStore) {
    let mut jobs = Vec::new();
    let mut batch = Vec::new();
    let mut marks = BTreeMap::new();
    let mut packets: BTreeMap<NodeId, Vec<Packet>> = BTreeMap::new();
    let mut installs = Vec::new();
    let mut logged_all = Vec::new();
    while shared.logs.take(None, &mut jobs) {
        for job in jobs.drain(..) {
            match job {
                LogJob::Append { group, ops, mark, then } => {
                    batch.push((group, ops));
                    if let Some(mark) = mark {
                        // Marks complete in order, so the last one of a group speaks for all before it.
                        marks.insert(group, mark);
                    }
                    for (to, packet) in then {
                        packets.entry(to).or_default().push(packet);
                    }
                }
                LogJob::Install { group, mark, meta } => {
                    batch.push((group, vec![LogOp::Reset(Box::new(meta.clone()))]));
                    #[cfg(feature = "mutants")]
                    if conclave_consensus::Mutant::SwitchedBeforeReset.is_on() {
                        shared.applies.push(ApplyJob::Install { group, mark, meta });
                        continue;
                    }
                    installs.push(ApplyJob::Install { group, mark, meta });
                }
            }
        }
        let must_sync = !marks.is_empty() || !installs.is_empty();
        let done = log.append(&batch).and_then(|()| if must_sync { log.sync() } else { Ok(()) });
        batch.clear();
        if let Err(error) = done {
            shared.halt(error.into());
            return;
        }
        for (to, packets) in &mut packets {
            if !packets.is_empty() {
                shared.transport().send(*to, packets);
                packets.clear();
            }
        }
        let logged = |(group, mark)| ShellInput::Host(HostInput::Logged { group, mark });
        logged_all.extend(std::mem::take(&mut marks).into_iter().map(logged));
        shared.inbox.push_all(&mut logged_all);
        shared.applies.push_all(&mut installs);
    }
}
