//! Every flag of the command line, in one table.
//!
//! The table drives the command line, the environment, the configuration file and `--help`, so that they
//! cannot disagree. It knows every flag of etcd 3.7: one that is not served yet is accepted with its default
//! value, which asks for nothing, and any other value ends in one line that says what is missing.

use std::time::Duration;

/// Headings of the help text, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// This member: name, data, addresses, limits.
    Member,
    /// How members find each other.
    Clustering,
    /// TLS and origins.
    Security,
    /// Users and tokens.
    Auth,
    /// Logs.
    Logging,
    /// Metrics, profiles and traces.
    Monitoring,
    /// Background work on the data.
    Maintenance,
    /// Gives up guarantees.
    Unsafe,
}

impl Group {
    /// All headings, in the help text's order.
    pub const ALL: [Self; 8] = [
        Self::Member,
        Self::Clustering,
        Self::Security,
        Self::Auth,
        Self::Logging,
        Self::Monitoring,
        Self::Maintenance,
        Self::Unsafe,
    ];

    /// The heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Member => "Member",
            Self::Clustering => "Clustering",
            Self::Security => "Security",
            Self::Auth => "Auth",
            Self::Logging => "Logging",
            Self::Monitoring => "Profiling and monitoring",
            Self::Maintenance => "Maintenance",
            Self::Unsafe => "Unsafe",
        }
    }
}

/// What a flag's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text, and lists, which their own readers check.
    Text,
    /// `true` or `false`; the value may be left out on the command line.
    Bool,
    /// A non-negative whole number.
    Number,
    /// Go's duration: `1h30m`, `100ms`, `0`.
    Duration,
}

impl Kind {
    /// Whether a text is a value of this kind.
    #[must_use]
    pub fn accepts(self, value: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Bool => parse_bool(value).is_some(),
            Self::Number => value.parse::<u64>().is_ok(),
            Self::Duration => parse_duration(value).is_some(),
        }
    }

    /// Whether two texts mean the same value of this kind.
    fn same(self, left: &str, right: &str) -> bool {
        match self {
            Self::Text => left == right,
            Self::Bool => parse_bool(left) == parse_bool(right),
            Self::Number => left.parse::<u64>().ok() == right.parse::<u64>().ok(),
            Self::Duration => parse_duration(left) == parse_duration(right),
        }
    }
}

/// Whether conclave acts on a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It does.
    Yes,
    /// It does not yet; the text says what is missing, to stand after "needs".
    NotYet(&'static str),
}

/// One flag.
#[derive(Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// Heading it stands under.
    pub group: Group,
    /// Form of its value.
    pub kind: Kind,
    /// Value where nobody sets one.
    pub default: &'static str,
    /// Whether conclave acts on it.
    pub served: Served,
    /// One sentence or two; empty for a flag that is not served.
    pub help: &'static str,
}

impl Flag {
    /// Whether a value asks for something that conclave does not serve.
    #[must_use]
    pub fn refuses(&self, value: &str) -> Option<&'static str> {
        match self.served {
            Served::Yes => None,
            Served::NotYet(_) if self.kind.same(value, self.default) => None,
            Served::NotYet(what) => Some(what),
        }
    }

    /// Name of the variable with the given prefix: `CONCLAVE_DATA_DIR`.
    #[must_use]
    pub fn variable(&self, prefix: &str) -> String {
        let mut name = String::from(prefix);
        name.extend(self.name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }));
        name
    }
}

/// The flag of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The known flag whose name is nearest to a mistyped one, where one is near enough to be meant.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    if let Some(promoted) = name.strip_prefix("experimental-").and_then(find) {
        return Some(promoted.name);
    }
    let names = FLAGS.iter().map(|flag| flag.name).chain(["help", "version"]);
    names
        .map(|known| (distance(name, known), known))
        .filter(|&(distance, known)| distance <= 1 + known.len() / 5)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, known)| known)
}

/// Levenshtein distance in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// The texts that Go's flag package takes for a truth value.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A duration as Go writes it, without signs: numbers with units `ns us µs ms s m h`, or `0`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let nanos_per_unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let part = match number.parse::<u64>() {
            Ok(whole) => Duration::from_nanos(whole.checked_mul(nanos_per_unit)?),
            Err(_) => {
                Duration::try_from_secs_f64(number.parse::<f64>().ok()? * nanos_per_unit as f64 / 1e9).ok()?
            }
        };
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

const fn served(
    name: &'static str,
    group: Group,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, group, kind, default, served: Served::Yes, help }
}

