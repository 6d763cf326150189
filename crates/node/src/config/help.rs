//! The texts of `--help` and `--version`.

use std::fmt::Write;

use super::flags::{FLAGS, Group, Kind, Served};

/// The release of etcd whose API this server speaks: what `Status`, `/version` and the metrics report.
///
/// Clients decide by it which features to use, so it is etcd's number and not conclave's.
pub const API_VERSION: &str = "3.7.1";

/// The cluster version that belongs to [`API_VERSION`].
pub const CLUSTER_VERSION: &str = "3.7.0";

/// Conclave's own version.
pub const CONCLAVE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `--version` prints.
#[must_use]
pub fn version() -> String {
    format!("conclave {CONCLAVE_VERSION}\nAPI: etcd v{API_VERSION}\n")
}

/// What `--help` prints: every flag with its default, those not served yet last.
#[must_use]
pub fn help() -> String {
    let mut text = format!(
        "conclave {CONCLAVE_VERSION}: a strongly consistent key-value server that speaks the etcd v{API_VERSION} API.

Usage:

  conclave [flags]
    Start a server. Without flags: a single member 'default' on http://localhost:2379.

  conclave --version
    Show the version of conclave and the level of its API.

  conclave -h | --help
    Show this text.

Flags are given as --flag=value or --flag value. Each may also be set by an environment variable: in upper case, with
underscores and the prefix CONCLAVE_ or ETCD_ (CONCLAVE_DATA_DIR, ETCD_DATA_DIR). A flag beats CONCLAVE_, CONCLAVE_
beats ETCD_. A --config-file stands alone.
"
    );
    for group in Group::ALL {
        let flags: Vec<_> =
            FLAGS.iter().filter(|flag| flag.group == group && flag.served == Served::Yes).collect();
        if flags.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{}:\n", group.title());
        for flag in flags {
            let default = match flag.kind {
                Kind::Text => format!("'{}'", flag.default),
                _ => flag.default.to_owned(),
            };
            let _ = writeln!(text, "  --{} {default}\n{}", flag.name, indented(flag.help));
        }
    }
    text.push_str(
        "\nKnown to etcd, not served yet (accepted with their defaults, refused with any other value):\n",
    );
    for group in Group::ALL {
        let names: Vec<_> = FLAGS
            .iter()
            .filter(|flag| flag.group == group && flag.served != Served::Yes)
            .map(|flag| format!("--{}", flag.name))
            .collect();
        if !names.is_empty() {
            let _ = writeln!(text, "  {}:\n{}", group.title(), indented(&names.join(" ")));
        }
    }
    text
}

/// Wraps at 110 columns behind four spaces.
fn indented(words: &str) -> String {
    let mut lines = vec![String::from("   ")];
    for word in words.split_whitespace() {
        if lines.last().is_some_and(|line| line.len() + 1 + word.len() > 110) {
            lines.push(String::from("   "));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}
