//! The runner that glues the workspace: `cargo xtask help`.
fn main() {}
