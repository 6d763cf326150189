//! What is proposed to a group, and what its replicas answer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_api::{
    conclave::kv::v1::{
        self, CheckpointLeases, Command, ExpireLeases, LeaseRemaining, RegisterNode, UnregisterNode,
        command::Operation,
    },
    errors::EtcdError,
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
        LeaseCheckpointResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
        LeaseRevokeResponse, PutRequest, PutResponse, TxnRequest, TxnResponse,
    },
};
use conclave_consensus::{NodeId, Slot};
use conclave_storage::StateError;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};

use crate::{
    leases::Granted,
    request_id::{ClientId, RequestId},
};

/// Which revision a command's changes get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revision {
    /// The one after the group's last.
    #[default]
    Next,
    /// One that a sequencer minted, greater than 0. Refused, without effect, unless it is above every revision of the group.
    At(i64),
}

/// A put as a command.
#[must_use]
pub fn put(revision: Revision, request: &PutRequest) -> Bytes {
    encode(revision, 2, request)
}

/// A deletion as a command.
#[must_use]
pub fn delete_range(revision: Revision, request: &DeleteRangeRequest) -> Bytes {
    encode(revision, 3, request)
}

/// A transaction as a command.
#[must_use]
pub fn txn(revision: Revision, request: &TxnRequest) -> Bytes {
    encode(revision, 4, request)
}

/// A compaction as a command. It takes no revision.
#[must_use]
pub fn compaction(request: &CompactionRequest) -> Bytes {
    encode(Revision::Next, 5, request)
}

/// Notes, or replaces, where the other nodes reach one, as a command: at most [`PEER_URLS_MAX`](crate::registry::PEER_URLS_MAX) URLs of at
/// most [`PEER_URL_BYTES_MAX`](crate::registry::PEER_URL_BYTES_MAX) bytes, and whether its replica is to vote. It takes no revision.
#[must_use]
pub fn register_node(id: NodeId, peer_urls: &[String], votes: bool) -> Bytes {
    encode(Revision::Next, 6, &RegisterNode { id: id.0, peer_urls: peer_urls.to_vec(), votes })
}

/// Forgets a node, as a command. It takes no revision, and has no effect on a node that is not known.
#[must_use]
pub fn unregister_node(id: NodeId) -> Bytes {
    encode(Revision::Next, 7, &UnregisterNode { id: id.0 })
}

/// The grant of a lease as a command: the id, which must not be 0, and a time of at least a second are the proposer's to choose. It takes no
/// revision.
#[must_use]
pub fn lease_grant(request: &LeaseGrantRequest) -> Bytes {
    encode(Revision::Next, 9, request)
}

/// The end of a lease, whose keys are deleted, as a command.
#[must_use]
pub fn lease_revoke(revision: Revision, request: &LeaseRevokeRequest) -> Bytes {
    encode(revision, 10, request)
}

/// The end of leases whose time is up, as the leader found, as a command: the keys of all of them are deleted at one revision. Grants that are
/// over are passed over. To be proposed in the ballot in which the leader found it, and in no other: its successor may have renewed them.
#[must_use]
pub fn expire_leases(revision: Revision, leases: &[Granted]) -> Bytes {
    let leases = leases.iter().copied().map(Into::into).collect();
    encode(revision, 11, &ExpireLeases { leases })
}

/// How many seconds leases have left, 0 for all that were granted, as a command. It takes no revision. Grants that are over are passed over. To be
/// proposed as [`expire_leases`] is.
#[must_use]
pub fn checkpoint_leases(leases: &[(Granted, i64)]) -> Bytes {
    let remaining = |(lease, remaining_seconds): &(Granted, i64)| LeaseRemaining {
        lease: Some((*lease).into()),
        remaining_seconds: *remaining_seconds,
    };
    encode(Revision::Next, 12, &CheckpointLeases { leases: leases.iter().map(remaining).collect() })
}

impl From<Granted> for v1::Granted {
    fn from(Granted { id, slot }: Granted) -> Self {
        Self { id, slot: slot.0 }
    }
}

impl From<v1::Granted> for Granted {
    fn from(v1::Granted { id, slot }: v1::Granted) -> Self {
        Self { id, slot: Slot(slot) }
    }
}