const fn not_yet(
    name: &'static str,
    group: Group,
    kind: Kind,
    default: &'static str,
    what: &'static str,
) -> Flag {
    Flag { name, group, kind, default, served: Served::NotYet(what), help: "" }
}

use Group::{Auth, Clustering, Logging, Maintenance, Member, Monitoring, Security, Unsafe};
use Kind::{Bool, Duration as Span, Number, Text};

const TLS: &str = "TLS";
const DISCOVERY: &str = "cluster discovery";
const USERS: &str = "users and roles";
const TUNING: &str = "a storage engine of etcd's own kind";
const TRACING: &str = "distributed tracing";
const CHECKS: &str = "periodic corruption checks";

/// Every flag, in the help text's order within its group.
pub static FLAGS: &[Flag] = &[
    served("name", Member, Text, "default", "Human-readable name of this member."),
    served("data-dir", Member, Text, "", "Path to the data directory; '<name>.conclave' where empty."),
    served(
        "config-file",
        Member,
        Text,
        "",
        "Path to a configuration file in etcd's YAML form. Where it is given, every other flag and variable is ignored.",
    ),
    served(
        "listen-client-urls",
        Member,
        Text,
        "http://localhost:2379",
        "Comma-separated addresses to listen on for clients: gRPC and HTTP on one port.",
    ),
    served(
        "listen-client-http-urls",
        Member,
        Text,
        "",
        "Comma-separated addresses to listen on for HTTP only; the client addresses then serve gRPC only.",
    ),
    served(
        "listen-peer-urls",
        Member,
        Text,
        "http://localhost:2380",
        "Comma-separated addresses to listen on for other members.",
    ),
    served("heartbeat-interval", Member, Number, "100", "Milliseconds between heartbeats."),
    served(
        "election-timeout",
        Member,
        Number,
        "1000",
        "Milliseconds without a leader before an election; at least five heartbeats, at most 50000.",
    ),
    served(
        "snapshot-count",
        Member,
        Number,
        "250000",
        "Applied entries after which the state is made durable, so that the log below it can go; sooner if they fill 8 MiB.",
    ),
    served(
        "snapshot-catchup-entries",
        Member,
        Number,
        "5000",
        "Entries below a durable state that stay in the log for members that lag; one further behind fetches the state.",
    ),
    served(
        "snapshot-serve-bytes-per-second",
        Member,
        Number,
        "104857600",
        "Most bytes a second of its state that this member sends to members too far behind, all together; 0 for no bound, else at least 1048576.",
    ),
    served("max-txn-ops", Member, Number, "128", "Most operations in one branch of a transaction."),
    served("max-request-bytes", Member, Number, "1572864", "Most bytes of one client request."),
    served(
        "max-concurrent-streams",
        Member,
        Number,
        "4294967295",
        "Most streams that one client connection may have open at a time.",
    ),
    served(
        "grpc-keepalive-interval",
        Member,
        Span,
        "2h",
        "How often a silent client connection is pinged; 0 never.",
    ),
    served(
        "grpc-keepalive-timeout",
        Member,
        Span,
        "20s",
        "How long the answer to such a ping may take before the connection is closed.",
    ),
    served("socket-reuse-port", Member, Bool, "false", "Sets SO_REUSEPORT on listening sockets."),
    served("socket-reuse-address", Member, Bool, "false", "Sets SO_REUSEADDR on listening sockets."),
    not_yet("wal-dir", Member, Text, "", "a log directory of its own"),
    not_yet("max-wals", Member, Number, "5", TUNING),
    not_yet("initial-election-tick-advance", Member, Bool, "true", "elections counted in ticks"),
    not_yet("quota-backend-bytes", Member, Number, "0", "space quotas and alarms"),
    not_yet("backend-bbolt-freelist-type", Member, Text, "map", TUNING),
    not_yet("backend-batch-interval", Member, Span, "0", TUNING),
    not_yet("backend-batch-limit", Member, Number, "0", TUNING),
    not_yet("enable-grpc-gateway", Member, Bool, "true", "the JSON gateway"),
    not_yet("grpc-keepalive-min-time", Member, Span, "5s", "a bound on clients' pings"),
    not_yet("raft-read-timeout", Member, Span, "5s", "timeouts of peer connections"),
    not_yet("raft-write-timeout", Member, Span, "5s", "timeouts of peer connections"),
    not_yet("memory-mlock", Member, Bool, "false", "locked memory"),
    not_yet("feature-gates", Member, Text, "", "feature gates"),
    served(
        "engine",
        Clustering,
        Text,
        "raft",
        "What replicates the data, the same for all members and kept: 'raft', or 'paxos', which is still being proven.",
    ),
    served(
        "elect-quorum",
        Clustering,
        Number,
        "0",
        "With --engine=paxos, so many members elect a leader; 0 for a majority. It and --commit-quorum must be more than all members together; \
         both count when a cluster is founded, alike at all members, and are kept.",
    ),
    served(
        "commit-quorum",
        Clustering,
        Number,
        "0",
        "With --engine=paxos, so many members make a write durable before it is answered; 0 for a majority. See --elect-quorum.",
    ),
    served(
        "initial-cluster",
        Clustering,
        Text,
        "",
        "Members the cluster starts with, 'name=url,…'; where empty, this member alone.",
    ),
    served(
        "initial-cluster-state",
        Clustering,
        Text,
        "new",
        "'new' for a cluster that starts, 'existing' for a member that joins one.",
    ),
    served(
        "initial-cluster-token",
        Clustering,
        Text,
        "etcd-cluster",
        "Tells clusters apart that start with the same addresses.",
    ),
    served(
        "initial-advertise-peer-urls",
        Clustering,
        Text,
        "http://localhost:2380",
        "Addresses at which the other members reach this one.",
    ),
    served(
        "advertise-client-urls",
        Clustering,
        Text,
        "http://localhost:2379",
        "Addresses at which clients reach this member; required where --listen-client-urls is set.",
    ),
    not_yet("pre-vote", Clustering, Bool, "true", "elections without a poll before them"),
    served(
        "strict-reconfig-check",
        Clustering,
        Bool,
        "true",
        "Refuse changes of membership that would leave too few members started or connected.",
    ),
    served("max-learners", Clustering, Number, "1", "Most members that only learn, added by MemberAdd."),
    not_yet("discovery-endpoints", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-token", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-dial-timeout", Clustering, Span, "2s", DISCOVERY),
    not_yet("discovery-request-timeout", Clustering, Span, "5s", DISCOVERY),
    not_yet("discovery-keepalive-time", Clustering, Span, "2s", DISCOVERY),
    not_yet("discovery-keepalive-timeout", Clustering, Span, "6s", DISCOVERY),
    not_yet("discovery-insecure-transport", Clustering, Bool, "true", DISCOVERY),
    not_yet("discovery-insecure-skip-tls-verify", Clustering, Bool, "false", DISCOVERY),
    not_yet("discovery-cert", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-key", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-cacert", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-user", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-password", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-srv", Clustering, Text, "", DISCOVERY),
    not_yet("discovery-srv-name", Clustering, Text, "", DISCOVERY),
    not_yet("cert-file", Security, Text, "", TLS),
    not_yet("key-file", Security, Text, "", TLS),
    not_yet("client-cert-file", Security, Text, "", TLS),
    not_yet("client-key-file", Security, Text, "", TLS),
    not_yet("client-cert-auth", Security, Bool, "false", TLS),
    not_yet("client-crl-file", Security, Text, "", TLS),
    not_yet("client-cert-allowed-hostname", Security, Text, "", TLS),
    not_yet("trusted-ca-file", Security, Text, "", TLS),
    not_yet("auto-tls", Security, Bool, "false", TLS),
    not_yet("peer-cert-file", Security, Text, "", TLS),
    not_yet("peer-key-file", Security, Text, "", TLS),
    not_yet("peer-client-cert-file", Security, Text, "", TLS),
    not_yet("peer-client-key-file", Security, Text, "", TLS),
    not_yet("peer-client-cert-auth", Security, Bool, "false", TLS),
    not_yet("peer-trusted-ca-file", Security, Text, "", TLS),
    not_yet("peer-auto-tls", Security, Bool, "false", TLS),
    not_yet("peer-crl-file", Security, Text, "", TLS),
    not_yet("peer-cert-allowed-cn", Security, Text, "", TLS),
    not_yet("peer-cert-allowed-hostname", Security, Text, "", TLS),
    not_yet("peer-skip-client-san-verification", Security, Bool, "false", TLS),
    not_yet("self-signed-cert-validity", Security, Number, "1", TLS),
    not_yet("cipher-suites", Security, Text, "", TLS),
    not_yet("tls-min-version", Security, Text, "TLS1.2", TLS),
    not_yet("tls-max-version", Security, Text, "", TLS),
    not_yet("cors", Security, Text, "*", "origin checks"),
    not_yet("host-whitelist", Security, Text, "*", "host checks"),
    not_yet("auth-token", Auth, Text, "simple", USERS),
    not_yet("bcrypt-cost", Auth, Number, "10", USERS),
    not_yet("auth-token-ttl", Auth, Number, "300", USERS),
    served("log-level", Logging, Text, "info", "One of debug, info, warn, error, panic, fatal."),
    served("log-format", Logging, Text, "json", "json or console."),
    served(
        "log-outputs",
        Logging,
        Text,
        "default",
        "Comma-separated targets: default (stderr), stderr, stdout, or paths of files to append to.",
    ),
    served("logger", Logging, Text, "zap", "Only 'zap', etcd's name for structured logs."),
    not_yet("enable-log-rotation", Logging, Bool, "false", "rotation of its own logs"),
    not_yet(
        "log-rotation-config-json",
        Logging,
        Text,
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
        "rotation of its own logs",
    ),
    not_yet("disable-log-sampling", Logging, Bool, "false", "sampled logs"),
    served(
        "listen-metrics-urls",
        Monitoring,
        Text,
        "",
        "Comma-separated addresses to listen on for /metrics and health checks alone.",
    ),
    not_yet("metrics", Monitoring, Text, "basic", "gRPC latency histograms"),
    not_yet("enable-pprof", Monitoring, Bool, "false", "profiles over HTTP"),
    not_yet("warning-apply-duration", Monitoring, Span, "100ms", "warnings of slow requests"),
    not_yet("warning-unary-request-duration", Monitoring, Span, "300ms", "warnings of slow requests"),
    served(
        "watch-progress-notify-interval",
        Monitoring,
        Span,
        "10m",
        "How often a quiet watch that asked for it is told how far it has come; at least 100ms.",
    ),
    not_yet("enable-distributed-tracing", Monitoring, Bool, "false", TRACING),
    not_yet("distributed-tracing-address", Monitoring, Text, "localhost:4317", TRACING),
    not_yet("distributed-tracing-service-name", Monitoring, Text, "etcd", TRACING),
    not_yet("distributed-tracing-instance-id", Monitoring, Text, "", TRACING),
    not_yet("distributed-tracing-sampling-rate", Monitoring, Number, "0", TRACING),
    not_yet("auto-compaction-retention", Maintenance, Text, "0", "compaction on its own"),
    not_yet("auto-compaction-mode", Maintenance, Text, "periodic", "compaction on its own"),
    not_yet("compaction-batch-limit", Maintenance, Number, "0", TUNING),
    not_yet("compaction-sleep-interval", Maintenance, Span, "0", TUNING),
    not_yet("corrupt-check-time", Maintenance, Span, "0", CHECKS),
    not_yet("compact-hash-check-time", Maintenance, Span, "1m", CHECKS),
    not_yet("downgrade-check-time", Maintenance, Span, "5s", "downgrades"),
    not_yet("bootstrap-defrag-threshold-megabytes", Maintenance, Number, "0", TUNING),
    not_yet("force-new-cluster", Unsafe, Bool, "false", "recovery of a lost quorum"),
    not_yet("unsafe-no-fsync", Unsafe, Bool, "false", "a mode that loses acknowledged data"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for (i, flag) in FLAGS.iter().enumerate() {
            assert!(flag.kind.accepts(flag.default), "{}: default {:?}", flag.name, flag.default);
            assert!(FLAGS[..i].iter().all(|other| other.name != flag.name), "{} twice", flag.name);
            assert_eq!(flag.help.is_empty(), flag.served != Served::Yes, "{}", flag.name);
        }
    }

    #[test]
    fn an_unserved_flag_is_refused_only_where_it_asks_for_something() {
        let flag = find("auto-tls").unwrap();
        assert_eq!(flag.refuses("F"), None);
        assert_eq!(flag.refuses("true"), Some("TLS"));
        assert_eq!(find("grpc-keepalive-min-time").unwrap().refuses("5000ms"), None);
    }

    #[test]
    fn durations_as_go_writes_them() {
        let millis = |text| parse_duration(text).map(|span| span.as_millis());
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(millis("1.5s"), Some(1_500));
        assert_eq!(millis("20s"), Some(20_000));
        assert_eq!(millis("0"), Some(0));
        for bad in ["", "5", "s", "-1s", "1x", "1s2", "99999999999999999999h", "18446744073709551615h"] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_mistyped_name_finds_the_one_meant() {
        assert_eq!(nearest("data-dri"), Some("data-dir"));
        assert_eq!(nearest("lisen-client-urls"), Some("listen-client-urls"));
        assert_eq!(nearest("experimental-corrupt-check-time"), Some("corrupt-check-time"));
        assert_eq!(nearest("zzzz"), None);
    }
}
