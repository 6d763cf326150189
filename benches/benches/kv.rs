//! The key-value state machine on the state engine in memory: a put applied, a get and a range of a thousand read, with a
//! hundred thousand keys of 24 bytes and values of 256.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_api::etcdserverpb::RangeRequest;
use conclave_benches::workload::{RANGE_KEYS, Random, key, put};
use conclave_consensus::{Ballot, Entry, Epoch, GroupId, Kind, NodeId, ProposalId, Slot, SnapshotMeta};
use conclave_kv::command::{self, Revision};
use conclave_kv::{Machine, Options, Reader};
use conclave_storage::{MemoryEngine, StateEngine, StateMachine};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const KEYS: u64 = 100_000;
/// Entries handed to the machine at a time, by a busy log.
const BATCH: u64 = 64;
const CHECKPOINT_BYTES: usize = 32 << 20;

struct Store {
    machine: Machine,
    reader: Reader,
    slot: Slot,
    random: Random,
}

impl Store {
    fn filled() -> Store {
        let store = MemoryEngine::new().store(GroupId(1), 0).expect("a store in memory");
        let (machine, reader) =
            Machine::open(Arc::clone(&store), Options::default()).expect("an empty store");
        let mut store = Store { machine, reader, slot: Slot(0), random: Random::new(1) };
        for first in (0..KEYS).step_by(BATCH as usize) {
            let batch = store.batch(first..(first + BATCH).min(KEYS));
            store.apply(&batch);
        }
        store
    }

    fn batch(&mut self, keys: impl Iterator<Item = u64>) -> Vec<Entry> {
        keys.map(|index| {
            self.slot = self.slot.next();
            let id = ProposalId::new(NodeId(self.slot.0 % 3 + 1), Epoch(1), self.slot.0);
            let payload = command::put(Revision::Next, &put(index, &mut self.random));
            Entry { slot: self.slot, ballot: Ballot::term(1), kind: Kind::Command, id, payload }
        })
        .collect()
    }

    /// Applies a batch of which a third is waited for here, and returns how long that took. Checkpoints are taken in
    /// between and not counted: a node takes them on another thread.
    fn apply(&mut self, batch: &[Entry]) -> Duration {
        let mut replies = Vec::new();
        let started = Instant::now();
        self.machine.apply(batch, &|id| id.node == NodeId(1), &mut replies);
        let took = started.elapsed();
        if self.machine.pending_bytes() > CHECKPOINT_BYTES {
            let meta = SnapshotMeta { slot: self.slot, ballot: Ballot::term(1), ..SnapshotMeta::default() };
            if let Some(job) = self.machine.checkpoint(meta) {
                job.run().expect("a checkpoint in memory");
                self.machine.checkpointed();
            }
        }
        took
    }
}

fn key_values(c: &mut Criterion) {
    let mut group = c.benchmark_group("kv");
    let mut store = Store::filled();
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("apply a batch of 64 puts", |b| {
        b.iter_custom(|batches| {
            let mut took = Duration::ZERO;
            for _ in 0..batches {
                let mut indices = store.random.clone();
                let batch = store.batch((0..BATCH).map(|_| indices.below(KEYS)));
                took += store.apply(&batch);
            }
            took
        });
    });
    let (reader, mut random) = (store.reader.clone(), Random::new(2));
    group.throughput(Throughput::Elements(1));
    group.bench_function("get", |b| {
        b.iter(|| {
            let request = RangeRequest { key: key(random.below(KEYS)), ..RangeRequest::default() };
            let found = reader.range(&request).expect("a range in memory");
            assert_eq!(found.kvs.len(), 1);
            found
        });
    });
    group.bench_function("range of 1000", |b| {
        b.iter(|| {
            let first = random.below(KEYS - RANGE_KEYS);
            let (key, range_end) = (key(first), key(first + RANGE_KEYS));
            let request = RangeRequest { key, range_end, ..RangeRequest::default() };
            let found = reader.range(&request).expect("a range in memory");
            assert_eq!(found.kvs.len() as u64, RANGE_KEYS);
            found
        });
    });
    group.finish();
}

criterion_group!(benches, key_values);
criterion_main!(benches);
