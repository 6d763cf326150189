//! What an operator may have touched: the identity file, flags and environment, the configuration file.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::Path};

use conclave_node::{
    Config,
    config::{self, Invocation},
    datadir::{self, DataDir},
    identity,
};

/// As a node opens its directory.
fn open(path: &Path) -> bool {
    let config = Config::default();
    let standing = match datadir::standing(path, &config) {
        Ok(standing) => standing,
        Err(_) => return false,
    };
    let bootstrap = standing.unwrap_or_else(|| identity::bootstrap(&config).expect("the defaults are valid"));
    DataDir::open(path, &bootstrap, &config).is_ok()
}

/// The bytes as the identity file of a data directory: the directory opens or is refused, and the file stays as it is.
pub(super) fn identity_file(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("data");
    fs::create_dir(&path).and_then(|()| fs::write(path.join("IDENTITY"), data)).expect("a new directory");
    open(&path);
    assert_eq!(fs::read(path.join("IDENTITY")).expect("it is there"), data, "never rewritten");
}

pub(super) fn identity_seeds() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("data");
    assert!(open(&path));
    vec![fs::read(path.join("IDENTITY")).expect("just written")]
}

fn lines(data: &[u8]) -> Vec<Vec<u8>> {
    data.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

fn judge(parsed: Result<Invocation, config::ConfigError>) {
    match parsed {
        Ok(Invocation::Serve { config, .. }) => {
            config.validate().expect("what is parsed is valid");
            assert!(config.request_timeout() >= config.election_timeout);
        }
        Ok(Invocation::Print(text)) => assert!(!text.is_empty()),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_ne!(error.exit_code(), 0);
        }
    }
}

/// Lines that begin with a dash or follow one that does are arguments, the others `NAME=value` of the environment.
pub(super) fn flags(data: &[u8]) {
    let (mut arguments, mut environment) = (Vec::new(), Vec::new());
    for line in lines(data) {
        // A file named by accident would be read, and what it holds is not in the bytes.
        if line.windows(6).any(|part| part.eq_ignore_ascii_case(b"config")) {
            continue;
        }
        let split = line.iter().position(|byte| *byte == b'=');
        match split {
            Some(at) if line.first() != Some(&b'-') => {
                let (name, value) = (line[..at].to_vec(), line[at + 1..].to_vec());
                environment.push((OsString::from_vec(name), OsString::from_vec(value)));
            }
            _ => arguments.push(OsString::from_vec(line)),
        }
    }
    judge(config::parse(arguments, environment));
}

pub(super) fn flag_seeds() -> Vec<Vec<u8>> {
    [
        "--name=a\n--data-dir\n/tmp/a\n--heartbeat-interval=100\n--election-timeout\n1000\n--log-level=debug",
        "--name=a\n--initial-cluster=a=http://h:1,b=http://h:2\n--initial-advertise-peer-urls=http://h:1",
        "ETCD_NAME=b\nCONCLAVE_MAX_TXN_OPS=12\nETCD_GRPC_KEEPALIVE_INTERVAL=1h30m",
        "--version",
        "--help",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The bytes as the configuration file.
pub(super) fn config_file(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("conclave.yaml");
    fs::write(&path, data).expect("a new file");
    let argument = format!("--config-file={}", path.display());
    judge(config::parse([OsString::from(argument)], []));
}

pub(super) fn config_file_seeds() -> Vec<Vec<u8>> {
    [
        "name: a\ndata-dir: /tmp/a\nheartbeat-interval: 100\nelection-timeout: 1000\n",
        "name: 'a'\ninitial-cluster: a=http://h:1\ninitial-advertise-peer-urls: \"http://h:1\"\nlog-outputs: [stderr, stdout]\n",
        "max-request-bytes: 1572864 # a comment\nsocket-reuse-port: true\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
