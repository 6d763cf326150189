//! Whole command lines, environments and files: what comes out, and the one line each mistake ends in.

use std::ffi::OsString;
use std::io::Write;

use expect_test::{Expect, expect};

use super::*;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, ConfigError> {
    parse(
        arguments.iter().map(OsString::from),
        environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))),
    )
}

fn serve(arguments: &[&str], environment: &[(&str, &str)]) -> (Config, Vec<String>) {
    match run(arguments, environment) {
        Ok(Invocation::Serve { config, notices }) => (*config, notices),
        other => panic!("{other:?}"),
    }
}

/// `exit code: line`, a line each.
fn errors(lines: &[&[&str]], expected: Expect) {
    let shown: Vec<_> = lines
        .iter()
        .map(|line| {
            let error = run(line, &[]).expect_err(&line.join(" "));
            format!("{}: {error}\n", error.exit_code())
        })
        .collect();
    expected.assert_eq(&shown.concat());
}

#[test]
fn without_arguments_a_single_member_serves_on_the_default_ports() {
    let (config, notices) = serve(&[], &[]);
    assert_eq!(config, Config::default());
    assert_eq!(config.data_dir, PathBuf::from("default.conclave"));
    assert_eq!(url::join(&config.listen_client_urls), "http://localhost:2379");
    assert_eq!(url::join(&config.initial_cluster["default"]), "http://localhost:2380");
    assert_eq!(config.request_timeout(), Duration::from_secs(7));
    assert_eq!(config.max_request_bytes, 1_572_864);
    assert!(notices.is_empty());
}

#[test]
fn what_is_served_of_the_state_a_second_is_bounded_unless_told_otherwise() {
    let rate = |arguments: &[&str]| serve(arguments, &[]).0.snapshot_serve_bytes_per_second;
    assert_eq!(rate(&[]), Some(100 << 20));
    assert_eq!(rate(&["--snapshot-serve-bytes-per-second=1048576"]), Some(1 << 20));
    assert_eq!(rate(&["--snapshot-serve-bytes-per-second=0"]), None);
}

