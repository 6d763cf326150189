//! Ports that are in use.

use std::fs;

use anyhow::{Result, ensure};
use conclave_tests::solo::{Solo, Written, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut solo = Solo::start(directory.path())?;
    let written = Written::keys(&mut solo.client()?, 50).await?;
    let other = tempfile::tempdir()?;
    let start = |client: u16, peer: u16| {
        let flags = [
            format!("--listen-client-urls=http://127.0.0.1:{client}"),
            format!("--advertise-client-urls=http://127.0.0.1:{client}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        ];
        refused(other.path(), &flags, &[])
    };
    let ports = solo.ports();

    let refusal = start(ports.client, 0)?;
    let told = format!("cannot listen on http://127.0.0.1:{} (--listen-client-urls): ", ports.client);
    ensure!(refusal.code == 1 && refusal.line.starts_with(&told), "{refusal:?}");
    ensure!(refusal.line.matches("in use").count() == 1, "{refusal:?}");

    let refusal = start(0, ports.peer)?;
    let told = format!("peer address 127.0.0.1:{} is in use: another process listens there", ports.peer);
    ensure!(refusal.code == 1 && refusal.line == told, "{refusal:?}");

    // A directory left behind would bind the next attempt to the identity of this one.
    ensure!(fs::read_dir(other.path())?.count() == 0, "something was left behind");
    solo.check_alive()?;
    written.check(&mut solo.client()?).await
}
