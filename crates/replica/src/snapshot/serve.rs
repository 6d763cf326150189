//! Serving a group's last checkpoint, piece by piece, to replicas that ask for it.

use std::collections::VecDeque;

use bytes::Bytes;
use conclave_consensus::{NodeId, Slot};
use conclave_storage::{SnapshotSource, StateError};
use conclave_transport::SnapshotPrefix;

use super::{BYTES_INFLIGHT_MAX, Chain, PIECES_INFLIGHT_MAX, REPLAY_BYTES};

/// How many replicas of a group may fetch at a time; the least recently served gives way.
const STREAMS_MAX: usize = 4;
/// The size aimed at for a piece.
const PIECE_BYTES: usize = 1 << 20;

/// Which piece is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceRequest {
    /// The asker's name for its fetch.
    pub fetch: u64,
    /// The snapshot must contain this slot.
    pub at_least: Slot,
    /// Which piece.
    pub piece: u64,
    /// What the asker has stored; only a snapshot that begins with it will do.
    pub have: SnapshotPrefix,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is answered.
    Piece {
        /// What comes before.
        after: SnapshotPrefix,
        /// The piece.
        body: Bytes,
        /// Whether it is the last.
        last: bool,
    },
    /// The beginning is being read again, and this call has done its part: call again.
    Later,
    /// It cannot be served: no checkpoint contains what it must, or none begins with what the asker has.
    Gone,
    /// It asks for what it has, or for more than may be under way: it is not answered.
    Nothing,
}

/// Serves a group's last checkpoint to replicas that ask for it piece by piece. Keeps, for each of at most 4, the pieces under way (4 MiB, at most 8
/// pieces) and one read ahead.
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

impl SnapshotServer {
    /// Gives pieces of about this size. Default 1 MiB.
    #[must_use]
    pub fn new(piece_bytes: usize) -> Self {
        Self { piece_bytes, streams: Vec::new() }
    }

    /// Answers a request. `open` gives the last checkpoint, where a fetch begins or its stream was forgotten.
    ///
    /// # Errors
    /// The engine's.
    pub fn serve(
        &mut self,
        to: NodeId,
        request: PieceRequest,
        open: &mut dyn FnMut() -> Option<Box<dyn SnapshotSource>>,
    ) -> Result<Served, StateError> {
        let found = self.streams.iter().position(|s| s.to == to && s.fetch == request.fetch);
        let mut stream = match found {
            Some(at) => self.streams.remove(at),
            None => {
                self.streams.retain(|s| s.to != to);
                let stream = open().map(|source| Stream::open(to, request, source, self.piece_bytes));
                let Some(stream) = stream.transpose()?.flatten() else { return Ok(Served::Gone) };
                stream
            }
        };
        let served = stream.serve(request, self.piece_bytes)?;
        if served != Served::Gone {
            if self.streams.len() >= STREAMS_MAX {
                self.streams.remove(0);
            }
            self.streams.push(stream);
        }
        Ok(served)
    }

    /// Who fetches, the least recently served first.
    #[cfg(test)]
    pub(super) fn askers(&self) -> Vec<u64> {
        self.streams.iter().map(|stream| stream.to.0).collect()
    }

    /// Called once in a while: forgets the fetches that nobody went on with since the last call.
    pub fn sweep(&mut self) {
        self.streams.retain_mut(|stream| std::mem::take(&mut stream.asked));
    }
}

/// One fetch as its source sees it.
#[derive(Debug)]
struct Stream {
    to: NodeId,
    fetch: u64,
    /// Given back with the last piece: it keeps the engine from forgetting anything.
    source: Option<Box<dyn SnapshotSource>>,
    /// Everything before the piece read ahead.
    chain: Chain,
    /// Read ahead, to know whether the piece before is the last.
    ahead: Option<Bytes>,
    /// Whether what the asker has was seen to be the beginning of this snapshot.
    proved: bool,
    /// What was given and may be asked for again.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// Whether a piece was asked for since the last sweep.
    asked: bool,
}

#[derive(Debug)]
struct Kept {
    after: SnapshotPrefix,
    body: Bytes,
    last: bool,
}

