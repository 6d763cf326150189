//! What a node is told: flags, environment or configuration file, checked as a whole.
//!
//! [`parse`] turns a process's arguments and environment into an [`Invocation`]. Programs that embed a node
//! fill a [`Config`] themselves and call [`Config::validate`].

mod error;
pub mod flags;
mod help;
mod settings;
pub mod url;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use conclave_consensus::{MEMBERS_MAX, Quorums};

use crate::engine::Engine;
pub use error::ConfigError;
pub use help::{API_VERSION, CLUSTER_VERSION, CONCLAVE_VERSION, help, version};
pub use settings::Source;
use settings::{Line, Settings};
use url::{Members, Url, UrlError};

/// The greatest election timeout that is accepted, as in etcd.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(50);

/// Room that a request has on the wire beyond its own bytes: etcd's allowance for framing.
pub const REQUEST_OVERHEAD_BYTES: u32 = 512 * 1024;

/// The greatest `max_request_bytes`: a command must fit into a frame of the log and of a peer connection.
const REQUEST_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The least `snapshot_serve_bytes_per_second`: a piece a second. Much less, and whoever fetches takes the source for dead.
pub const SNAPSHOT_SERVE_MIN: u64 = 1024 * 1024;

/// The shortest `watch_progress_notify_interval`: etcd's.
const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The greatest `max_txn_ops`: requests with more could hold the state machine for seconds.
const TXN_OPS_MAX: u64 = 1_000_000;

/// What a process was asked to do.
#[derive(Debug)]
pub enum Invocation {
    /// Run a node.
    Serve {
        /// How.
        config: Box<Config>,
        /// What is to be logged about the way the configuration was given, one line each.
        notices: Vec<String>,
    },
    /// Print this text to standard output and end well.
    Print(String),
}

/// Whether a member starts a cluster or joins one. Counts only while its data directory is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// All members of the list start together.
    New,
    /// The cluster runs already.
    Existing,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator wants to read.
    Info,
    /// What may need a look.
    Warn,
    /// What went wrong; also for etcd's `panic` and `fatal`.
    Error,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Columns for people.
    Console,
}

/// Where logs go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogOutput {
    /// Standard error; etcd's `default` too.
    Stderr,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// What is logged, how and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Least severe level that is logged. Default: info.
    pub level: LogLevel,
    /// Form of a line. Default: JSON.
    pub format: LogFormat,
    /// Targets; each line goes to all of them. Default: standard error.
    pub outputs: Vec<LogOutput>,
}

/// Everything a node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this member. Default: `default`.
    pub name: String,
    /// Data directory; it is created. Default: `<name>.conclave`.
    pub data_dir: PathBuf,
    /// Addresses for clients, gRPC and HTTP. Default: `http://localhost:2379`.
    pub listen_client_urls: Vec<Url>,
    /// Addresses for HTTP alone; where there are any, `listen_client_urls` serve gRPC alone. Default: none.
    pub listen_client_http_urls: Vec<Url>,
    /// Addresses for metrics and health checks alone. Default: none.
    pub listen_metrics_urls: Vec<Url>,
    /// Addresses for other members. Default: `http://localhost:2380`.
    pub listen_peer_urls: Vec<Url>,
    /// Addresses told to clients. Default: `http://localhost:2379`.
    pub advertise_client_urls: Vec<Url>,
    /// Addresses told to other members. Default: `http://localhost:2380`.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// What replicates; the same for all members, and for good. Default: Raft.
    pub engine: Engine,
    /// Sizes of quorums with which a cluster is founded; the same for all founders, and for good. With Multi-Paxos alone. Default: majorities.
    pub quorums: Option<Quorums>,
    /// The members the cluster starts with. Default: this one alone.
    pub initial_cluster: Members,
    /// Default: new.
    pub initial_cluster_state: ClusterState,
    /// Tells clusters apart that start with the same addresses. Default: `etcd-cluster`.
    pub initial_cluster_token: String,
    /// Whether changes of membership are refused that would leave too few members started or connected. Default: true.
    pub strict_reconfig_check: bool,
    /// Most members that only learn. Default: 1.
    pub max_learners: u32,
    /// Between two heartbeats of a leader. Default: 100 ms.
    pub heartbeat_interval: Duration,
    /// Without a leader before an election. Default: 1 s; at least five heartbeats, at most 50 s.
    pub election_timeout: Duration,
    /// Applied entries after which a checkpoint is due. Default: 250,000, which makes it cheap for each; etcd's is 10,000.
    pub snapshot_count: u64,
    /// Entries below a checkpoint that stay in the log for members that lag. Default: 5,000.
    pub snapshot_catchup_entries: u64,
    /// Most bytes a second of its state that this member sends to those too far behind, to all together; `None`: unbounded. Default: 100 MiB, at
    /// least [`SNAPSHOT_SERVE_MIN`].
    pub snapshot_serve_bytes_per_second: Option<u64>,
    /// Most operations in one branch of a transaction. Default: 128.
    pub max_txn_ops: u32,
    /// Most bytes of one request. Default: 1.5 MiB.
    pub max_request_bytes: u32,
    /// How often a quiet watch that asked for it is told how far it has come. Default: 10 min; at least 100 ms.
    pub watch_progress_notify_interval: Duration,
    /// Most streams open on one client connection. Default: unbounded.
    pub max_concurrent_streams: u32,
    /// How often a silent client connection is pinged; `None`: never. Default: 2 h.
    pub grpc_keepalive_interval: Option<Duration>,
    /// How long such a ping's answer may take. Default: 20 s.
    pub grpc_keepalive_timeout: Duration,
    /// SO_REUSEPORT on listeners. Default: false.
    pub socket_reuse_port: bool,
    /// SO_REUSEADDR on listeners. Default: false, where the platform leaves the choice.
    pub socket_reuse_address: bool,
    /// Logs.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self::from_settings(&Settings::default()).expect("the table's defaults are valid, as a test shows")
    }
}

