//! What can be wrong with a configuration: one line each, and the exit code that goes with it.

use std::path::PathBuf;

use conclave_consensus::QuorumsError;
use thiserror::Error;

use super::settings::Source;
use super::url::{MembersError, UrlError};

/// Why a node cannot start from its configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A flag that neither etcd nor conclave knows.
    #[error("unknown flag --{name}{}; see conclave --help", .nearest.map(|known| format!(" (did you mean --{known}?)")).unwrap_or_default())]
    UnknownFlag {
        /// The name as it was given, without dashes.
        name: String,
        /// A known flag with a similar name.
        nearest: Option<&'static str>,
    },
    /// A word that is not a flag.
    #[error("{0:?} is not a valid flag; see conclave --help")]
    NotAFlag(String),
    /// A program of etcd's that is not part of conclave.
    #[error("the {0:?} command is known to etcd but not served by conclave yet")]
    Command(String),
    /// A flag at the end of the line without its value.
    #[error("flag needs an argument: --{0}")]
    MissingValue(&'static str),
    /// A value that is not of the flag's kind.
    #[error("invalid value {value:?} for {origin}: {expected}")]
    InvalidValue {
        /// Where the value came from.
        origin: Source,
        /// The value.
        value: String,
        /// What would have been right.
        expected: String,
    },
    /// A flag of etcd's whose feature is missing.
    #[error("{origin} is known to etcd but not served by conclave yet (needs {needs})")]
    NotServed {
        /// Where the value came from.
        origin: Source,
        /// The missing feature.
        needs: &'static str,
    },
    /// A variable whose value is not UTF-8.
    #[error("the value of {0} is not valid UTF-8")]
    NotUnicode(String),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The configuration file is not a YAML mapping of settings.
    #[error("the configuration file {} is malformed: {reason}", .path.display())]
    FileForm {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place where the parser knows it.
        reason: String,
    },
    /// A list of addresses does not parse or cannot be listened on.
    #[error("invalid --{flag}: {source}")]
    Url {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        source: UrlError,
    },
    /// The list of members does not parse.
    #[error("invalid --initial-cluster: {0}")]
    Members(#[from] MembersError),
    /// Listening somewhere else than the default, but nobody is told where.
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NotAdvertised,
    /// A span of zero.
    #[error("--{flag} must be >0 (set to {value}ms)")]
    Zero {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: u128,
    },
    /// Fewer than five heartbeats an election timeout.
    #[error(
        "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
    )]
    ElectionTooShort {
        /// The election timeout.
        election_ms: u128,
        /// The heartbeat interval.
        heartbeat_ms: u128,
    },
    /// An election timeout that keeps a cluster without a leader for too long.
    #[error("--election-timeout[{election_ms}ms] is too long, and should be set less than {bound_ms}ms")]
    ElectionTooLong {
        /// The election timeout.
        election_ms: u128,
        /// Its bound.
        bound_ms: u128,
    },
    /// Neither `new` nor `existing`.
    #[error("unexpected clusterState {0:?}")]
    ClusterState(String),
    /// A member name that would break `name=url` lists or the data directory's name.
    #[error(
        "invalid --name {0:?}: it must not be empty and must hold none of ',', '=', '/' or control characters"
    )]
    Name(String),
    /// The list of members leaves this one out.
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NotAMember(String),
    /// One address for two members, or twice for one.
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    /// The list of members and the advertised addresses differ.
    #[error("--initial-cluster has {name}={listed} but --initial-advertise-peer-urls is {advertised}")]
    AdvertiseMismatch {
        /// This member's name.
        name: String,
        /// Its addresses in the list of members.
        listed: String,
        /// Its advertised addresses.
        advertised: String,
    },
    /// Two lists to listen on share an address.
    #[error("{url} is given to both --{first} and --{second}")]
    ListenTwice {
        /// The address.
        url: String,
        /// One flag.
        first: &'static str,
        /// The other flag.
        second: &'static str,
    },
    /// One size of quorums without the other.
    #[error("--{given} needs --{missing}: the two sizes are chosen together")]
    QuorumAlone {
        /// The flag that was set.
        given: &'static str,
        /// The other.
        missing: &'static str,
    },
    /// Sizes of quorums for an engine that has none but majorities.
    #[error("--elect-quorum and --commit-quorum need --engine=paxos: raft elects and commits by majorities")]
    QuorumsOfRaft,
    /// Sizes of quorums that need not meet, or that are larger than the cluster.
    #[error("--elect-quorum and --commit-quorum do not fit the members of --initial-cluster: {0}")]
    Quorums(#[source] QuorumsError),
    /// Sizes of quorums at a member that joins a running cluster.
    #[error(
        "--elect-quorum and --commit-quorum are chosen when a cluster is founded: leave them out with --initial-cluster-state=existing"
    )]
    QuorumsOfExisting,
    /// A number outside its bounds.
    #[error("--{flag} must be between {least} and {most} (set to {value})")]
    OutOfBounds {
        /// The flag.
        flag: &'static str,
        /// Its least value.
        least: u64,
        /// Its greatest value.
        most: u64,
        /// What was set.
        value: u64,
    },
}

impl ConfigError {
    /// The process's exit code: 2 for a line that is not understood, as Go's flag package has it, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownFlag { .. }
            | Self::NotAFlag(_)
            | Self::MissingValue(_)
            | Self::InvalidValue { origin: Source::Flag(_), .. } => 2,
            _ => 1,
        }
    }
}
