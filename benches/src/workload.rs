//! What the clients ask for.

use std::fmt;

use bytes::Bytes;
use clap::ValueEnum;
use conclave_api::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, compare::CompareResult, compare::CompareTarget,
    compare::TargetUnion, request_op,
};

use crate::connection::{Answer, Call, Framed};

/// The length of every value in bytes.
pub const VALUE_BYTES: usize = 256;
/// How many keys [`Workload::Range`] asks for.
pub const RANGE_KEYS: u64 = 1000;

/// A kind of request, drawn for random keys of the filled key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Writes a value of 256 bytes.
    Put,
    /// Reads one key, linearizable.
    Get,
    /// Reads one key from the state that the asked node has.
    SerializableGet,
    /// If the key exists (it does), writes it.
    Txn,
    /// Reads a thousand keys, linearizable.
    Range,
}

impl Workload {
    /// All of them. Writes come first: their measure of memory is not to be coloured by reads.
    pub const ALL: [Workload; 5] =
        [Workload::Put, Workload::Txn, Workload::Get, Workload::SerializableGet, Workload::Range];

    /// The method to call.
    pub fn call(self) -> Call {
        match self {
            Workload::Put => Call::Put,
            Workload::Txn => Call::Txn,
            Workload::Get | Workload::SerializableGet | Workload::Range => Call::Range,
        }
    }

    /// Draws a request for a key space of `keys` keys.
    pub fn request(self, random: &mut Random, keys: u64) -> Framed {
        let index = random.below(keys);
        match self {
            Workload::Put => Framed::new(&put(index, random)),
            Workload::Get | Workload::SerializableGet => Framed::new(&RangeRequest {
                key: key(index),
                serializable: self == Workload::SerializableGet,
                ..RangeRequest::default()
            }),
            Workload::Txn => Framed::new(&TxnRequest {
                compare: vec![Compare {
                    result: CompareResult::Greater.into(),
                    target: CompareTarget::Create.into(),
                    key: key(index),
                    target_union: Some(TargetUnion::CreateRevision(0)),
                    ..Compare::default()
                }],
                success: vec![put_op(index, random)],
                failure: Vec::new(),
            }),
            Workload::Range => {
                let first = random.below(keys.saturating_sub(RANGE_KEYS).max(1));
                let past = first + RANGE_KEYS;
                Framed::new(&RangeRequest {
                    key: key(first),
                    range_end: key(past),
                    ..RangeRequest::default()
                })
            }
        }
    }

    /// Whether an answer is as large as what was asked for. This is all the checking that a measured client can afford;
    /// what the answers say is checked by the tests.
    pub fn accepts(self, answer: &Answer, keys: u64) -> bool {
        match self {
            Workload::Put | Workload::Txn => !answer.is_empty(),
            Workload::Get | Workload::SerializableGet => answer.len() > VALUE_BYTES,
            Workload::Range => answer.len() as u64 > keys.min(RANGE_KEYS) * VALUE_BYTES as u64,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::SerializableGet => "serializable get",
            Workload::Txn => "txn",
            Workload::Range => "range of 1000",
        })
    }
}

/// The key of 24 bytes with this index; keys sort as their indices.
pub fn key(index: u64) -> Bytes {
    Bytes::from(format!("bench/{index:018}"))
}

/// A put of a fresh value.
pub fn put(index: u64, random: &mut Random) -> PutRequest {
    PutRequest { key: key(index), value: random.value(), ..PutRequest::default() }
}

/// The same as an operation of a transaction.
pub fn put_op(index: u64, random: &mut Random) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(put(index, random))) }
}

/// A small random generator (splitmix64): requests are drawn in the measured loop.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 if there is none.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// A value that does not compress.
    pub fn value(&mut self) -> Bytes {
        (0..VALUE_BYTES / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_24_bytes_and_sort_as_their_indices() {
        assert_eq!(key(7).len(), 24);
        assert!(key(9) < key(10) && key(999_999) < key(1_000_000));
    }

    #[test]
    fn values_have_256_bytes_and_differ() {
        let mut random = Random::new(1);
        let (a, b) = (random.value(), random.value());
        assert_eq!(a.len(), VALUE_BYTES);
        assert_ne!(a, b);
    }
}