/// Gives a command the name of the client's request, by which it is applied once, however often it comes.
#[must_use]
pub fn identified(command: &[u8], RequestId { client, sequence }: RequestId) -> Bytes {
    let client = Bytes::copy_from_slice(&client.0.to_be_bytes());
    // The fields of a message come in any order.
    let id = Command { request_id: Some(v1::RequestId { client, sequence }), ..Command::default() };
    let mut out = BytesMut::with_capacity(command.len() + id.encoded_len());
    out.put_slice(command);
    id.encode_raw(&mut out);
    out.freeze()
}

/// Encodes a [`Command`] around a borrowed request, which the generated type could only do around an owned one.
fn encode(revision: Revision, field: u32, request: &impl Message) -> Bytes {
    let request_bytes = request.encoded_len();
    let mut out = BytesMut::with_capacity(16 + encoded_len_varint(request_bytes as u64) + request_bytes);
    if let Revision::At(at) = revision {
        prost::encoding::int64::encode(1, &at, &mut out);
    }
    encode_key(field, WireType::LengthDelimited, &mut out);
    encode_varint(request_bytes as u64, &mut out);
    request.encode_raw(&mut out);
    out.freeze()
}

/// A command as it is applied.
#[derive(Debug, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) revision: Revision,
    pub(crate) operation: Operation,
    pub(crate) id: Option<RequestId>,
}

/// Reads a command. The messages share the memory of `bytes`.
pub(crate) fn decode(bytes: Bytes) -> Result<Decoded, KvError> {
    let command = Command::decode(bytes).map_err(|_| KvError::Malformed)?;
    let revision = match command.at_revision {
        0 => Revision::Next,
        at if at > 0 => Revision::At(at),
        _ => return Err(KvError::Malformed),
    };
    let id = match command.request_id {
        None => None,
        Some(v1::RequestId { client, sequence }) => {
            let client: [u8; 16] = client.as_ref().try_into().map_err(|_| KvError::Malformed)?;
            Some(RequestId { client: ClientId(u128::from_be_bytes(client)), sequence })
        }
    };
    Ok(Decoded { revision, operation: command.operation.ok_or(KvError::Malformed)?, id })
}

/// Why a request or a command had no effect.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KvError {
    /// One of etcd's errors, with its code and text.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// A minted revision that is not above the group's: another must be minted.
    #[error("the revision minted for the command is not above the group's last one")]
    RevisionPassed,
    /// One node more than a group knows at most.
    #[error("too many nodes are registered")]
    TooManyNodes,
    /// A node to register with more URLs, or longer ones, than are allowed.
    #[error("the node has too many or too long peer URLs")]
    NodeTooLarge,
    /// One lease more than a group grants at a time.
    #[error("etcdserver: too many leases")]
    TooManyLeases,
    /// A request below all of its client's whose outcomes are kept: whether it was applied is not known.
    #[error("etcdserver: request is older than the outcomes kept for this client")]
    RequestTooOld,
    /// The repetition of a request whose answer was larger than [`ANSWER_BYTES_MAX`](crate::ANSWER_BYTES_MAX): it was applied, and had no
    /// error.
    #[error("etcdserver: request was applied at revision {revision}, but its answer was too large to keep")]
    AnswerNotKept {
        /// That of the answer's header.
        revision: i64,
    },
    /// Bytes that are no command.
    #[error("malformed command")]
    Malformed,
    /// Asked for something that the API does not offer.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// The engine cannot serve.
    #[error(transparent)]
    Engine(#[from] StateError),
}

impl KvError {
    /// The error of etcd's that a client is told, if it is one.
    #[must_use]
    pub fn etcd(&self) -> Option<EtcdError> {
        match self {
            Self::Etcd(error) => Some(*error),
            _ => None,
        }
    }
}

/// What a replica answers to the client that waits for a command. Headers carry the revision only.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To a put.
    Put(PutResponse),
    /// To a deletion.
    DeleteRange(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a compaction.
    Compaction(CompactionResponse),
    /// To the registration of a node, or the end of it.
    Registry,
    /// To the grant of a lease.
    LeaseGrant(LeaseGrantResponse),
    /// To the end of a lease, or of several.
    LeaseRevoke(LeaseRevokeResponse),
    /// To the note of how long leases have left.
    LeaseCheckpoint(LeaseCheckpointResponse),
}

