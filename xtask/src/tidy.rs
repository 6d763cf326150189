//! `cargo xtask tidy`: what the compiler does not check.
//!
//! - [`edges`]: dependencies that the architecture forbids;
//! - [`manifests`]: what publishing needs, in every crate;
//! - [`licences`]: every dependency under a licence that `deny.toml` allows;
//! - [`sources`]: unsafe code, leftovers, ignored tests without a reason, paths of somebody's machine, overlong files;
//! - [`stories`]: engines tell the same stories.
//!
//! Findings are collected, so that one run shows them all. Overlong files are a warning: a question, not a verdict.

mod edges;
mod licences;
mod manifests;
mod metadata;
mod sources;
mod stories;

use anyhow::{Result, bail};

use metadata::Metadata;

pub(crate) fn run() -> Result<()> {
    let metadata = Metadata::read()?;
    let mut findings = Vec::new();
    edges::check(&metadata, &mut findings)?;
    manifests::check(&metadata, &mut findings);
    licences::check(&metadata, &mut findings)?;
    sources::check(&metadata, &mut findings)?;
    stories::check(&mut findings)?;
    if findings.is_empty() {
        println!(
            "tidy: {} packages of ours, {} in all: in order",
            metadata.members().count(),
            metadata.len()
        );
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} findings", findings.len())
}
