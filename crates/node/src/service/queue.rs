//! Queues of keys, on which locks and elections stand.
//!
//! # How it works
//! Who wants to own a name puts a key of its own, `name/` and its lease in hexadecimal, under its lease. The keys under `name/` are a queue in the
//! order of their creation revisions; the oldest is the owner's. Clients that do the same by themselves, as etcd's do, stand in the same queue.
//!
//! # Invariants
//! 1. First come, first served, by creation revision: no key can come to stand before one that is there.
//! 2. Who waits watches its predecessor's key and its own, so one that leaves wakes one.
//! 3. Ownership is answered only after a read that began after the wait was over has found the own key, as it was created: a session that was lost while
//!    it waited owns nothing. The loss of the own key ends the wait at once.
//! 4. A call that is given up, or fails, leaves no key behind that it put. What is not known to be put is left to its lease.

use std::sync::Arc;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse,
    compare::{CompareTarget, TargetUnion},
    range_request::{SortOrder, SortTarget},
    request_op::Request,
    response_op::Response,
};
use conclave_api::mvccpb::KeyValue;
use conclave_kv::command::{self, Revision};
use conclave_kv::validate::validate_txn;
use conclave_kv::{KvError, Reply};
use tokio::sync::oneshot;
use tonic::Status;

use super::Serving;
use super::serving::refusal;
use crate::awaited::{Awaited, Waiting};

/// How long a session lasts, in seconds, that a server begins for who has no lease: etcd's choice.
const SESSION_SECONDS: i64 = 60;

/// The metadata of an answer by which it tells the fencing token: the creation revision of the owner's key, which only grows from owner to owner.
const FENCING_TOKEN: &str = "conclave-fencing-token";

/// A name that can be owned.
#[derive(Clone)]
pub(super) struct Queue {
    serving: Arc<Serving>,
    /// The name and a slash.
    folder: Bytes,
}

/// A place in a queue: a key that was put, or found, for a lease.
pub(super) struct Place {
    pub(super) key: Bytes,
    pub(super) created: i64,
    pub(super) lease: i64,
    /// As it was found; its value is another's if the key was there before.
    pub(super) found: Option<KeyValue>,
    header: Option<ResponseHeader>,
    /// Leaves the queue when it is dropped.
    leaving: Leaving,
}

/// What a call has put and has to take back if it comes to nothing.
struct Leaving {
    serving: Arc<Serving>,
    /// A key by its creation revision.
    key: Option<(Bytes, i64)>,
    /// A session that this server began for the call.
    session: Option<i64>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let (key, session) = (self.key.take(), self.session.take());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let command = match (session, key) {
            (Some(id), _) => command::lease_revoke(Revision::Next, &LeaseRevokeRequest { id }),
            (None, Some((key, created))) => command::txn(Revision::Next, &deletion(key, created)),
            (None, None) => return,
        };
        let serving = self.serving.clone();
        runtime.spawn(async move {
            // What cannot be taken back now is over with its lease.
            if let Err(error) = serving.apply(None, command).await {
                tracing::debug!(%error, "a place in a queue is left to its lease");
            }
        });
    }
}

impl Leaving {
    /// The call came to what it was for.
    fn stay(&mut self) {
        (self.key, self.session) = (None, None);
    }
}

/// Deletes a key if it is still the one that was created at a revision.
pub(super) fn deletion(key: Bytes, created: i64) -> TxnRequest {
    let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
    TxnRequest {
        compare: vec![created_at(key, created)],
        success: vec![RequestOp { request: Some(Request::RequestDeleteRange(delete)) }],
        failure: Vec::new(),
    }
}

/// That a key was created at a revision; at 0, that there is none.
pub(super) fn created_at(key: Bytes, created: i64) -> Compare {
    Compare {
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(created)),
        ..Compare::default()
    }
}

impl Serving {
    /// Checks and replicates a transaction of the server's own making.
    pub(super) async fn transact(&self, request: &TxnRequest) -> Result<TxnResponse, Status> {
        validate_txn(request, &self.limits).map_err(refusal)?;
        match self.apply(None, command::txn(Revision::Next, request)).await? {
            Reply::Txn(mut response) => {
                self.fill(response.header.get_or_insert_default());
                Ok(response)
            }
            _ => Err(refusal(KvError::Malformed)),
        }
    }

    /// Waits for changes of this member's store.
    pub(super) fn begin_waiting(&self, awaited: Awaited) -> Result<Waiting, Status> {
        self.backend.key_changes().begin(awaited).ok_or_else(|| EtcdError::TooManyRequests.into())
    }
}

/// Says which fencing token an answer comes with.
pub(super) fn fenced<T>(answer: T, token: i64) -> tonic::Response<T> {
    let mut response = tonic::Response::new(answer);
    response.metadata_mut().insert(FENCING_TOKEN, token.into());
    response
}

impl Queue {
    pub(super) fn new(serving: &Arc<Serving>, name: &[u8]) -> Self {
        let folder = [name, b"/"].concat().into();
        Self { serving: serving.clone(), folder }
    }

    pub(super) fn folder(&self) -> &Bytes {
        &self.folder
    }