#[test]
fn the_forms_of_a_flag() {
    let (config, _) = serve(
        &["--name=a", "-data-dir", "/d", "--heartbeat-interval", "50", "-socket-reuse-port", "--name", "b"],
        &[],
    );
    assert_eq!((config.name.as_str(), config.data_dir.to_str()), ("b", Some("/d")));
    assert_eq!(config.heartbeat_interval, Duration::from_millis(50));
    assert!(config.socket_reuse_port);
    assert_eq!(config.initial_cluster.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_flag_beats_conclave_beats_etcd() {
    let environment =
        [("ETCD_NAME", "e"), ("CONCLAVE_NAME", "c"), ("ETCD_ELECTION_TIMEOUT", "700"), ("ETCDCTL_API", "3")];
    let (config, notices) = serve(&[], &environment);
    assert_eq!((config.name.as_str(), config.election_timeout.as_millis()), ("c", 700));
    expect![[r#"
        [
            "both CONCLAVE_NAME and ETCD_NAME are set: CONCLAVE_NAME wins",
        ]
    "#]]
    .assert_debug_eq(&notices);
    let (config, notices) = serve(&["--name", "f"], &[("ETCD_NAME", "e"), ("CONCLAVE_NONSENSE", "1")]);
    assert_eq!(config.name, "f");
    expect![[r#"
        [
            "ETCD_NAME is ignored: the flag --name is given",
            "unrecognized environment variable CONCLAVE_NONSENSE",
        ]
    "#]]
    .assert_debug_eq(&notices);
}

#[test]
fn lines_that_are_not_understood() {
    errors(
        &[
            &["--data-dri=x"],
            &["--zzzzzz"],
            &["--experimental-corrupt-check-time=1h"],
            &["serve"],
            &["gateway"],
            &["---name"],
            &["--"],
            &["--name"],
            &["--heartbeat-interval=fast"],
            &["--heartbeat-interval=-1"],
            &["--socket-reuse-port=yes"],
            &["--grpc-keepalive-interval=5"],
            &["--engine=zab"],
            &["--log-level=loud"],
            &["--log-format=xml"],
            &["--logger=capnslog"],
        ],
        expect![[r#"
            2: unknown flag --data-dri (did you mean --data-dir?); see conclave --help
            2: unknown flag --zzzzzz; see conclave --help
            2: unknown flag --experimental-corrupt-check-time (did you mean --corrupt-check-time?); see conclave --help
            2: "serve" is not a valid flag; see conclave --help
            1: the "gateway" command is known to etcd but not served by conclave yet
            2: "---name" is not a valid flag; see conclave --help
            2: "--" is not a valid flag; see conclave --help
            2: flag needs an argument: --name
            2: invalid value "fast" for flag --heartbeat-interval: expected a whole number that is not negative
            2: invalid value "-1" for flag --heartbeat-interval: expected a whole number that is not negative
            2: invalid value "yes" for flag --socket-reuse-port: expected true or false
            2: invalid value "5" for flag --grpc-keepalive-interval: expected a duration such as 5s, 100ms or 1h30m
            2: invalid value "zab" for flag --engine: expected raft or paxos
            2: invalid value "loud" for flag --log-level: expected debug, info, warn, error, panic or fatal
            2: invalid value "xml" for flag --log-format: expected json or console
            2: invalid value "capnslog" for flag --logger: expected zap
        "#]],
    );
}

#[test]
fn lines_that_cannot_be_served() {
    errors(
        &[
            &["--cert-file=server.pem"],
            &["--auto-compaction-retention", "1h"],
            &["--discovery-srv=example.com"],
            &["--pre-vote=false"],
            &["--unsafe-no-fsync"],
            &[
                "--listen-client-urls=https://127.0.0.1:2379",
                "--advertise-client-urls=https://127.0.0.1:2379",
            ],
            &[
                "--listen-client-urls=http://example.com:2379",
                "--advertise-client-urls=http://example.com:2379",
            ],
            &["--listen-client-urls=http://127.0.0.1:1"],
            &["--listen-peer-urls="],
            &["--listen-peer-urls=http://localhost:2379"],
            &["--heartbeat-interval=0"],
            &["--election-timeout=0"],
            &["--heartbeat-interval=300"],
            &["--election-timeout=60000"],
            &["--initial-cluster-state=old"],
            &["--name=a=b"],
            &["--initial-cluster=http://localhost:2380"],
            &["--initial-cluster=other=http://localhost:2380"],
            &["--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"],
            &["--initial-cluster=default=http://localhost:9"],
            &["--max-request-bytes=0"],
            &["--max-txn-ops=9999999999"],
            &["--snapshot-count=0"],
            &["--snapshot-serve-bytes-per-second=1048575"],
            &["--elect-quorum=1", "--commit-quorum=1"],
            &["--engine=paxos", "--commit-quorum=1"],
            &["--engine=paxos", "--elect-quorum=1"],
            &["--engine=paxos", "--elect-quorum=2", "--commit-quorum=1"],
            &[
                "--engine=paxos",
                "--initial-cluster=default=http://localhost:2380,b=http://h:1,c=http://h:2,d=http://h:3,e=http://h:4",
                "--elect-quorum=3",
                "--commit-quorum=2",
            ],
            &["--engine=paxos", "--elect-quorum=65", "--commit-quorum=1"],
            &["--engine=paxos", "--initial-cluster-state=existing", "--elect-quorum=1", "--commit-quorum=1"],
            &["--config-file=/nonexistent/conclave.yml"],
        ],
        expect![[r#"
            1: flag --cert-file is known to etcd but not served by conclave yet (needs TLS)
            1: flag --auto-compaction-retention is known to etcd but not served by conclave yet (needs compaction on its own)
            1: flag --discovery-srv is known to etcd but not served by conclave yet (needs cluster discovery)
            1: flag --pre-vote is known to etcd but not served by conclave yet (needs elections without a poll before them)
            1: flag --unsafe-no-fsync is known to etcd but not served by conclave yet (needs a mode that loses acknowledged data)
            1: invalid --listen-client-urls: "https://127.0.0.1:2379" asks for TLS, which conclave does not serve yet: use http
            1: invalid --listen-client-urls: expected IP in URL for binding (http://example.com:2379)
            1: --advertise-client-urls is required when --listen-client-urls is set explicitly
            1: invalid --listen-peer-urls: no valid URLs given
            1: http://localhost:2379 is given to both --listen-peer-urls and --listen-client-urls
            1: --heartbeat-interval must be >0 (set to 0ms)
            1: --election-timeout must be >0 (set to 0ms)
            1: --election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]
            1: --election-timeout[60000ms] is too long, and should be set less than 50000ms
            1: unexpected clusterState "old"
            1: invalid --name "a=b": it must not be empty and must hold none of ',', '=', '/' or control characters
            1: invalid --initial-cluster: "http://localhost:2380" is not of the form name=http://host:port
            1: couldn't find local name "default" in the initial cluster configuration
            1: initial cluster b=http://localhost:2380,default=http://localhost:2380 has duplicate url
            1: --initial-cluster has default=http://localhost:9 but --initial-advertise-peer-urls is http://localhost:2380
            1: --max-request-bytes must be between 1 and 16777216 (set to 0)
            1: --max-txn-ops must be between 1 and 1000000 (set to 9999999999)
            1: --snapshot-count must be between 1 and 18446744073709551615 (set to 0)
            1: --snapshot-serve-bytes-per-second must be between 1048576 and 18446744073709551615 (set to 1048575)
            1: --elect-quorum and --commit-quorum need --engine=paxos: raft elects and commits by majorities
            1: --commit-quorum needs --elect-quorum: the two sizes are chosen together
            1: --elect-quorum needs --commit-quorum: the two sizes are chosen together
            1: --elect-quorum and --commit-quorum do not fit the members of --initial-cluster: a quorum of 2 is no quorum of 1 voters
            1: --elect-quorum and --commit-quorum do not fit the members of --initial-cluster: 3 of 5 voters that elect and 2 that commit need not meet: together they must be more than 5
            1: --elect-quorum must be between 0 and 64 (set to 65)
            1: --elect-quorum and --commit-quorum are chosen when a cluster is founded: leave them out with --initial-cluster-state=existing
            1: cannot read the configuration file /nonexistent/conclave.yml: No such file or directory (os error 2)
        "#]],
    );
}

#[test]
fn variables_are_checked_like_flags() {
    let shown = |name, value| run(&[], &[(name, value)]).expect_err(name).to_string();
    expect![[
        r#"environment variable ETCD_CERT_FILE is known to etcd but not served by conclave yet (needs TLS)"#
    ]]
    .assert_eq(&shown("ETCD_CERT_FILE", "a.pem"));
    expect![[r#"invalid value "x" for environment variable CONCLAVE_MAX_TXN_OPS: expected a whole number that is not negative"#]]
        .assert_eq(&shown("CONCLAVE_MAX_TXN_OPS", "x"));
}

fn with_file(text: &str) -> Result<Invocation, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    run(&["--config-file", &path, "--name=ignored"], &[("ETCD_CERT_FILE", "ignored.pem")])
        .map_err(|error| error.to_string().replace(&path, "FILE"))
}

#[test]
fn a_configuration_file_in_etcds_form() {
    let text = "
# the sample of etcd, shortened
name: 'm1'
data-dir: /var/lib/m1
snapshot-count: 5000
heartbeat-interval: 50
quota-backend-bytes: 0
listen-peer-urls: http://127.0.0.1:7001
listen-client-urls: http://127.0.0.1:7000
initial-advertise-peer-urls: http://127.0.0.1:7001
advertise-client-urls: http://127.0.0.1:7000
initial-cluster:
initial-cluster-state: 'new'
grpc-keepalive-interval: 3000000000
enable-pprof: false
proxy: 'off'
client-transport-security:
  cert-file:
  client-cert-auth: false
log-outputs: [stderr, stdout]
";
    let Ok(Invocation::Serve { config, notices }) = with_file(text) else { panic!() };
    assert_eq!((config.name.as_str(), config.snapshot_count), ("m1", 5000));
    assert_eq!(config.grpc_keepalive_interval, Some(Duration::from_secs(3)));
    assert_eq!(config.log.outputs, [LogOutput::Stderr, LogOutput::Stdout]);
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert_eq!(notices[1], "unrecognized configuration file key proxy");
}

#[test]
fn configuration_files_that_are_wrong() {
    let shown = |text| with_file(text).expect_err(text);
    let all = [
        "name: [",
        "- name",
        "name: {a: b}",
        "client-transport-security: 3",
        "peer-transport-security: {cert-file: x.pem}",
        "heartbeat-interval: quick",
        "a: 1\n---\nb: 2",
    ]
    .map(shown)
    .join("\n");
    expect![[r#"
        the configuration file FILE is malformed: while parsing a node, did not find expected node content at byte 7 line 2 column 1
        the configuration file FILE is malformed: it is not a mapping of settings
        the configuration file FILE is malformed: name is neither a value nor a list of values
        the configuration file FILE is malformed: client-transport-security is not a mapping
        configuration file key peer-transport-security.cert-file is known to etcd but not served by conclave yet (needs TLS)
        invalid value "quick" for configuration file key heartbeat-interval: expected a whole number that is not negative
        the configuration file FILE is malformed: it holds more than one document"#]].assert_eq(&all);
}

#[test]
fn help_and_version_are_complete() {
    let Ok(Invocation::Print(help)) = run(&["-h"], &[]) else { panic!() };
    for flag in flags::FLAGS {
        assert!(help.contains(&format!("--{}", flag.name)), "{}", flag.name);
    }
    assert!(help.lines().all(|line| line.chars().count() <= 140));
    let Ok(Invocation::Print(version)) = run(&["--version"], &[]) else { panic!() };
    assert_eq!(version, format!("conclave {CONCLAVE_VERSION}\nAPI: etcd v3.7.1\n"));
}
