//! Dependencies that the architecture forbids (DESIGN: the crates).

use super::metadata::Metadata;

/// A protocol crate decides and never waits: it must build without any of what waits.
const PROTOCOL: &[&str] =
    &["conclave-consensus", "conclave-raft", "conclave-paxos", "conclave-twopc", "conclave-hashring"];
const WAITS: &[&str] = &["tokio", "conclave-storage", "conclave-transport"];

/// Tools that a fresh machine lacks: packages that want libclang or a C++ build.
const WANTS_MORE_THAN_A_C_COMPILER: &[&str] = &["clang-sys", "bindgen", "protobuf-src"];

/// The simulator depends on what is shipped; the other way round publishing breaks on the cycle.
const SIMULATOR: &str = "conclave-sim";

pub(super) fn check(metadata: &Metadata, findings: &mut Vec<String>) {
    let mut forbid = |from: &str, to: &str, with_dev: bool| {
        if let Some(chain) = metadata.chain(from, to, with_dev) {
            findings.push(format!("{from} must not depend on {to}: {}", chain.join(" -> ")));
        }
    };
    forbid("conclave-raft", "conclave-paxos", true);
    forbid("conclave-paxos", "conclave-raft", true);
    for from in PROTOCOL {
        for to in WAITS {
            forbid(from, to, true);
        }
    }
    forbid("conclave-kv", "conclave-replica", true);
    forbid("conclave-kv", "tokio", false);
    for package in metadata.members() {
        if package.shipped && package.name != SIMULATOR {
            forbid(&package.name, SIMULATOR, true);
        }
        for to in WANTS_MORE_THAN_A_C_COMPILER {
            forbid(&package.name, to, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A metadata document with the given edges; `dev` marks dev-dependencies.
    fn metadata(edges: &[(&str, &str, bool)]) -> Metadata {
        let mut names: Vec<&str> = edges.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
        names.sort_unstable();
        names.dedup();
        let packages: Vec<Value> = names
            .iter()
            .map(|n| json!({"id": n, "name": n, "manifest_path": format!("crates/{n}/Cargo.toml"), "targets": []}))
            .collect();
        let nodes: Vec<Value> = names
            .iter()
            .map(|n| {
                let deps: Vec<Value> = edges
                    .iter()
                    .filter(|(from, ..)| from == n)
                    .map(|(_, to, dev)| {
                        let kind = if *dev { json!("dev") } else { Value::Null };
                        json!({"pkg": to, "dep_kinds": [{"kind": kind}]})
                    })
                    .collect();
                json!({"id": n, "deps": deps})
            })
            .collect();
        let document = json!({"packages": packages, "resolve": {"nodes": nodes}, "workspace_members": names});
        Metadata::parse(&document).unwrap()
    }

    fn findings(edges: &[(&str, &str, bool)]) -> Vec<String> {
        let mut findings = Vec::new();
        check(&metadata(edges), &mut findings);
        findings
    }

    #[test]
    fn the_intended_edges_pass() {
        let edges = [
            ("conclave-raft", "conclave-consensus", false),
            ("conclave-replica", "tokio", false),
            ("conclave-replica", "conclave-storage", false),
            ("conclave-kv", "conclave-storage", false),
            ("conclave-sim", "conclave-replica", false),
        ];
        assert_eq!(findings(&edges), [""; 0]);
    }

    #[test]
    fn an_indirect_edge_is_shown_as_a_chain() {
        let edges = [("conclave-raft", "helper", false), ("helper", "tokio", false)];
        assert_eq!(
            findings(&edges),
            ["conclave-raft must not depend on tokio: conclave-raft -> helper -> tokio"]
        );
    }

    #[test]
    fn the_simulator_may_not_be_a_dev_dependency_of_what_is_shipped() {
        assert_eq!(findings(&[("conclave-raft", "conclave-sim", true)]).len(), 1);
    }

    #[test]
    fn a_dev_dependency_of_a_dependency_is_never_built() {
        let edges = [("conclave-raft", "helper", false), ("helper", "tokio", true)];
        assert_eq!(findings(&edges), [""; 0]);
    }
}
