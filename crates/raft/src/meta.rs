//! The small durable record of a replica: the term it is in and whom it voted for in it.

use bytes::Bytes;
use conclave_consensus::ReplicaId;
use prost::Message as _;

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
}

/// Term and vote (Figure 2 of the paper, "persistent state on all servers").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) term: u64,
    pub(crate) vote: Option<ReplicaId>,
}

impl Meta {
    pub(crate) fn encode(self) -> Bytes {
        let vote = self.vote.map_or(0, |replica| replica.0);
        Record { version: VERSION, term: self.term, vote }.encode_to_vec().into()
    }

    /// Reads what [`encode`](Self::encode) wrote, or a later version that this one may read; empty bytes are the first boot.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let record = Record::decode(bytes).ok()?;
        let vote = (record.vote != 0).then_some(ReplicaId(record.vote));
        (record.version == VERSION && record.term <= crate::wire::TERM_MAX)
            .then_some(Self { term: record.term, vote })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back() {
        for meta in
            [Meta::default(), Meta { term: 7, vote: None }, Meta { term: 8, vote: Some(ReplicaId(3)) }]
        {
            assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        }
    }

    #[test]
    fn unknown_fields_are_skipped_and_unknown_versions_refused() {
        let mut bytes = Meta { term: 7, vote: None }.encode().to_vec();
        bytes.extend([0x78, 1]); // field 15, varint 1
        assert_eq!(Meta::decode(&bytes), Some(Meta { term: 7, vote: None }));
        assert_eq!(Meta::decode(&[0x08, 2]), None);
        assert_eq!(Meta::decode(&[0xff]), None);
    }
}
