//! What became of the requests that name themselves, so that a repetition is answered and not applied again.
//!
//! # Rules
//! Every replica follows them alike, and none of them knows a clock.
//! 1. Of each client the outcomes of its [`OUTCOMES_MAX`] highest sequences are kept; the lowest goes when one more comes.
//! 2. A sequence below all of those, once there are so many, is too old: it may have been applied, so it is refused.
//! 3. At most [`CLIENTS_MAX`] clients are kept. One more drops the client whose last request, applied, repeated or too old, is furthest
//!    back in the log, with all that is known of it: who comes back after so many others is a new client.
//!
//! # Where things are
//! ```text
//! memory   each client's sequences and last use; the outcomes since the last checkpoint
//! engine   the same of each client; all outcomes of the last checkpoint
//! ```
//! A client takes at most 512 bytes for its sequences and about 150 around them, so all of them at most 66 MB. Outcomes in memory count as
//! pending, and a checkpoint takes them away. Nobody but the apply thread looks at any of this, so it needs no lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use conclave_consensus::Slot;
use conclave_storage::{StateError, StateStore, StateView};

use crate::{
    layout::{self, CLIENTS, damaged},
    request_id::{ClientId, RequestId},
};

/// The most outcomes that are kept of a client.
pub const OUTCOMES_MAX: usize = 64;
/// The most clients of which outcomes are kept.
pub const CLIENTS_MAX: usize = 100_000;
/// The largest answer that is kept whole, encoded, in bytes. A put's takes some twenty, and a comparison that failed and read a few small keys
/// instead fits; all that can be kept then comes to 25 GiB of the engine. Of a larger answer only the revision is kept.
pub const ANSWER_BYTES_MAX: usize = 4 << 10;

/// What a pending outcome takes in memory beside its bytes, about.
const OUTCOME_COST_BYTES: usize = 112;
/// What a pending change of a client takes in memory, about, with the record that a checkpoint makes of it.
const CLIENT_COST_BYTES: usize = 160;

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// It was not applied, as far as anything is kept.
    Fresh,
    /// It was applied, and its outcome is kept.
    Applied,
    /// It is older than what is kept.
    TooOld,
}

#[derive(Debug)]
struct Client {
    /// Where in the log its last request is.
    used: Slot,
    /// The sequences whose outcomes are kept, ascending.
    sequences: Vec<u64>,
}

/// What became of an outcome since the last checkpoint.
#[derive(Debug)]
struct Change {
    /// `None` if it was dropped.
    outcome: Option<Bytes>,
    /// Whether an older checkpoint, or the one under way, may hold an outcome of that name.
    is_below: bool,
}

/// What the next checkpoint has to write.
#[derive(Debug, Default)]
struct Changes {
    outcomes: BTreeMap<RequestId, Change>,
    clients: BTreeSet<ClientId>,
    bytes: usize,
}

/// What a checkpoint writes.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    outcomes: BTreeMap<RequestId, Change>,
    clients: Vec<(ClientId, Option<Bytes>)>,
    bytes: usize,
}

impl Frozen {
    /// The pairs of the engine to replace and remove, ascending.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        let outcomes =
            self.outcomes.iter().map(|(id, change)| (layout::outcome_key(*id), change.outcome.clone()));
        outcomes.chain(self.clients.iter().map(|(id, record)| (layout::client_key(*id), record.clone())))
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    clients_max: usize,
    outcomes_max: usize,
}

const BOUNDS: Bounds = Bounds { clients_max: CLIENTS_MAX, outcomes_max: OUTCOMES_MAX };

/// All that is kept.
#[derive(Debug)]
pub(crate) struct Outcomes {
    bounds: Bounds,
    clients: BTreeMap<ClientId, Client>,
    /// A slot has one request, so no two clients were last used at the same one.
    by_use: BTreeMap<Slot, ClientId>,
    active: Changes,
    frozen: Option<Arc<Frozen>>,
}

impl Outcomes {
    /// What a checkpoint holds: one scan of the clients.
    ///
    /// # Errors
    /// The engine's, and records that contradict the rules.
    pub(crate) fn load(view: &dyn StateView) -> Result<Self, StateError> {
        Self::load_within(view, BOUNDS)
    }

