//! Applies chosen entries of one group and decides when its state is made durable.

use bytes::Bytes;
use conclave_consensus::{Config, Entry, Kind, ProposalId, Slot, SnapshotMeta};
use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateError, StateMachine};

/// When a checkpoint is taken.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointPolicy {
    /// Once so many bytes live in memory alone. At four times as many, applying waits for the checkpoint under way. Default 24 MiB.
    pub pending_bytes: usize,
    /// Once so many entries were applied since the last: they are what a boot replays. Default 250,000.
    pub entries: u64,
}

/// How many times [`CheckpointPolicy::pending_bytes`] may be pending before applying waits.
const SATURATION: usize = 4;

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { pending_bytes: 24 << 20, entries: 250_000 }
    }
}

/// A group's state machine and how far it is.
#[derive(Debug)]
pub struct Applier {
    machine: Box<dyn StateMachine>,
    policy: CheckpointPolicy,
    /// The last applied slot, its ballot, and the membership in force there.
    at: SnapshotMeta,
    checkpointed: Slot,
    /// The checkpoint under way.
    running: Option<SnapshotMeta>,
}

impl Applier {
    /// A machine whose state is as of `at`.
    #[must_use]
    pub fn new(machine: Box<dyn StateMachine>, at: SnapshotMeta, policy: CheckpointPolicy) -> Self {
        Self { machine, policy, checkpointed: at.slot, at, running: None }
    }

    /// The last applied slot.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.at.slot
    }

    /// Applies entries and collects what waiting clients are told.
    ///
    /// # Panics
    /// If the entries do not continue where the last call ended: applying them would corrupt the state, and the process must stop.
    pub fn apply(&mut self, entries: &[Entry], waits: &dyn Fn(ProposalId) -> bool, replies: &mut Replies) {
        let Some(last) = entries.last() else { return };
        for (entry, expected) in entries.iter().zip(self.at.slot.0 + 1..) {
            assert_eq!(entry.slot.0, expected, "entries are applied in order, each once");
            if entry.kind == Kind::Config {
                // The core refused malformed ones before they could be chosen.
                self.at.config =
                    Config::decode(&entry.payload).expect("a chosen configuration is well-formed");
            }
        }
        self.machine.apply(entries, waits, replies);
        (self.at.slot, self.at.ballot) = (last.slot, last.ballot);
    }

    /// A checkpoint to be run elsewhere, if one is due.
    pub fn checkpoint_if_due(&mut self) -> Option<Box<dyn Job>> {
        let entries = self.at.slot.0 - self.checkpointed.0;
        let due = entries >= self.policy.entries || self.machine.pending_bytes() >= self.policy.pending_bytes;
        if due { self.checkpoint() } else { None }
    }

    /// A checkpoint to be run elsewhere, if there is anything new and none is under way.
    pub fn checkpoint(&mut self) -> Option<Box<dyn Job>> {
        if self.running.is_some() || self.at.slot == self.checkpointed {
            return None;
        }
        let job = self.machine.checkpoint(self.at.clone())?;
        self.running = Some(self.at.clone());
        Some(job)
    }

    /// The job that [`checkpoint`](Self::checkpoint) gave is done: says which state is durable now. `None` if a snapshot was installed meanwhile.
    pub fn checkpointed(&mut self) -> Option<SnapshotMeta> {
        let meta = self.running.take()?;
        self.checkpointed = meta.slot;
        self.machine.checkpointed();
        Some(meta)
    }

    /// The last checkpoint, to be streamed.
    #[must_use]
    pub fn snapshot(&self) -> Option<Box<dyn SnapshotSource>> {
        self.machine.snapshot()
    }

    /// Begins to take in a snapshot beside the present state.
    ///
    /// # Errors
    /// The engine's.
    pub fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError> {
        self.machine.receive(generation)
    }

    /// Whether a checkpoint is under way and so much is pending that nothing should be applied before it is done: else memory would grow for as
    /// long as clients write faster than the disk takes it.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.running.is_some() && self.machine.pending_bytes() >= SATURATION * self.policy.pending_bytes
    }

    /// Whether a checkpoint is being written: an install waits for its end, since both write to the engine.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.running.is_some()
    }

    /// Switches to an installed snapshot, already durable in the log.
    ///
    /// # Errors
    /// The engine's; the process must stop, since the log no longer holds what led to the present state.
    pub fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StateError> {
        self.machine.install(meta)?;
        self.at = meta.clone();
        self.checkpointed = meta.slot;
        Ok(())
    }
}

