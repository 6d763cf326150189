//! `cargo xtask fuzz`: every decoder under libFuzzer, where a nightly compiler and cargo-fuzz are installed.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::{command, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A decoder; all of them, one after the other, if none is named.
    target: Option<String>,
    /// Seconds for each decoder.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    installed()?;
    let corpus = workspace::target().join("fuzz-corpus");
    let seeds =
        command::cargo(["run", "--locked", "-p", "conclave-tests", "--bin", "conclave-decoder-seeds", "--"])
            .arg(&corpus)
            .stderr(Stdio::inherit())
            .output()?;
    ensure!(seeds.status.success(), "writing the seeds failed");
    let names = String::from_utf8(seeds.stdout)?;
    let chosen: Vec<&str> =
        names.lines().filter(|name| args.target.as_deref().is_none_or(|target| target == *name)).collect();
    ensure!(
        !chosen.is_empty(),
        "no such decoder; there are: {}",
        names.lines().collect::<Vec<_>>().join(" ")
    );
    for name in chosen {
        println!("== fuzz {name}");
        let mut fuzz = Command::new("cargo");
        fuzz.args(["+nightly", "fuzz", "run", "--target-dir"]).arg(workspace::target().join("fuzz"));
        fuzz.arg("decoder").arg(corpus.join(name));
        fuzz.args(["--", &format!("-max_total_time={}", args.seconds), "-max_len=16384", "-timeout=10"]);
        // What rustup sets for the cargo that runs us must not pick the compiler of the one below.
        fuzz.env("FUZZ_TARGET", name).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        command::run(fuzz.current_dir(workspace::root())).with_context(|| format!("in decoder {name}"))?;
        ensure!(!command::interrupted(), "interrupted");
    }
    Ok(())
}

/// Says in one line what is missing.
fn installed() -> Result<()> {
    let answers = |args: &[&str]| {
        let mut asked = Command::new("cargo");
        asked.args(args).env_remove("RUSTUP_TOOLCHAIN").stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    };
    ensure!(answers(&["+nightly", "--version"]), "no nightly compiler: rustup toolchain install nightly");
    ensure!(answers(&["fuzz", "--version"]), "no cargo-fuzz: cargo install cargo-fuzz");
    Ok(())
}
