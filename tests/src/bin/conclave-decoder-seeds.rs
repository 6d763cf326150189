//! Writes each decoder's seeds into a folder of its name, for the fuzzer to begin with, and prints the names.

#![forbid(unsafe_code)]

use std::{fs, path::Path};

use anyhow::{Context, Result};
use conclave_tests::decoders::TARGETS;

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).context("usage: conclave-decoder-seeds FOLDER")?;
    for target in TARGETS {
        let folder = Path::new(&folder).join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}