const TAG_ERROR: u8 = 0;
const TAG_PUT: u8 = 1;
const TAG_DELETE_RANGE: u8 = 2;
const TAG_TXN: u8 = 3;
const TAG_COMPACTION: u8 = 4;
const TAG_REGISTRY: u8 = 5;
const TAG_LEASE_GRANT: u8 = 6;
const TAG_LEASE_REVOKE: u8 = 7;
const TAG_LEASE_CHECKPOINT: u8 = 8;

/// Numbers for errors that are not etcd's, above all of etcd's.
const ERROR_REVISION_PASSED: u16 = 0xff01;
const ERROR_MALFORMED: u16 = 0xff02;
const ERROR_TOO_MANY_NODES: u16 = 0xff03;
const ERROR_NODE_TOO_LARGE: u16 = 0xff04;
const ERROR_REQUEST_TOO_OLD: u16 = 0xff05;
const ERROR_ANSWER_NOT_KEPT: u16 = 0xff06;
const ERROR_TOO_MANY_LEASES: u16 = 0xff07;

impl Reply {
    /// Encodes the outcome of a command: a tag byte, then the response, or the error's number and what else it tells.
    pub(crate) fn encode(outcome: &Result<Self, KvError>) -> Bytes {
        match outcome {
            Ok(Self::Put(response)) => tagged(TAG_PUT, response),
            Ok(Self::DeleteRange(response)) => tagged(TAG_DELETE_RANGE, response),
            Ok(Self::Txn(response)) => tagged(TAG_TXN, response),
            Ok(Self::Compaction(response)) => tagged(TAG_COMPACTION, response),
            Ok(Self::Registry) => Bytes::from_static(&[TAG_REGISTRY]),
            Ok(Self::LeaseGrant(response)) => tagged(TAG_LEASE_GRANT, response),
            Ok(Self::LeaseRevoke(response)) => tagged(TAG_LEASE_REVOKE, response),
            Ok(Self::LeaseCheckpoint(response)) => tagged(TAG_LEASE_CHECKPOINT, response),
            Err(error) => {
                let number = match error {
                    KvError::Etcd(error) => error.number(),
                    KvError::RevisionPassed => ERROR_REVISION_PASSED,
                    KvError::TooManyNodes => ERROR_TOO_MANY_NODES,
                    KvError::NodeTooLarge => ERROR_NODE_TOO_LARGE,
                    KvError::TooManyLeases => ERROR_TOO_MANY_LEASES,
                    KvError::RequestTooOld => ERROR_REQUEST_TOO_OLD,
                    KvError::AnswerNotKept { .. } => ERROR_ANSWER_NOT_KEPT,
                    // The other two never come out of `apply`.
                    KvError::Malformed | KvError::Unimplemented(_) | KvError::Engine(_) => ERROR_MALFORMED,
                };
                let mut out = BytesMut::with_capacity(3 + 8);
                out.put_u8(TAG_ERROR);
                out.put_u16(number);
                if let KvError::AnswerNotKept { revision } = error {
                    out.put_i64(*revision);
                }
                out.freeze()
            }
        }
    }

    /// The revision that its header tells.
    pub(crate) fn revision(&self) -> i64 {
        let header = match self {
            Self::Put(response) => &response.header,
            Self::DeleteRange(response) => &response.header,
            Self::Txn(response) => &response.header,
            Self::Compaction(response) => &response.header,
            Self::LeaseGrant(response) => &response.header,
            Self::LeaseRevoke(response) => &response.header,
            Self::LeaseCheckpoint(response) => &response.header,
            Self::Registry => &None,
        };
        header.as_ref().map_or(0, |header| header.revision)
    }