    /// All keys of the queue.
    fn keys(&self) -> RangeRequest {
        // A slash's successor ends the range.
        let mut range_end = self.folder.to_vec();
        if let Some(slash) = range_end.last_mut() {
            *slash += 1;
        }
        RangeRequest { key: self.folder.clone(), range_end: range_end.into(), ..RangeRequest::default() }
    }

    /// The first of the queue, as this member's store has it, and the store's revision.
    pub(super) fn first(&self) -> Result<(Option<KeyValue>, i64), Status> {
        let oldest = RangeRequest {
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            limit: 1,
            ..self.keys()
        };
        let mut response = self.serving.backend.reader().range(&oldest).map_err(refusal)?;
        Ok((response.kvs.pop(), response.header.map_or(0, |header| header.revision)))
    }

    /// Puts a key into the queue, or finds the one that the lease has there already. Without a lease it begins a session. The call may be given up
    /// at any time: what it is about to put is taken back then.
    pub(super) async fn enter(&self, lease: i64, value: Bytes) -> Result<Place, Status> {
        let (answer, place) = oneshot::channel();
        let queue = self.clone();
        tokio::spawn(async move {
            // If nobody waits any more, the place is dropped, and with it left.
            let _ = answer.send(queue.enter_here(lease, value).await);
        });
        place.await.unwrap_or_else(|_| Err(EtcdError::Stopped.into()))
    }

    async fn enter_here(&self, lease: i64, value: Bytes) -> Result<Place, Status> {
        let serving = &self.serving;
        let mut leaving = Leaving { serving: serving.clone(), key: None, session: None };
        let lease = if lease == 0 {
            let session = LeaseGrantRequest { ttl: SESSION_SECONDS, id: 0 };
            let id = serving.grant_lease(None, session).await?.id;
            leaving.session = Some(id);
            id
        } else {
            lease
        };
        let key: Bytes = [&self.folder[..], hexadecimal(lease).as_bytes()].concat().into();
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let response = serving
            .transact(&TxnRequest {
                compare: vec![created_at(key.clone(), 0)],
                success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
                failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
            })
            .await?;
        let header = response.header;
        let found = match response.responses.into_iter().next().and_then(|op| op.response) {
            Some(Response::ResponseRange(mut range)) => range.kvs.pop(),
            _ => None,
        };
        let created = match &found {
            Some(kv) => kv.create_revision,
            None => header.as_ref().map_or(0, |header| header.revision),
        };
        if response.succeeded {
            leaving.key = Some((key.clone(), created));
        }
        Ok(Place { key, created, lease, found, header, leaving })
    }

    /// Waits until a place is the first of its queue.
    ///
    /// # Errors
    /// `lost` if the place's key is gone; what a read can end with; `Stopped` when the node stops.
    pub(super) async fn wait(
        &self,
        place: &Place,
        lost: &'static str,
    ) -> Result<Option<ResponseHeader>, Status> {
        if self.predecessor(place.created)?.is_none() {
            // The command that put or found the key told of it.
            return Ok(place.header);
        }
        let lost = || Status::unknown(lost);
        let mut own = self.serving.begin_waiting(Awaited::Key((*place.key).into()))?;
        while let Some(before) = self.predecessor(place.created)? {
            let mut left = self.serving.begin_waiting(Awaited::Key((*before.key).into()))?;
            loop {
                if !self.is_there(&place.key, place.created)? {
                    return Err(lost());
                }
                if !self.is_there(&before.key, before.create_revision)? {
                    break;
                }
                tokio::select! {
                    () = left.changed() => {}
                    () = own.changed() => {}
                    () = self.serving.stopped() => return Err(EtcdError::Stopped.into()),
                }
            }
        }
        // What was applied elsewhere may not be here yet, as that the lease is over.
        self.serving.read_barrier().await?;
        let header = self.serving.header();
        if self.is_there(&place.key, place.created)? { Ok(Some(header)) } else { Err(lost()) }
    }

    /// The last key that was created before a revision. None can be added: whoever has none before it is the first.
    fn predecessor(&self, created: i64) -> Result<Option<KeyValue>, Status> {
        let newest = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Create.into(),
            limit: 1,
            keys_only: true,
            // The first revision of a key is 2, so this is never the 0 that stands for no bound.
            max_create_revision: created - 1,
            ..self.keys()
        };
        let mut response = self.serving.backend.reader().range(&newest).map_err(refusal)?;
        Ok(response.kvs.pop())
    }

    /// Whether this member's store has a key as it was created at a revision.
    fn is_there(&self, key: &Bytes, created: i64) -> Result<bool, Status> {
        let get = RangeRequest { key: key.clone(), keys_only: true, ..RangeRequest::default() };
        let response = self.serving.backend.reader().range(&get).map_err(refusal)?;
        Ok(response.kvs.first().is_some_and(|kv| kv.create_revision == created))
    }
}

impl Place {
    /// The key stays: its owner was told, and it is over with the lease.
    pub(super) fn stay(mut self) {
        self.leaving.stay();
    }
}

/// A lease as Go prints it.
fn hexadecimal(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_written_as_go_writes_them() {
        assert_eq!(
            [1, 0x7fff_ffff_0000_00ab, -255, i64::MIN].map(hexadecimal),
            ["1", "7fffffff000000ab", "-ff", "-8000000000000000"]
        );
    }
}
