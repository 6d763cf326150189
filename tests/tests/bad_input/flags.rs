//! Flags, variables and configuration files.

use std::fs;

use anyhow::{Result, ensure};
use conclave_tests::solo::refused;

fn check(arguments: &[&str], environment: &[(&str, &str)], code: i32, line: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("malformed.yaml"), "name: [n1\n")?;
    let flags: Vec<String> = arguments.iter().map(|&flag| flag.to_owned()).collect();
    let refusal = refused(directory.path(), &flags, environment)?;
    ensure!(
        refusal.code == code && refusal.line == line,
        "{arguments:?} {environment:?} ended with {refusal:?}, not with {code}: {line}"
    );
    ensure!(fs::read_dir(directory.path())?.count() == 1, "{arguments:?} left something behind");
    Ok(())
}

#[test]
fn a_line_that_is_not_understood() -> Result<()> {
    let help = "see conclave --help";
    check(&["--nonsense"], &[], 2, &format!("unknown flag --nonsense; {help}"))?;
    let meant = format!("unknown flag --hearbeat-interval (did you mean --heartbeat-interval?); {help}");
    check(&["--hearbeat-interval", "3"], &[], 2, &meant)?;
    check(&["stray"], &[], 2, &format!("\"stray\" is not a valid flag; {help}"))?;
    check(&["--max-txn-ops"], &[], 2, "flag needs an argument: --max-txn-ops")?;
    let number = "expected a whole number that is not negative";
    check(&["--max-txn-ops=x"], &[], 2, &format!("invalid value \"x\" for flag --max-txn-ops: {number}"))?;
    check(
        &[],
        &[("ETCD_ELECTION_TIMEOUT", "soon")],
        1,
        &format!("invalid value \"soon\" for environment variable ETCD_ELECTION_TIMEOUT: {number}"),
    )
}

#[test]
fn what_etcd_knows_and_conclave_does_not_serve() -> Result<()> {
    let unserved = "is known to etcd but not served by conclave yet (needs";
    check(&["--cert-file=server.crt"], &[], 1, &format!("flag --cert-file {unserved} TLS)"))?;
    check(
        &[],
        &[("ETCD_CERT_FILE", "server.crt")],
        1,
        &format!("environment variable ETCD_CERT_FILE {unserved} TLS)"),
    )
}

#[test]
fn an_election_timeout_under_five_heartbeats() -> Result<()> {
    check(
        &["--heartbeat-interval=100", "--election-timeout=499"],
        &[],
        1,
        "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]",
    )?;
    check(
        &["--election-timeout=50001"],
        &[],
        1,
        "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
    )?;
    check(&["--heartbeat-interval=0"], &[], 1, "--heartbeat-interval must be >0 (set to 0ms)")
}

#[test]
fn members_that_do_not_fit_together() -> Result<()> {
    check(
        &["--name=n1", "--initial-cluster=n2=http://127.0.0.1:2380"],
        &[],
        1,
        "couldn't find local name \"n1\" in the initial cluster configuration",
    )?;
    check(
        &["--listen-client-urls=http://127.0.0.1:0"],
        &[],
        1,
        "--advertise-client-urls is required when --listen-client-urls is set explicitly",
    )
}

#[test]
fn a_configuration_file_that_does_not_read() -> Result<()> {
    let missing = "cannot read the configuration file missing.yaml: No such file or directory (os error 2)";
    check(&["--config-file=missing.yaml"], &[], 1, missing)?;
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("malformed.yaml"), "name: [n1\n")?;
    let refusal = refused(directory.path(), &["--config-file=malformed.yaml".to_owned()], &[])?;
    ensure!(refusal.code == 1, "{refusal:?}");
    ensure!(refusal.line.starts_with("the configuration file malformed.yaml is malformed: "), "{refusal:?}");
    Ok(())
}
