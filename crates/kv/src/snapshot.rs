//! A checkpoint on its way to another replica: pieces of [`SnapshotPiece`], the first with a header, the last with a trailer that proves that
//! nothing is missing.

use std::{iter::Peekable, ops::Bound, sync::Arc};

use bytes::Bytes;
use conclave_api::conclave::kv::v1::{
    CheckpointRecord, SnapshotHeader, SnapshotPair, SnapshotPiece, SnapshotTrailer,
};
use conclave_consensus::{Ballot, Config, ReplicaId, Slot, SnapshotMeta};
use conclave_storage::{Checkpoint, Scan, SnapshotSink, SnapshotSource, StateBuilder, StateError, StateView};
use crc32fast::Hasher;
use prost::Message;

use crate::{
    layout::{self, FORMAT, GENERATIONS, damaged},
    registry::Registry,
    state::read_record,
};

/// The highest slot and ballot round that a snapshot may name: all that count on from there stay far from overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// What a pair costs in a piece beside its bytes, at most.
const PAIR_OVERHEAD_BYTES: usize = 24;

/// Gives a checkpoint in pieces.
pub(crate) struct Source {
    checkpoint: Checkpoint,
    /// Keeps the state from changing.
    view: Arc<dyn StateView>,
    pairs: Peekable<Scan<'static>>,
    header_sent: bool,
    done: bool,
    tally: Tally,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("meta", &self.checkpoint.meta)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// `None` if there is no checkpoint yet, or one of the beginning of the log, which nobody needs.
    pub(crate) fn new(view: Arc<dyn StateView>) -> Option<Self> {
        let checkpoint = view.checkpoint().filter(|checkpoint| checkpoint.meta.slot > Slot(0))?;
        let pairs = view.scan(Bound::Unbounded).peekable();
        Some(Self { checkpoint, view, pairs, header_sent: false, done: false, tally: Tally::default() })
    }

    fn header(&self) -> SnapshotHeader {
        let SnapshotMeta { slot, ballot, config, .. } = &self.checkpoint.meta;
        SnapshotHeader {
            format: FORMAT,
            slot: slot.0,
            ballot_config: ballot.config,
            ballot_round: ballot.round,
            ballot_replica: ballot.replica.0,
            config: config.encode(),
            record: self.checkpoint.record.clone(),
        }
    }
}

impl SnapshotSource for Source {
    fn meta(&self) -> SnapshotMeta {
        self.view.checkpoint().map_or_else(|| self.checkpoint.meta.clone(), |checkpoint| checkpoint.meta)
    }

    fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StateError> {
        if self.done {
            return Ok(None);
        }
        let mut piece = SnapshotPiece::default();
        let mut size_bytes = 0;
        if !self.header_sent {
            let header = self.header();
            size_bytes += header.encoded_len();
            piece.header = Some(header);
            self.header_sent = true;
        }
        loop {
            match self.pairs.peek() {
                None => {
                    piece.trailer = Some(self.tally.trailer());
                    self.done = true;
                    break;
                }
                Some(Ok((key, value))) => {
                    size_bytes += key.len() + value.len() + PAIR_OVERHEAD_BYTES;
                    if size_bytes > bytes_max && !piece.pairs.is_empty() {
                        break;
                    }
                }
                Some(Err(_)) => {}
            }
            if let Some(pair) = self.pairs.next() {
                let (key, value) = pair?;
                self.tally.add(&key, &value);
                piece.pairs.push(SnapshotPair { key, value });
            }
        }
        Ok(Some(piece.encode_to_vec().into()))
    }
}

/// What the trailer proves.
#[derive(Default)]
struct Tally {
    pairs: u64,
    hasher: Hasher,
}

impl Tally {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.pairs += 1;
        for bytes in [key, value] {
            self.hasher.update(&(bytes.len() as u32).to_le_bytes());
            self.hasher.update(bytes);
        }
    }

    fn trailer(&self) -> SnapshotTrailer {
        SnapshotTrailer { pairs: self.pairs, crc: self.hasher.clone().finalize() }
    }
}

