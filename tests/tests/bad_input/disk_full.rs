//! Disks that run full: small file systems in memory, which need root; without it, the tests say so and show nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use conclave_tests::{
    solo::{Refusal, Solo, Written},
    trial::copy_dir,
};

const VALUE_BYTES: usize = 1 << 20;

/// A small file system in memory, gone with this value.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None`, and a line that says why, where the system does not allow it.
    fn mount(path: &Path, mebibytes: u64) -> Result<Option<Self>> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]).arg(path);
        let why = match command.output() {
            Ok(output) if output.status.success() => return Ok(Some(Self { path: path.to_owned() })),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        println!("skipped: a small file system cannot be mounted ({why})");
        Ok(None)
    }

    /// Takes the place of a directory, with what it holds.
    fn replace(path: &Path, mebibytes: u64) -> Result<Option<Self>> {
        let before = path.with_extension("before");
        fs::rename(path, &before)?;
        fs::create_dir(path)?;
        let disk = Self::mount(path, mebibytes)?;
        if disk.is_some() {
            copy_dir(&before, path)?;
        }
        Ok(disk)
    }

    fn enlarge(&self, mebibytes: u64) -> Result<()> {
        let size = format!("remount,size={mebibytes}m");
        let status = Command::new("mount").args(["-o", &size]).arg(&self.path).status()?;
        ensure!(status.success(), "remount failed");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that is still being killed may hold files open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Fills the disk under a part of the data directory until the node halts; with more room, everything acknowledged is there.
async fn fill(part: &str, mebibytes: u64, line: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut solo = Solo::start(directory.path())?;
    solo.kill()?;
    let Some(disk) = SmallDisk::replace(&solo.data_dir().join(part), mebibytes)? else {
        return Ok(());
    };
    solo.restart()?;
    let from = solo.log_text().len();
    let (written, why) = Written::until_refused(&mut solo.client()?, 400, VALUE_BYTES).await;
    why.context("the disk did not run full")?;
    ensure!(written.count() >= 10, "only {} values before the disk was full", written.count());
    let refusal = solo.ended(from)?;
    ensure!(refusal == Refusal { code: 1, line: line.to_owned() }, "{refusal:?}");
    println!("the {part} was full after {} values of 1 MiB", written.count());
    disk.enlarge(1024)?;
    solo.restart()?;
    written.check(&mut solo.client()?).await?;
    Written::keys(&mut solo.client()?, 10).await?;
    drop(solo);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_disk() -> Result<()> {
    fill("log", 140, "no space left on the log's device").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_states_disk() -> Result<()> {
    fill("state", 10, "state of group 1: no space left on the state's device").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(directory.path(), 10)? else { return Ok(()) };
    let refused = Refusal { code: 1, line: "no space left on the log's device".to_owned() };
    let mut solo = Solo::launch(directory.path(), &[])?;
    let refusal = solo.ended(0)?;
    ensure!(refusal == refused, "{refusal:?}");
    // Nothing half-made keeps others from writing, or the next start from the same answer.
    fs::write(directory.path().join("other"), vec![0; 5 << 20])?;
    let refusal = solo.restart_refused()?;
    ensure!(refusal == refused, "{refusal:?}");
    disk.enlarge(300)?;
    solo.restart()?;
    Written::keys(&mut solo.client()?, 10).await?.check(&mut solo.client()?).await?;
    drop(solo);
    Ok(())
}
