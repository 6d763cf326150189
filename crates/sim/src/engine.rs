//! The engines under test: the one place that knows there are several.

use std::fmt::Display;

use conclave_consensus::{Boot, Consensus, Message};
use conclave_paxos::{Paxos, PaxosConfig};
use conclave_raft::{Raft, RaftConfig};

use crate::options::Options;

/// What replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Raft.
    Raft,
    /// Multi-Paxos.
    Paxos,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Raft, Self::Paxos];

    /// As the command line names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Paxos => "paxos",
        }
    }

    /// The engine of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.name() == name)
    }

    /// The bugs that it, or what is around it, can have.
    #[cfg(feature = "mutants")]
    pub fn mutants(self) -> impl Iterator<Item = conclave_consensus::Mutant> {
        let has = move |mutant: &conclave_consensus::Mutant| match self {
            Self::Raft => !mutant.is_of_paxos(),
            Self::Paxos => !mutant.is_of_raft(),
        };
        conclave_consensus::Mutant::ALL.iter().copied().filter(has)
    }

    /// Whether an entry may follow on one alone: in a log that has no gaps, and is truncated where it differs.
    pub(crate) fn matches_logs(self) -> bool {
        self == Self::Raft
    }

    /// Whether a configuration governs its own entry's slot already; else those after.
    pub(crate) fn governs_itself(self) -> bool {
        self == Self::Raft
    }

    /// Whether a configuration that is chosen may need the one before for a while, until the cores call it committed.
    pub(crate) fn settles(self) -> bool {
        self == Self::Paxos
    }

    /// A core that goes on from what is durable.
    pub(crate) fn boot(self, boot: Boot, options: &Options) -> Result<Box<dyn Consensus>, String> {
        fn broken(error: impl Display) -> String {
            error.to_string()
        }
        let node = &options.node;
        // What a follower writes at once must fit into half a segment.
        let (message_bytes_max, inflight_bytes_max) =
            (node.segment_bytes as usize / 16, node.segment_bytes as usize / 8);
        let cache_kept_bytes = node.cache_kept_bytes.min(node.cache_bytes_max);
        Ok(match self {
            Self::Raft => {
                let config = RaftConfig {
                    timing: options.timing,
                    message_bytes_max,
                    inflight_bytes_max,
                    batch_bytes_max: inflight_bytes_max,
                    inflight_messages_max: node.inflight_messages_max,
                    apply_window_entries: node.apply_window_entries,
                    cache_kept_bytes,
                    cache_bytes_max: node.cache_bytes_max,
                    compaction_margin_entries: node.trailing,
                    compaction_lag_entries_max: node.trailing_for_live,
                    lease_drift_ppm: options.lease_drift_ppm,
                    quiesce: options.sleep.is_some(),
                    ..RaftConfig::default()
                };
                Box::new(Raft::new(boot, config).map_err(broken)?)
            }
            Self::Paxos => {
                let config = PaxosConfig {
                    timing: options.timing,
                    message_bytes_max,
                    inflight_bytes_max,
                    batch_bytes_max: inflight_bytes_max,
                    inflight_messages_max: node.inflight_messages_max,
                    apply_window_entries: node.apply_window_entries,
                    cache_kept_bytes,
                    cache_bytes_max: node.cache_bytes_max,
                    compaction_margin_entries: node.trailing,
                    compaction_lag_entries_max: node.trailing_for_live,
                    lease_drift_ppm: options.lease_drift_ppm,
                    ..PaxosConfig::default()
                };
                Box::new(Paxos::new(boot, config).map_err(broken)?)
            }
        })
    }

    /// A message, for people.
    pub(crate) fn describe(self, message: &Message) -> String {
        match self {
            Self::Raft => conclave_raft::describe(message),
            Self::Paxos => conclave_paxos::describe(message),
        }
    }
}