impl Stream {
    /// `None` if the checkpoint is not what is asked for.
    fn open(
        to: NodeId,
        request: PieceRequest,
        mut source: Box<dyn SnapshotSource>,
        piece_bytes: usize,
    ) -> Result<Option<Self>, StateError> {
        let slot = source.meta().slot;
        if slot < request.at_least || (request.have.pieces > 0 && !is_of(request.have, slot)) {
            return Ok(None);
        }
        let Some(ahead) = source.next(piece_bytes)? else { return Ok(None) };
        Ok(Some(Self {
            to,
            fetch: request.fetch,
            source: Some(source),
            chain: Chain::new(slot),
            ahead: Some(ahead),
            proved: false,
            kept: VecDeque::new(),
            kept_bytes: 0,
            asked: true,
        }))
    }

    fn serve(&mut self, request: PieceRequest, piece_bytes: usize) -> Result<Served, StateError> {
        let PieceRequest { piece, have, .. } = request;
        self.asked = true;
        if have.pieces > self.chain.prefix().pieces {
            // It got on elsewhere, or this is a new life's stream.
            self.proved = false;
        }
        if !self.proved {
            self.forget_before(u64::MAX);
            let mut bytes = 0;
            while self.chain.prefix().pieces < have.pieces {
                if bytes >= REPLAY_BYTES {
                    return Ok(Served::Later);
                }
                let Some((_, body, _)) = self.next(piece_bytes)? else { return Ok(Served::Gone) };
                bytes += body.len();
            }
        }
        let first = self.kept.front().map_or(self.chain.prefix(), |kept| kept.after);
        if have.pieces < first.pieces {
            return Ok(Served::Nothing);
        }
        self.forget_before(have.pieces);
        let here = self.kept.front().map_or(self.chain.prefix(), |kept| kept.after);
        if !is_same(have, here) {
            return Ok(Served::Gone);
        }
        self.proved = true;
        while self.chain.prefix().pieces <= piece && self.has_room() {
            let Some((after, body, last)) = self.next(piece_bytes)? else { break };
            self.kept_bytes += body.len();
            self.kept.push_back(Kept { after, body, last });
        }
        let served = self.kept.iter().find(|kept| kept.after.pieces == piece);
        Ok(served.map_or(Served::Nothing, |Kept { after, body, last }| Served::Piece {
            after: *after,
            body: body.clone(),
            last: *last,
        }))
    }

    /// The piece read ahead, for which the next is read.
    fn next(&mut self, piece_bytes: usize) -> Result<Option<(SnapshotPrefix, Bytes, bool)>, StateError> {
        let Some(body) = self.ahead.take() else { return Ok(None) };
        if let Some(source) = &mut self.source {
            self.ahead = source.next(piece_bytes)?;
        }
        let last = self.ahead.is_none();
        if last {
            self.source = None;
        }
        let after = self.chain.prefix();
        self.chain.add(&body);
        Ok(Some((after, body, last)))
    }

    fn has_room(&self) -> bool {
        self.kept.is_empty()
            || (self.kept_bytes < BYTES_INFLIGHT_MAX && (self.kept.len() as u64) < PIECES_INFLIGHT_MAX)
    }

    fn forget_before(&mut self, piece: u64) {
        while let Some(kept) = self.kept.pop_front_if(|kept| kept.after.pieces < piece) {
            self.kept_bytes -= kept.body.len();
        }
    }
}

/// Whether what an asker has is of the checkpoint at a slot.
fn is_of(have: SnapshotPrefix, slot: Slot) -> bool {
    #[cfg(feature = "mutants")]
    if conclave_consensus::Mutant::SnapshotsMixed.is_on() {
        return true;
    }
    have.slot == slot.0
}

/// Whether what an asker has is just this. The beginning of the beginning is everybody's.
fn is_same(have: SnapshotPrefix, here: SnapshotPrefix) -> bool {
    #[cfg(feature = "mutants")]
    if conclave_consensus::Mutant::SnapshotsMixed.is_on() {
        return have.pieces == here.pieces;
    }
    have == here || (have.pieces == 0 && here.pieces == 0)
}
