//! What `cargo metadata` says, as far as tidy asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::command;

pub(super) struct Metadata {
    packages: BTreeMap<String, Package>,
    members: BTreeSet<String>,
}

pub(super) struct Package {
    pub(super) name: String,
    pub(super) manifest_path: PathBuf,
    pub(super) description: String,
    pub(super) readme: Option<String>,
    pub(super) license: Option<String>,
    pub(super) rust_version: Option<String>,
    pub(super) categories: usize,
    /// Whether it is published; `publish = false` says no.
    pub(super) shipped: bool,
    /// The root files of libraries, binaries, tests, examples and benches, with their kinds.
    pub(super) targets: Vec<(String, PathBuf)>,
    edges: Vec<Edge>,
}

struct Edge {
    to: String,
    /// Only tests, examples and benches use it.
    dev_only: bool,
}

impl Package {
    pub(super) fn dir(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

impl Metadata {
    pub(super) fn read() -> Result<Metadata> {
        let output = command::cargo(["metadata", "--format-version=1", "--locked"])
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata failed");
        Metadata::parse(&serde_json::from_slice(&output.stdout)?)
    }

    pub(super) fn parse(json: &Value) -> Result<Metadata> {
        let mut packages = BTreeMap::new();
        for package in array(&json["packages"]) {
            packages.insert(text(&package["id"])?, parse_package(package)?);
        }
        for node in array(&json["resolve"]["nodes"]) {
            let from =
                packages.get_mut(&text(&node["id"])?).context("a resolved package without a manifest")?;
            for dep in array(&node["deps"]) {
                let kinds = array(&dep["dep_kinds"]);
                let dev_only = !kinds.is_empty() && kinds.iter().all(|k| k["kind"].as_str() == Some("dev"));
                from.edges.push(Edge { to: text(&dep["pkg"])?, dev_only });
            }
        }
        let members = array(&json["workspace_members"]).iter().map(text).collect::<Result<_>>()?;
        Ok(Metadata { packages, members })
    }

    /// How many packages there are, dependencies included.
    pub(super) fn len(&self) -> usize {
        self.packages.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Package> {
        self.packages.values()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Package> {
        self.members.iter().filter_map(|id| self.packages.get(id))
    }

    /// A shortest chain of dependencies from package `from` to package `to`, both included.
    ///
    /// Dev-dependencies count only as the first step and only with `with_dev`: those of dependencies are never built.
    pub(super) fn chain(&self, from: &str, to: &str, with_dev: bool) -> Option<Vec<&str>> {
        let (start, _) = self.packages.iter().find(|(id, p)| p.name == from && self.members.contains(*id))?;
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([start.as_str()]);
        while let Some(id) = queue.pop_front() {
            let package = self.packages.get(id)?;
            if package.name == to && id != start {
                let mut chain = vec![package.name.as_str()];
                let mut at = id;
                while at != start {
                    at = came_from.get(at)?;
                    chain.push(&self.packages.get(at)?.name);
                }
                chain.reverse();
                return Some(chain);
            }
            for edge in package.edges.iter().filter(|e| !e.dev_only || (with_dev && id == start)) {
                if edge.to != *start && !came_from.contains_key(edge.to.as_str()) {
                    came_from.insert(&edge.to, id);
                    queue.push_back(&edge.to);
                }
            }
        }
        None
    }
}

fn parse_package(json: &Value) -> Result<Package> {
    let targets = array(&json["targets"])
        .iter()
        .map(|t| {
            let kinds: Vec<&str> = array(&t["kind"]).iter().filter_map(Value::as_str).collect();
            Ok((kinds.join(","), PathBuf::from(text(&t["src_path"])?)))
        })
        .collect::<Result<_>>()?;
    Ok(Package {
        name: text(&json["name"])?,
        manifest_path: text(&json["manifest_path"])?.into(),
        description: json["description"].as_str().unwrap_or_default().to_owned(),
        readme: json["readme"].as_str().map(str::to_owned),
        license: json["license"].as_str().map(str::to_owned),
        rust_version: json["rust_version"].as_str().map(str::to_owned),
        categories: array(&json["categories"]).len(),
        shipped: !json["publish"].as_array().is_some_and(Vec::is_empty),
        targets,
        edges: Vec::new(),
    })
}

fn array(json: &Value) -> &[Value] {
    json.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(json: &Value) -> Result<String> {
    json.as_str()
        .map(str::to_owned)
        .with_context(|| format!("expected a string in cargo metadata, found {json}"))
}
