//! The state machine itself: what the apply thread owns.

use std::sync::{Arc, atomic::AtomicU64};

use bytes::Bytes;
use conclave_api::{
    conclave::kv::v1::{LeaseRemaining, command::Operation},
    errors::EtcdError,
    etcdserverpb::{
        CompactionRequest, CompactionResponse, LeaseCheckpointResponse, LeaseGrantResponse,
        LeaseRevokeResponse, PutRequest, PutResponse,
    },
};
use conclave_consensus::{Entry, Kind, ProposalId, Slot, SnapshotMeta};
use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateError, StateMachine, StateStore};
use parking_lot::{RwLock, RwLockWriteGuard};

use crate::{
    awaited::KeyObserver,
    changes::Observers,
    checkpoint::CheckpointJob,
    command::{self, Decoded, KvError, Reply, Revision},
    leases::{Ended, LeaseObserver},
    outcomes::{ANSWER_BYTES_MAX, Outcomes, Past},
    pages::View,
    range::header,
    reader::Reader,
    registry::StoreObserver,
    request_id::RequestId,
    snapshot::{Sink, Source},
    state::{Shared, State},
    txn::Evaluation,
    validate::{self, Limits},
};

/// So many entries are applied under one hold of the lock, so that readers are not starved.
const SLICE_ENTRIES: usize = 64;
/// So many checkpointed generations are let go of under one hold of the lock.
const RETIRED_MAX: usize = 1024;

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many bytes of values stay in memory; others are read from the engine. Those that no checkpoint contains yet count,
    /// and stay in any case. Keys and numbers come on top, about 150 bytes a key. Default 64 MiB.
    pub value_cache_bytes: usize,
    /// Who is told of changes to what the group knows beside its keys. Default nobody.
    pub observer: Option<Arc<dyn StoreObserver>>,
    /// Who is told of leases granted and ended. Default nobody.
    pub lease_observer: Option<Arc<dyn LeaseObserver>>,
    /// Who is told of changes of keys that it waits for. Default nobody.
    pub key_observer: Option<Arc<dyn KeyObserver>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { value_cache_bytes: 64 << 20, observer: None, lease_observer: None, key_observer: None }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The engine's contents cannot be read.
    #[error("cannot read the last checkpoint: {0}")]
    Engine(#[from] StateError),
}

/// A key-value store that changes by the commands of a log.
#[derive(Debug)]
pub struct Machine {
    shared: Arc<Shared>,
    options: Options,
    outcomes: Outcomes,
    applied: Slot,
}

