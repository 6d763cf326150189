//! Transactions: conditions, and what is done if they hold and if not, at one revision.

use bytes::Bytes;
use conclave_api::etcdserverpb::{
    self as pb, RequestOp, ResponseOp, TxnRequest, TxnResponse, compare, request_op, response_op,
};

use crate::{
    error::Error,
    kv::{
        Delete, Deleted, Found, Get, Keys, LeaseId, Put, Revision, Written, deleted, found, revision_of,
        written,
    },
};

/// How two things compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// The same.
    Equal,
    /// Not the same.
    NotEqual,
    /// What stands there is less.
    Less,
    /// What stands there is greater.
    Greater,
}

/// A condition on a key, or on every key of a range. A key that is not there has revisions, version and lease 0, and no value.
///
/// ```
/// use conclave_client::{Compare, Is};
///
/// let unlocked = Compare::absent("door/lock");
/// let rich = Compare::value("balance", Is::Greater, "0100");
/// # let _ = (unlocked, rich);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Compare(pb::Compare);

impl Compare {
    /// The key is there.
    pub fn exists(key: impl Into<Keys>) -> Self {
        Self::create_revision(key, Is::NotEqual, Revision(0))
    }

    /// The key is not there.
    pub fn absent(key: impl Into<Keys>) -> Self {
        Self::create_revision(key, Is::Equal, Revision(0))
    }

    /// What stands under the key. False if the key is not there.
    pub fn value(key: impl Into<Keys>, is: Is, value: impl Into<Bytes>) -> Self {
        Self::new(key, is, compare::TargetUnion::Value(value.into()))
    }

    /// How often the key was put since it came into being.
    pub fn version(key: impl Into<Keys>, is: Is, version: i64) -> Self {
        Self::new(key, is, compare::TargetUnion::Version(version))
    }

    /// When the key came into being.
    pub fn create_revision(key: impl Into<Keys>, is: Is, revision: Revision) -> Self {
        Self::new(key, is, compare::TargetUnion::CreateRevision(revision.0))
    }

    /// When the key was put last.
    pub fn mod_revision(key: impl Into<Keys>, is: Is, revision: Revision) -> Self {
        Self::new(key, is, compare::TargetUnion::ModRevision(revision.0))
    }

    /// With which lease the key goes; `None` for no lease.
    pub fn lease(key: impl Into<Keys>, is: Is, lease: Option<LeaseId>) -> Self {
        Self::new(key, is, compare::TargetUnion::Lease(lease.map_or(0, |lease| lease.0)))
    }

    fn new(key: impl Into<Keys>, is: Is, union: compare::TargetUnion) -> Self {
        let Keys { from, to } = key.into();
        let result = match is {
            Is::Equal => compare::CompareResult::Equal,
            Is::NotEqual => compare::CompareResult::NotEqual,
            Is::Less => compare::CompareResult::Less,
            Is::Greater => compare::CompareResult::Greater,
        };
        let target = match union {
            compare::TargetUnion::Version(_) => compare::CompareTarget::Version,
            compare::TargetUnion::CreateRevision(_) => compare::CompareTarget::Create,
            compare::TargetUnion::ModRevision(_) => compare::CompareTarget::Mod,
            compare::TargetUnion::Value(_) => compare::CompareTarget::Value,
            compare::TargetUnion::Lease(_) => compare::CompareTarget::Lease,
        };
        Self(pb::Compare {
            result: result as i32,
            target: target as i32,
            key: from,
            range_end: to,
            target_union: Some(union),
        })
    }
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Reads; sees the steps before it.
    Get(Get),
    /// Writes a key.
    Put(Put),
    /// Deletes.
    Delete(Delete),
    /// A transaction within; its conditions, too, are judged on the state before all steps.
    Txn(Txn),
}

macro_rules! op_from {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Op {
            fn from(op: $kind) -> Self {
                Self::$kind(op)
            }
        }
    )*};
}
op_from!(Get, Put, Delete, Txn);

/// A transaction: *when* all conditions hold, these steps are *then* taken, *otherwise* those. By default a server takes 128 of each, nested
/// ones included, and no key twice to write.
///
/// ```no_run
/// use conclave_client::{Client, Compare, Get, Put, Txn};
///
/// # async fn example(client: Client) -> Result<(), conclave_client::Error> {
/// let claim = Txn::new()
///     .when(Compare::absent("owner"))
///     .then(Put::new("owner", "me"))
///     .otherwise(Get::new("owner"));
/// let answer = client.txn(claim).await?;
/// if !answer.succeeded {
///     println!("it is {:?}'s", answer.found(0)?.kvs[0].value);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Txn {
    pub(crate) when: Vec<Compare>,
    then: Vec<Op>,
    otherwise: Vec<Op>,
}

