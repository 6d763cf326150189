//! What `cargo metadata` says, as far as tidy asks.

use std::collections::{BTreeMap, BTreeSet};
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

    fn parse(json: &Value) -> Result<Metadata> {
        let mut packages = BTreeMap::new();
        for package in array(&json["packages"]) {
            packages.insert(text(&package["id"])?, parse_package(package)?);
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
