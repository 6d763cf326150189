//! Servers of a test's own.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use conclave_client::{Client, Config, Keys};
use conclave_tests::trial::program;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use xtask::server::{Cluster, Launch, Ports};

/// How long servers may take to serve, and anything may take to come about, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

pub(crate) struct Servers {
    pub(crate) cluster: Cluster,
    /// Whether they honour the names of requests.
    pub(crate) is_conclave: bool,
    _dir: TempDir,
}

impl Servers {
    /// One, for what needs no failure.
    pub(crate) fn one() -> Result<Self> {
        Self::start(1)
    }

    /// Three.
    pub(crate) fn three() -> Result<Self> {
        Self::start(3)
    }

    fn start(count: usize) -> Result<Self> {
        let (dir, program, ports) = (tempfile::tempdir()?, program()?, Ports::free(count)?);
        let is_conclave = program.file_stem().is_some_and(|name| name != "etcd");
        let mut cluster = Launch::new(&program, dir.path(), &ports).start()?;
        tokio::task::block_in_place(|| cluster.wait_ready(PATIENCE))?;
        Ok(Self { cluster, is_conclave, _dir: dir })
    }

    pub(crate) fn config(&self) -> Config {
        Config::of(self.cluster.endpoints())
    }

    /// A client of all of them.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(self.config())?)
    }

    /// A client of one of them.
    pub(crate) fn client_of(&self, server: usize) -> Result<Client> {
        Ok(Client::connect([self.cluster.servers()[server].endpoint()])?)
    }

    /// A way to one of them, for the stubs.
    pub(crate) fn way(&self, server: usize) -> Result<Channel> {
        Ok(Endpoint::from_shared(self.cluster.servers()[server].endpoint())?.connect_lazy())
    }

    /// Kills one and starts it again on the same data.
    pub(crate) fn bounce(&mut self, server: usize) -> Result<()> {
        let server = &mut self.cluster.servers_mut()[server];
        server.kill()?;
        server.restart()
    }
}

/// The keys that begin so, at this moment.
pub(crate) async fn keys_below(client: &Client, prefix: &'static str) -> Result<Vec<String>> {
    let found = client.read(conclave_client::Get::new(Keys::prefix(prefix)).keys_only()).await?;
    Ok(found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect())
}

/// Waits until just so many keys begin so.
pub(crate) async fn until_keys(client: &Client, prefix: &'static str, count: usize) -> Result<()> {
    until(async || Ok(keys_below(client, prefix).await?.len() == count)).await
}

/// Waits until something holds.
pub(crate) async fn until(holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < PATIENCE, "it did not come about within {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