    fn load_within(view: &dyn StateView, bounds: Bounds) -> Result<Self, StateError> {
        let applied = view.checkpoint().map_or(Slot(0), |checkpoint| checkpoint.meta.slot);
        let (mut clients, mut by_use) = (BTreeMap::new(), BTreeMap::new());
        for pair in view.scan(Bound::Included(&[CLIENTS])) {
            let (key, record) = pair?;
            if key.first() != Some(&CLIENTS) {
                break;
            }
            let id = layout::client_of(&key)?;
            let (used, sequences) = layout::read_client(&record)?;
            if sequences.len() > bounds.outcomes_max || used > applied || by_use.insert(used, id).is_some() {
                return Err(damaged("a client's record contradicts the checkpoint"));
            }
            clients.insert(id, Client { used, sequences });
            if clients.len() > bounds.clients_max {
                return Err(damaged("more clients than are kept"));
            }
        }
        Ok(Self { bounds, clients, by_use, active: Changes::default(), frozen: None })
    }

    /// What is known of a request.
    pub(crate) fn past(&self, id: RequestId) -> Past {
        let Some(client) = self.clients.get(&id.client) else { return Past::Fresh };
        match client.sequences.binary_search(&id.sequence) {
            Ok(_) => Past::Applied,
            Err(0) if client.sequences.len() == self.bounds.outcomes_max => Past::TooOld,
            Err(_) => Past::Fresh,
        }
    }

    /// The outcome of a request that was applied.
    ///
    /// # Errors
    /// The engine's, which may be asked.
    pub(crate) fn outcome(&self, id: RequestId, store: &dyn StateStore) -> Result<Bytes, StateError> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.outcomes.get(&id));
        let found = match self.active.outcomes.get(&id).or_else(frozen) {
            Some(change) => change.outcome.clone(),
            None => store.get(&layout::outcome_key(id))?,
        };
        found.ok_or_else(|| damaged("an outcome that a client's record names is missing"))
    }

    /// Notes a request that was repeated, or too old.
    pub(crate) fn touch(&mut self, id: ClientId, slot: Slot) {
        if let Some(client) = self.clients.get_mut(&id) {
            self.by_use.remove(&client.used);
            client.used = slot;
            self.by_use.insert(slot, id);
            self.active.mark(id);
        }
    }

    /// Keeps the outcome of a fresh request, and drops what there is no more room for.
    pub(crate) fn keep(&mut self, id: RequestId, slot: Slot, outcome: Bytes) {
        let outcomes_max = self.bounds.outcomes_max;
        let new = || Client { used: slot, sequences: Vec::new() };
        let sequences = &mut self.clients.entry(id.client).or_insert_with(new).sequences;
        if sequences.len() == outcomes_max {
            let sequence = sequences.remove(0);
            self.active.drop_outcome(RequestId { sequence, ..id });
        }
        let at = sequences.binary_search(&id.sequence).unwrap_or_else(|at| at);
        sequences.insert(at, id.sequence);
        self.active.keep(id, outcome);
        self.touch(id.client, slot);
        if self.clients.len() > self.bounds.clients_max {
            self.drop_client();
        }
    }

    fn drop_client(&mut self) {
        let Some((_, id)) = self.by_use.pop_first() else { return };
        if let Some(client) = self.clients.remove(&id) {
            for sequence in client.sequences {
                self.active.drop_outcome(RequestId { client: id, sequence });
            }
            self.active.mark(id);
        }
    }

    /// Bytes that no checkpoint contains.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes)
    }

    /// Sets aside all changes for a checkpoint. Nothing may be frozen.
    pub(crate) fn freeze(&mut self) -> Arc<Frozen> {
        assert!(self.frozen.is_none(), "two checkpoints at once");
        let Changes { outcomes, clients, bytes } = std::mem::take(&mut self.active);
        let record = |client: &Client| layout::client_record(client.used, &client.sequences);
        let clients = clients.into_iter().map(|id| (id, self.clients.get(&id).map(record))).collect();
        let frozen = Arc::new(Frozen { outcomes, clients, bytes });
        self.frozen = Some(frozen.clone());
        frozen
    }

    /// The checkpoint is complete.
    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
    }
}

impl Changes {
    fn mark(&mut self, id: ClientId) {
        if self.clients.insert(id) {
            self.bytes += CLIENT_COST_BYTES;
        }
    }

