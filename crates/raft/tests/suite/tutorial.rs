//! The crate's documentation says of each rule what breaks without it, and names tests that show it: those exist.

use std::path::Path;

const DOCS: &str = include_str!("../../src/lib.rs");

/// The rules as they stand in the documentation, each from its number on.
fn rules() -> Vec<String> {
    let text = DOCS.split("# The rules").nth(1).unwrap().split("# Driving it").next().unwrap();
    let mut rules: Vec<String> = Vec::new();
    for line in text.lines().map(|line| line.trim_start_matches("//! ")) {
        let begins = line.starts_with(&format!("{}. **", rules.len() + 1));
        match rules.last_mut() {
            _ if begins => rules.push(line.to_owned()),
            Some(rule) if !line.starts_with('#') => *rule += line,
            _ => {}
        }
    }
    rules
}

#[test]
fn each_rule_says_what_breaks_without_it_and_names_tests_that_exist() {
    let rules = rules();
    assert_eq!(rules.len(), 22);
    for rule in rules {
        assert!(rule.contains("*Else*"), "what breaks without it? {rule}");
        let quoted = rule.split('`').skip(1).step_by(2);
        let tests: Vec<(&str, &str)> = quoted.filter_map(|name| name.split_once("::")).collect();
        assert!(!tests.is_empty(), "which test shows it? {rule}");
        for (file, test) in tests {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite").join(file);
            let suite = std::fs::read_to_string(path.with_extension("rs")).unwrap();
            // A story is a name in the catalogue.
            let found = suite.lines().any(|line| line == format!("fn {test}() {{") || line.trim() == test);
            assert!(found, "no test {file}::{test}");
        }
    }
}
