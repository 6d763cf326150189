//! One node alone: kept running, or kept from starting.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use conclave_api::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::{Channel, Endpoint};
use xtask::engine::Engine;
use xtask::server::{Cluster, Launch, Ports};

use crate::{
    load::{Client, connect},
    trial::program,
};

/// How long a node may take to serve, or to end, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// The one node's name.
const NAME: &str = "n1";

/// A node that is a cluster by itself.
#[derive(Debug)]
pub struct Solo {
    cluster: Cluster,
    dir: PathBuf,
    ports: Ports,
}

impl Solo {
    /// Starts a node with its data and its log file under `dir`, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(dir: &Path) -> Result<Self> {
        let solo = Self::launch(dir, &[])?;
        solo.ready()
    }

    /// Starts a node with further flags, and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(dir: &Path, flags: &[String]) -> Result<Self> {
        let (program, ports) = (program()?, Ports::free(1)?);
        let cluster = Launch { flags, ..Launch::new(&program, dir, &ports) }.start()?;
        Ok(Self { cluster, dir: dir.to_owned(), ports: ports[0] })
    }

    /// Starts a node, under a name, that joins a running cluster on that engine, whose members and itself are `members`, as one that was added
    /// with this peer port; and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn join(dir: &Path, name: &str, ports: Ports, members: &str, engine: Engine) -> Result<Self> {
        let flags = [
            format!("--name={name}"),
            format!("--data-dir={}", dir.join(NAME).display()),
            format!("--initial-cluster={members}"),
            "--initial-cluster-state=existing".to_owned(),
            engine.flag(),
        ];
        let cluster = Launch { flags: &flags, ..Launch::new(&program()?, dir, &[ports]) }.start()?;
        Self { cluster, dir: dir.to_owned(), ports }.ready()
    }

    /// Starts a node, under a name, as one of the `members` that found a cluster on that engine, and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn found(dir: &Path, name: &str, ports: Ports, members: &str, engine: Engine) -> Result<Self> {
        let flags = [
            format!("--name={name}"),
            format!("--data-dir={}", dir.join(NAME).display()),
            format!("--initial-cluster={members}"),
            engine.flag(),
        ];
        let cluster = Launch { flags: &flags, ..Launch::new(&program()?, dir, &[ports]) }.start()?;
        Ok(Self { cluster, dir: dir.to_owned(), ports })
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn ready(mut self) -> Result<Self> {
        self.wait_ready()?;
        Ok(self)
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.cluster.wait_ready(PATIENCE)
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// A client of it.
    ///
    /// # Errors
    /// If its address is no URL.
    pub fn client(&self) -> Result<Client> {
        connect(&self.cluster.servers()[0].endpoint())
    }

    /// A way to it, on which each request has so much time.
    ///
    /// # Errors
    /// If its address is no URL.
    pub fn channel(&self, limit: Duration) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(self.cluster.servers()[0].endpoint())?;
        Ok(endpoint.timeout(limit).connect_lazy())
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Everything it ever logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        let path = self.dir.join(format!("{NAME}.log"));
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The flags by which another process would be this very node, but for the addresses it listens on.
    #[must_use]
    pub fn same_member(&self) -> Vec<String> {
        let peer = format!("http://127.0.0.1:{}", self.ports.peer);
        let data_dir = self.data_dir().display().to_string();
        let flags = [
            ("name", NAME.to_owned()),
            ("data-dir", data_dir),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("{NAME}={peer}")),
        ];
        let flags = flags.map(|(flag, value)| format!("--{flag}={value}"));
        flags.into_iter().chain(anywhere()).collect()
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn kill(&mut self) -> Result<()> {
        self.cluster.servers_mut()[0].kill()
    }

    /// Stops it where it stands, as a long pause of its machine would.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn pause(&self) -> Result<()> {
        self.cluster.servers()[0].pause()
    }

    /// Lets it go on after a pause.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn resume(&self) -> Result<()> {
        self.cluster.servers()[0].resume()
    }

    /// Starts it again with the same flags on the same data, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub fn restart(&mut self) -> Result<()> {
        self.cluster.servers_mut()[0].restart()?;
        self.wait_ready()
    }

    /// Starts it again, which must fail.
    ///
    /// # Errors
    /// If it does not fail.
    pub fn restart_refused(&mut self) -> Result<Refusal> {
        let before = self.log_text().len();
        self.cluster.servers_mut()[0].restart()?;
        self.ended(before)
    }

    /// Waits until it ends by itself; what it logged from byte `from` on says why.
    ///
    /// # Errors
    /// If it does not end.
    pub fn ended(&mut self, from: usize) -> Result<Refusal> {
        let server = &mut self.cluster.servers_mut()[0];
        let status = within_patience(|| Ok(server.ended()))?;
        let text = self.log_text();
        Refusal::new(status, text.get(from..).unwrap_or_default())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If not, with the last lines of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        self.cluster.check_alive()
    }
}