    fn keep(&mut self, id: RequestId, outcome: Bytes) {
        // The name may be that of an outcome dropped before, with its client.
        let is_below = self.forget(id).is_some_and(|dropped| dropped.is_below);
        self.bytes += OUTCOME_COST_BYTES + outcome.len();
        self.outcomes.insert(id, Change { outcome: Some(outcome), is_below });
    }

    /// What no checkpoint ever held leaves no trace.
    fn drop_outcome(&mut self, id: RequestId) {
        if self.forget(id).is_none_or(|kept| kept.is_below) {
            self.bytes += OUTCOME_COST_BYTES;
            self.outcomes.insert(id, Change { outcome: None, is_below: true });
        }
    }

    fn forget(&mut self, id: RequestId) -> Option<Change> {
        let change = self.outcomes.remove(&id)?;
        self.bytes -= OUTCOME_COST_BYTES + change.outcome.as_ref().map_or(0, Bytes::len);
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{Ballot, GroupId, SnapshotMeta};
    use conclave_storage::{Checkpoint, MemoryEngine, StateEngine};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SMALL: Bounds = Bounds { clients_max: 3, outcomes_max: 3 };

    /// Clients, the one last used at the end, each with its sequences and outcomes.
    #[derive(Default)]
    struct Twin(Vec<(ClientId, Vec<(u64, Bytes)>)>);

    impl Twin {
        fn request(&mut self, id: RequestId, outcome: Bytes) -> Option<Bytes> {
            let at = self.0.iter().position(|(client, _)| *client == id.client);
            let (_, mut kept) = at.map_or_else(|| (id.client, Vec::new()), |at| self.0.remove(at));
            let known =
                kept.iter().find(|(sequence, _)| *sequence == id.sequence).map(|(_, known)| known.clone());
            let is_too_old = kept.len() == 3 && kept.iter().all(|(sequence, _)| *sequence > id.sequence);
            let answer =
                if is_too_old { None } else { Some(known.clone().unwrap_or_else(|| outcome.clone())) };
            if known.is_none() && !is_too_old {
                kept.push((id.sequence, outcome));
                kept.sort();
                kept.drain(..kept.len().saturating_sub(3));
            }
            self.0.push((id.client, kept));
            self.0.drain(..self.0.len().saturating_sub(3));
            answer
        }

        fn pairs(&self) -> Vec<(Bytes, Bytes)> {
            let mut pairs = Vec::new();
            for (client, kept) in &self.0 {
                for (sequence, outcome) in kept {
                    let id = RequestId { client: *client, sequence: *sequence };
                    pairs.push((layout::outcome_key(id), outcome.clone()));
                }
            }
            pairs.sort();
            pairs
        }
    }

    fn request(outcomes: &mut Outcomes, store: &dyn StateStore, id: RequestId, slot: Slot) -> Option<Bytes> {
        match outcomes.past(id) {
            Past::Fresh => {
                outcomes.keep(id, slot, outcome(slot));
                Some(outcome(slot))
            }
            Past::Applied => {
                outcomes.touch(id.client, slot);
                Some(outcomes.outcome(id, store).unwrap())
            }
            Past::TooOld => {
                outcomes.touch(id.client, slot);
                None
            }
        }
    }

    fn outcome(slot: Slot) -> Bytes {
        slot.0.to_string().into()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Request(u128, u64),
        Freeze,
        Write,
        Thaw,
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..5_u128, 0..8_u64).prop_map(|(client, sequence)| Step::Request(client, sequence)),
            2 => Just(Step::Freeze),
            1 => Just(Step::Write),
            2 => Just(Step::Thaw),
            1 => Just(Step::Crash),
        ]
    }

    fn run(steps: Vec<Step>) {
        let store = MemoryEngine::new().store(GroupId(1), 0).unwrap();
        let mut outcomes = Outcomes::load_within(&*store.view(), SMALL).unwrap();
        let mut twin = Twin::default();
        let mut log: Vec<RequestId> = Vec::new();
        let mut job: Option<(Arc<Frozen>, Slot)> = None;
        let write = |job: &mut Option<(Arc<Frozen>, Slot)>| {
            let Some((frozen, slot)) = job.take() else { return };
            let meta = SnapshotMeta { slot, ballot: Ballot::term(1), ..SnapshotMeta::default() };
            store.ingest(Checkpoint { meta, record: Bytes::new() }, &mut frozen.pairs()).unwrap();
        };
        for step in steps.into_iter().chain([Step::Thaw, Step::Freeze, Step::Thaw]) {
            match step {
                Step::Request(client, sequence) => {
                    let id = RequestId { client: ClientId(client), sequence };
                    log.push(id);
                    let slot = Slot(log.len() as u64);
                    assert_eq!(
                        request(&mut outcomes, &*store, id, slot),
                        twin.request(id, outcome(slot)),
                        "{id}"
                    );
                }
                Step::Freeze if outcomes.frozen.is_none() => {
                    job = Some((outcomes.freeze(), Slot(log.len() as u64)));
                }
                Step::Freeze => {}
                Step::Write => write(&mut job),
                Step::Thaw => {
                    write(&mut job);
                    outcomes.thaw();
                }
                Step::Crash => {
                    job = None;
                    outcomes = Outcomes::load_within(&*store.view(), SMALL).unwrap();
                    let from = store.checkpoint().map_or(0, |checkpoint| checkpoint.meta.slot.0);
                    for (slot, id) in (from + 1..).zip(&log[from as usize..]) {
                        request(&mut outcomes, &*store, *id, Slot(slot));
                    }
                }
            }
        }
        // The engine holds what is kept, and nothing that was dropped.
        assert_eq!(outcomes.pending_bytes(), 0);
        let stored: Vec<_> = store.view().scan(Bound::Unbounded).map(Result::unwrap).collect();
        let (kept, clients): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|(key, _)| key.first() == Some(&layout::OUTCOMES));
        assert_eq!(kept, twin.pairs());
        assert_eq!(clients.len(), twin.0.len());
        let by_use: Vec<_> = outcomes.by_use.values().copied().collect();
        assert_eq!(by_use, twin.0.iter().map(|(client, _)| *client).collect::<Vec<_>>());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 4 * ProptestConfig::default().cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn they_are_kept_and_dropped_as_the_twin_does(steps in vec(step(), 1..150)) {
            run(steps);
        }
    }

    #[test]
    fn an_outcome_that_no_checkpoint_held_leaves_nothing_behind() {
        let store = MemoryEngine::new().store(GroupId(1), 0).unwrap();
        let mut outcomes = Outcomes::load(&*store.view()).unwrap();
        for at in 1..100_000 {
            let id = RequestId { client: ClientId(1), sequence: at };
            request(&mut outcomes, &*store, id, Slot(at));
        }
        assert!(outcomes.pending_bytes() < 20_000, "{}", outcomes.pending_bytes());
        assert_eq!(outcomes.freeze().pairs().count(), OUTCOMES_MAX + 1);
    }

    #[test]
    fn records_that_contradict_each_other_are_damage() {
        let load = |slot: u64, pairs: &[(Bytes, Bytes)]| {
            let store = MemoryEngine::new().store(GroupId(1), 0).unwrap();
            let meta = SnapshotMeta { slot: Slot(slot), ballot: Ballot::term(1), ..SnapshotMeta::default() };
            let checkpoint = Checkpoint { meta, record: Bytes::new() };
            let mut run = pairs.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
            store.ingest(checkpoint, &mut run).unwrap();
            Outcomes::load_within(&*store.view(), SMALL).map(drop)
        };
        let pair = |client, used, sequences: &[u64]| {
            (layout::client_key(ClientId(client)), layout::client_record(Slot(used), sequences))
        };
        load(9, &[pair(1, 8, &[1, 2, 3]), pair(2, 9, &[7])]).unwrap();
        assert!(load(9, &[pair(1, 8, &[1]), pair(2, 8, &[7])]).is_err(), "one slot, two clients");
        assert!(load(9, &[pair(1, 10, &[1])]).is_err(), "used after the checkpoint");
        assert!(load(9, &[pair(1, 8, &[1, 2, 3, 4])]).is_err(), "too many outcomes");
        let clients: Vec<_> = (1..=4).map(|at| pair(at.into(), at, &[1])).collect();
        assert!(load(9, &clients).is_err(), "too many clients");
        assert!(load(9, &[(Bytes::from_static(b"r"), Bytes::from_static(b"\x01\x01"))]).is_err());
    }
}
