//! The `catchup` thread: log read-back and snapshots, so that nothing slow stands in the way of the rest.
//!
//! Who reads the log back, or stores, goes first; between two pieces served everything else has its turn. Pieces are served to those who ask in turn, within
//! one budget for all of them: see [`ShellConfig::serve_bytes_per_second`](super::ShellConfig).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{GroupId, LogReadId, NodeId, SlotRange};
use conclave_storage::{LogStore, StateError};
use conclave_transport::Packet;

use super::{Shared, ShellInput, apply::ApplyJob, budget::Budget, clock};
use crate::{
    ArrivedPiece, HostInput, PieceRequest, Served, SnapshotReceiver, SnapshotServer,
    snapshot::PIECES_INFLIGHT_MAX,
};

/// How long a fetch may rest before it is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Work for the catch-up thread.
#[derive(Debug)]
pub(crate) enum CatchupJob {
    ReadLog { group: GroupId, id: LogReadId, range: SlotRange, bytes_max: u32 },
    Store { group: GroupId, piece: ArrivedPiece },
    Forget { group: GroupId, fetch: u64 },
    Serve { to: NodeId, group: GroupId, request: PieceRequest },
}

pub(super) fn run(shared: &Arc<Shared>, log: &dyn LogStore) {
    let mut jobs = Vec::new();
    let mut servers: BTreeMap<GroupId, SnapshotServer> = BTreeMap::new();
    let mut receivers: BTreeMap<GroupId, SnapshotReceiver> = BTreeMap::new();
    let mut swept = clock::now();
    let mut budget = Budget::new(shared.serve_bytes_per_second);
    let mut waiting = Waiting::default();
    loop {
        let pause = match budget.wait(clock::now()) {
            _ if waiting.is_empty() => SWEEP_EVERY,
            pause => pause.unwrap_or(Duration::ZERO),
        };
        if !shared.catchups.take(Some(pause), &mut jobs) {
            return;
        }
        if clock::now().since(swept) >= SWEEP_EVERY {
            swept = clock::now();
            servers.values_mut().for_each(SnapshotServer::sweep);
        }
        for job in jobs.drain(..) {
            match job {
                CatchupJob::ReadLog { group, id, range, bytes_max } => {
                    match log.read(group, range, bytes_max as usize) {
                        Ok(result) => tell(shared, HostInput::LogRead { group, id, result }),
                        Err(error) => return shared.halt(error.into()),
                    }
                }
                CatchupJob::Store { group, piece } => {
                    let mut open = |generation| {
                        let (answer, sink) = mpsc::sync_channel(1);
                        shared.applies.push(ApplyJob::Receive { group, generation, answer });
                        // Without an answer the shell is stopping.
                        sink.recv().unwrap_or(Err(StateError::Closed))
                    };
                    let receiver = receivers.entry(group).or_default();
                    tell(shared, receiver.store(group, piece, &mut open));
                }
                CatchupJob::Forget { group, fetch } => receivers.entry(group).or_default().forget(fetch),
                CatchupJob::Serve { to, group, request } => {
                    if waiting.ask(to, group, request) {
                        later(shared, to, group, request);
                    }
                }
            }
        }
        if budget.wait(clock::now()).is_none()
            && let Some((to, group, request)) = waiting.next()
        {
            let server = servers.entry(group).or_default();
            match serve(shared, server, to, group, request) {
                Some(bytes) => budget.spend(clock::now(), bytes),
                None => waiting.wait_on(to, group, request),
            }
        }
    }
}

/// Who waits for pieces, in turn.
#[derive(Debug, Default)]
struct Waiting(VecDeque<Place>);

/// What a node waits for in a group, in the order of asking.
#[derive(Debug)]
struct Place {
    to: NodeId,
    group: GroupId,
    requests: VecDeque<PieceRequest>,
}

/// How many may wait; who finds no place asks again.
const WAITING_MAX: usize = 1_024;

impl Waiting {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn place(&mut self, to: NodeId, group: GroupId) -> Option<&mut Place> {
        self.0.iter_mut().find(|place| (place.to, place.group) == (to, group))
    }

    /// Says whether the piece was waited for already: then the asker is to know that it was heard.
    fn ask(&mut self, to: NodeId, group: GroupId, request: PieceRequest) -> bool {
        let Some(Place { requests, .. }) = self.place(to, group) else {
            if self.0.len() < WAITING_MAX {
                self.0.push_back(Place { to, group, requests: VecDeque::from([request]) });
            }
            return false;
        };
        // Nobody fetches twice at a time.
        requests.retain(|older| older.fetch == request.fetch);
        if let Some(same) = requests.iter_mut().find(|older| older.piece == request.piece) {
            *same = request;
            return true;
        }
        if (requests.len() as u64) < PIECES_INFLIGHT_MAX {
            requests.push_back(request);
        }
        false
    }

