//! `cargo xtask up`: a cluster on this machine for as long as one wants it.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use xtask::engine::Engine;
use xtask::server::{Launch, Ports};
use xtask::{command, workspace};

/// How long the nodes may take until they serve: a node that replays a long log takes seconds.
const READY_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// What replicates the data; kept with it.
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,
    /// Where data and logs go; kept between runs.
    #[arg(long, default_value = ".conclave")]
    data_dir: PathBuf,
    /// Node i gets client port P+2i and peer port P+2i+1; without it 2379/2380, 22379/22380, 32379/32380 and so on.
    #[arg(long, value_name = "P")]
    base_port: Option<u16>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let nodes = usize::from(args.nodes);
    let ports = match args.base_port {
        Some(base) => Ports::from_base(base, nodes)?,
        None => Ports::customary(nodes)?,
    };
    let data_dir = workspace::root().join(&args.data_dir);
    let program = workspace::release_node()?;
    command::interrupted();
    let flags = [args.engine.flag()];
    let mut cluster = Launch { flags: &flags, ..Launch::new(&program, &data_dir, &ports) }.start()?;
    cluster.wait_ready(READY_LIMIT)?;

    let hosts: Vec<String> = ports.iter().map(|p| format!("127.0.0.1:{}", p.client)).collect();
    for (server, host) in cluster.servers().iter().zip(&hosts) {
        println!("{}  http://{host}  process {}", server.name(), server.pid());
    }
    println!("data and logs: {}", args.data_dir.display());
    println!("try: etcdctl --endpoints={} put hello world", hosts.join(","));
    println!("Ctrl-C ends all nodes.");

    while !command::interrupted() {
        if let Err(death) = cluster.check_alive() {
            // The signal of Ctrl-C reaches the nodes too; their end is then what was asked for.
            thread::sleep(POLL);
            if command::interrupted() {
                break;
            }
            let stopped = cluster.stop();
            bail!("{death:#}{}", stopped.err().map(|e| format!("\n{e:#}")).unwrap_or_default());
        }
        thread::sleep(POLL);
    }
    println!("\nending {nodes} nodes");
    cluster.stop()
}