/// Reads a process's arguments (without the program's name) and environment.
///
/// # Errors
/// The first thing that is wrong, as one line; see [`ConfigError::exit_code`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    match settings::collect(arguments, environment)? {
        Line::Help => Ok(Invocation::Print(help())),
        Line::Version => Ok(Invocation::Print(version())),
        Line::Serve(mut settings) => {
            let config = Config::from_settings(&settings)?;
            config.validate()?;
            if config.name == "default" && config.initial_cluster.len() > 1 {
                settings
                    .notices
                    .push("several members must not share the name 'default'; set --name".to_owned());
            }
            Ok(Invocation::Serve { config: Box::new(config), notices: settings.notices })
        }
    }
}

impl Config {
    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let text = |name| settings.value(name).0;
        let number = |name| parse_kind::<u64>(settings, name);
        let millis = |name| number(name).map(Duration::from_millis);
        let urls = |flag| Url::parse_list(text(flag)).map_err(|source| ConfigError::Url { flag, source });
        let some_urls = |flag| if text(flag).is_empty() { Ok(Vec::new()) } else { urls(flag) };
        let truth = |name| flags::parse_bool(text(name)).unwrap_or_default();
        let span = |name| flags::parse_duration(text(name)).unwrap_or_default();

        let name = text("name").to_owned();
        let data_dir = match text("data-dir") {
            "" => PathBuf::from(format!("{name}.conclave")),
            path => PathBuf::from(path),
        };
        if settings.is_set("listen-client-urls") && !settings.is_set("advertise-client-urls") {
            return Err(ConfigError::NotAdvertised);
        }
        let initial_advertise_peer_urls = urls("initial-advertise-peer-urls")?;
        let initial_cluster = match text("initial-cluster") {
            "" => Members::from([(name.clone(), initial_advertise_peer_urls.clone())]),
            list => url::parse_members(list)?,
        };
        let initial_cluster_state = match text("initial-cluster-state") {
            "new" => ClusterState::New,
            "existing" => ClusterState::Existing,
            other => return Err(ConfigError::ClusterState(other.to_owned())),
        };
        let engine = Engine::named(text("engine"))
            .ok_or_else(|| invalid(settings, "engine", "expected raft or paxos"))?;
        if text("logger") != "zap" {
            return Err(invalid(settings, "logger", "expected zap"));
        }
        Ok(Self {
            data_dir,
            listen_client_urls: urls("listen-client-urls")?,
            listen_client_http_urls: some_urls("listen-client-http-urls")?,
            listen_metrics_urls: some_urls("listen-metrics-urls")?,
            listen_peer_urls: urls("listen-peer-urls")?,
            advertise_client_urls: urls("advertise-client-urls")?,
            initial_advertise_peer_urls,
            engine,
            quorums: quorums(settings)?,
            initial_cluster,
            initial_cluster_state,
            initial_cluster_token: text("initial-cluster-token").to_owned(),
            strict_reconfig_check: truth("strict-reconfig-check"),
            max_learners: bounded(settings, "max-learners", 1, 64)?,
            heartbeat_interval: millis("heartbeat-interval")?,
            election_timeout: millis("election-timeout")?,
            snapshot_count: number("snapshot-count")?,
            snapshot_catchup_entries: number("snapshot-catchup-entries")?,
            snapshot_serve_bytes_per_second: Some(number("snapshot-serve-bytes-per-second")?)
                .filter(|bytes| *bytes > 0),
            max_txn_ops: bounded(settings, "max-txn-ops", 1, TXN_OPS_MAX)?,
            max_request_bytes: bounded(settings, "max-request-bytes", 1, REQUEST_BYTES_MAX)?,
            max_concurrent_streams: bounded(settings, "max-concurrent-streams", 1, u32::MAX.into())?,
            watch_progress_notify_interval: span("watch-progress-notify-interval")
                .max(WATCH_PROGRESS_INTERVAL_MIN),
            grpc_keepalive_interval: Some(span("grpc-keepalive-interval")).filter(|span| !span.is_zero()),
            grpc_keepalive_timeout: span("grpc-keepalive-timeout"),
            socket_reuse_port: truth("socket-reuse-port"),
            socket_reuse_address: truth("socket-reuse-address"),
            log: LogConfig {
                level: log_level(settings)?,
                format: log_format(settings)?,
                outputs: log_outputs(text("log-outputs")),
            },
            name,
        })
    }

    /// Checks what no single flag shows: that the parts agree with each other.
    ///
    /// # Errors
    /// The first disagreement.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.contains([',', '=', '/']) || self.name.contains(char::is_control)
        {
            return Err(ConfigError::Name(self.name.clone()));
        }
        self.validate_listeners()?;
        self.validate_timing()?;
        if self.snapshot_count == 0 {
            let (least, most) = (1, u64::MAX);
            return Err(ConfigError::OutOfBounds { flag: "snapshot-count", least, most, value: 0 });
        }
        if let Some(value) = self.snapshot_serve_bytes_per_second.filter(|bytes| *bytes < SNAPSHOT_SERVE_MIN)
        {
            let (flag, least, most) = ("snapshot-serve-bytes-per-second", SNAPSHOT_SERVE_MIN, u64::MAX);
            return Err(ConfigError::OutOfBounds { flag, least, most, value });
        }
        self.validate_members()?;
        self.validate_quorums()
    }

    fn validate_listeners(&self) -> Result<(), ConfigError> {
        let lists = [
            ("listen-peer-urls", &self.listen_peer_urls, true),
            ("listen-client-urls", &self.listen_client_urls, true),
            ("listen-client-http-urls", &self.listen_client_http_urls, false),
            ("listen-metrics-urls", &self.listen_metrics_urls, false),
            ("initial-advertise-peer-urls", &self.initial_advertise_peer_urls, true),
            ("advertise-client-urls", &self.advertise_client_urls, true),
        ];
        for (flag, urls, required) in lists {
            if required && urls.is_empty() {
                return Err(ConfigError::Url { flag, source: UrlError::Empty });
            }
        }
        let listeners = &lists[..4];
        for (i, &(flag, urls, _)) in listeners.iter().enumerate() {
            for url in urls {
                url.bind_address().map_err(|source| ConfigError::Url { flag, source })?;
                let earlier =
                    listeners[..i].iter().find(|(_, others, _)| url.port() != 0 && others.contains(url));
                if let Some(&(first, ..)) = earlier {
                    return Err(ConfigError::ListenTwice { url: url.to_string(), first, second: flag });
                }
            }
        }
        Ok(())
    }

    fn validate_timing(&self) -> Result<(), ConfigError> {
        let (heartbeat, election) = (self.heartbeat_interval, self.election_timeout);
        for (flag, span) in [("heartbeat-interval", heartbeat), ("election-timeout", election)] {
            if span.is_zero() {
                return Err(ConfigError::Zero { flag, value: span.as_millis() });
            }
        }
        let election_ms = election.as_millis();
        if heartbeat.saturating_mul(5) > election {
            return Err(ConfigError::ElectionTooShort { election_ms, heartbeat_ms: heartbeat.as_millis() });
        }
        if election > ELECTION_TIMEOUT_MAX {
            return Err(ConfigError::ElectionTooLong {
                election_ms,
                bound_ms: ELECTION_TIMEOUT_MAX.as_millis(),
            });
        }
        Ok(())
    }

    fn validate_members(&self) -> Result<(), ConfigError> {
        let listed =
            self.initial_cluster.get(&self.name).ok_or_else(|| ConfigError::NotAMember(self.name.clone()))?;
        let mut seen = BTreeSet::new();
        if !self.initial_cluster.values().flatten().all(|url| seen.insert(url)) {
            let shown = self.initial_cluster.iter().map(|(name, urls)| format!("{name}={}", url::join(urls)));
            return Err(ConfigError::DuplicateUrl(shown.collect::<Vec<_>>().join(",")));
        }
        let advertised: BTreeSet<_> = self.initial_advertise_peer_urls.iter().collect();
        if !listed.iter().eq(advertised.iter().copied()) {
            return Err(ConfigError::AdvertiseMismatch {
                name: self.name.clone(),
                listed: url::join(listed),
                advertised: url::join(&self.initial_advertise_peer_urls),
            });
        }
        Ok(())
    }

    fn validate_quorums(&self) -> Result<(), ConfigError> {
        let Some(sizes) = self.quorums else { return Ok(()) };
        if self.engine == Engine::Raft {
            return Err(ConfigError::QuorumsOfRaft);
        }
        if self.initial_cluster_state == ClusterState::Existing {
            return Err(ConfigError::QuorumsOfExisting);
        }
        sizes.check(self.initial_cluster.len()).map_err(ConfigError::Quorums)
    }

    /// How long a request may wait for consensus: five seconds for the queue and the disk, and two election
    /// timeouts for a leader lost meanwhile. etcd's rule.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }
}