impl Machine {
    /// Opens the store as of the last checkpoint; the log above it is to be applied next. Takes time in proportion to the number of
    /// keys, not to their history.
    ///
    /// # Errors
    /// The engine's, and a checkpoint of a layout that this version does not know.
    pub fn open(store: Arc<dyn StateStore>, options: Options) -> Result<(Self, Reader), OpenError> {
        let view = store.view();
        let mut state = State::load(&*view, options.value_cache_bytes, 0)?;
        state.awaited.observer = options.key_observer.clone();
        let outcomes = Outcomes::load(&*view)?;
        drop(view);
        let applied = store.checkpoint().map_or(Slot(0), |checkpoint| checkpoint.meta.slot);
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            store,
            engine_reads: AtomicU64::new(0),
            observers: Observers::default(),
        });
        let reader = Reader { shared: shared.clone() };
        Ok((Self { shared, options, outcomes, applied }, reader))
    }

    /// The last slot applied.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// A handle for readers.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone() }
    }

    fn tell(&self) {
        if let Some(observer) = &self.options.observer {
            observer.nodes_changed();
        }
    }

    /// Applies one command that the client gave a name: the first time it does what it says, and its outcome is kept. Every replica needs
    /// the whole answer then, whoever waits for it.
    fn named_command(
        shared: &Shared,
        outcomes: &mut Outcomes,
        state: &mut RwLockWriteGuard<'_, State>,
        (id, slot): (RequestId, Slot),
        revision: Revision,
        operation: Operation,
    ) -> Result<Bytes, StateError> {
        match outcomes.past(id) {
            Past::Fresh => {
                let outcome = Self::command(shared, state, slot, revision, operation, true);
                let answer = Reply::encode(&outcome);
                let kept = match outcome {
                    Err(KvError::Engine(error)) => return Err(error),
                    // Without effect, and no outcome: the same request is to come with another revision.
                    Err(KvError::RevisionPassed) => return Ok(answer),
                    Ok(reply) if answer.len() > ANSWER_BYTES_MAX => {
                        Reply::encode(&Err(KvError::AnswerNotKept { revision: reply.revision() }))
                    }
                    Ok(_) | Err(_) => answer.clone(),
                };
                outcomes.keep(id, slot, kept);
                Ok(answer)
            }
            Past::Applied => {
                outcomes.touch(id.client, slot);
                RwLockWriteGuard::unlocked(state, || outcomes.outcome(id, &*shared.store))
            }
            Past::TooOld => {
                outcomes.touch(id.client, slot);
                Ok(Reply::encode(&Err(KvError::RequestTooOld)))
            }
        }
    }

    /// Applies one command. `state` is given up for a while if the command takes more than one step.
    fn command(
        shared: &Shared,
        state: &mut RwLockWriteGuard<'_, State>,
        slot: Slot,
        revision: Revision,
        operation: Operation,
        answers: bool,
    ) -> Result<Reply, KvError> {
        let before = View { revision: state.top, incarnation: state.incarnation };
        let minted = || match revision {
            // Nothing else could be told apart from wrapping around; 2^63 revisions are not reached in practice.
            Revision::Next => before.revision.checked_add(1).ok_or(KvError::RevisionPassed),
            Revision::At(revision) if revision > before.revision => Ok(revision),
            Revision::At(_) => Err(KvError::RevisionPassed),
        };
        match operation {
            Operation::Put(request) => {
                let revision = minted()?;
                validate::validate_put(&request, &Limits::NONE)?;
                if is_plain(&request, answers) {
                    state.put(&request.key, &request.value, 0, revision, 0);
                    state.publish(revision);
                    return Ok(Reply::Put(PutResponse { header: header(revision), prev_kv: None }));
                }
                RwLockWriteGuard::unlocked(state, || {
                    let mut evaluation = Evaluation::new(shared, before, revision, answers);
                    let response = evaluation.put(&request)?;
                    evaluation.publish();
                    Ok(Reply::Put(response))
                })
            }
            Operation::DeleteRange(request) => {
                let revision = minted()?;
                validate::validate_delete_range(&request, &Limits::NONE)?;
                RwLockWriteGuard::unlocked(state, || {
                    let mut evaluation = Evaluation::new(shared, before, revision, answers);
                    let response = evaluation.delete_range(&request)?;
                    evaluation.publish();
                    Ok(Reply::DeleteRange(response))
                })
            }
            Operation::Txn(request) => {
                let revision = minted()?;
                validate::validate_txn(&request, &Limits::NONE)?;
                RwLockWriteGuard::unlocked(state, || {
                    let mut evaluation = Evaluation::new(shared, before, revision, answers);
                    let response = evaluation.txn(&request)?;
                    evaluation.publish();
                    Ok(Reply::Txn(response))
                })
            }
            Operation::Compaction(request) => compact(state, &request),
            Operation::RegisterNode(node) => state.registry.register(node).map(|()| Reply::Registry),
            Operation::UnregisterNode(node) => {
                state.registry.unregister(node.id);
                Ok(Reply::Registry)
            }
            Operation::LeaseGrant(request) => {
                state.leases.grant(request.id, request.ttl, slot)?;
                let header = header(state.readable);
                Ok(Reply::LeaseGrant(LeaseGrantResponse {
                    header,
                    id: request.id,
                    ttl: request.ttl,
                    error: String::new(),
                }))
            }
            Operation::LeaseRevoke(request) => {
                let revision = minted()?;
                let lease = state.leases.end(request.id, None).ok_or(EtcdError::LeaseNotFound)?;
                Ok(Self::end_leases(shared, state, (before, revision), vec![lease]))
            }
            Operation::ExpireLeases(request) => {
                let revision = minted()?;
                let leases = request.leases.into_iter();
                let leases =
                    leases.filter_map(|lease| state.leases.end(lease.id, Some(Slot(lease.slot)))).collect();
                Ok(Self::end_leases(shared, state, (before, revision), leases))
            }
            Operation::CheckpointLeases(request) => {
                for LeaseRemaining { lease, remaining_seconds } in request.leases {
                    state.leases.checkpoint(lease.unwrap_or_default().into(), remaining_seconds);
                }
                let header = header(state.readable);
                Ok(Reply::LeaseCheckpoint(LeaseCheckpointResponse { header }))
            }
        }
    }

    /// Deletes what was attached to leases that are over, all at one revision.
    fn end_leases(
        shared: &Shared,
        state: &mut RwLockWriteGuard<'_, State>,
        (before, revision): (View, i64),
        leases: Vec<Ended>,
    ) -> Reply {
        RwLockWriteGuard::unlocked(state, || {
            let mut evaluation = Evaluation::new(shared, before, revision, false);
            leases.into_iter().for_each(|lease| evaluation.end(lease));
            let header = header(evaluation.publish());
            Reply::LeaseRevoke(LeaseRevokeResponse { header })
        })
    }
}

/// Whether a put takes nothing but the map: no lease to look for, nothing of what was before.
fn is_plain(request: &PutRequest, answers: bool) -> bool {
    let reads_before = request.ignore_value || request.ignore_lease || (request.prev_kv && answers);
    request.lease == 0 && !reads_before
}

/// What a command does is not known.
fn fail(slot: Slot, error: &StateError) -> ! {
    panic!("the state engine failed under slot {slot}: {error}");
}

fn compact(state: &mut State, request: &CompactionRequest) -> Result<Reply, KvError> {
    if request.revision <= state.compacted {
        return Err(EtcdError::Compacted.into());
    }
    if request.revision > state.readable {
        return Err(EtcdError::FutureRev.into());
    }
    state.compacted = request.revision;
    Ok(Reply::Compaction(CompactionResponse { header: header(state.readable) }))
}

