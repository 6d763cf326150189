//! Data directories that are not this node's, or not this node's alone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use conclave_tests::solo::{Refusal, Solo, Written, anywhere, refused};

/// Every file under a directory, with what is in it. Preallocated segments are compared by their first megabyte.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    const BYTES: usize = 1 << 20;
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            all.extend(contents(&path)?);
        } else {
            let mut bytes = fs::read(&path)?;
            bytes.truncate(BYTES);
            all.insert(path, bytes);
        }
    }
    Ok(all)
}

/// A start on a directory by a node of default flags but for these.
fn start_on(directory: &Path, flags: &[&str]) -> Result<Refusal> {
    let elsewhere = tempfile::tempdir()?;
    let data_dir = format!("--data-dir={}", directory.display());
    let flags: Vec<String> =
        flags.iter().map(|&flag| flag.to_owned()).chain([data_dir]).chain(anywhere()).collect();
    refused(elsewhere.path(), &flags, &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_cluster_or_member() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut solo = Solo::start(directory.path())?;
    let written = Written::keys(&mut solo.client()?, 50).await?;
    solo.kill()?;
    let data_dir = solo.data_dir();
    let before = contents(&data_dir)?;

    let refusal = start_on(&data_dir, &["--name=n1", "--initial-cluster-token=another"])?;
    let told = format!("the data directory {} belongs to cluster ", data_dir.display());
    ensure!(refusal.code == 1 && refusal.line.starts_with(&told), "{refusal:?}");
    ensure!(refusal.line.contains("(member \"n1\"), not to cluster "), "{refusal:?}");
    ensure!(contents(&data_dir)? == before, "the directory was touched");

    solo.restart()?;
    written.check(&mut solo.client()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_locked_by_a_running_node() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut solo = Solo::start(directory.path())?;
    let written = Written::keys(&mut solo.client()?, 50).await?;
    let elsewhere = tempfile::tempdir()?;
    let refusal = refused(elsewhere.path(), &solo.same_member(), &[])?;
    let told = format!("the data directory {} is locked by a running node", solo.data_dir().display());
    ensure!(refusal == Refusal { code: 1, line: told }, "{refusal:?}");

    solo.check_alive()?;
    written.check(&mut solo.client()?).await?;
    solo.kill()?;
    solo.restart()?;
    written.check(&mut solo.client()?).await
}

#[test]
fn a_directory_of_etcd() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let snap = directory.path().join("member").join("snap");
    fs::create_dir_all(&snap)?;
    fs::create_dir_all(directory.path().join("member").join("wal"))?;
    fs::write(snap.join("db"), "bolt")?;
    let before = contents(directory.path())?;
    let refusal = start_on(directory.path(), &[])?;
    let told = format!(
        "{} is a data directory of etcd; conclave has a format of its own and does not read it: give another --data-dir",
        directory.path().display()
    );
    ensure!(refusal == Refusal { code: 1, line: told }, "{refusal:?}");
    ensure!(contents(directory.path())? == before, "the directory was touched");
    Ok(())
}

#[test]
fn a_directory_with_other_files() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("letter.txt"), "Dear")?;
    let refusal = start_on(directory.path(), &[])?;
    let told = format!(
        "the data directory {} holds no conclave data but is not empty (it has \"letter.txt\")",
        directory.path().display()
    );
    ensure!(refusal == Refusal { code: 1, line: told }, "{refusal:?}");
    ensure!(contents(directory.path())?.len() == 1, "the directory was touched");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_identity() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut solo = Solo::start(directory.path())?;
    let written = Written::keys(&mut solo.client()?, 50).await?;
    solo.kill()?;
    let identity = solo.data_dir().join("IDENTITY");
    let good = fs::read(&identity)?;
    fs::write(&identity, &good[..good.len() / 2])?;
    let refusal = solo.restart_refused()?;
    let told = format!("the identity file {} is damaged: ", identity.display());
    ensure!(refusal.code == 1 && refusal.line.starts_with(&told), "{refusal:?}");
    fs::write(&identity, good)?;
    solo.restart()?;
    written.check(&mut solo.client()?).await
}