/// The flag's value as a number; the table's kind has been checked when it was set.
fn parse_kind<T: std::str::FromStr>(settings: &Settings, name: &'static str) -> Result<T, ConfigError> {
    settings.value(name).0.parse().map_err(|_| invalid(settings, name, "the number is out of range"))
}

/// Both sizes, or none: zero is a majority.
fn quorums(settings: &Settings) -> Result<Option<Quorums>, ConfigError> {
    let size = |flag| -> Result<u8, ConfigError> {
        let size = bounded(settings, flag, 0, MEMBERS_MAX as u64)?;
        Ok(u8::try_from(size).unwrap_or(u8::MAX))
    };
    let (elect_flag, commit_flag) = ("elect-quorum", "commit-quorum");
    match (size(elect_flag)?, size(commit_flag)?) {
        (0, 0) => Ok(None),
        (_, 0) => Err(ConfigError::QuorumAlone { given: elect_flag, missing: commit_flag }),
        (0, _) => Err(ConfigError::QuorumAlone { given: commit_flag, missing: elect_flag }),
        (elect, commit) => Ok(Some(Quorums { elect, commit })),
    }
}

fn bounded(settings: &Settings, flag: &'static str, least: u64, most: u64) -> Result<u32, ConfigError> {
    let value: u64 = parse_kind(settings, flag)?;
    let out_of_bounds = ConfigError::OutOfBounds { flag, least, most, value };
    if value < least || value > most {
        Err(out_of_bounds)
    } else {
        u32::try_from(value).map_err(|_| out_of_bounds)
    }
}

