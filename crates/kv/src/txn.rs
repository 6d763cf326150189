//! Evaluation of the commands that do more than put a value.
//!
//! A transaction runs in three steps: every comparison, nested ones too, is judged on the state before; then the operations on the paths
//! chosen are checked, so that nothing can fail half-way; then they run, each seeing what those before it did. Nobody else
//! sees any of it until the revision is published.

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RequestOp,
        ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};

use crate::{
    command::KvError,
    interval::Interval,
    leases::Ended,
    pages::{Filter, View, read_all},
    range::{self, header},
    state::Shared,
};

/// So many keys are deleted under one hold of the lock.
const DELETE_KEYS_MAX: usize = 1024;
/// So many keys are compared at once.
const COMPARE_KEYS_MAX: usize = 1024;

/// The evaluation of one command.
pub(crate) struct Evaluation<'a> {
    shared: &'a Shared,
    /// The state before the command.
    before: View,
    /// The revision that changes get.
    revision: i64,
    /// The next change's number among those of the revision.
    index: u32,
    /// Whether anybody waits for the answer. If not, reads are left out, as they change nothing.
    answers: bool,
}

impl<'a> Evaluation<'a> {
    pub(crate) fn new(shared: &'a Shared, before: View, revision: i64, answers: bool) -> Self {
        Self { shared, before, revision, index: 0, answers }
    }

    /// Ends the command: what it changed becomes readable. Returns the store's revision.
    pub(crate) fn publish(self) -> i64 {
        if self.index > 0 {
            self.shared.state.write().publish(self.revision);
        }
        self.now().revision
    }

    /// The state as the command's next operation sees it.
    fn now(&self) -> View {
        View { revision: if self.index > 0 { self.revision } else { self.before.revision }, ..self.before }
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), KvError> {
        if request.lease != 0 && !self.shared.state.read().leases.contains(request.lease) {
            return Err(EtcdError::LeaseNotFound.into());
        }
        if (request.ignore_value || request.ignore_lease)
            && self.shared.get(&request.key, self.before, false)?.is_none()
        {
            return Err(EtcdError::KeyNotFound.into());
        }
        Ok(())
    }

    /// A put. Its header is filled in for the response of an operation.
    pub(crate) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, KvError> {
        self.check_put(request)?;
        self.checked_put(request)
    }

    fn checked_put(&mut self, request: &PutRequest) -> Result<PutResponse, KvError> {
        let PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
        let wants_before = *prev_kv && self.answers;
        let before = if wants_before || *ignore_value || *ignore_lease {
            self.shared.get(key, self.now(), wants_before || *ignore_value)?
        } else {
            None
        };
        let kept = |ignored: bool| before.as_ref().filter(|_| ignored);
        let value: &[u8] = kept(*ignore_value).map_or(value, |before| &before.value);
        let lease = kept(*ignore_lease).map_or(*lease, |before| before.lease);
        self.shared.state.write().put(key, value, lease, self.revision, self.index);
        self.index += 1;
        Ok(PutResponse { header: header(self.revision), prev_kv: before.filter(|_| wants_before) })
    }

    /// A deletion.
    pub(crate) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, KvError> {
        let interval = Interval::new(&request.key, &request.range_end);
        let mut response = DeleteRangeResponse::default();
        if request.prev_kv && self.answers {
            response.prev_kvs =
                read_all(self.shared, &interval, self.now(), &Filter::default(), true, usize::MAX)?.kvs;
        }
        if interval.single().is_some() {
            let deleted = self.shared.state.write().delete(&request.key, self.revision, self.index);
            self.index += u32::from(deleted);
            response.deleted = i64::from(deleted);
        } else {
            let mut rest = Some(interval.clone());
            while let Some(part) = rest.take() {
                let mut state = self.shared.state.write();
                let (deleted, resume) =
                    state.delete_some(&part, self.revision, &mut self.index, DELETE_KEYS_MAX);
                response.deleted += deleted;
                rest = resume.map(|key| interval.rest(Bytes::from(key)));
            }
        }
        response.header = header(self.now().revision);
        Ok(response)
    }

