//! `cargo xtask bless`: what tests expect in golden files and in `expect!` is written anew, as the code has it.
//!
//! Blessed are the packages that use `expect-test`. What the code must never change has its own goldens, such as the wire's frames: nobody
//! blesses those, they fail until the code is as it was.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use xtask::command;

/// The crate by which tests compare with a text that can be written anew.
const EXPECTING: &str = "expect-test";
/// What it wants in the environment.
const WRITE: (&str, &str) = ("UPDATE_EXPECT", "1");

pub(crate) fn run() -> Result<()> {
    let users = command::cargo(["tree", "--locked", "--workspace", "--invert", EXPECTING, "--depth", "1"])
        .args(["--edges", "dev", "--prefix", "none", "--format", "{p}"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo tree")?;
    ensure!(users.status.success(), "cargo tree of {EXPECTING} failed");
    let packages = packages(std::str::from_utf8(&users.stdout)?);
    ensure!(!packages.is_empty(), "no package uses {EXPECTING}");
    let mut test = command::cargo(["test", "--locked"]);
    test.args(packages.iter().flat_map(|package| ["--package", package]));
    command::run(test.env(WRITE.0, WRITE.1))?;
    println!("blessed: {}. Understand each difference before you commit it.", packages.join(", "));
    command::run(std::process::Command::new("git").current_dir(xtask::workspace::root()).args([
        "--no-pager",
        "diff",
        "--stat",
    ]))
}

/// The packages in an inverted tree, below its root.
fn packages(tree: &str) -> Vec<&str> {
    let mut names: Vec<&str> = tree.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_below_the_root_are_named_once() {
        let tree = "expect-test v1.5.1\nraft v0.1.0 (crates/raft)\nnode v0.1.0 (crates/node)\nraft v0.1.0 (crates/raft) (*)\n";
        assert_eq!(packages(tree), ["node", "raft"]);
    }
}