    /// The first of whose turn it is, who then is the last.
    fn next(&mut self) -> Option<(NodeId, GroupId, PieceRequest)> {
        let Place { to, group, mut requests } = self.0.pop_front()?;
        let request = requests.pop_front()?;
        if !requests.is_empty() {
            self.0.push_back(Place { to, group, requests });
        }
        Some((to, group, request))
    }

    /// It takes another turn or more.
    fn wait_on(&mut self, to: NodeId, group: GroupId, request: PieceRequest) {
        match self.place(to, group) {
            Some(place) => place.requests.push_front(request),
            None => self.0.push_back(Place { to, group, requests: VecDeque::from([request]) }),
        }
    }
}

/// Sends a piece, and says how long it was; `None` if there is more to be done before.
fn serve(
    shared: &Shared,
    server: &mut SnapshotServer,
    to: NodeId,
    group: GroupId,
    request: PieceRequest,
) -> Option<usize> {
    let began = clock::now();
    let mut open = || {
        let (answer, source) = mpsc::sync_channel(1);
        shared.applies.push(ApplyJob::Snapshot { group, answer });
        source.recv().ok().flatten()
    };
    let served = server.serve(to, request, &mut open).unwrap_or_else(|error| {
        tracing::warn!(%group, %error, "snapshot cannot be read");
        Served::Gone
    });
    let PieceRequest { fetch, piece, have, .. } = request;
    let (after, body, last) = match served {
        Served::Piece { after, body, last } => (after, body, last),
        Served::Gone => (have, Bytes::new(), true),
        Served::Nothing => return Some(0),
        Served::Later => return None,
    };
    tracing::debug!(%group, %to, fetch, piece, bytes = body.len(), last, took = ?clock::now().since(began), "snapshot piece served");
    let bytes = body.len();
    let packet = Packet::SnapshotPiece { group, fetch, after, body, last };
    shared.transport().send(to, &mut vec![packet]);
    Some(bytes)
}

/// Says that a piece will come.
fn later(shared: &Shared, to: NodeId, group: GroupId, PieceRequest { fetch, have, .. }: PieceRequest) {
    let packet = Packet::SnapshotPiece { group, fetch, after: have, body: Bytes::new(), last: false };
    shared.transport().send(to, &mut vec![packet]);
}

fn tell(shared: &Shared, input: HostInput) {
    shared.inbox.push(ShellInput::Host(input));
}

#[cfg(test)]
mod tests {
    use conclave_consensus::Slot;
    use conclave_transport::SnapshotPrefix;

    use super::*;

    fn request(fetch: u64, piece: u64) -> PieceRequest {
        let have = SnapshotPrefix { pieces: piece, ..SnapshotPrefix::default() };
        PieceRequest { fetch, at_least: Slot(1), piece, have }
    }

    fn next(waiting: &mut Waiting) -> Option<(u64, u64)> {
        waiting.next().map(|(node, _, request)| (node.0, request.piece))
    }

    #[test]
    fn those_who_wait_are_served_in_turn_however_much_one_asks() {
        let mut waiting = Waiting::default();
        for piece in 0..100 {
            assert!(!waiting.ask(NodeId(1), GroupId(1), request(1, piece)));
        }
        assert!(waiting.ask(NodeId(1), GroupId(1), request(1, 3)), "it waits for that one");
        for node in [2, 3] {
            waiting.ask(NodeId(node), GroupId(1), request(1, 0));
        }
        let served: Vec<_> = std::iter::from_fn(|| next(&mut waiting)).collect();
        let alone = (2..PIECES_INFLIGHT_MAX).map(|piece| (1, piece));
        assert_eq!(served[..4], [(1, 0), (2, 0), (3, 0), (1, 1)]);
        assert_eq!(served[4..], alone.collect::<Vec<_>>());
        for node in 0..2_000 {
            waiting.ask(NodeId(node), GroupId(1), request(1, 0));
        }
        assert_eq!(waiting.0.len(), WAITING_MAX);
    }

    #[test]
    fn a_new_fetch_takes_the_place_of_the_old_and_who_takes_long_lets_others_by() {
        let mut waiting = Waiting::default();
        waiting.ask(NodeId(1), GroupId(1), request(1, 4));
        waiting.ask(NodeId(1), GroupId(1), request(2, 0));
        waiting.ask(NodeId(2), GroupId(1), request(1, 0));
        assert_eq!(next(&mut waiting), Some((1, 0)));
        waiting.wait_on(NodeId(1), GroupId(1), request(2, 0));
        assert_eq!(next(&mut waiting), Some((2, 0)));
        assert_eq!(next(&mut waiting), Some((1, 0)));
        assert!(waiting.is_empty());
    }
}
