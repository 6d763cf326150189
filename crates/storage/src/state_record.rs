//! How a checkpoint is written down: inside the same sorted run as the data, under a key that no user key can have.
//!
//! Node-local, so a version byte and fixed fields; the engine's blocks carry the checksums.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | slot |
//! | 24 | ballot: configuration, round, replica |
//! | 8 | generation |
//! | 4 + n | membership, as [`Config::encode`] writes it |
//! | rest | the state machine's record |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_consensus::{Ballot, Config, ReplicaId, Slot, SnapshotMeta};

use crate::{Checkpoint, StateError};

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 1 + 8 + 24 + 8 + 4;

/// The record of a checkpoint.
pub(crate) fn encode(checkpoint: &Checkpoint) -> Bytes {
    let SnapshotMeta { slot, ballot, config, generation } = &checkpoint.meta;
    let config = config.encode();
    let mut out = BytesMut::with_capacity(FIXED_BYTES + config.len() + checkpoint.record.len());
    out.put_u8(VERSION);
    out.put_u64(slot.0);
    out.put_u64(ballot.config);
    out.put_u64(ballot.round);
    out.put_u64(ballot.replica.0);
    out.put_u64(*generation);
    out.put_u32(u32::try_from(config.len()).expect("a membership is bounded by MEMBERS_MAX"));
    out.put_slice(&config);
    out.put_slice(&checkpoint.record);
    out.freeze()
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode(mut bytes: &[u8]) -> Result<Checkpoint, StateError> {
    let damaged = |why: &str| StateError::Damaged(format!("checkpoint record: {why}"));
    if bytes.len() < FIXED_BYTES {
        return Err(damaged("too short"));
    }
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(damaged(&format!("unknown version {version}")));
    }
    let slot = Slot(bytes.get_u64());
    let ballot =
        Ballot { config: bytes.get_u64(), round: bytes.get_u64(), replica: ReplicaId(bytes.get_u64()) };
    let generation = bytes.get_u64();
    let config_bytes = bytes.get_u32() as usize;
    let (config, record) =
        bytes.split_at_checked(config_bytes).ok_or_else(|| damaged("membership runs past the end"))?;
    let config = Config::decode(config).map_err(|error| damaged(&error.to_string()))?;
    Ok(Checkpoint {
        meta: SnapshotMeta { slot, ballot, config, generation },
        record: Bytes::copy_from_slice(record),
    })
}

#[cfg(test)]
mod tests {
    use conclave_consensus::NodeId;

    use super::*;

    #[test]
    fn a_record_reads_as_written_and_any_shorter_one_is_damage() {
        let checkpoint = Checkpoint {
            meta: SnapshotMeta {
                slot: Slot(7),
                ballot: Ballot { config: 1, round: 2, replica: ReplicaId(3) },
                config: Config::of_voters([(ReplicaId(1), NodeId(10)), (ReplicaId(2), NodeId(20))]),
                generation: 4,
            },
            record: Bytes::from_static(b"revision"),
        };
        let bytes = encode(&checkpoint);
        assert_eq!(decode(&bytes).unwrap(), checkpoint);
        let head = bytes.len() - checkpoint.record.len();
        for length in 0..head {
            assert!(matches!(decode(&bytes[..length]), Err(StateError::Damaged(_))), "length {length}");
        }
    }
}
