//! What watches cost: memory for those that wait, and time for those that are told.
//!
//! `cargo run --release -p conclave-kv --example watch_rate`

use std::{error::Error, time::Instant};

use bytes::Bytes;
use conclave_api::etcdserverpb::{PutRequest, WatchCreateRequest};
use conclave_consensus::{Ballot, Entry, GroupId, Kind, ProposalId, Slot};
use conclave_kv::{
    Machine, Options, Reader,
    command::{self, Revision},
    watch::{self, Hub, StreamId, Work},
};
use conclave_storage::{MemoryEngine, StateEngine, StateMachine};

const WATCHES: usize = 100_000;
const ON_ONE_KEY: usize = 10_000;
const PUTS: usize = 1_000;

struct Store {
    machine: Machine,
    slot: Slot,
}

impl Store {
    fn put(&mut self, key: &str) {
        self.slot = self.slot.next();
        let put = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from(vec![7; 256]),
            ..PutRequest::default()
        };
        let entry = Entry {
            slot: self.slot,
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId::default(),
            payload: command::put(Revision::Next, &put),
        };
        self.machine.apply(&[entry], &|_| false, &mut Vec::new());
    }
}

fn key(number: usize) -> String {
    format!("/registry/pods/{number:09}")
}

fn create(hub: &mut Hub, stream: StreamId, key: &str, range_end: &str, reader: &Reader) {
    let copy = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let request =
        WatchCreateRequest { key: copy(key), range_end: copy(range_end), ..WatchCreateRequest::default() };
    hub.create(stream, &request, reader.now());
    while hub.take(stream).is_some() {}
}

fn pump(hub: &mut Hub, reader: &Reader) -> Result<(), Box<dyn Error>> {
    while let Some(work) = hub.work(reader.revision()) {
        let mut page = reader.changes(Work::from(work), 256 << 10)?;
        let needs = hub.needs(work, &page);
        reader.complete(&mut page, &needs)?;
        hub.advance(work, page);
    }
    Ok(())
}

/// Bytes that the process has in memory; 0 where the system does not tell.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or_default() * 1024
}

fn main() -> Result<(), Box<dyn Error>> {
    let engine = MemoryEngine::new().store(GroupId(1), 0)?;
    let (machine, reader) = Machine::open(engine, Options::default())?;
    let mut store = Store { machine, slot: Slot(0) };
    // They live on, so that the second takes memory of its own.
    let mut hubs = Vec::new();
    for (what, range_end) in [("keys", ""), ("ranges", "~")] {
        let mut hub = Hub::new(watch::Options::default(), reader.revision());
        let streams: Vec<StreamId> = (0..100).map(|_| hub.open()).collect();
        let before = resident_bytes();
        let began = Instant::now();
        for number in 0..WATCHES {
            let end =
                if range_end.is_empty() { String::new() } else { format!("{}{range_end}", key(number)) };
            create(&mut hub, streams[number % streams.len()], &key(number), &end, &reader);
        }
        let (took, grew) = (began.elapsed(), resident_bytes().saturating_sub(before));
        println!(
            "{WATCHES} watches on distinct {what}: {} bytes each, {:.2} µs to create",
            grew / WATCHES,
            took.as_secs_f64() * 1e6 / WATCHES as f64
        );
        let began = Instant::now();
        for number in 0..PUTS {
            store.put(&key(number * 97 % WATCHES));
            pump(&mut hub, &reader)?;
        }
        let took = began.elapsed();
        println!("  a put that one of them sees: {:.1} µs", took.as_secs_f64() * 1e6 / PUTS as f64);
        hubs.push(hub);
    }
    let mut hub = Hub::new(watch::Options::default(), reader.revision());
    let streams: Vec<StreamId> = (0..ON_ONE_KEY).map(|_| hub.open()).collect();
    for stream in &streams {
        create(&mut hub, *stream, "the key", "", &reader);
    }
    let began = Instant::now();
    let mut frames = 0;
    for _ in 0..PUTS / 10 {
        store.put("the key");
        pump(&mut hub, &reader)?;
        frames += streams.iter().filter(|stream| hub.take(**stream).is_some()).count();
    }
    let took = began.elapsed();
    println!("{ON_ONE_KEY} watches on one key: {:.0} ns an event", took.as_secs_f64() * 1e9 / frames as f64);
    Ok(())
}
