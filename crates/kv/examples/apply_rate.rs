//! How fast commands are applied and read, and how much memory they take: `cargo run --release -p conclave-kv --example apply_rate
//! [keys] [memory|lsm] [values] [blocks] [pending]`, the last three in MiB: how much of each is kept in memory.
//!
//! Puts of 256 bytes, as a log hands them over: encoded, in batches of 512, nobody waiting for one in three. The engine is
//! the in-memory one or the one on disk; checkpoints run on a thread of their own whenever so many bytes wait for one.
//! A thread's own time is counted, so that whatever else runs does not show, but for the slowest batch.

use std::{
    error::Error,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use conclave_api::etcdserverpb::{PutRequest, RangeRequest};
use conclave_consensus::{Ballot, Entry, Epoch, GroupId, Kind, NodeId, ProposalId, Slot, SnapshotMeta};
use conclave_kv::{
    Machine, Options,
    command::{self, Revision},
};
use conclave_storage::{
    LsmEngine, LsmOptions, MemoryEngine, StateEngine, StateError, StateMachine, StateStore,
};

const BATCH: u64 = 512;
const GROUP: GroupId = GroupId(1);

struct Host {
    machine: Machine,
    slot: Slot,
    pending_bytes_max: usize,
    applying: Duration,
    slowest_batch: Duration,
    checkpoints: u32,
    checkpoint: Option<thread::JoinHandle<Result<(), StateError>>>,
}

impl Host {
    fn put(&mut self, keys: impl Iterator<Item = u64>) -> Result<u64, Box<dyn Error>> {
        let mut batch = Vec::new();
        let mut puts = 0;
        for key in keys {
            let request =
                PutRequest { key: name(key).into(), value: vec![b'v'; 256].into(), ..PutRequest::default() };
            self.slot = self.slot.next();
            let id = ProposalId::new(NodeId(self.slot.0 % 3 + 1), Epoch(1), self.slot.0);
            let payload = command::put(Revision::Next, &request);
            batch.push(Entry { slot: self.slot, ballot: Ballot::term(1), kind: Kind::Command, id, payload });
            puts += 1;
            if puts % BATCH == 0 {
                self.apply(&mut batch)?;
            }
        }
        self.apply(&mut batch)?;
        Ok(puts)
    }

    fn apply(&mut self, batch: &mut Vec<Entry>) -> Result<(), Box<dyn Error>> {
        let mut replies = Vec::new();
        let (start, start_cpu) = (Instant::now(), cpu());
        self.machine.apply(batch, &|id| id.node == NodeId(1), &mut replies);
        let due = self.machine.pending_bytes() > self.pending_bytes_max;
        if self.checkpoint.as_ref().is_some_and(thread::JoinHandle::is_finished) {
            self.finish()?;
        }
        if due && self.checkpoint.is_none() {
            self.begin();
        }
        self.applying += cpu().saturating_sub(start_cpu);
        self.slowest_batch = self.slowest_batch.max(start.elapsed());
        if self.checkpoint.is_some() {
            // As a log would: nobody has so many commands ready that no checkpoint keeps pace.
            thread::sleep(Duration::from_millis(4));
        }
        batch.clear();
        Ok(())
    }

    fn begin(&mut self) {
        let meta = SnapshotMeta { slot: self.slot, ballot: Ballot::term(1), ..SnapshotMeta::default() };
        if let Some(job) = self.machine.checkpoint(meta) {
            self.checkpoint = Some(thread::spawn(move || job.run()));
        }
    }

    fn finish(&mut self) -> Result<(), Box<dyn Error>> {
        if let Some(job) = self.checkpoint.take() {
            job.join().map_err(|_| "a checkpoint panicked")??;
            self.machine.checkpointed();
            self.checkpoints += 1;
        }
        Ok(())
    }

    fn report(&mut self, what: &str, puts: u64) {
        println!(
            "{what:32} {:6.2} µs each, slowest batch of {BATCH} {:6.2} ms, {} checkpoints, {} MiB resident",
            self.applying.as_secs_f64() * 1e6 / puts as f64,
            self.slowest_batch.as_secs_f64() * 1e3,
            self.checkpoints,
            resident_mib(),
        );
        (self.applying, self.slowest_batch, self.checkpoints) = Default::default();
    }
}

fn name(key: u64) -> String {
    format!("/registry/objects/{key:06}")
}

/// Spreads over the keys without favour and without a random number.
fn scattered(count: u64, keys: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys)
}

