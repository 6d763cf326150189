//! What must not stand in tracked files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::workspace;

use super::metadata::Metadata;

/// Past this many lines without tests, a file is asked what second thing lives in it.
const LINES_ASKED: usize = 800;
/// The one crate that may hold unsafe code: memory and file calls that std does not offer.
const MAY_BE_UNSAFE: &str = "conclave-storage";

/// Left from work in progress. Written apart, so that this file passes its own check.
const LEFTOVERS: &[&str] = &[concat!("to", "do!("), concat!("unimplem", "ented!("), concat!("db", "g!(")];
/// Folders that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

pub(super) fn check(metadata: &Metadata, findings: &mut Vec<String>) -> Result<()> {
    unsafe_code(metadata, findings)?;
    for file in tracked_files()? {
        let Ok(text) = fs::read_to_string(workspace::root().join(&file)) else {
            continue; // Binary, or deleted in the work tree.
        };
        machine_paths(&file, &text, findings);
        if file.ends_with(".rs") {
            rust_source(&file, &text, findings);
        }
    }
    Ok(())
}

/// Every library and program forbids unsafe code at its root.
fn unsafe_code(metadata: &Metadata, findings: &mut Vec<String>) -> Result<()> {
    for package in metadata.members().filter(|p| p.name != MAY_BE_UNSAFE) {
        for (kind, path) in &package.targets {
            if matches!(kind.as_str(), "lib" | "bin" | "proc-macro") {
                let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
                if !text.contains("#![forbid(unsafe_code)]") {
                    let shown = path.strip_prefix(workspace::root()).unwrap_or(path);
                    findings.push(format!("{}: no #![forbid(unsafe_code)]", shown.display()));
                }
            }
        }
    }
    Ok(())
}

fn tracked_files() -> Result<Vec<String>> {
    let listed = Command::new("git").current_dir(workspace::root()).args(["ls-files", "-z"]).output();
    let listed = listed.context("starting git")?;
    ensure!(listed.status.success(), "git ls-files failed: tidy reads the tracked files of a git checkout");
    let listed = String::from_utf8(listed.stdout).context("a tracked file's name is not UTF-8")?;
    Ok(listed.split_terminator('\0').map(str::to_owned).collect())
}

fn machine_paths(file: &str, text: &str, findings: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        for needle in MACHINE_PATHS {
            // Inside a longer path or an address it is something else: `a/home/b`, `host/work/`.
            let names_a_folder = line.match_indices(needle).any(|(at, _)| {
                line[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && !"._-}".contains(c))
            });
            if names_a_folder {
                findings.push(format!("{file}:{}: a path of somebody's machine", number + 1));
            }
        }
    }
}

fn rust_source(file: &str, text: &str, findings: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for leftover in LEFTOVERS {
            if code.contains(leftover) {
                findings.push(format!("{file}:{}: `{leftover}` is left", number + 1));
            }
        }
        if code.trim() == "#[ignore]" {
            findings.push(format!("{file}:{}: ignored without a reason", number + 1));
        }
    }
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > LINES_ASKED && !Path::new(file).components().any(|c| c.as_os_str() == "tests") {
        println!("tidy: warning: {file} has {lines} lines; what second thing lives there?");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_and_bare_ignores_are_found() {
        let text = format!(
            "fn a() {{ {}) }}\n#[ignore]\n// {})\n#[ignore = \"slow\"]\n",
            LEFTOVERS[0], LEFTOVERS[0]
        );
        let mut findings = Vec::new();
        rust_source("a.rs", &text, &mut findings);
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn machine_paths_are_found_but_not_inside_addresses() {
        let mut findings = Vec::new();
        let text = format!("see {}x\nhttps://example.org{}y\n", MACHINE_PATHS[0], MACHINE_PATHS[1]);
        machine_paths("a.md", &text, &mut findings);
        assert_eq!(findings, ["a.md:1: a path of somebody's machine"]);
    }
}
