//! Garbage on the ports of a cluster that is at work: only the connection it came on ends.

use std::time::Duration;

use anyhow::{Result, ensure};
use conclave_tests::{
    load::Load,
    solo::{Solo, Written},
    trial::{Setup, Trial, program},
};
use prost::bytes::{Buf, BufMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Endpoint,
};
use xtask::server::{Launch, Ports};

const CLIENTS: u32 = 8;
const TLS_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that follow no rule, the same each time.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

/// For both ports.
fn garbage() -> Vec<Vec<u8>> {
    let mut all = vec![vec![], vec![0], vec![0; 4096], vec![0xff; 4096], TLS_HELLO.to_vec(), noise(100_000)];
    all.extend((1..40).map(|length| noise(length * 7)));
    all
}

/// For the port where nodes connect: first words that begin well.
fn peer_garbage() -> Vec<Vec<u8>> {
    let word = |length: u32, rest: &[u8]| {
        [b"CONCLAVE".as_slice(), &[1, 2, 3, 4], &length.to_le_bytes(), rest].concat()
    };
    let mut all = garbage();
    all.extend([
        b"GET /metrics HTTP/1.1\r\nHost: peer\r\n\r\n".to_vec(),
        HTTP2_PREFACE.to_vec(),
        b"CONCLAVE".to_vec(),
        word(0, b""),
        word(24, &noise(24)),
        word(1024, &noise(100_000)),
        word(u32::MAX, &noise(100_000)),
    ]);
    all
}

/// For the port where clients connect: HTTP that begins well.
fn client_garbage() -> Vec<Vec<u8>> {
    let mut all = garbage();
    // A frame of HTTP/2: length, kind, flags, stream.
    let frame = |length: u32, kind: u8, rest: &[u8]| {
        let head = [&length.to_be_bytes()[1..], &[kind, 0xff], &[0, 0, 0, 1]].concat();
        [HTTP2_PREFACE, &head, rest].concat()
    };
    all.extend([
        b"GET /health HTTP/1.1\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 2 << 20]].concat(),
        b"POST /etcdserverpb.KV/Put HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n{}".to_vec(),
        [HTTP2_PREFACE, &noise(10_000)].concat(),
        frame(0x00ff_ffff, 0, &noise(1000)),
        frame(100, 1, &noise(100)),
        frame(8, 4, &noise(8)),
    ]);
    all
}

/// Throws everything at a port, each on a connection of its own; some say no more, some are never heard of again.
async fn throw(port: u16, all: &[Vec<u8>]) -> Result<Vec<TcpStream>> {
    let mut silent = Vec::new();
    for (number, bytes) in all.iter().enumerate() {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        // The other side may have closed before all is written.
        let _ = stream.write_all(bytes).await;
        if number % 3 == 0 {
            silent.push(stream);
            continue;
        }
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        ensure!(
            timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.is_ok(),
            "garbage {number} at port {port} keeps its connection: {:?}",
            &bytes[..bytes.len().min(64)]
        );
    }
    Ok(silent)
}

fn check_logs(trial: &Trial) -> Result<()> {
    for node in 0..3 {
        let log = trial.log_text(node);
        ensure!(!log.contains("panicked"), "a panic:\n{log}");
        ensure!(log.lines().all(|line| line.starts_with('{')), "a line that is no log line:\n{log}");
        ensure!(log.lines().count() < 500, "garbage fills the log: {} lines", log.lines().count());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_peer_ports() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    let load = Load::start(&trial.endpoints(), CLIENTS, 11)?;
    let terms = trial.status(0).await?.raft_term;
    let mut silent = Vec::new();
    for ports in trial.ports() {
        silent.extend(throw(ports.peer, &peer_garbage()).await?);
    }
    sleep(Duration::from_millis(500)).await;
    trial.check(load).await?;
    ensure!(trial.status(0).await?.raft_term == terms, "garbage cost an election");
    ensure!(trial.log_text(0).contains("peer connection closed: "), "nobody is told of it");
    check_logs(&trial)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_client_ports() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    let load = Load::start(&trial.endpoints(), CLIENTS, 12)?;
    let mut silent = Vec::new();
    for ports in trial.ports() {
        silent.extend(throw(ports.client, &client_garbage()).await?);
    }
    for endpoint in trial.endpoints() {
        for (what, status) in malformed_calls(&endpoint).await? {
            let said = status.message();
            ensure!(
                status.code() == Code::Internal && said.starts_with("failed to decode Protobuf message"),
                "{what}: {status:?}"
            );
        }
    }
    sleep(Duration::from_millis(500)).await;
    trial.check(load).await?;
    check_logs(&trial)
}

/// A node of another cluster that believes a member of this one to be its own peer.
#[tokio::test(flavor = "multi_thread")]
async fn from_a_node_of_another_cluster() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut solo = Solo::start(directory.path())?;
    let peer = solo.ports().peer;
    let elsewhere = tempfile::tempdir()?;
    let strangers = Ports::free(1)?;
    let stranger_peer = format!("http://127.0.0.1:{}", strangers[0].peer);
    let flags = [format!("--initial-cluster=n1={stranger_peer},n2=http://127.0.0.1:{peer}")];
    let program = program()?;
    let launch = Launch { flags: &flags, ..Launch::new(&program, elsewhere.path(), &strangers) };
    let mut stranger = launch.start()?;
    let why = "it belongs to cluster";
    for log in [directory.path().join("n1.log"), elsewhere.path().join("n1.log")] {
        let told = async {
            while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains(why)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        ensure!(timeout(Duration::from_secs(10), told).await.is_ok(), "{} does not say why", log.display());
    }
    stranger.check_alive()?;
    solo.check_alive()?;
    Written::keys(&mut solo.client()?, 20).await?.check(&mut solo.client()?).await
}

/// Calls whose messages do not read.
async fn malformed_calls(endpoint: &str) -> Result<Vec<(&'static str, Status)>> {
    let mut told = Vec::new();
    for (what, message) in [
        ("a key of a wrong type", vec![0x08, 0x01]),
        ("a key beyond the message's end", vec![0x0a, 0x7f, b'k']),
        ("a field number of zero", vec![0x00, 0x00]),
        ("an endless varint", vec![0xff; 32]),
        ("noise", noise(5000)),
    ] {
        let channel =
            Endpoint::from_shared(endpoint.to_owned())?.timeout(Duration::from_secs(5)).connect().await?;
        let mut grpc = Grpc::new(channel);
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        let status = match grpc.unary(Request::new(message), path, Raw).await {
            Ok(_) => Status::ok(""),
            Err(status) => status,
        };
        told.push((what, status));
    }
    Ok(told)
}

/// Messages as they are on the wire.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