/// What this thread has spent, which other programs on the same cores do not lengthen.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn resident_mib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).map_or(0, |pages| pages * 4 / 1024)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let keys: u64 = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let directory = std::env::temp_dir().join(format!("conclave-apply-rate-{}", std::process::id()));
    let on_disk = arguments.next().as_deref() == Some("lsm");
    let mut mebibytes = |default: usize| {
        arguments.next().map_or(Ok(default), |text| text.parse()).map(|mebibytes: usize| mebibytes << 20)
    };
    let options = Options {
        value_cache_bytes: mebibytes(Options::default().value_cache_bytes >> 20)?,
        ..Options::default()
    };
    let blocks = LsmOptions { cache_bytes: mebibytes(32)? as u64 };
    let pending_bytes_max = mebibytes(24)?;
    let store: Arc<dyn StateStore> = if on_disk {
        std::fs::create_dir_all(&directory)?;
        LsmEngine::open(&directory, &blocks)?.store(GROUP, 0)?
    } else {
        MemoryEngine::new().store(GROUP, 0)?
    };
    let (machine, reader) = Machine::open(store.clone(), options.clone())?;
    let mut host = Host {
        machine,
        slot: Slot(0),
        pending_bytes_max,
        applying: Duration::ZERO,
        slowest_batch: Duration::ZERO,
        checkpoints: 0,
        checkpoint: None,
    };
    let puts = host.put(0..keys)?;
    host.report("put, new key", puts);
    let puts = host.put(scattered(keys, keys))?;
    host.report("put, key that exists", puts);

    let gets = 100_000;
    let start = cpu();
    for key in scattered(gets, keys) {
        reader.range(&RangeRequest { key: name(key).into(), ..RangeRequest::default() })?;
    }
    println!("{:32} {:6.2} µs each", "get", (cpu() - start).as_secs_f64() * 1e6 / gets as f64);
    let ranges = 500;
    let start = cpu();
    for from in scattered(ranges, keys.saturating_sub(1000).max(1)) {
        let (key, range_end) = (name(from).into(), name(from + 1000).into());
        let request = RangeRequest { key, range_end, ..RangeRequest::default() };
        let found = reader.range(&request)?.kvs.len();
        assert!(found == 1000 || keys < 2000, "{found} keys");
    }
    println!("{:32} {:6.1} µs each", "range of 1000", (cpu() - start).as_secs_f64() * 1e6 / ranges as f64);
    println!("{:?}", reader.stats());

    host.finish()?;
    let start = Instant::now();
    host.begin();
    host.finish()?;
    println!("{:32} {:6.1} ms", "last checkpoint", start.elapsed().as_secs_f64() * 1e3);
    let hash = reader.hash_kv(0)?;
    drop((host, reader));
    let start = Instant::now();
    let (_machine, reader) = Machine::open(store, options)?;
    println!("{:32} {:6.1} ms, {} MiB resident", "open", start.elapsed().as_secs_f64() * 1e3, resident_mib());
    let start = Instant::now();
    assert_eq!(reader.hash_kv(0)?, hash);
    println!("{:32} {:6.1} ms", "hash of the history", start.elapsed().as_secs_f64() * 1e3);
    if on_disk {
        std::fs::remove_dir_all(&directory)?;
    }
    Ok(())
}
