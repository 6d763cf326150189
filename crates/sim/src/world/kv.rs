//! Between the load's own terms and those of the key-value machine.

use bytes::Bytes;
use conclave_api::{
    etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
        ResponseHeader, TxnRequest, compare, request_op, response_op,
    },
    mvccpb::KeyValue,
};
use conclave_kv::{
    KvError, Reply,
    command::{self, Revision},
};

use crate::history::{Action, Answer, Key, Seen, key_bytes, key_of, value_bytes, value_of};

/// The command that a proposal carries; `None` for a read.
pub(crate) fn encode(action: &Action) -> Option<Bytes> {
    Some(match action {
        Action::Put { key, value } => command::put(Revision::Next, &put(*key, *value)),
        Action::Delete { from, to } => {
            let request = DeleteRangeRequest {
                key: key_bytes(*from).into(),
                range_end: key_bytes(*to).into(),
                prev_kv: true,
            };
            command::delete_range(Revision::Next, &request)
        }
        Action::Swap { key, expect, value } => {
            let (target, target_union) = match expect {
                Some(expect) => {
                    (compare::CompareTarget::Value, compare::TargetUnion::Value(value_bytes(*expect).into()))
                }
                None => (compare::CompareTarget::Create, compare::TargetUnion::CreateRevision(0)),
            };
            let compare = Compare {
                result: compare::CompareResult::Equal.into(),
                target: target.into(),
                key: key_bytes(*key).into(),
                target_union: Some(target_union),
                ..Compare::default()
            };
            let request = TxnRequest {
                compare: vec![compare],
                success: vec![operation(request_op::Request::RequestPut(put(*key, *value)))],
                failure: vec![operation(request_op::Request::RequestRange(range(*key, key + 1)))],
            };
            command::txn(Revision::Next, &request)
        }
        Action::PutAll { keys, value } => {
            let puts = keys.iter().map(|key| operation(request_op::Request::RequestPut(put(*key, *value))));
            let request = TxnRequest { success: puts.collect(), ..TxnRequest::default() };
            command::txn(Revision::Next, &request)
        }
        Action::Compact { revision } => {
            command::compaction(&CompactionRequest { revision: *revision, physical: false })
        }
        Action::Read { .. } => return None,
    })
}

/// A read of the keys `from..to`.
pub(crate) fn range(from: Key, to: Key) -> RangeRequest {
    RangeRequest { key: key_bytes(from).into(), range_end: key_bytes(to).into(), ..RangeRequest::default() }
}

fn put(key: Key, value: u64) -> PutRequest {
    PutRequest { key: key_bytes(key).into(), value: value_bytes(value).into(), ..PutRequest::default() }
}

fn operation(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// What a client is told, from the machine's reply.
///
/// # Errors
/// What cannot be: an error where none may be, or a value that is not whole.
pub(crate) fn decode(action: &Action, reply: Bytes) -> Result<Answer, String> {
    let reply = match (action, Reply::decode(reply)) {
        (Action::Compact { .. }, Err(KvError::Etcd(_))) => {
            return Ok(Answer { revision: 0, done: false, seen: Vec::new() });
        }
        (_, Err(error)) => return Err(format!("{action:?} was answered with the error {error}")),
        (_, Ok(reply)) => reply,
    };
    let answer = |header: Option<ResponseHeader>, done, seen| {
        Ok(Answer { revision: header.unwrap_or_default().revision, done, seen })
    };
    match reply {
        Reply::Put(response) => answer(response.header, true, Vec::new()),
        Reply::Compaction(response) => answer(response.header, true, Vec::new()),
        Reply::DeleteRange(response) => {
            let seen = seen(&response.prev_kvs)?;
            if seen.len() as i64 != response.deleted {
                return Err(format!("{} deleted, {} shown", response.deleted, seen.len()));
            }
            answer(response.header, true, seen)
        }
        Reply::Txn(response) => {
            let mut found = Vec::new();
            for operation in &response.responses {
                if let Some(response_op::Response::ResponseRange(range)) = &operation.response {
                    found.extend(seen(&range.kvs)?);
                }
            }
            answer(response.header, response.succeeded, found)
        }
        Reply::Registry => Err(format!("{action:?} was answered as a node's registration")),
        Reply::LeaseGrant(_) | Reply::LeaseRevoke(_) | Reply::LeaseCheckpoint(_) => {
            Err(format!("{action:?} was answered as something about leases"))
        }
    }
}

/// What a read showed.
///
/// # Errors
/// A value that is not whole.
pub(crate) fn answer_of(response: &RangeResponse) -> Result<Answer, String> {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    Ok(Answer { revision, done: true, seen: seen(&response.kvs)? })
}

fn seen(kvs: &[KeyValue]) -> Result<Vec<Seen>, String> {
    kvs.iter()
        .map(|kv| {
            let key = key_of(&kv.key).ok_or_else(|| format!("no key of ours: {:?}", kv.key))?;
            let value = value_of(&kv.value).ok_or_else(|| format!("key {key} holds a mangled value"))?;
            let (modified, created, version) = (kv.mod_revision, kv.create_revision, kv.version);
            Ok(Seen { key, value, modified, created, version })
        })
        .collect()
}