    /// Deletes what was attached to a lease that is over, in the order of the keys.
    pub(crate) fn end(&mut self, lease: Ended) {
        let mut keys = lease.keys.into_iter().peekable();
        while keys.peek().is_some() {
            let mut state = self.shared.state.write();
            for key in keys.by_ref().take(DELETE_KEYS_MAX) {
                self.index += u32::from(state.delete(&key, self.revision, self.index));
            }
        }
    }

    /// A transaction.
    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, KvError> {
        let mut path = Vec::new();
        self.choose(request, &mut path)?;
        self.check(request, &mut path.iter().copied())?;
        let mut response = self.run(request, &mut path.iter().copied())?;
        response.header = header(self.now().revision);
        Ok(response)
    }

    /// Judges the comparisons of a transaction and of those nested in the branch it takes, in the order in which they are met.
    fn choose(&self, request: &TxnRequest, path: &mut Vec<bool>) -> Result<(), KvError> {
        let mut holds = true;
        for compare in &request.compare {
            if !self.holds(compare)? {
                holds = false;
                break;
            }
        }
        path.push(holds);
        for op in branch(request, holds) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    /// Finds what would fail, before anything has run.
    fn check(&self, request: &TxnRequest, path: &mut dyn Iterator<Item = bool>) -> Result<(), KvError> {
        for op in branch(request, path.next() == Some(true)) {
            match &op.request {
                Some(Request::RequestRange(range)) => self.check_range(range)?,
                Some(Request::RequestPut(put)) => self.check_put(put)?,
                Some(Request::RequestTxn(nested)) => self.check(nested, path)?,
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    fn check_range(&self, range: &RangeRequest) -> Result<(), KvError> {
        if range.revision > self.before.revision {
            return Err(EtcdError::FutureRev.into());
        }
        if range.revision != 0 && range.revision < self.shared.state.read().compacted {
            return Err(EtcdError::Compacted.into());
        }
        Ok(())
    }

    fn run(
        &mut self,
        request: &TxnRequest,
        path: &mut dyn Iterator<Item = bool>,
    ) -> Result<TxnResponse, KvError> {
        let succeeded = path.next() == Some(true);
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let response = match &op.request {
                Some(Request::RequestRange(_)) if !self.answers => None,
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(range::execute(self.shared, range, self.now())?))
                }
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.checked_put(put)?)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(self.delete_range(delete)?))
                }
                Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(self.run(nested, path)?)),
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        // A nested response has a header without numbers, as etcd's has.
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }

    fn holds(&self, compare: &Compare) -> Result<bool, KvError> {
        let interval = Interval::new(&compare.key, &compare.range_end);
        let by_value = compare.target() == CompareTarget::Value;
        let mut any = false;
        let mut rest = Some(interval.clone());
        while let Some(part) = rest.take() {
            let page =
                self.shared.page(&part, self.before, &Filter::default(), by_value, COMPARE_KEYS_MAX)?;
            any |= !page.kvs.is_empty();
            if !page.kvs.iter().all(|kv| relates(compare, kv)) {
                return Ok(false);
            }
            rest = page.resume.map(|key| interval.rest(key));
        }
        // A key that does not exist has numbers, all zero, but no value.
        Ok(any || (!by_value && relates(compare, &KeyValue::default())))
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Whether a key is as a comparison demands. What is given in another field than the target's counts as zero or empty.
fn relates(compare: &Compare, kv: &KeyValue) -> bool {
    let given = compare.target_union.as_ref();
    let order = match (CompareTarget::try_from(compare.target), given) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(given))) => kv.version.cmp(given),
        (Ok(CompareTarget::Version), _) => kv.version.cmp(&0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(given))) => {
            kv.create_revision.cmp(given)
        }
        (Ok(CompareTarget::Create), _) => kv.create_revision.cmp(&0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(given))) => kv.mod_revision.cmp(given),
        (Ok(CompareTarget::Mod), _) => kv.mod_revision.cmp(&0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(given))) => kv.value.cmp(given),
        (Ok(CompareTarget::Value), _) => kv.value.as_ref().cmp(&[]),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(given))) => kv.lease.cmp(given),
        (Ok(CompareTarget::Lease), _) => kv.lease.cmp(&0),
        // A target of a later version: nothing is known to differ.
        (Err(_), _) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        // As in etcd: a relation of a later version holds.
        Err(_) => true,
    }
}
