//! Every package of the dependency tree under a licence that `deny.toml` allows.
//!
//! `cargo deny` reads the same list where it is installed; this check needs nothing installed.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use xtask::workspace;

use super::metadata::Metadata;

pub(super) fn check(metadata: &Metadata, findings: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(workspace::root().join("deny.toml")).context("reading deny.toml")?;
    let allowed = allow_list(&text).context("deny.toml has no list `allow` under [licenses]")?;
    for package in metadata.all() {
        match &package.license {
            Some(license) if is_allowed(license, &allowed) => {}
            Some(license) => findings.push(format!("{}: licence `{license}` is not allowed", package.name)),
            None => findings.push(format!("{}: names no licence", package.name)),
        }
    }
    Ok(())
}

/// The quoted strings of `allow = [ … ]` in the section `[licenses]`.
fn allow_list(text: &str) -> Option<BTreeSet<&str>> {
    let (_, section) = text.split_once("[licenses]")?;
    let (_, list) = section.split_once("allow = [")?;
    let (list, _) = list.split_once(']')?;
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Whether an SPDX expression can be satisfied by allowed licences. The old form `A/B` means `A OR B`.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens = spaced.split_whitespace().peekable();
    let verdict = any(&mut tokens, allowed);
    verdict && tokens.next().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `all (OR all)*`
fn any(tokens: &mut Tokens<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut verdict = all(tokens, allowed);
    while tokens.next_if_eq(&"OR").is_some() {
        verdict |= all(tokens, allowed);
    }
    verdict
}

/// `one (AND one)*`
fn all(tokens: &mut Tokens<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut verdict = one(tokens, allowed);
    while tokens.next_if_eq(&"AND").is_some() {
        verdict &= one(tokens, allowed);
    }
    verdict
}

/// A licence, perhaps `WITH` an exception, or an expression in parentheses. An exception only grants more.
fn one(tokens: &mut Tokens<'_>, allowed: &BTreeSet<&str>) -> bool {
    match tokens.next() {
        Some("(") => any(tokens, allowed) & tokens.next_if_eq(&")").is_some(),
        Some(license) => {
            if tokens.next_if_eq(&"WITH").is_some() {
                tokens.next();
            }
            allowed.contains(license)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_is_read_from_its_section() {
        let text =
            "[bans]\nallow = [\"x\"]\n[licenses]\n# why\nallow = [\n  \"MIT\", # plain\n  \"ISC\",\n]\n";
        assert_eq!(allow_list(text), Some(BTreeSet::from(["MIT", "ISC"])));
    }

    #[test]
    fn expressions_are_judged_as_spdx_says() {
        let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Unicode-3.0"]);
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "(MIT", ""] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
    }
}