impl StateMachine for Machine {
    /// # Panics
    /// If entries are missing, or if the engine fails while a command reads from it: a replica that cannot know what a command does must
    /// not go on.
    fn apply(&mut self, entries: &[Entry], waits: &dyn Fn(ProposalId) -> bool, replies: &mut Replies) {
        for slice in entries.chunks(SLICE_ENTRIES) {
            let mut state = self.shared.state.write();
            let (nodes_version, top) = (state.registry.version, state.top);
            for entry in slice {
                if entry.slot <= self.applied {
                    continue;
                }
                assert_eq!(entry.slot, self.applied.next(), "entries are applied without a gap");
                self.applied = entry.slot;
                if entry.kind != Kind::Command {
                    continue;
                }
                let answers = !entry.id.is_none() && waits(entry.id);
                let outcome = match command::decode(entry.payload.clone()) {
                    Ok(Decoded { revision, operation, id: None }) => {
                        Self::command(&self.shared, &mut state, entry.slot, revision, operation, answers)
                    }
                    Ok(Decoded { revision, operation, id: Some(id) }) => {
                        let (shared, outcomes) = (&self.shared, &mut self.outcomes);
                        let id = (id, entry.slot);
                        match Self::named_command(shared, outcomes, &mut state, id, revision, operation) {
                            Ok(answer) if answers => replies.push((entry.id, answer)),
                            Ok(_) => {}
                            Err(error) => fail(entry.slot, &error),
                        }
                        continue;
                    }
                    Err(error) => Err(error),
                };
                if let Err(KvError::Engine(error)) = &outcome {
                    fail(entry.slot, error);
                }
                if answers {
                    replies.push((entry.id, Reply::encode(&outcome)));
                }
            }
            state.evict();
            let nodes_changed = state.registry.version != nodes_version;
            let (lease_changes, changed_keys) = (state.leases.take_untold(), state.awaited.take());
            let advanced = state.top != top;
            drop(state);
            if nodes_changed {
                self.tell();
            }
            if let Some(observer) = self.options.lease_observer.as_ref().filter(|_| !lease_changes.is_empty())
            {
                observer.leases_changed(&lease_changes);
            }
            if let Some(observer) = self.options.key_observer.as_ref().filter(|_| !changed_keys.is_empty()) {
                observer.changed(&changed_keys);
            }
            if advanced {
                self.shared.observers.tell();
            }
        }
    }

    fn pending_bytes(&self) -> usize {
        let state = self.shared.state.read();
        state.head.pending_bytes() + state.leases.pending_bytes() + self.outcomes.pending_bytes()
    }

    fn checkpoint(&mut self, meta: SnapshotMeta) -> Option<Box<dyn Job>> {
        assert_eq!(meta.slot, self.applied, "a checkpoint is of what was applied last");
        let mut state = self.shared.state.write();
        if state.head.is_frozen() {
            return None;
        }
        let record = state.record();
        let entries = state.head.freeze();
        let leases = state.leases.freeze();
        drop(state);
        let outcomes = self.outcomes.freeze();
        let store = self.shared.store.clone();
        Some(Box::new(CheckpointJob { store, meta, record, entries, outcomes, leases }))
    }

    /// Lets go of everything that the checkpoint contains, at once, since an idle store would keep it for good; but readers get their
    /// turn in between.
    fn checkpointed(&mut self) {
        let mut state = self.shared.state.write();
        state.head.thaw();
        self.outcomes.thaw();
        while state.retire(RETIRED_MAX) {
            RwLockWriteGuard::bump(&mut state);
        }
        state.evict();
    }

    fn snapshot(&self) -> Option<Box<dyn SnapshotSource>> {
        Source::new(self.shared.store.view()).map(|source| Box::new(source) as Box<dyn SnapshotSource>)
    }

    fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError> {
        Ok(Box::new(Sink::new(self.shared.store.build(generation)?, generation)))
    }

    /// The new state is built beside the old one, so that readers wait for a moment only. Engine and map change under one hold of the
    /// lock: who finds the old map also finds, when it looks again after it asked the engine, that it must begin anew. A
    /// checkpoint's job must not be under way.
    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StateError> {
        let Shared { state, store, .. } = &*self.shared;
        let incarnation = state.read().incarnation + 1;
        let built = store.built(meta.generation)?;
        let mut loaded = State::load(&*built, self.options.value_cache_bytes, incarnation)?;
        let outcomes = Outcomes::load(&*built)?;
        // While the view lives the old generation's files do: deleting them would keep readers waiting.
        let last = store.view();
        let mut state = state.write();
        store.switch(meta.generation)?;
        loaded.registry.succeed(&state.registry);
        loaded.awaited.observer = state.awaited.observer.take();
        let nodes_changed = loaded.registry.version != state.registry.version;
        let old = std::mem::replace(&mut *state, loaded);
        drop(state);
        self.applied = meta.slot;
        self.outcomes = outcomes;
        drop((old, last, built));
        if nodes_changed {
            self.tell();
        }
        if let Some(observer) = &self.options.key_observer {
            observer.replaced();
        }
        self.shared.observers.tell();
        Ok(())
    }
}
