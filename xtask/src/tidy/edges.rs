//! Dependencies that the architecture forbids (DESIGN: the crates).
//!
//! Each package's own tree is asked for, as someone gets it who depends on this package alone: `cargo metadata` would
//! show it with the features that the rest of the workspace turns on.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use xtask::command;

use super::metadata::Metadata;

/// A protocol crate decides and never waits: it must build without any of what waits.
const PROTOCOL: &[&str] =
    &["conclave-consensus", "conclave-raft", "conclave-paxos", "conclave-twopc", "conclave-hashring"];
const WAITS: &[&str] = &["tokio", "conclave-storage", "conclave-transport"];

/// A fresh machine lacks what these want: libclang, or a C++ build of protobuf.
const WANTS_MORE_THAN_A_C_COMPILER: &[&str] = &["clang-sys", "bindgen", "protobuf-src"];

/// What a program gets that only talks to a server: nothing of the server but its messages.
const CLIENT: &str = "conclave-client";
const MESSAGES: &str = "conclave-api";

/// The simulator depends on what is shipped; the other way round publishing breaks on the cycle.
const SIMULATOR: &str = "conclave-sim";

/// Package `from` must not depend on package `to`, directly or through others.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rule<'a> {
    from: &'a str,
    to: &'a str,
    /// Whether the dev-dependencies of `from` count too.
    with_dev: bool,
}

pub(super) fn check(metadata: &Metadata, findings: &mut Vec<String>) -> Result<()> {
    let members: Vec<(&str, bool)> = metadata.members().map(|p| (p.name.as_str(), p.shipped)).collect();
    let mut trees: BTreeMap<(&str, bool), String> = BTreeMap::new();
    for rule in rules(&members) {
        let tree = match trees.entry((rule.from, rule.with_dev)) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(room) => room.insert(tree(rule.from, rule.with_dev)?),
        };
        if let Some(chain) = chain(tree, rule.to) {
            findings.push(format!("{} must not depend on {}: {}", rule.from, rule.to, chain.join(" -> ")));
        }
    }
    Ok(())
}

/// All rules about these packages, each a name and whether it is shipped.
fn rules<'a>(members: &[(&'a str, bool)]) -> Vec<Rule<'a>> {
    let mut rules = Vec::new();
    for &(from, shipped) in members {
        let mut forbid = |to, with_dev| rules.push(Rule { from, to, with_dev });
        match from {
            "conclave-raft" => forbid("conclave-paxos", true),
            "conclave-paxos" => forbid("conclave-raft", true),
            "conclave-kv" => {
                forbid("conclave-replica", true);
                forbid("tokio", false);
            }
            _ => {}
        }
        if from == CLIENT {
            let others =
                members.iter().map(|(name, _)| *name).filter(|name| ![CLIENT, MESSAGES].contains(name));
            others.for_each(|to| forbid(to, true));
        }
        if PROTOCOL.contains(&from) {
            WAITS.iter().for_each(|to| forbid(to, true));
        }
        if shipped && from != SIMULATOR {
            forbid(SIMULATOR, true);
        }
        WANTS_MORE_THAN_A_C_COMPILER.iter().for_each(|to| forbid(to, true));
    }
    rules
}

/// What `cargo tree` says: a line for each dependency, its depth and its name.
fn tree(package: &str, with_dev: bool) -> Result<String> {
    let edges = if with_dev { "normal,build,dev" } else { "normal,build" };
    let output = command::cargo(["tree", "--locked", "--package", package, "--edges", edges])
        .args(["--prefix", "depth", "--format", " {p}"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo tree")?;
    ensure!(output.status.success(), "cargo tree of {package} failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// The first path in the tree from its root to the package `to`, both included.
fn chain<'a>(tree: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut path: Vec<&str> = Vec::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(name)) = (words.next().and_then(|d| d.parse().ok()), words.next()) else {
            continue;
        };
        path.truncate(depth);
        path.push(name);
        if name == to && depth > 0 {
            return Some(path);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indirect_edge_is_shown_as_a_chain() {
        let tree =
            "0 conclave-raft v0.1.0\n1 bytes v1.0.0\n1 helper v1.0.0\n2 libc v0.2.0\n2 tokio v1.0.0 (*)\n";
        assert_eq!(chain(tree, "tokio"), Some(vec!["conclave-raft", "helper", "tokio"]));
        assert_eq!(chain(tree, "conclave-storage"), None);
        assert_eq!(chain(tree, "conclave-raft"), None, "a package is no dependency of itself");
    }

    #[test]
    fn headings_of_build_and_dev_dependencies_are_passed_over() {
        let tree = "0 a v0.1.0\n1 b v1.0.0\n[dev-dependencies]\n1 c v1.0.0\n";
        assert_eq!(chain(tree, "c"), Some(vec!["a", "c"]));
    }

    #[test]
    fn the_rules_of_the_architecture_are_all_there() {
        let rules = rules(&[
            ("conclave-raft", true),
            ("conclave-kv", true),
            ("conclave-sim", true),
            ("conclave-api", true),
            ("conclave-client", true),
            ("tests", false),
        ]);
        let has = |from, to, with_dev| rules.contains(&Rule { from, to, with_dev });
        assert!(has("conclave-raft", "conclave-paxos", true));
        assert!(has("conclave-raft", "tokio", true) && has("conclave-raft", "conclave-storage", true));
        assert!(has("conclave-kv", "conclave-replica", true) && has("conclave-kv", "tokio", false));
        assert!(has("conclave-kv", "conclave-sim", true));
        assert!(has("conclave-client", "conclave-kv", true) && !has("conclave-client", "conclave-api", true));
        assert!(!has("tests", "conclave-sim", true), "tests may simulate");
        assert!(!has("conclave-sim", "conclave-sim", true));
    }
}
