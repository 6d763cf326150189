//! Which engine replicates: the one place that knows there are several.

use std::fmt;

use conclave_consensus::{Boot, Consensus, Timing};
use conclave_paxos::{Paxos, PaxosConfig};
use conclave_raft::{Raft, RaftConfig};
use thiserror::Error;

use crate::config::Config;

/// How much longer than a client's request a command may be: it is one in a small envelope.
const ENVELOPE_BYTES: usize = 512 << 10;

/// A consensus engine. A cluster is founded with one and keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Raft.
    Raft,
    /// Multi-Paxos.
    Paxos,
}

/// Why an engine cannot start from what is durable.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Raft cannot.
    #[error(transparent)]
    Raft(#[from] conclave_raft::BootError),
    /// Multi-Paxos cannot.
    #[error(transparent)]
    Paxos(#[from] conclave_paxos::BootError),
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Raft, Self::Paxos];

    /// As the flag `--engine` names it.
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

    /// A core that goes on from what is durable.
    pub(crate) fn boot(self, boot: Boot, config: &Config) -> Result<Box<dyn Consensus>, EngineError> {
        Ok(match self {
            Self::Raft => Box::new(Raft::new(boot, raft_config(config))?),
            Self::Paxos => Box::new(Paxos::new(boot, paxos_config(config))?),
        })
    }
}

fn timing(config: &Config) -> Timing {
    Timing { heartbeat: config.heartbeat_interval, election: config.election_timeout }
}

fn raft_config(config: &Config) -> RaftConfig {
    let defaults = RaftConfig::default();
    RaftConfig {
        timing: timing(config),
        entry_bytes_max: config.max_request_bytes as usize + ENVELOPE_BYTES,
        compaction_margin_entries: config.snapshot_catchup_entries,
        compaction_lag_entries_max: defaults.compaction_lag_entries_max.max(config.snapshot_catchup_entries),
        ..defaults
    }
}

fn paxos_config(config: &Config) -> PaxosConfig {
    let defaults = PaxosConfig::default();
    PaxosConfig {
        timing: timing(config),
        entry_bytes_max: config.max_request_bytes as usize + ENVELOPE_BYTES,
        compaction_margin_entries: config.snapshot_catchup_entries,
        compaction_lag_entries_max: defaults.compaction_lag_entries_max.max(config.snapshot_catchup_entries),
        ..defaults
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{Config as Membership, NodeId, ReplicaId, Slot, SnapshotMeta, Time};

    use super::*;

    #[test]
    fn an_engine_starts_with_any_number_of_entries_to_keep() {
        for engine in Engine::ALL {
            for entries in [0, 1, 5_000, 100_000, 100_001, u64::MAX] {
                let config = Config { snapshot_catchup_entries: entries, ..Config::default() };
                let membership = Membership::of_voters([(ReplicaId(1), NodeId(1))]);
                let boot = Boot {
                    replica: ReplicaId(1),
                    meta: bytes::Bytes::new(),
                    state: SnapshotMeta { config: membership, ..SnapshotMeta::default() },
                    entries: Vec::new(),
                    first: Slot(1),
                    now: Time(0),
                    seed: 1,
                };
                assert!(engine.boot(boot, &config).is_ok(), "{engine} with {entries}");
            }
        }
    }
}
