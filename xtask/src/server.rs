//! Servers as processes on this machine: Conclave or etcd, which take the same flags.
//!
//! A [`Server`] is one process with its log file; a [`Cluster`] is the processes that know each other. Both end their
//! processes when they are dropped, so that nothing outlives the program that started it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command;

/// How long a server may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How many lines of a dead server's log are shown.
const LOG_LINES: usize = 20;
/// How long ports that somebody holds are waited for.
const PORTS_LIMIT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// The two ports of a node on the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Where clients connect.
    pub client: u16,
    /// Where the other nodes connect.
    pub peer: u16,
}

impl Ports {
    /// etcd's customary ports for several nodes on one machine: 2379/2380, 22379/22380, 32379/32380; after the fourth,
    /// ports of one node follow those of the last.
    pub fn customary(nodes: usize) -> Result<Vec<Ports>> {
        (0..nodes)
            .map(|i| match i {
                0..=3 => port(if i == 0 { 2379 } else { 12379 + 10_000 * i }),
                _ => port(42379 + 2 * (i - 3)),
            })
            .collect()
    }

    /// Node i gets client port `base + 2i` and peer port `base + 2i + 1`.
    pub fn from_base(base: u16, nodes: usize) -> Result<Vec<Ports>> {
        (0..nodes).map(|i| port(usize::from(base) + 2 * i)).collect()
    }

    /// Ports that nobody listens on at this moment.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub fn free(nodes: usize) -> Result<Vec<Ports>> {
        // All sockets are held until all ports are known, else one port could be handed out twice.
        let sockets =
            (0..2 * nodes).map(|_| TcpListener::bind(loopback(0))).collect::<Result<Vec<_>, io::Error>>()?;
        let ports = sockets.iter().map(|s| Ok(s.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
        Ok(ports.chunks_exact(2).map(|p| Ports { client: p[0], peer: p[1] }).collect())
    }

    /// Which of these ports are in use.
    pub fn in_use(all: &[Ports]) -> Vec<u16> {
        all.iter()
            .flat_map(|p| [p.client, p.peer])
            .filter(|port| {
                matches!(TcpListener::bind(loopback(*port)), Err(e) if e.kind() == io::ErrorKind::AddrInUse)
            })
            .collect()
    }
}

fn port(client: usize) -> Result<Ports> {
    match u16::try_from(client) {
        Ok(client) if client < u16::MAX => Ok(Ports { client, peer: client + 1 }),
        _ => bail!("port {client} is beyond the last port, 65535"),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One running server.
#[derive(Debug)]
pub struct Server {
    name: String,
    ports: Ports,
    log: PathBuf,
    command: Command,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Server {
    fn spawn(name: String, ports: Ports, log: PathBuf, mut command: Command) -> Result<Server> {
        let out = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child =
            command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Server { name, ports, log, command, child, ended: None })
    }

    /// The member's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The URL that clients use.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.client)
    }

    /// Whether the server says on `/readyz` that it serves.
    pub fn is_ready(&self) -> bool {
        matches!(http_status(self.ports.client, "/readyz"), Ok(200))
    }

    /// The exit status once the process has ended, by itself or killed.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// The last lines of the log, for a person who asks why the process ended.
    pub fn last_log_lines(&self) -> String {
        let text = fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Ends the process with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended().is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// Stops the process where it stands (SIGSTOP), as a long pause of its machine would.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn pause(&self) -> Result<()> {
        command::signal(&self.child, rustix::process::Signal::STOP)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn resume(&self) -> Result<()> {
        command::signal(&self.child, rustix::process::Signal::CONT)
    }

    /// Starts the process again with the same flags on the same data.
    ///
    /// # Errors
    /// When it still runs or cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        if self.ended().is_none() {
            bail!("{} still runs", self.name);
        }
        self.child = self.command.spawn()?;
        self.ended = None;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Servers that form one cluster.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<Server>,
}

/// How a cluster is started, where the defaults will not do.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The server's program.
    pub program: &'a Path,
    /// Where data and logs go.
    pub dir: &'a Path,
    /// One pair of ports a node.
    pub ports: &'a [Ports],
    /// The port at which each node is reached by its peers, where a proxy stands before the one it listens on.
    pub advertised_peers: Option<&'a [u16]>,
    /// Further flags, for every node.
    pub flags: &'a [String],
    /// Further variables of the environment, for every node.
    pub environment: &'a [(String, String)],
}

impl<'a> Launch<'a> {
    /// The defaults.
    pub fn new(program: &'a Path, dir: &'a Path, ports: &'a [Ports]) -> Launch<'a> {
        Launch { program, dir, ports, advertised_peers: None, flags: &[], environment: &[] }
    }

    /// Starts the nodes.
    ///
    /// # Errors
    /// When a port is in use (the message names it) or a process cannot be started.
    pub fn start(&self) -> Result<Cluster> {
        let mut busy = Ports::in_use(self.ports);
        // A program that another thread starts holds the sockets of this one until its own code runs: a matter of milliseconds.
        let started = Instant::now();
        while !busy.is_empty() && started.elapsed() < PORTS_LIMIT {
            thread::sleep(POLL);
            busy = Ports::in_use(self.ports);
        }
        if !busy.is_empty() {
            let busy: Vec<String> = busy.iter().map(u16::to_string).collect();
            bail!("in use already: port {}", busy.join(", "));
        }
        fs::create_dir_all(self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let name = |i: usize| format!("n{}", i + 1);
        let reached = |i: usize| {
            let port = self.advertised_peers.map_or(self.ports[i].peer, |advertised| advertised[i]);
            format!("http://127.0.0.1:{port}")
        };
        let members: Vec<String> =
            (0..self.ports.len()).map(|i| format!("{}={}", name(i), reached(i))).collect();
        let members = members.join(",");
        let mut servers = Vec::with_capacity(self.ports.len());
        for (i, p) in self.ports.iter().enumerate() {
            let client = format!("http://127.0.0.1:{}", p.client);
            let peer = format!("http://127.0.0.1:{}", p.peer);
            let mut command = Command::new(self.program);
            command.arg("--name").arg(name(i)).arg("--data-dir").arg(self.dir.join(name(i)));
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &reached(i)]);
            command.args(["--initial-cluster", &members, "--initial-cluster-state", "new"]);
            command.args(self.flags);
            command.envs(self.environment.iter().map(|(name, value)| (name, value)));
            let log = self.dir.join(format!("{}.log", name(i)));
            servers.push(Server::spawn(name(i), *p, log, command)?);
        }
        Ok(Cluster { servers })
    }
}

impl Cluster {
    /// Starts a cluster of `ports.len()` nodes of `program` with its data and logs under `dir`, with default settings.
    ///
    /// # Errors
    /// As [`Launch::start`].
    pub fn start(program: &Path, dir: &Path, ports: &[Ports]) -> Result<Cluster> {
        Launch::new(program, dir, ports).start()
    }

