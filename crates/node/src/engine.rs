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
        let timing = Timing { heartbeat: config.heartbeat_interval, election: config.election_timeout };
        let entry_bytes_max = config.max_request_bytes as usize + ENVELOPE_BYTES;
        let compaction_margin_entries = config.snapshot_catchup_entries;
        Ok(match self {
            Self::Raft => {
                let config = RaftConfig {
                    timing,
                    entry_bytes_max,
                    compaction_margin_entries,
                    ..RaftConfig::default()
                };
                Box::new(Raft::new(boot, config)?)
            }
            Self::Paxos => {
                let config = PaxosConfig {
                    timing,
                    entry_bytes_max,
                    compaction_margin_entries,
                    ..PaxosConfig::default()
                };
                Box::new(Paxos::new(boot, config)?)
            }
        })
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
