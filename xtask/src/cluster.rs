//! `cargo xtask cluster`: fault scenarios on real processes, and the clients that other people wrote.
//!
//! The fault scenarios are the test target `cluster` of the package `tests`. Two scenarios live here instead, because
//! they run programs from outside the workspace: `etcd-client`, whose build wants protoc, and `etcdctl`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::engine::Engine;
use xtask::server::{Launch, Ports};
use xtask::{command, workspace};

/// How long the fault scenarios together may take, and so long each client.
pub(crate) const LIMIT: Duration = Duration::from_secs(10 * 60);
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a watch may take to show what happened before it.
const WATCH_LIMIT: Duration = Duration::from_secs(10);
const ETCD_CLIENT: &str = "etcd-client";
const ETCDCTL: &str = "etcdctl";
/// Our own client's tests, which take longer than the gate has: run where they are named.
const CLIENT: &str = "conclave-client";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A scenario, or a part of the names of several.
    pub(crate) scenario: Option<String>,
    /// Print the scenarios instead of running them.
    #[arg(long)]
    pub(crate) list: bool,
    /// What replicates the data; the engines take turns from scenario to scenario if none is named.
    #[arg(long, value_enum)]
    pub(crate) engine: Option<Engine>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = args.scenario.as_deref().unwrap_or_default();
    let node = node()?;
    if wanted == CLIENT {
        let mut test = command::cargo(["test", "--workspace", "--test", "client", "--", "--test-threads=1"]);
        return command::run_within(test.env("CONCLAVE_BIN", &node), LIMIT);
    }
    let clients: Vec<&str> = [ETCD_CLIENT, ETCDCTL].into_iter().filter(|s| s.contains(wanted)).collect();
    // A client's full name needs no look at the fault scenarios, which have to be compiled to be listed.
    let faults = if clients.contains(&wanted) { Vec::new() } else { fault_scenarios(wanted)? };
    if args.list {
        let named = wanted.is_empty().then_some(CLIENT);
        faults.iter().map(String::as_str).chain(clients).chain(named).for_each(|name| println!("{name}"));
        return Ok(());
    }
    ensure!(!faults.is_empty() || !clients.is_empty(), "no scenario's name contains `{wanted}`; see --list");
    for engine in Engine::ALL {
        let its: Vec<&String> = faults
            .iter()
            .zip(turns(args.engine))
            .filter(|(_, of)| *of == engine)
            .map(|(name, _)| name)
            .collect();
        if its.is_empty() {
            continue;
        }
        let mut test = test_target();
        // One scenario at a time: each starts three nodes and measures time.
        test.args(["--", "--exact", "--test-threads=1", "--nocapture"]).args(its).env("CONCLAVE_BIN", &node);
        test.env("CONCLAVE_TEST_ENGINE", engine.name());
        println!("scenarios on {}", engine.name());
        command::run_within(&mut test, LIMIT)?;
    }
    for (client, engine) in clients.into_iter().zip(turns(args.engine)) {
        let dir = tempfile::tempdir()?;
        let ports = Ports::free(3)?;
        let flags = [engine.flag()];
        let mut cluster = Launch { flags: &flags, ..Launch::new(&node, dir.path(), &ports) }.start()?;
        cluster.wait_ready(READY_LIMIT)?;
        let endpoints = cluster.endpoints().join(",");
        let outcome = if client == ETCD_CLIENT { etcd_client(&endpoints) } else { etcdctl(&endpoints) };
        outcome.with_context(|| format!("scenario {client}"))?;
        cluster.check_alive()?;
        cluster.stop()?;
    }
    Ok(())
}

/// Which engine the scenarios have, one after the other: the one that is wanted, or one after the other.
fn turns(wanted: Option<Engine>) -> impl Iterator<Item = Engine> {
    Engine::ALL.into_iter().cycle().map(move |engine| wanted.unwrap_or(engine))
}