    /// Waits until every server says that it serves.
    ///
    /// # Errors
    /// When one ends early (the message has its last log lines), at the limit, or when interrupted.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            self.check_alive()?;
            let waiting: Vec<&str> =
                self.servers.iter().filter(|s| !s.is_ready()).map(Server::name).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if started.elapsed() > limit {
                bail!("not ready after {} s: {}", limit.as_secs(), waiting.join(", "));
            }
            if command::interrupted() {
                bail!("interrupted");
            }
            thread::sleep(POLL);
        }
    }

    /// Reports the first server that ended.
    ///
    /// # Errors
    /// With its exit status and last log lines.
    pub fn check_alive(&mut self) -> Result<()> {
        for server in &mut self.servers {
            if let Some(status) = server.ended() {
                bail!(
                    "{} ended ({status}); the last lines of its log:\n{}",
                    server.name,
                    server.last_log_lines()
                );
            }
        }
        Ok(())
    }

    /// The servers, in the order of their ports.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The servers, to be killed and restarted.
    pub fn servers_mut(&mut self) -> &mut [Server] {
        &mut self.servers
    }

    /// The client URLs of all servers.
    pub fn endpoints(&self) -> Vec<String> {
        self.servers.iter().map(Server::endpoint).collect()
    }

    /// Ends all servers with SIGTERM at once, and kills what has not ended after ten seconds.
    ///
    /// # Errors
    /// Names the servers that had to be killed.
    pub fn stop(mut self) -> Result<()> {
        for server in &mut self.servers {
            if server.ended().is_none() {
                command::terminate(&server.child);
            }
        }
        let started = Instant::now();
        while started.elapsed() < GRACE {
            if self.servers.iter_mut().all(|s| s.ended().is_some()) {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        let late: Vec<String> =
            self.servers.iter_mut().filter(|s| s.ended.is_none()).map(|s| s.name.clone()).collect();
        bail!("did not end within {} s and were killed: {}", GRACE.as_secs(), late.join(", "));
    }
}

/// The body of a plain HTTP GET on the loopback interface.
///
/// # Errors
/// When nobody answers within a second, or with another status than 200.
pub fn http_get(port: u16, path: &str) -> Result<String> {
    let answer = http(port, path)?;
    ensure!(status_of(&answer)? == 200, "{path} was answered with another status than 200");
    Ok(answer.split_once("\r\n\r\n").context("no end of the head")?.1.to_owned())
}

/// The status code of a plain HTTP GET on the loopback interface.
fn http_status(port: u16, path: &str) -> Result<u16> {
    status_of(&http(port, path)?)
}

fn status_of(answer: &str) -> Result<u16> {
    answer.split(' ').nth(1).context("no status line")?.parse().context("no status code")
}

fn http(port: u16, path: &str) -> Result<String> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&loopback(port), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // HTTP/1.0 has no chunks to put together.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customary_ports_are_etcds() {
        let ports: Vec<(u16, u16)> =
            Ports::customary(6).unwrap().into_iter().map(|p| (p.client, p.peer)).collect();
        assert_eq!(
            ports,
            [(2379, 2380), (22379, 22380), (32379, 32380), (42379, 42380), (42381, 42382), (42383, 42384)]
        );
    }

    #[test]
    fn ports_from_a_base_interleave_and_end_at_the_last() {
        let ports = Ports::from_base(9000, 2).unwrap();
        assert_eq!(ports[1], Ports { client: 9002, peer: 9003 });
        assert!(Ports::from_base(65534, 2).is_err());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind(loopback(0)).unwrap();
        let client = listener.local_addr().unwrap().port();
        let peer = Ports::free(1).unwrap()[0].peer;
        // The free one may be listed as well: a process that another test starts holds our sockets until it is another program.
        assert!(Ports::in_use(&[Ports { client, peer }]).contains(&client));
    }

    #[test]
    fn an_early_death_is_reported_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo the disk is on fire; exit 3"]);
        let ports = Ports::free(1).unwrap()[0];
        let server = Server::spawn("n1".into(), ports, dir.path().join("n1.log"), command).unwrap();
        let mut cluster = Cluster { servers: vec![server] };
        let error = cluster.wait_ready(Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("n1 ended") && error.contains("the disk is on fire"), "{error}");
    }
}