/// Flags to listen on ports that nobody else has.
pub fn anywhere() -> impl Iterator<Item = String> {
    ["--listen-client-urls", "--advertise-client-urls", "--listen-peer-urls"]
        .into_iter()
        .map(|flag| format!("{flag}=http://127.0.0.1:0"))
}

/// How a start failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The exit code.
    pub code: i32,
    /// The one line that says why, without the program's name in front.
    pub line: String,
}

impl Refusal {
    /// Beside log lines in JSON there must be one line and no more, and it must be the last.
    fn new(status: ExitStatus, text: &str) -> Result<Self> {
        let code = status.code().with_context(|| format!("ended by a signal ({status}):\n{text}"))?;
        let (lines, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
        ensure!(lines.lines().all(|line| line.starts_with('{')), "more than one line tells why:\n{text}");
        let line = last.strip_prefix("conclave: ").with_context(|| format!("no line tells why:\n{text}"))?;
        ensure!(!text.contains("panicked"), "a panic:\n{text}");
        Ok(Self { code, line: line.to_owned() })
    }
}

/// Runs the program with flags and variables that it must refuse, in a working directory.
///
/// # Errors
/// If it does not end by itself, or does not say why in one line.
pub fn refused(directory: &Path, flags: &[String], environment: &[(&str, &str)]) -> Result<Refusal> {
    let mut child = Command::new(program()?)
        .args(flags)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // What it says fits into the pipe, so it can be read afterwards.
    let ended = within_patience(|| Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let status = ended.with_context(|| format!("it started:\n{text}"))?;
    Refusal::new(status, &text)
}

fn within_patience<T>(mut poll: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(done) = poll()? {
            return Ok(done);
        }
        if began.elapsed() > PATIENCE {
            bail!("the process did not end within {} s", PATIENCE.as_secs());
        }
        thread::sleep(POLL);
    }
}

/// Acknowledged writes, to be found again whatever happened since. Values are noise, so that no compression makes them small.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    count: u64,
    value_bytes: usize,
    revision: i64,
}

impl Written {
    /// Writes `count` keys.
    ///
    /// # Errors
    /// If one is not acknowledged.
    pub async fn keys(kv: &mut Client, count: u64) -> Result<Self> {
        let (written, error) = Self::until_refused(kv, count, 100).await;
        error.map_or(Ok(written), |status| Err(status.into()))
    }

    /// Writes up to `count_max` keys with values of `value_bytes`, until one is not acknowledged; says why it was not.
    pub async fn until_refused(
        kv: &mut Client,
        count_max: u64,
        value_bytes: usize,
    ) -> (Self, Option<tonic::Status>) {
        let mut written = Self { count: 0, value_bytes, revision: 0 };
        while written.count < count_max {
            let value = noise(written.count, value_bytes);
            let put =
                PutRequest { key: key(written.count).into(), value: value.into(), ..PutRequest::default() };
            match kv.put(put).await {
                Ok(response) => {
                    written.revision = response.into_inner().header.map_or(0, |header| header.revision);
                    written.count += 1;
                }
                Err(status) => return (written, Some(status)),
            }
        }
        (written, None)
    }

    /// How many were acknowledged.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether all of it is there.
    ///
    /// # Errors
    /// What is not.
    pub async fn check(&self, kv: &mut Client) -> Result<()> {
        for number in 0..self.count {
            let response =
                kv.range(RangeRequest { key: key(number).into(), ..RangeRequest::default() }).await?;
            let response = response.into_inner();
            let found = response.kvs.first().with_context(|| format!("{} is lost", key(number)))?;
            ensure!(found.value == noise(number, self.value_bytes), "{} has another value", key(number));
            let revision = response.header.map_or(0, |header| header.revision);
            ensure!(revision >= self.revision, "the revision went back from {} to {revision}", self.revision);
        }
        Ok(())
    }
}

fn key(number: u64) -> String {
    format!("key-{number:06}")
}

/// Bytes of an xorshift generator.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(count).collect()
}