/// The program under test: what the variable `CONCLAVE_BIN` names, else the node in the profile of the gate, so that
/// running a scenario by hand and in the gate compiles once.
fn node() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("CONCLAVE_BIN") {
        return Ok(program.into());
    }
    command::run(&mut command::cargo(["build", "--workspace", "--bin", "conclave"]))?;
    Ok(workspace::target().join("debug").join("conclave"))
}

fn test_target() -> Command {
    command::cargo(["test", "--workspace", "--test", "cluster"])
}

/// The names of the fault scenarios that contain `wanted`.
fn fault_scenarios(wanted: &str) -> Result<Vec<String>> {
    let output =
        test_target().args(["--", "--list", wanted]).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "listing the scenarios failed");
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Runs the tests of `tests/etcd-client`, with the protoc that its own dependencies bring along.
fn etcd_client(endpoints: &str) -> Result<()> {
    let manifest = workspace::root().join("tests").join(ETCD_CLIENT).join("Cargo.toml");
    let manifest = manifest.to_string_lossy();
    let host = host_triple()?;
    let metadata = command::cargo(["metadata", "--format-version=1", "--locked", "--filter-platform", &host])
        .args(["--manifest-path", &*manifest])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(metadata.status.success(), "cargo metadata of {manifest} failed");
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let protoc = vendored_protoc(&metadata)?;
    let mut test = command::cargo(["test", "--locked", "--manifest-path", &*manifest]);
    test.env("PROTOC", protoc).env("ENDPOINTS", endpoints).env("CARGO_TARGET_DIR", workspace::target());
    command::run_within(&mut test, LIMIT)
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

fn vendored_protoc(metadata: &Value) -> Result<PathBuf> {
    let resolved = metadata["resolve"]["nodes"].as_array().context("no resolve in cargo metadata")?;
    let id =
        resolved.iter().filter_map(|node| node["id"].as_str()).find(|id| id.contains("protoc-bin-vendored-"));
    let packages = metadata["packages"].as_array().context("no packages in cargo metadata")?;
    let package = packages.iter().find(|p| id.is_some() && p["id"].as_str() == id);
    let manifest =
        package.and_then(|p| p["manifest_path"].as_str()).context("no protoc for this platform")?;
    let protoc = PathBuf::from(manifest).with_file_name("bin").join("protoc");
    ensure!(protoc.is_file(), "no protoc at {}", protoc.display());
    Ok(protoc)
}

/// A walk through etcdctl, where there is one. It asks in the words that people type.
fn etcdctl(endpoints: &str) -> Result<()> {
    let program = match workspace::peer(ETCDCTL) {
        Ok(program) => program,
        Err(reason) => {
            println!("scenario {ETCDCTL} left out: {reason:#}");
            return Ok(());
        }
    };
    let ctl = |args: &[&str], stdin: &str, expected: &str| -> Result<()> {
        let shown = args.join(" ");
        let output = pipe(Command::new(&program).args(["--endpoints", endpoints]).args(args), stdin)?;
        ensure!(output.contains(expected), "`etcdctl {shown}` said `{output}`, expected `{expected}`");
        println!("etcdctl {shown} ... ok");
        Ok(())
    };
    ctl(&["put", "fruit/apple", "red"], "", "OK")?;
    ctl(&["put", "fruit/lemon", "yellow", "--prev-kv"], "", "OK")?;
    ctl(&["get", "fruit/apple"], "", "fruit/apple\nred")?;
    ctl(
        &["get", "fruit/", "--prefix", "--keys-only", "--sort-by=KEY", "--order=DESCEND"],
        "",
        "fruit/lemon\n\nfruit/apple",
    )?;
    ctl(&["get", "fruit/", "--prefix", "--count-only", "--write-out=fields"], "", "\"Count\" : 2")?;
    let txn = "value(\"fruit/apple\") = \"red\"\n\nput fruit/apple green\n\nget fruit/lemon\n\n";
    ctl(&["txn"], txn, "SUCCESS")?;
    ctl(&["get", "fruit/apple", "--print-value-only", "--consistency=s", "--rev=4"], "", "green")?;
    ctl(&["del", "fruit/", "--prefix"], "", "2")?;
    ctl(&["get", "fruit/apple", "--rev=2"], "", "red")?;
    let watch = |args: &[&str], expected: &str| -> Result<()> {
        watch(Command::new(&program).args(["--endpoints", endpoints, "watch"]).args(args), expected)
            .with_context(|| format!("etcdctl watch {}", args.join(" ")))?;
        println!("etcdctl watch {} ... ok", args.join(" "));
        Ok(())
    };
    watch(
        &["fruit/apple", "--rev=2"],
        "PUT\nfruit/apple\nred\nPUT\nfruit/apple\ngreen\nDELETE\nfruit/apple\n",
    )?;
    watch(
        &["fruit/", "--prefix", "--rev=5", "--prev-kv"],
        "DELETE\nfruit/apple\ngreen\nfruit/apple\n\nDELETE\nfruit/lemon\nyellow\nfruit/lemon\n",
    )?;
    ctl(&["compaction", "4"], "", "compacted revision 4")?;
    watch(
        &["fruit/apple", "--rev=2"],
        "watch was canceled (etcdserver: mvcc: required revision has been compacted)",
    )?;
    ctl(&["member", "list"], "", "started")?;
    ctl(&["endpoint", "status", "--write-out=json"], "", "\"version\":\"3.7.1\"")?;
    ctl(&["endpoint", "hashkv"], "", "127.0.0.1")?;
    let granted = ask(&program, endpoints, &["lease", "grant", "60"])?;
    // `lease 694d… granted with TTL(60s)`
    let lease = granted.split_whitespace().nth(1).context("no lease was granted")?;
    ctl(&["put", "leased/a", "1", "--lease", lease], "", "OK")?;
    ctl(&["lease", "keep-alive", "--once", lease], "", "keepalived with TTL(60)")?;
    ctl(&["lease", "timetolive", lease, "--keys"], "", "granted with TTL(60s), remaining(")?;
    ctl(&["lease", "timetolive", lease, "--keys"], "", "attached keys([leased/a])")?;
    ctl(&["lease", "list"], "", lease)?;
    ctl(&["lease", "revoke", lease], "", "revoked")?;
    ctl(&["get", "leased/", "--prefix", "--count-only", "--write-out=fields"], "", "\"Count\" : 0")?;
    ctl(&["lease", "timetolive", lease], "", "already expired")?;
    ctl(&["lock", "mutex", "echo", "owned"], "", "owned")?;
    ctl(&["lock", "mutex", "--ttl=5", "echo", "again"], "", "again")
}

/// What etcdctl says to a question.
fn ask(program: &std::path::Path, endpoints: &str, args: &[&str]) -> Result<String> {
    pipe(Command::new(program).args(["--endpoints", endpoints]).args(args), "")
}

/// Runs a command that goes on for ever, until it has written what is expected of it.
fn watch(command: &mut Command, expected: &str) -> Result<()> {
    use std::io::Read;
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let pipes: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().context("no standard output")?),
        Box::new(child.stderr.take().context("no standard error")?),
    ];
    for mut pipe in pipes {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let until = std::time::Instant::now() + WATCH_LIMIT;
    let mut said = String::new();
    while !said.contains(expected) {
        let left = until.saturating_duration_since(std::time::Instant::now());
        match receiver.recv_timeout(left) {
            Ok(more) => said.push_str(&String::from_utf8_lossy(&more)),
            Err(_) => break,
        }
    }
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    ensure!(said.contains(expected), "said `{said}`, expected `{expected}`");
    Ok(())
}

/// Runs a command with the given standard input and returns what it wrote, errors included.
fn pipe(command: &mut Command, stdin: &str) -> Result<String> {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(stdin.as_bytes())?;
    let output = child.wait_with_output()?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{}: {said}", output.status);
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_take_turns_unless_one_is_wanted() {
        let names = |wanted| turns(wanted).take(3).map(Engine::name).collect::<Vec<_>>();
        assert_eq!(names(None), ["raft", "paxos", "raft"]);
        assert_eq!(names(Some(Engine::Paxos)), ["paxos"; 3]);
    }
}
