//! Putting a snapshot together beside the present state.

use bytes::Bytes;
use conclave_consensus::{GroupId, Slot};
use conclave_storage::{SnapshotSink, StateError};
use conclave_transport::SnapshotPrefix;

use super::Chain;
use crate::HostInput;

/// A piece to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivedPiece {
    /// Which fetch. A new one begins with piece 0 and throws away what an older one stored.
    pub fetch: u64,
    /// The state generation to build.
    pub generation: u64,
    /// What comes before the piece.
    pub after: SnapshotPrefix,
    /// The piece.
    pub body: Bytes,
    /// Whether it is the last.
    pub last: bool,
}

/// Takes in a group's snapshots, one at a time.
#[derive(Debug, Default)]
pub struct SnapshotReceiver {
    building: Option<Building>,
}

#[derive(Debug)]
struct Building {
    fetch: u64,
    sink: Box<dyn SnapshotSink>,
    chain: Chain,
    bytes: u64,
}

impl SnapshotReceiver {
    /// Stores a piece if it continues what is here, and says to the host what became of it. `open` begins a generation. What cannot be
    /// gone on with, be it that the piece is none or that the disk is full, is dropped, and leaves nothing.
    pub fn store(
        &mut self,
        group: GroupId,
        piece: ArrivedPiece,
        open: &mut dyn FnMut(u64) -> Result<Box<dyn SnapshotSink>, StateError>,
    ) -> HostInput {
        let fetch = piece.fetch;
        self.try_store(group, piece, open).unwrap_or_else(|error| {
            tracing::warn!(%group, fetch, %error, "a snapshot cannot be taken in");
            HostInput::SnapshotBroken { group, fetch }
        })
    }

    /// Drops what a fetch has stored.
    pub fn forget(&mut self, fetch: u64) {
        self.building.take_if(|building| building.fetch == fetch);
    }

    fn try_store(
        &mut self,
        group: GroupId,
        piece: ArrivedPiece,
        open: &mut dyn FnMut(u64) -> Result<Box<dyn SnapshotSink>, StateError>,
    ) -> Result<HostInput, StateError> {
        let ArrivedPiece { fetch, generation, after, body, last } = piece;
        let mut building = match self.building.take() {
            Some(building) if building.fetch == fetch => building,
            older if after.pieces == 0 => {
                // Before the next is begun: an unfinished sink leaves nothing.
                drop(older);
                let sink = open(generation)?;
                tracing::info!(%group, fetch, slot = after.slot, generation, "fetching a snapshot");
                Building { fetch, sink, chain: Chain::new(Slot(after.slot)), bytes: 0 }
            }
            other => {
                self.building = other;
                return Ok(HostInput::SnapshotBroken { group, fetch });
            }
        };
        if !building.continues(after) {
            self.building = Some(building);
            return Ok(HostInput::PieceStrange { group, fetch, piece: after.pieces });
        }
        building.chain.add(&body);
        building.bytes += body.len() as u64;
        building.sink.piece(body)?;
        let bytes = building.bytes;
        if last {
            let meta = building.sink.finish()?;
            tracing::info!(%group, fetch, slot = meta.slot.0, bytes, "snapshot fetched");
            return Ok(HostInput::SnapshotStored { group, fetch, meta });
        }
        let have = building.chain.prefix();
        tracing::debug!(%group, fetch, piece = after.pieces, bytes, "snapshot piece stored");
        self.building = Some(building);
        Ok(HostInput::PieceStored { group, fetch, have })
    }
}

impl Building {
    fn continues(&self, after: SnapshotPrefix) -> bool {
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::SnapshotsMixed.is_on() {
            return after.pieces == self.chain.prefix().pieces;
        }
        after == self.chain.prefix()
    }
}
