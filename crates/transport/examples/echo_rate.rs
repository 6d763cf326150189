//! How many packets a second go to another node and back over loopback TCP, and what each costs in CPU.
//!
//! `cargo run --release -p conclave-transport --example echo_rate`
//!
//! One thread keeps a window of requests of 256 bytes in flight from node 1; node 2 answers each. A window of one
//! shows the latency of a round trip, a large one what a packet costs when many share a write.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_consensus::NodeId;
use conclave_transport::{ClusterId, Inbound, Packet, TcpOptions, TcpTransport, Transport};
use parking_lot::{Condvar, Mutex};

const PACKETS: [(usize, u64); 3] = [(1, 20_000), (64, 400_000), (4096, 2_000_000)];

/// Sends back what it is sent.
#[derive(Debug)]
struct Echo(Arc<TcpTransport>);

impl Inbound for Echo {
    fn receive(&self, from: NodeId, packets: Vec<Packet>) {
        let answers = packets.into_iter().filter_map(|packet| match packet {
            Packet::Request { id, body } => Some(Packet::Response { id, body }),
            _ => None,
        });
        self.0.send(from, &mut answers.collect());
    }
}

/// Counts answers.
#[derive(Debug, Default)]
struct Tally {
    answers: Mutex<u64>,
    more: Condvar,
}

impl Inbound for Tally {
    fn receive(&self, _from: NodeId, packets: Vec<Packet>) {
        *self.answers.lock() += packets.len() as u64;
        self.more.notify_one();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listen = vec!["127.0.0.1:0".to_owned()];
    let bind = |node| TcpTransport::bind(TcpOptions::new(NodeId(node), ClusterId(1), listen.clone()));
    let (one, two) = (Arc::new(runtime.block_on(bind(1))?), Arc::new(runtime.block_on(bind(2))?));
    let tally = Arc::new(Tally::default());
    one.start(Arc::clone(&tally) as _);
    two.start(Arc::new(Echo(Arc::clone(&two))));
    one.set_peer(NodeId(2), &[two.addresses()[0].to_string()]);
    two.set_peer(NodeId(1), &[one.addresses()[0].to_string()]);
    while [&one, &two].iter().any(|node| node.stats().peers[0].consensus.connected_since.is_none()) {
        std::thread::sleep(Duration::from_millis(1));
    }

    let body = Bytes::from(vec![7; 256]);
    println!(
        "{:>8} {:>12} {:>16} {:>16} {:>14}",
        "window", "echoes/s", "µs wall/echo", "µs CPU/packet", "packets/write"
    );
    for (window, count) in PACKETS {
        *tally.answers.lock() = 0;
        let (begun, cpu, before) = (Instant::now(), cpu_time(), one.stats().peers[0].consensus.clone());
        let mut sent = 0;
        while sent < count {
            let mut answers = tally.answers.lock();
            while sent - *answers >= window as u64 {
                tally.more.wait(&mut answers);
            }
            let room = (window as u64 - (sent - *answers)).min(count - sent);
            drop(answers);
            let request = |id| Packet::Request { id, body: body.clone() };
            one.send(NodeId(2), &mut (sent..sent + room).map(request).collect());
            sent += room;
        }
        let mut answers = tally.answers.lock();
        while *answers < count {
            tally.more.wait(&mut answers);
        }
        drop(answers);
        let (wall, cpu) = (begun.elapsed(), cpu_time() - cpu);
        let after = one.stats().peers[0].consensus.clone();
        println!(
            "{window:>8} {:>12.0} {:>16.2} {:>16.2} {:>14.1}",
            count as f64 / wall.as_secs_f64(),
            wall.as_secs_f64() * 1e6 / count as f64,
            // An echo is two packets, and their CPU is that of both sides.
            cpu.as_secs_f64() * 1e6 / (2 * count) as f64,
            (after.sent_packets - before.sent_packets) as f64 / (after.writes - before.writes) as f64,
        );
    }
    runtime.block_on(async { tokio::join!(one.shutdown(), two.shutdown()) });
    Ok(())
}

/// This process's CPU time so far, where the system says.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields after the command's closing parenthesis; utime and stime are the 12th and 13th, in hundredths of a second.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
