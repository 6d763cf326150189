//! What a node and its groups start from.

use conclave_consensus::{
    Boot, Config, Epoch, GroupId, LogOp, LogSlice, NodeId, ReplicaId, Slot, SlotRange, SnapshotMeta, Time,
};
use conclave_storage::{HOST_GROUP, LogError, LogStore};
use prost::Message as _;

/// What a node durably knows of itself; the `Meta` of [`HOST_GROUP`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HostRecord {
    /// The cluster it belongs to.
    #[prost(fixed64, tag = "1")]
    pub cluster: u64,
    /// Which node it is.
    #[prost(fixed64, tag = "2")]
    pub node: u64,
    /// How often it has booted.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
}

/// Why a node cannot start from what its disk holds.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log is of another cluster or node.
    #[error(
        "the log belongs to node {found_node:x} of cluster {found_cluster:x}, this is node {node:x} of cluster {cluster:x}; \
         start with the data directory of this node"
    )]
    OtherNode {
        /// In the log.
        found_cluster: u64,
        /// In the log.
        found_node: u64,
        /// Configured.
        cluster: u64,
        /// Configured.
        node: u64,
    },
    /// The node's own record does not read.
    #[error("the node's record in the log is malformed: {0}")]
    Record(#[from] prost::DecodeError),
    /// The log ends before the state does: it is not the log that led to this state.
    #[error(
        "the state of group {group} ends at {state} but its log at {last}: the log was lost or is older, and with it what this member \
         promised; restore both from one copy, or rejoin as a new member"
    )]
    LogBehind {
        /// Which group.
        group: GroupId,
        /// The last slot of the state.
        state: Slot,
        /// The last slot of the log.
        last: Slot,
    },
    /// The state does not reach the beginning of the log: the directory was restored from parts of different age.
    #[error(
        "the state of group {group} ends at {state} and its log begins at {first}: \
         what lies between is lost; restore both from one copy, or rejoin as a new member"
    )]
    Gap {
        /// Which group.
        group: GroupId,
        /// The last slot of the state.
        state: Slot,
        /// The first slot of the log.
        first: Slot,
    },
}

/// Reads the node's record, counts this boot in it, durably.
///
/// # Errors
/// If the log is another node's or cannot be written.
pub fn begin_epoch(log: &dyn LogStore, cluster: u64, node: NodeId) -> Result<Epoch, BootError> {
    let mut record = HostRecord::decode(log.state(HOST_GROUP).meta)?;
    if record.epoch == 0 {
        (record.cluster, record.node) = (cluster, node.0);
    }
    if (record.cluster, record.node) != (cluster, node.0) {
        return Err(BootError::OtherNode {
            found_cluster: record.cluster,
            found_node: record.node,
            cluster,
            node: node.0,
        });
    }
    record.epoch += 1;
    log.append(&[(HOST_GROUP, vec![LogOp::Meta(record.encode_to_vec().into())])])?;
    log.sync()?;
    Ok(Epoch(record.epoch))
}

/// Assembles what a group's core starts from: the durable state it has (`None` for none), and the log above it. `initial` is the membership of a
/// group that has no state yet.
///
/// # Errors
/// If the log and the state do not meet.
pub fn boot_group(
    log: &dyn LogStore,
    group: GroupId,
    replica: ReplicaId,
    state: Option<SnapshotMeta>,
    initial: &Config,
    now: Time,
    seed: u64,
) -> Result<Boot, BootError> {
    let found = log.state(group);
    let state = state.unwrap_or_else(|| SnapshotMeta { config: initial.clone(), ..SnapshotMeta::default() });
    let first = found.first.max(Slot(1));
    if first.0 > state.slot.0 + 1 {
        return Err(BootError::Gap { group, state: state.slot, first });
    }
    // A checkpoint holds only what is durable in the log, and a snapshot's slot is where the log goes on.
    if found.last < state.slot {
        return Err(BootError::LogBehind { group, state: state.slot, last: found.last });
    }
    let mut entries = Vec::new();
    let mut next = log.next_held(group, state.slot.next());
    while let Some(from) = next {
        const BYTES_MAX: usize = 8 << 20;
        match log.read(group, SlotRange { from, to: found.last.next() }, BYTES_MAX)? {
            LogSlice::Entries(run) => {
                next = run.last().and_then(|entry| log.next_held(group, entry.slot.next()));
                entries.extend(run);
            }
            LogSlice::Compacted => return Err(BootError::Gap { group, state: state.slot, first }),
        }
    }
    Ok(Boot { replica, meta: found.meta, state, entries, first, now, seed })
}
