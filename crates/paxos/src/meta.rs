//! The small durable record of a replica: what it promised, and what it knew to be chosen.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{Ballot, Slot};
use prost::Message as _;

use crate::{
    synod::Promise,
    wire::{PROMISE_US_MAX, ROUND_MAX, SLOT_MAX, WireBallot},
};

const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    /// The lowest version that understands the record.
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, required, tag = "2")]
    promised: WireBallot,
    #[prost(uint64, tag = "3")]
    promise_us: u64,
    #[prost(uint64, tag = "4")]
    chosen: u64,
}

/// What an acceptor must not forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// One promise for all slots.
    pub(crate) promise: Promise,
    /// The longest promise to a lease that may still hold ([`crate::lease`]); zero for none.
    pub(crate) lease: Duration,
}

impl Meta {
    /// `chosen` is a hint: what was known chosen, and held, when this was written. Without it a boot would have everything chosen again that
    /// stands above the state.
    pub(crate) fn encode(self, chosen: Slot) -> Bytes {
        let promise_us = u64::try_from(self.lease.as_micros()).unwrap_or(u64::MAX);
        let promised = self.promise.ballot().into();
        Record { version: VERSION, promised, promise_us, chosen: chosen.0 }.encode_to_vec().into()
    }

    /// Reads what [`encode`](Self::encode) wrote, or a later version that this one may read; empty bytes are the first boot.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, Slot)> {
        if bytes.is_empty() {
            return Some((Self::default(), Slot(0)));
        }
        let record = Record::decode(bytes).ok()?;
        let promised = Ballot::from(record.promised);
        let is_sane = promised.round <= ROUND_MAX
            && promised.config <= ROUND_MAX
            && record.promise_us <= PROMISE_US_MAX
            && record.chosen <= SLOT_MAX;
        let (promise, lease) = (Promise::new(promised), Duration::from_micros(record.promise_us));
        (record.version == VERSION && is_sane).then_some((Self { promise, lease }, Slot(record.chosen)))
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::ReplicaId;

    use super::*;

    #[test]
    fn a_record_reads_back() {
        let promise = Promise::new(Ballot { config: 2, round: 7, replica: ReplicaId(3) });
        for meta in [Meta::default(), Meta { promise, lease: Duration::from_millis(1_500) }] {
            assert_eq!(Meta::decode(&meta.encode(Slot(9))), Some((meta, Slot(9))));
        }
    }

    #[test]
    fn unknown_fields_are_skipped_and_unknown_versions_refused() {
        let meta = Meta { promise: Promise::new(Ballot::term(7)), ..Meta::default() };
        let mut bytes = meta.encode(Slot(1)).to_vec();
        bytes.extend([0x78, 1]); // field 15, varint 1
        assert_eq!(Meta::decode(&bytes), Some((meta, Slot(1))));
        bytes[1] = 2;
        assert_eq!(Meta::decode(&bytes), None);
        assert_eq!(Meta::decode(&[0xff]), None);
    }
}