    /// Reads what [`StateMachine::apply`](conclave_storage::StateMachine::apply) answered.
    ///
    /// # Errors
    /// The command's own error; [`KvError::Malformed`] too if the bytes are no reply.
    pub fn decode(mut bytes: Bytes) -> Result<Self, KvError> {
        let malformed = |_| KvError::Malformed;
        match bytes.try_get_u8().map_err(|_| KvError::Malformed)? {
            TAG_PUT => Ok(Self::Put(PutResponse::decode(bytes).map_err(malformed)?)),
            TAG_DELETE_RANGE => Ok(Self::DeleteRange(DeleteRangeResponse::decode(bytes).map_err(malformed)?)),
            TAG_TXN => Ok(Self::Txn(TxnResponse::decode(bytes).map_err(malformed)?)),
            TAG_COMPACTION => Ok(Self::Compaction(CompactionResponse::decode(bytes).map_err(malformed)?)),
            TAG_REGISTRY if bytes.is_empty() => Ok(Self::Registry),
            TAG_LEASE_GRANT => Ok(Self::LeaseGrant(LeaseGrantResponse::decode(bytes).map_err(malformed)?)),
            TAG_LEASE_REVOKE => Ok(Self::LeaseRevoke(LeaseRevokeResponse::decode(bytes).map_err(malformed)?)),
            TAG_LEASE_CHECKPOINT => {
                Ok(Self::LeaseCheckpoint(LeaseCheckpointResponse::decode(bytes).map_err(malformed)?))
            }
            TAG_ERROR => Err(match bytes.try_get_u16() {
                Ok(ERROR_REVISION_PASSED) => KvError::RevisionPassed,
                Ok(ERROR_TOO_MANY_NODES) => KvError::TooManyNodes,
                Ok(ERROR_NODE_TOO_LARGE) => KvError::NodeTooLarge,
                Ok(ERROR_TOO_MANY_LEASES) => KvError::TooManyLeases,
                Ok(ERROR_REQUEST_TOO_OLD) => KvError::RequestTooOld,
                Ok(ERROR_ANSWER_NOT_KEPT) => bytes
                    .try_get_i64()
                    .map_or(KvError::Malformed, |revision| KvError::AnswerNotKept { revision }),
                Ok(number) => EtcdError::from_number(number).map_or(KvError::Malformed, KvError::Etcd),
                Err(_) => KvError::Malformed,
            }),
            _ => Err(KvError::Malformed),
        }
    }
}

fn tagged(tag: u8, response: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + response.encoded_len());
    out.put_u8(tag);
    response.encode_raw(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_back_as_they_were_written() {
        let request = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let operation = Operation::Put(request.clone());
        let expected = Command { at_revision: 7, operation: Some(operation.clone()), request_id: None };
        assert_eq!(put(Revision::At(7), &request), expected.encode_to_vec());
        let expected = Decoded { revision: Revision::Next, operation, id: None };
        assert_eq!(decode(put(Revision::Next, &request)).unwrap(), expected);
        let id = RequestId { client: ClientId(7), sequence: 9 };
        let named = identified(&put(Revision::Next, &request), id);
        assert_eq!(decode(named).unwrap(), Decoded { id: Some(id), ..expected });
        assert!(decode(txn(Revision::Next, &TxnRequest::default())).is_ok());
        assert!(decode(compaction(&CompactionRequest::default())).is_ok());
        assert!(decode(delete_range(Revision::Next, &DeleteRangeRequest::default())).is_ok());
        assert!(decode(register_node(NodeId(7), &["http://a:1".to_owned()], true)).is_ok());
        assert!(decode(unregister_node(NodeId(7))).is_ok());
    }

    #[test]
    fn what_is_no_command_is_an_error() {
        for bytes in [
            &b""[..],
            b"\xff",
            b"\x08\x01",
            b"\x12\x7f",
            b"\x12\x00\x42\x00",
            b"\x12\x00\x42\x11\x0a\x0f123456789abcdef",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x12\x00",
        ] {
            assert!(matches!(decode(Bytes::from_static(bytes)), Err(KvError::Malformed)), "{bytes:?}");
        }
    }

    #[test]
    fn errors_survive_a_reply() {
        for error in [
            KvError::Etcd(EtcdError::Compacted),
            KvError::RevisionPassed,
            KvError::TooManyNodes,
            KvError::NodeTooLarge,
            KvError::TooManyLeases,
            KvError::RequestTooOld,
            KvError::AnswerNotKept { revision: i64::MAX },
            KvError::Malformed,
        ] {
            let text = error.to_string();
            assert_eq!(Reply::decode(Reply::encode(&Err(error))).unwrap_err().to_string(), text);
        }
        assert!(Reply::decode(Bytes::new()).is_err() && Reply::decode(Bytes::from_static(b"\x09")).is_err());
    }
}
