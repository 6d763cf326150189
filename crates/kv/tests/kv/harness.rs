//! A store with a log beside it, as a host keeps them.

use std::sync::Arc;

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, TxnRequest, TxnResponse,
    },
};
use conclave_consensus::{Ballot, Entry, Epoch, GroupId, Kind, NodeId, ProposalId, Slot, SnapshotMeta};
use conclave_kv::{
    KvError, Machine, Options, Reader, Reply,
    command::{self, Revision},
};
use conclave_storage::{Job, MemoryEngine, StateEngine, StateMachine, StateStore};

pub(crate) const GROUP: GroupId = GroupId(1);

pub(crate) struct Replica {
    pub(crate) engine: MemoryEngine,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) machine: Machine,
    pub(crate) reader: Reader,
    pub(crate) log: Vec<Entry>,
    pub(crate) options: Options,
    pub(crate) generation: u64,
    job: Option<Box<dyn Job>>,
}

impl Replica {
    pub(crate) fn new() -> Self {
        Self::with_cache(1 << 20)
    }

    pub(crate) fn with_cache(value_cache_bytes: usize) -> Self {
        let engine = MemoryEngine::new();
        let options = Options { value_cache_bytes, ..Options::default() };
        let store = engine.store(GROUP, 0).unwrap();
        let (machine, reader) = Machine::open(store.clone(), options.clone()).unwrap();
        Self { engine, store, machine, reader, log: Vec::new(), options, generation: 0, job: None }
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { slot: self.machine.applied(), ballot: Ballot::term(1), ..SnapshotMeta::default() }
    }

    /// Appends to the log and applies; the answer as the waiting client gets it.
    pub(crate) fn command(&mut self, payload: Bytes) -> Result<Reply, KvError> {
        let slot = Slot(self.log.len() as u64 + 1);
        let id = ProposalId::new(NodeId(1), Epoch(1), slot.0);
        let entry = Entry { slot, ballot: Ballot::term(1), kind: Kind::Command, id, payload };
        self.log.push(entry.clone());
        let mut replies = Vec::new();
        self.machine.apply(&[entry], &|_| true, &mut replies);
        let (answered, reply) = replies.pop().expect("somebody waits");
        assert_eq!((answered, replies.len()), (id, 0));
        Reply::decode(reply)
    }

    /// Applies another replica's log from where this one stands, in one call, with nobody waiting.
    pub(crate) fn follow(&mut self, log: &[Entry]) {
        let from = self.log.len();
        self.log.extend_from_slice(&log[from..]);
        self.machine.apply(&log[from..], &|_| false, &mut Vec::new());
    }

    pub(crate) fn put(&mut self, request: PutRequest) -> Result<PutResponse, KvError> {
        match self.command(command::put(Revision::Next, &request))? {
            Reply::Put(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) -> i64 {
        let response = self.put(put(key, value)).unwrap();
        response.header.unwrap().revision
    }

    pub(crate) fn delete(&mut self, key: &str, range_end: &str) -> DeleteRangeResponse {
        let request = DeleteRangeRequest { key: bytes(key), range_end: bytes(range_end), prev_kv: true };
        match self.command(command::delete_range(Revision::Next, &request)).unwrap() {
            Reply::DeleteRange(response) => response,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, KvError> {
        match self.command(command::txn(Revision::Next, request))? {
            Reply::Txn(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), KvError> {
        self.command(command::compaction(&CompactionRequest { revision, physical: false })).map(drop)
    }

    pub(crate) fn range(&self, request: RangeRequest) -> Result<RangeResponse, KvError> {
        self.reader.range(&request)
    }

    /// The values of a range at a revision, as `key=value`.
    pub(crate) fn texts(&self, key: &str, range_end: &str, revision: i64) -> Vec<String> {
        let response = self.range(RangeRequest { revision, ..range(key, range_end) }).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        response.kvs.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect()
    }

    /// Begins a checkpoint, unless one is under way.
    pub(crate) fn freeze(&mut self) {
        let meta = self.meta();
        if let Some(job) = self.machine.checkpoint(meta) {
            assert!(self.job.replace(job).is_none());
        }
    }

    /// Ends the checkpoint that is under way.
    pub(crate) fn thaw(&mut self) {
        if let Some(job) = self.job.take() {
            job.run().unwrap();
            self.machine.checkpointed();
        }
    }

    /// Runs the job, but does not tell the machine.
    pub(crate) fn write(&mut self) {
        if let Some(job) = self.job.take() {
            job.run().unwrap();
        }
    }

    /// Tells the machine that the job has run.
    pub(crate) fn machine_checkpointed(&mut self) {
        self.machine.checkpointed();
    }

    pub(crate) fn checkpoint(&mut self) {
        self.thaw();
        self.freeze();
        self.thaw();
    }

    /// Loses everything in memory, and comes back with the last checkpoint and the log above it.
    pub(crate) fn crash(&mut self) {
        self.job = None;
        self.engine.crash();
        let placeholder: Arc<dyn StateStore> = MemoryEngine::new().store(GROUP, 0).unwrap();
        let (machine, reader) = Machine::open(placeholder.clone(), self.options.clone()).unwrap();
        (self.machine, self.reader, self.store) = (machine, reader, placeholder);
        self.store = self.engine.store(GROUP, self.generation).unwrap();
        (self.machine, self.reader) = Machine::open(self.store.clone(), self.options.clone()).unwrap();
        let above = &self.log[self.machine.applied().0 as usize..];
        self.machine.apply(above, &|_| false, &mut Vec::new());
    }

    /// Replaces the state by another replica's last checkpoint, in pieces of the size given, and applies the log above it.
    pub(crate) fn install_from(&mut self, other: &Self, piece_bytes: usize) {
        self.job = None;
        let Some(mut source) = other.machine.snapshot() else { return };
        let generation = self.generation + 1;
        let mut sink = self.machine.receive(generation).unwrap();
        while let Some(piece) = source.next(piece_bytes).unwrap() {
            sink.piece(piece).unwrap();
        }
        let meta = sink.finish().unwrap();
        assert_eq!((meta.slot, meta.generation), (source.meta().slot, generation));
        self.machine.install(&meta).unwrap();
        self.generation = generation;
        self.log = other.log.clone();
        let above = &self.log[meta.slot.0 as usize..];
        self.machine.apply(above, &|_| false, &mut Vec::new());
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

pub(crate) fn range(key: &str, range_end: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), range_end: bytes(range_end), ..RangeRequest::default() }
}

pub(crate) fn error<T: std::fmt::Debug>(outcome: Result<T, KvError>) -> EtcdError {
    match outcome {
        Err(KvError::Etcd(error)) => error,
        other => panic!("{other:?}"),
    }
}
