//! What publishing needs, in the manifest of every crate that is shipped.

use super::metadata::Metadata;

const LICENSE: &str = "MIT OR Apache-2.0";

pub(super) fn check(metadata: &Metadata, findings: &mut Vec<String>) {
    for package in metadata.members() {
        let mut miss = |what: &str| findings.push(format!("{}: {what}", package.name));
        if package.rust_version.is_none() {
            miss("no rust-version");
        }
        if package.license.as_deref() != Some(LICENSE) {
            miss("the licence is not `MIT OR Apache-2.0`");
        }
        if !package.shipped {
            continue;
        }
        if package.description.trim().is_empty() {
            miss("no description");
        }
        if package.categories == 0 {
            miss("no categories");
        }
        match &package.readme {
            Some(readme) if package.dir().join(readme).is_file() => {}
            Some(readme) => miss(&format!("its readme {readme} is not there")),
            None => miss("no readme"),
        }
    }
}
