//! The small durable record of a replica: the term it is in and whom it voted for in it.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::ReplicaId;
use prost::Message as _;

use crate::wire::{PROMISE_US_MAX, TERM_MAX};

const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    /// The lowest version that understands the record.
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    term: u64,
    /// Zero: nobody yet.
    #[prost(uint64, tag = "3")]
    vote: u64,
    #[prost(uint64, tag = "4")]
    promise_us: u64,
}

/// Term and vote (Figure 2 of the paper, "persistent state on all servers"), and the longest promise given to a leader that may still
/// hold ([`crate::lease`]); zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) term: u64,
    pub(crate) vote: Option<ReplicaId>,
    pub(crate) promise: Duration,
}

impl Meta {
    pub(crate) fn encode(self) -> Bytes {
        let vote = self.vote.map_or(0, |replica| replica.0);
        let promise_us = u64::try_from(self.promise.as_micros()).unwrap_or(u64::MAX);
        Record { version: VERSION, term: self.term, vote, promise_us }.encode_to_vec().into()
    }

    /// Reads what [`encode`](Self::encode) wrote, or a later version that this one may read; empty bytes are the first boot.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let record = Record::decode(bytes).ok()?;
        let vote = (record.vote != 0).then_some(ReplicaId(record.vote));
        let is_known = record.version == VERSION;
        let is_sane = record.term <= TERM_MAX && record.promise_us <= PROMISE_US_MAX;
        let promise = Duration::from_micros(record.promise_us);
        (is_known && is_sane).then_some(Self { term: record.term, vote, promise })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back() {
        let promise = Duration::from_millis(1_500);
        let meta = Meta { term: 7, ..Meta::default() };
        for meta in [Meta::default(), meta, Meta { vote: Some(ReplicaId(3)), promise, ..meta }] {
            assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        }
    }

    #[test]
    fn unknown_fields_are_skipped_and_unknown_versions_refused() {
        let meta = Meta { term: 7, ..Meta::default() };
        let mut bytes = meta.encode().to_vec();
        bytes.extend([0x78, 1]); // field 15, varint 1
        assert_eq!(Meta::decode(&bytes), Some(meta));
        assert_eq!(Meta::decode(&[0x08, 2]), None);
        assert_eq!(Meta::decode(&[0xff]), None);
    }
}