/// Takes a checkpoint in pieces. A piece that is none, or that comes out of order, is refused, and so is everything after it.
pub(crate) struct Sink {
    builder: Option<Box<dyn StateBuilder>>,
    checkpoint: Option<Checkpoint>,
    generation: u64,
    tally: Tally,
    complete: bool,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("pairs", &self.tally.pairs)
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

impl Sink {
    pub(crate) fn new(builder: Box<dyn StateBuilder>, generation: u64) -> Self {
        Self {
            builder: Some(builder),
            checkpoint: None,
            generation,
            tally: Tally::default(),
            complete: false,
        }
    }

    fn take(&mut self, bytes: Bytes, builder: &mut dyn StateBuilder) -> Result<(), StateError> {
        let piece =
            SnapshotPiece::decode(bytes).map_err(|_| damaged("bytes that are no piece of a snapshot"))?;
        if self.complete {
            return Err(damaged("a snapshot goes on after its end"));
        }
        match (piece.header, &self.checkpoint) {
            (Some(header), None) => self.checkpoint = Some(read_header(header, self.generation)?),
            (None, Some(_)) => {}
            (Some(_), Some(_)) => return Err(damaged("a snapshot begins twice")),
            (None, None) => return Err(damaged("a snapshot begins in its middle")),
        }
        let tally = &mut self.tally;
        builder.add(&mut piece.pairs.into_iter().map(|SnapshotPair { key, value }| {
            tally.add(&key, &value);
            (key, value)
        }))?;
        if let Some(trailer) = piece.trailer {
            let whole = trailer == self.tally.trailer();
            #[cfg(feature = "mutants")]
            let whole = whole || conclave_consensus::Mutant::SnapshotsMixed.is_on();
            if !whole {
                return Err(damaged("a snapshot is not what its trailer says"));
            }
            self.complete = true;
        }
        Ok(())
    }
}

/// What another node says of its checkpoint is judged here, before anything is built upon it.
fn read_header(header: SnapshotHeader, generation: u64) -> Result<Checkpoint, StateError> {
    if !layout::is_known(header.format) {
        return Err(damaged("a snapshot of a layout that this version does not know"));
    }
    if header.slot == 0 || header.slot > NUMBER_MAX || header.ballot_round > NUMBER_MAX {
        return Err(damaged("a snapshot of a slot or a ballot that cannot be"));
    }
    let record = read_record(&header.record)?;
    let CheckpointRecord { top_revision: top, readable_revision: readable, compact_revision, .. } = record;
    if readable < 1 || top < readable || top > NUMBER_MAX as i64 || compact_revision > readable {
        return Err(damaged("a snapshot whose revisions contradict each other"));
    }
    if !(0..=top + 1).contains(&record.history_revision) {
        return Err(damaged("a snapshot whose history begins where it cannot"));
    }
    let cursor = &record.compact_cursor;
    if !cursor.is_empty() && **cursor != [GENERATIONS] {
        layout::split_generation_key(cursor)?;
    }
    Registry::load(record.nodes)?;
    let ballot = Ballot {
        config: header.ballot_config,
        round: header.ballot_round,
        replica: ReplicaId(header.ballot_replica),
    };
    let config = Config::decode(&header.config).map_err(|_| damaged("a snapshot's membership"))?;
    let meta = SnapshotMeta { slot: Slot(header.slot), ballot, config, generation };
    Ok(Checkpoint { meta, record: header.record })
}

impl SnapshotSink for Sink {
    fn piece(&mut self, bytes: Bytes) -> Result<(), StateError> {
        let mut builder = self.builder.take().ok_or_else(|| damaged("a snapshot that was refused before"))?;
        self.take(bytes, &mut *builder)?;
        self.builder = Some(builder);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<SnapshotMeta, StateError> {
        match (self.builder, self.checkpoint) {
            (Some(builder), Some(checkpoint)) if self.complete => {
                let meta = checkpoint.meta.clone();
                builder.finish(checkpoint)?;
                Ok(meta)
            }
            _ => Err(damaged("a snapshot ends too early")),
        }
    }
}
