//! Clients that do what people do, and write down what they asked and what they were told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use conclave_api::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp,
        TxnRequest, compare, kv_client::KvClient, request_op, response_op,
    },
    mvccpb::KeyValue,
};
use conclave_consensus::ProposalId;
use conclave_sim::history::{
    Action, Answer, Ending, History, Key, Seen, key_bytes, key_of, value_bytes, value_of,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How many keys the clients share: few enough that they meet, enough that a history of one key stays small.
pub const KEYS: Key = 48;
/// How long a client waits for an answer before it counts it as unknown.
const PATIENCE: Duration = Duration::from_secs(3);

/// A client's way to one node.
pub type Client = KvClient<Channel>;

/// A history that is being written.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
    values: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    recorder: Arc<Recorder>,
    clients: Vec<JoinHandle<()>>,
}

/// Opens a lazy connection to a node; it reconnects by itself.
///
/// # Errors
/// If the endpoint is no URL.
pub fn connect(endpoint: &str) -> Result<Client> {
    let endpoint =
        Endpoint::from_shared(endpoint.to_owned())?.connect_timeout(Duration::from_secs(1)).timeout(PATIENCE);
    Ok(KvClient::new(endpoint.connect_lazy()))
}

impl Load {
    /// Starts `clients` clients, spread over the endpoints.
    ///
    /// # Errors
    /// If an endpoint is no URL.
    pub fn start(endpoints: &[String], clients: u32, seed: u64) -> Result<Self> {
        let recorder = Arc::new(Recorder {
            began: Instant::now(),
            history: Mutex::default(),
            values: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let mut tasks = Vec::new();
        for client in 0..clients {
            let ways: Vec<Client> = endpoints.iter().map(|e| connect(e)).collect::<Result<_>>()?;
            tasks.push(tokio::spawn(work(Arc::clone(&recorder), client, ways, seed)));
        }
        Ok(Self { recorder, clients: tasks })
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.recorder.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until a further write is acknowledged that was asked after this call, and says how long it took.
    ///
    /// # Errors
    /// If none is within `limit`.
    pub async fn next_write(&self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let since = self.recorder.now();
        while began.elapsed() < limit {
            let found = self.recorder.history.lock().operations().iter().rev().take(4_096).any(|operation| {
                operation.called >= since && operation.action.is_proposal() && operation.answer().is_some()
            });
            if found {
                return Ok(began.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::bail!("no write was acknowledged within {limit:?}")
    }

    /// Ends the clients, then reads every key at every node, linearizable, and gives the history with the last revision.
    ///
    /// # Errors
    /// If a node does not answer.
    pub async fn finish(self, endpoints: &[String]) -> Result<(History, i64)> {
        self.recorder.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await?;
        }
        let mut last = 0;
        for (node, endpoint) in endpoints.iter().enumerate() {
            let mut way = connect(endpoint)?;
            for key in 0..KEYS {
                let read = Action::Read { from: key, to: key + 1 };
                let (called, operation) = self.recorder.call(u32::MAX, node as u64, read.clone());
                let answer = ask(&mut way, &read)
                    .await
                    .with_context(|| format!("reading at {endpoint} in the end"))?;
                last = last.max(answer.revision);
                self.recorder.end(called, operation, Ok(answer));
            }
        }
        let recorder = Arc::into_inner(self.recorder).context("all clients have ended")?;
        Ok((recorder.history.into_inner(), last))
    }
}

impl Recorder {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn call(&self, client: u32, node: u64, action: Action) -> (u64, usize) {
        let mut history = self.history.lock();
        let called = self.now();
        (called, history.call(client, node, called, action, ProposalId::NONE))
    }

    fn end(&self, _called: u64, operation: usize, told: Result<Answer, Status>) {
        let at = self.now();
        let mut history = self.history.lock();
        if let Ok(answer) = told {
            if history.get(operation).is_some_and(|operation| operation.action.is_proposal()) {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            history.end(operation, Ending::Answered { at, answer });
        }
        // Whatever the error says, it stays open whether the operation happened: the checks then take nothing on trust.
    }
}

async fn work(recorder: Arc<Recorder>, client: u32, mut ways: Vec<Client>, seed: u64) {
    let mut random = conclave_sim::rng::Rng::new(seed ^ u64::from(client).wrapping_mul(0x9e37_79b9));
    let mut node = client as usize % ways.len();
    let mut known = vec![None; KEYS as usize];
    while !recorder.stop.load(Ordering::Relaxed) {
        let key = Key::try_from(random.below(u64::from(KEYS))).unwrap_or(0);
        let value = || recorder.values.fetch_add(1, Ordering::Relaxed);
        let action = match random.below(10) {
            0..=4 => Action::Put { key, value: value() },
            5 => Action::Delete { from: key, to: key + 1 },
            6 | 7 => Action::Swap { key, expect: known[key as usize], value: value() },
            _ => Action::Read { from: key, to: key + 1 },
        };
        let (called, operation) = recorder.call(client, node as u64, action.clone());
        let told = tokio::time::timeout(PATIENCE, ask(&mut ways[node], &action)).await;
        let told = told.unwrap_or_else(|_| Err(Status::deadline_exceeded("the client's patience")));
        let failed = told.is_err();
        if let Ok(answer) = &told {
            known[key as usize] = match &action {
                Action::Put { value, .. } => Some(*value),
                Action::Swap { value, .. } if answer.done => Some(*value),
                Action::Delete { .. } => None,
                _ => answer.seen.first().map(|seen| seen.value),
            };
        }
        recorder.end(called, operation, told);
        if failed {
            // Elsewhere it may go better; not in haste, or unknown outcomes pile up.
            tokio::time::sleep(Duration::from_millis(100)).await;
            node = (node + 1) % ways.len();
        }
    }
}

/// Asks a node and says what it answered in the history's words.
///
/// # Errors
/// What the node or the network said.
pub async fn ask(way: &mut Client, action: &Action) -> Result<Answer, Status> {
    let one = |key: Key| RangeRequest { key: key_bytes(key).into(), ..RangeRequest::default() };
    match action {
        Action::Put { key, value } => {
            let put = PutRequest {
                key: key_bytes(*key).into(),
                value: value_bytes(*value).into(),
                ..PutRequest::default()
            };
            let response = way.put(put).await?.into_inner();
            answer(response.header, true, &[])
        }
        Action::Delete { from, .. } => {
            let delete = DeleteRangeRequest {
                key: key_bytes(*from).into(),
                prev_kv: true,
                ..DeleteRangeRequest::default()
            };
            let response = way.delete_range(delete).await?.into_inner();
            answer(response.header, true, &response.prev_kvs)
        }
        Action::Swap { key, expect, value } => {
            let target = match expect {
                Some(value) => compare::TargetUnion::Value(value_bytes(*value).into()),
                None => compare::TargetUnion::CreateRevision(0),
            };
            let kind = match expect {
                Some(_) => compare::CompareTarget::Value,
                None => compare::CompareTarget::Create,
            };
            let compare = Compare {
                result: compare::CompareResult::Equal as i32,
                target: kind as i32,
                key: key_bytes(*key).into(),
                target_union: Some(target),
                ..Compare::default()
            };
            let put = PutRequest {
                key: key_bytes(*key).into(),
                value: value_bytes(*value).into(),
                ..PutRequest::default()
            };
            let request = TxnRequest {
                compare: vec![compare],
                success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
                failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(one(*key))) }],
            };
            let response = way.txn(request).await?.into_inner();
            let found = match response.responses.first() {
                Some(ResponseOp { response: Some(response_op::Response::ResponseRange(range)) }) => {
                    range.kvs.clone()
                }
                _ => Vec::new(),
            };
            answer(response.header, response.succeeded, &found)
        }
        Action::Read { from, .. } => {
            let response = way.range(one(*from)).await?.into_inner();
            answer(response.header, true, &response.kvs)
        }
        Action::PutAll { .. } | Action::Compact { .. } => Err(Status::unimplemented("not of this load")),
    }
}

fn answer(header: Option<ResponseHeader>, done: bool, found: &[KeyValue]) -> Result<Answer, Status> {
    let header = header.ok_or_else(|| Status::internal("an answer without a header"))?;
    let seen = found
        .iter()
        .map(|kv| {
            let (key, value) = (key_of(&kv.key), value_of(&kv.value));
            let (key, value) =
                key.zip(value).ok_or_else(|| Status::data_loss("a key or value that nobody wrote"))?;
            Ok(Seen {
                key,
                value,
                modified: kv.mod_revision,
                created: kv.create_revision,
                version: kv.version,
            })
        })
        .collect::<Result<Vec<Seen>, Status>>()?;
    Ok(Answer { revision: header.revision, done, seen })
}