impl Txn {
    /// Without conditions and steps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.when.push(compare);
        self
    }

    /// One more step if all conditions hold.
    #[must_use]
    pub fn then(mut self, op: impl Into<Op>) -> Self {
        self.then.push(op.into());
        self
    }

    /// One more step if a condition does not hold.
    #[must_use]
    pub fn otherwise(mut self, op: impl Into<Op>) -> Self {
        self.otherwise.push(op.into());
        self
    }

    pub(crate) fn into_request(self) -> TxnRequest {
        let ops = |ops: Vec<Op>| ops.into_iter().map(into_request_op).collect();
        TxnRequest {
            compare: self.when.into_iter().map(|compare| compare.0).collect(),
            success: ops(self.then),
            failure: ops(self.otherwise),
        }
    }
}

fn into_request_op(op: Op) -> RequestOp {
    let request = match op {
        Op::Get(get) => request_op::Request::RequestRange(get.into_request()),
        Op::Put(put) => request_op::Request::RequestPut(put.into_request()),
        Op::Delete(delete) => request_op::Request::RequestDeleteRange(delete.into_request()),
        Op::Txn(txn) => request_op::Request::RequestTxn(txn.into_request()),
    };
    RequestOp { request: Some(request) }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpAnswer {
    /// What was found.
    Get(Found),
    /// What was written.
    Put(Written),
    /// What was deleted.
    Delete(Deleted),
    /// What the transaction within did.
    Txn(TxnAnswer),
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnAnswer {
    /// The store's revision after it: one more only if something changed.
    pub revision: Revision,
    /// Whether all conditions held.
    pub succeeded: bool,
    /// What each step did, in their order.
    pub answers: Vec<OpAnswer>,
}

impl TxnAnswer {
    /// What the step of that number found, if it was a read.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it was not.
    pub fn found(&self, step: usize) -> Result<&Found, Error> {
        match self.answers.get(step) {
            Some(OpAnswer::Get(found)) => Ok(found),
            _ => Err(Error::Malformed("a transaction's answer without what a step read")),
        }
    }

    pub(crate) fn from_response(response: TxnResponse) -> Result<Self, Error> {
        let revision = revision_of(response.header)?;
        Self::part(response.succeeded, response.responses, revision)
    }

    fn part(succeeded: bool, responses: Vec<ResponseOp>, revision: Revision) -> Result<Self, Error> {
        let answers = responses.into_iter().map(|response| match response.response {
            Some(response_op::Response::ResponseRange(answer)) => Ok(OpAnswer::Get(found(answer, revision))),
            Some(response_op::Response::ResponsePut(answer)) => Ok(OpAnswer::Put(written(answer, revision))),
            Some(response_op::Response::ResponseDeleteRange(answer)) => {
                Ok(OpAnswer::Delete(deleted(answer, revision)))
            }
            Some(response_op::Response::ResponseTxn(answer)) => {
                Self::part(answer.succeeded, answer.responses, revision).map(OpAnswer::Txn)
            }
            None => Err(Error::Malformed("a step without an answer")),
        });
        Ok(Self { revision, succeeded, answers: answers.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_written_as_it_is_read() {
        let txn = Txn::new()
            .when(Compare::mod_revision("k", Is::Less, Revision(7)))
            .then(Put::new("k", "v"))
            .then(Txn::new().when(Compare::absent("l")).otherwise(Delete::new("l")))
            .otherwise(Get::new(Keys::prefix("k")));
        let request = txn.into_request();
        let compare = &request.compare[0];
        assert_eq!(compare.target, compare::CompareTarget::Mod as i32);
        assert_eq!(compare.result, compare::CompareResult::Less as i32);
        assert_eq!(compare.target_union, Some(compare::TargetUnion::ModRevision(7)));
        assert_eq!((request.success.len(), request.failure.len()), (2, 1));
    }

    #[test]
    fn answers_without_what_they_must_have_are_malformed() {
        let no_header = TxnResponse::default();
        assert!(matches!(TxnAnswer::from_response(no_header), Err(Error::Malformed(_))));
        let header = Some(pb::ResponseHeader { revision: 3, ..Default::default() });
        let responses = vec![ResponseOp { response: None }];
        let empty_step = TxnResponse { header, succeeded: true, responses };
        assert!(matches!(TxnAnswer::from_response(empty_step), Err(Error::Malformed(_))));
    }
}