fn invalid(settings: &Settings, name: &'static str, expected: &str) -> ConfigError {
    let (value, origin) = settings.value(name);
    ConfigError::InvalidValue { origin, value: value.to_owned(), expected: expected.to_owned() }
}

fn log_level(settings: &Settings) -> Result<LogLevel, ConfigError> {
    match settings.value("log-level").0 {
        "debug" => Ok(LogLevel::Debug),
        "info" => Ok(LogLevel::Info),
        "warn" => Ok(LogLevel::Warn),
        "error" | "dpanic" | "panic" | "fatal" => Ok(LogLevel::Error),
        _ => Err(invalid(settings, "log-level", "expected debug, info, warn, error, panic or fatal")),
    }
}

fn log_format(settings: &Settings) -> Result<LogFormat, ConfigError> {
    match settings.value("log-format").0 {
        "json" => Ok(LogFormat::Json),
        "console" => Ok(LogFormat::Console),
        _ => Err(invalid(settings, "log-format", "expected json or console")),
    }
}

fn log_outputs(list: &str) -> Vec<LogOutput> {
    let targets = list.split(',').map(str::trim).filter(|target| !target.is_empty());
    let outputs: BTreeSet<_> = targets
        .map(|target| match target {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            path => LogOutput::File(PathBuf::from(path)),
        })
        .collect();
    if outputs.is_empty() { vec![LogOutput::Stderr] } else { outputs.into_iter().collect() }
}