/// Serves a group's last checkpoint to replicas that ask for it piece by piece.
#[derive(Debug)]
pub struct SnapshotServer {
    piece_bytes: usize,
    streams: Vec<Stream>,
}

impl Default for SnapshotServer {
    fn default() -> Self {
        Self::new(PIECE_BYTES)
    }
}

#[derive(Debug)]
struct Stream {
    to: conclave_consensus::NodeId,
    fetch: u64,
    /// Given back with the last piece: it keeps the engine from forgetting anything.
    source: Option<Box<dyn SnapshotSource>>,
    /// Whether a piece was asked for since the last sweep.
    asked: bool,
    /// The last piece given, kept so that a lost one can be given again.
    piece: u64,
    body: Bytes,
    last: bool,
    /// Read ahead, to know whether the piece before is the last.
    ahead: Option<Bytes>,
}

/// How many replicas of a group may fetch at a time; the least recently served gives way.
const STREAMS_MAX: usize = 4;
/// The size aimed at for a piece.
const PIECE_BYTES: usize = 1 << 20;

impl SnapshotServer {
    /// Gives pieces of about this size. Default 1 MiB.
    #[must_use]
    pub fn new(piece_bytes: usize) -> Self {
        Self { piece_bytes, streams: Vec::new() }
    }

    /// A piece of a fetch, and whether it is the last. An empty piece says that the fetch cannot be served: there is no checkpoint that
    /// contains `at_least`, or the fetch began with a view that is gone.
    ///
    /// # Errors
    /// The engine's.
    pub fn piece(
        &mut self,
        to: conclave_consensus::NodeId,
        fetch: u64,
        at_least: Slot,
        piece: u64,
        open: &mut dyn FnMut() -> Option<Box<dyn SnapshotSource>>,
    ) -> Result<(Bytes, bool), StateError> {
        let refused = Ok((Bytes::new(), true));
        let found = self.streams.iter().position(|s| s.to == to && s.fetch == fetch);
        let mut stream = match found {
            Some(at) => self.streams.remove(at),
            None if piece == 0 => {
                self.streams.retain(|s| s.to != to);
                let Some(mut source) = open() else { return refused };
                if source.meta().slot < at_least {
                    return refused;
                }
                let Some(body) = source.next(self.piece_bytes)? else { return refused };
                let ahead = source.next(self.piece_bytes)?;
                let source = ahead.is_some().then_some(source);
                Stream { to, fetch, source, asked: true, piece: 0, body, last: ahead.is_none(), ahead }
            }
            None => return refused,
        };
        if piece == stream.piece + 1 {
            let Some(body) = stream.ahead.take() else { return refused };
            stream.body = body;
            stream.piece = piece;
            stream.ahead = match &mut stream.source {
                Some(source) => source.next(self.piece_bytes)?,
                None => None,
            };
            stream.last = stream.ahead.is_none();
            if stream.last {
                stream.source = None;
            }
        }
        stream.asked = true;
        let answer =
            if piece == stream.piece { (stream.body.clone(), stream.last) } else { (Bytes::new(), true) };
        if self.streams.len() >= STREAMS_MAX {
            self.streams.remove(0);
        }
        self.streams.push(stream);
        Ok(answer)
    }

    /// Called once in a while: forgets the fetches that nobody went on with since the last call.
    pub fn sweep(&mut self) {
        self.streams.retain_mut(|stream| std::mem::take(&mut stream.asked));
    }
}
