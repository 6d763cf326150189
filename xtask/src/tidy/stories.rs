//! Engines tell the same stories: where two catalogues have one of a name, its script is the same, and only what comes of it differs.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use xtask::{engine::Engine, workspace};

pub(super) fn check(findings: &mut Vec<String>) -> Result<()> {
    let [one, other] = Engine::ALL.map(|engine| {
        let catalogue = workspace::root().join("crates").join(engine.name()).join("testdata");
        scripts(&catalogue).with_context(|| format!("reading {}", catalogue.display()))
    });
    findings.extend(differing(&one?, &other?).map(|name| format!("the engines play {name} by two scripts")));
    Ok(())
}

/// What each story of a catalogue asks for, by its file's name.
fn scripts(catalogue: &Path) -> Result<BTreeMap<String, String>> {
    let mut scripts = BTreeMap::new();
    for file in std::fs::read_dir(catalogue)? {
        let file = file?;
        let story = std::fs::read_to_string(file.path())?;
        scripts.insert(file.file_name().to_string_lossy().into_owned(), script(&story));
    }
    Ok(scripts)
}

/// The commands of a story, without prose and what came of them.
fn script(story: &str) -> String {
    story
        .lines()
        .filter(|line| line.starts_with("> ") || line.starts_with("given "))
        .collect::<Vec<_>>()
        .join("\n")
}

fn differing<'s>(
    one: &'s BTreeMap<String, String>,
    other: &'s BTreeMap<String, String>,
) -> impl Iterator<Item = &'s str> {
    let differs =
        |(name, script): &(&String, &String)| other.get(*name).is_some_and(|theirs| theirs != *script);
    one.iter().filter(differs).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scripts_are_compared_and_only_of_stories_that_both_tell() {
        let catalogue = |stories: &[(&str, &str)]| {
            stories
                .iter()
                .map(|(name, story)| ((*name).to_owned(), script(story)))
                .collect::<BTreeMap<_, _>>()
        };
        let raft = [("a", "# Prose.\n\ngiven group of 1 voters\n> settle\n  1 votes\n"), ("b", "> heal\n")];
        let paxos =
            [("a", "# Other.\n\ngiven group of 1 voters\n> settle\n  1 promises\n"), ("c", "> heal\n")];
        assert_eq!(differing(&catalogue(&raft), &catalogue(&paxos)).count(), 0);
        let paxos = [("a", "given group of 2 voters\n> settle\n")];
        assert_eq!(differing(&catalogue(&raft), &catalogue(&paxos)).collect::<Vec<_>>(), ["a"]);
    }
}
