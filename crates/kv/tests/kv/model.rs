//! The twin: every generation ever written in one list, searched from end to end.

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelLease {
    pub(crate) id: i64,
    /// Counts grants.
    pub(crate) grant: u64,
    pub(crate) ttl: i64,
    pub(crate) remaining: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) leases: Vec<ModelLease>,
    grants: u64,
    /// The key as it was from `mod_revision` on; version 0 for deleted.
    pub(crate) generations: Vec<KeyValue>,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

fn covers(key: &Bytes, range_end: &Bytes, candidate: &Bytes) -> bool {
    match range_end.as_ref() {
        [] => candidate == key,
        [0] => candidate >= key,
        _ => candidate >= key && candidate < range_end,
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { leases: Vec::new(), grants: 0, generations: Vec::new(), revision: 1, compacted: -1 }
    }

    /// The keys of a range at a revision, in order.
    fn at(&self, key: &Bytes, range_end: &Bytes, revision: i64) -> Vec<KeyValue> {
        let mut keys: Vec<Bytes> = self.generations.iter().map(|kv| kv.key.clone()).collect();
        keys.sort();
        keys.dedup();
        keys.retain(|candidate| covers(key, range_end, candidate));
        keys.iter()
            .filter_map(|key| {
                self.generations
                    .iter()
                    .rev()
                    .find(|kv| kv.key == *key && kv.mod_revision <= revision)
                    .cloned()
            })
            .filter(|kv| kv.version > 0)
            .collect()
    }

    /// Grants a lease, and gives the number of the grant.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64) -> Result<u64, EtcdError> {
        if ttl > 9_000_000_000 {
            return Err(EtcdError::LeaseTtlTooLarge);
        }
        if self.leases.iter().any(|lease| lease.id == id) {
            return Err(EtcdError::LeaseExist);
        }
        self.grants += 1;
        self.leases.push(ModelLease { id, grant: self.grants, ttl, remaining: 0 });
        Ok(self.grants)
    }

    pub(crate) fn revoke(&mut self, id: i64) -> Result<(), EtcdError> {
        let lease = self.leases.iter().find(|lease| lease.id == id).cloned();
        self.expire(&[lease.ok_or(EtcdError::LeaseNotFound)?.grant]);
        Ok(())
    }

    pub(crate) fn expire(&mut self, grants: &[u64]) {
        let (ended, left) =
            std::mem::take(&mut self.leases).into_iter().partition(|lease| grants.contains(&lease.grant));
        self.leases = left;
        let ended: Vec<ModelLease> = ended;
        let keys: Vec<Bytes> = ended.iter().flat_map(|lease| self.lease_keys(lease.id)).collect();
        for key in &keys {
            self.generations.push(KeyValue {
                key: key.clone(),
                mod_revision: self.revision + 1,
                ..KeyValue::default()
            });
        }
        self.revision += i64::from(!keys.is_empty());
    }

    pub(crate) fn checkpoint(&mut self, grant: u64, remaining: i64) {
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.grant == grant) {
            lease.remaining = remaining.clamp(0, lease.ttl);
        }
    }

    pub(crate) fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let all = self.at(&Bytes::from("\0"), &Bytes::from("\0"), self.revision);
        all.into_iter().filter(|kv| kv.lease == id).map(|kv| kv.key).collect()
    }

    fn get(&self, key: &Bytes, revision: i64) -> Option<KeyValue> {
        self.at(key, &Bytes::new(), revision).pop()
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EtcdError> {
        self.range_at(request, self.revision)
    }

    fn range_at(&self, request: &RangeRequest, newest: i64) -> Result<RangeResponse, EtcdError> {
        if request.revision > newest {
            return Err(EtcdError::FutureRev);
        }
        let revision = if request.revision <= 0 { newest } else { request.revision };
        if revision < self.compacted {
            return Err(EtcdError::Compacted);
        }
        let mut kvs = self.at(&request.key, &request.range_end, revision);
        let count = kvs.len() as i64;
        let response = RangeResponse { header: header(newest), kvs: Vec::new(), more: false, count };
        if request.count_only {
            return Ok(response);
        }
        let by_key = request.sort_target() == SortTarget::Key;
        let default_order =
            request.sort_order() == SortOrder::None || (by_key && request.sort_order() == SortOrder::Ascend);
        let filtered = [
            request.max_mod_revision,
            request.min_mod_revision,
            request.max_create_revision,
            request.min_create_revision,
        ]
        .iter()
        .any(|bound| *bound != 0);
        let limit = request.limit.max(0) as usize;
        if limit > 0 && default_order && !filtered {
            kvs.truncate(limit + 1);
        }
        kvs.retain(|kv| {
            !(request.max_mod_revision != 0 && kv.mod_revision > request.max_mod_revision
                || request.min_mod_revision != 0 && kv.mod_revision < request.min_mod_revision
                || request.max_create_revision != 0 && kv.create_revision > request.max_create_revision
                || request.min_create_revision != 0 && kv.create_revision < request.min_create_revision)
        });
        match request.sort_target() {
            SortTarget::Key => {
                if request.sort_order() == SortOrder::Descend {
                    kvs.reverse();
                }
            }
            target => {
                let number = |kv: &KeyValue| match target {
                    SortTarget::Version => kv.version,
                    SortTarget::Create => kv.create_revision,
                    _ => kv.mod_revision,
                };
                kvs.sort_by(|a, b| {
                    let order = if target == SortTarget::Value {
                        a.value.cmp(&b.value)
                    } else {
                        number(a).cmp(&number(b))
                    };
                    if request.sort_order() == SortOrder::Descend { order.reverse() } else { order }
                });
            }
        }
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { kvs, more, ..response })
    }

    pub(crate) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EtcdError> {
        self.check_put(request, self.revision)?;
        let revision = self.revision + 1;
        let response = self.write(request, revision);
        self.revision = revision;
        Ok(response)
    }

    fn check_put(&self, request: &PutRequest, before: i64) -> Result<(), EtcdError> {
        if request.lease != 0 && !self.leases.iter().any(|lease| lease.id == request.lease) {
            return Err(EtcdError::LeaseNotFound);
        }
        if (request.ignore_value || request.ignore_lease) && self.get(&request.key, before).is_none() {
            return Err(EtcdError::KeyNotFound);
        }
        Ok(())
    }

    fn write(&mut self, request: &PutRequest, revision: i64) -> PutResponse {
        let before = self.get(&request.key, revision);
        let (create_revision, version) =
            before.as_ref().map_or((revision, 1), |before| (before.create_revision, before.version + 1));
        let kept = before.as_ref().filter(|_| request.ignore_value);
        self.generations.push(KeyValue {
            key: request.key.clone(),
            create_revision,
            mod_revision: revision,
            version,
            value: kept.map_or(&request.value, |before| &before.value).clone(),
            lease: before
                .as_ref()
                .filter(|_| request.ignore_lease)
                .map_or(request.lease, |before| before.lease),
        });
        PutResponse { header: header(revision), prev_kv: before.filter(|_| request.prev_kv) }
    }

    pub(crate) fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let response = self.remove(request, self.revision, self.revision + 1);
        self.revision += i64::from(response.deleted > 0);
        DeleteRangeResponse { header: header(self.revision), ..response }
    }

    fn remove(&mut self, request: &DeleteRangeRequest, seen: i64, revision: i64) -> DeleteRangeResponse {
        let removed = self.at(&request.key, &request.range_end, seen);
        for kv in &removed {
            let key = kv.key.clone();
            self.generations.push(KeyValue { key, mod_revision: revision, ..KeyValue::default() });
        }
        DeleteRangeResponse {
            header: None,
            deleted: removed.len() as i64,
            prev_kvs: if request.prev_kv { removed } else { Vec::new() },
        }
    }

    pub(crate) fn compact(&mut self, revision: i64) -> Result<(), EtcdError> {
        if revision <= self.compacted {
            return Err(EtcdError::Compacted);
        }
        if revision > self.revision {
            return Err(EtcdError::FutureRev);
        }
        self.compacted = revision;
        Ok(())
    }

    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, EtcdError> {
        let before = self.clone();
        self.check(&before, request)?;
        let written = self.generations.len();
        let revision = self.revision + 1;
        let mut response = self.run(&before, request, revision);
        if self.generations.len() > written {
            self.revision = revision;
        }
        response.header = header(self.revision);
        Ok(response)
    }

    fn check(&self, before: &Self, request: &TxnRequest) -> Result<(), EtcdError> {
        for op in before.branch(request) {
            match op.request.as_ref().unwrap() {
                Request::RequestPut(put) => self.check_put(put, self.revision)?,
                Request::RequestRange(range) if range.revision > self.revision => {
                    return Err(EtcdError::FutureRev);
                }
                Request::RequestRange(range) if range.revision != 0 && range.revision < self.compacted => {
                    return Err(EtcdError::Compacted);
                }
                Request::RequestTxn(nested) => self.check(before, nested)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, before: &Self, request: &TxnRequest, revision: i64) -> TxnResponse {
        let mut responses = Vec::new();
        for op in before.branch(request) {
            let changed = self.generations.len() > before.generations.len();
            let seen = if changed { revision } else { before.revision };
            let response = match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => Response::ResponseRange(self.range_at(range, seen).unwrap()),
                Request::RequestPut(put) => Response::ResponsePut(self.write(put, revision)),
                Request::RequestDeleteRange(delete) => {
                    let response = self.remove(delete, seen, revision);
                    let changed = changed || response.deleted > 0;
                    let header = header(if changed { revision } else { before.revision });
                    Response::ResponseDeleteRange(DeleteRangeResponse { header, ..response })
                }
                Request::RequestTxn(nested) => Response::ResponseTxn(self.run(before, nested, revision)),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        let succeeded = before.holds(request);
        TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses }
    }

    fn branch<'a>(&self, request: &'a TxnRequest) -> &'a [RequestOp] {
        if self.holds(request) { &request.success } else { &request.failure }
    }

    fn holds(&self, request: &TxnRequest) -> bool {
        request.compare.iter().all(|compare| {
            let mut kvs = self.at(&compare.key, &compare.range_end, self.revision);
            if kvs.is_empty() {
                if compare.target() == CompareTarget::Value {
                    return false;
                }
                kvs.push(KeyValue::default());
            }
            kvs.iter().all(|kv| relates(compare, kv))
        })
    }
}

fn relates(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match compare.target_union.as_ref().unwrap() {
        TargetUnion::Version(given) => kv.version.cmp(given),
        TargetUnion::CreateRevision(given) => kv.create_revision.cmp(given),
        TargetUnion::ModRevision(given) => kv.mod_revision.cmp(given),
        TargetUnion::Value(given) => kv.value.cmp(given),
        TargetUnion::Lease(given) => kv.lease.cmp(given),
    };
    match compare.result() {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    }
}
