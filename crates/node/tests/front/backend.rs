//! A backend without consensus: commands are applied at once, and the next calls can be made to fail.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::kv_client::KvClient;
use conclave_api::etcdserverpb::{LeaseRevokeRequest, Member};
use conclave_consensus::{Ballot, Entry, GroupId, Kind, NodeId, ProposalId, Slot, Time};
use conclave_kv::command::{self, Revision};
use conclave_kv::{LeaseChange, LeaseObserver, Lessor, Machine, Options, Reader, Renewal};
use conclave_node::Config;
use conclave_node::awaited::{AwaitedKeys, KeyChanges};
use conclave_node::backend::{
    Backend, BarrierError, BoxFuture, Change, ProposeError, RaftStatus, StorageStatus,
};
use conclave_node::config::url::Url;
use conclave_node::front::{Front, Listeners};
use conclave_node::identity::Identity;
use conclave_node::metrics::{BackendMetrics, SnapshotMetrics};
use conclave_storage::{MemoryEngine, StateEngine, StateMachine};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// What the next proposal or barrier meets instead of success.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Propose(ProposeError),
    Barrier(BarrierError),
    /// No answer, ever.
    Hang,
    /// What renewals are answered.
    Renew(EtcdError),
}

/// The deadlines of leases on a clock that moves when it is told to.
#[derive(Debug, Default)]
pub(crate) struct Deadlines(Mutex<(Time, Lessor)>);

impl LeaseObserver for Deadlines {
    fn leases_changed(&self, changes: &[LeaseChange]) {
        let (now, lessor) = &mut *self.0.lock().unwrap();
        changes.iter().for_each(|change| lessor.changed(*now, change));
    }
}

pub(crate) struct Fake {
    machine: Mutex<(Machine, Slot)>,
    reader: Reader,
    pub(crate) raft: Mutex<RaftStatus>,
    faults: Mutex<VecDeque<Fault>>,
    deadlines: Arc<Deadlines>,
    awaited: Arc<AwaitedKeys>,
}

impl Fake {
    fn new() -> Self {
        let store = MemoryEngine::new().store(GroupId(1), 0).unwrap();
        let (deadlines, awaited) = (Arc::new(Deadlines::default()), Arc::new(AwaitedKeys::default()));
        let options = Options {
            lease_observer: Some(deadlines.clone()),
            key_observer: Some(awaited.clone()),
            ..Options::default()
        };
        let (machine, reader) = Machine::open(store, options).unwrap();
        let raft = RaftStatus {
            term: 3,
            leader: Some(0xa),
            committed_index: 9,
            applied_index: 8,
            is_learner: false,
        };
        Self {
            machine: Mutex::new((machine, Slot(0))),
            reader,
            raft: Mutex::new(raft),
            faults: Mutex::default(),
            deadlines,
            awaited,
        }
    }

    /// Lets time go by for leases, and ends those that run out.
    pub(crate) fn pass(&self, seconds: u64) {
        let due = {
            let (now, lessor) = &mut *self.deadlines.0.lock().unwrap();
            *now = now.after(std::time::Duration::from_secs(seconds));
            lessor.due(*now, usize::MAX)
        };
        if !due.is_empty() {
            self.apply(command::expire_leases(Revision::Next, &due));
        }
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    pub(crate) fn has_faults(&self) -> bool {
        self.faults_left() > 0
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    /// Ends a lease at once, whatever faults there are.
    pub(crate) fn end_lease(&self, id: i64) {
        self.apply(command::lease_revoke(Revision::Next, &LeaseRevokeRequest { id }));
    }

    fn fault(&self) -> Option<Fault> {
        self.faults.lock().unwrap().pop_front()
    }

    fn apply(&self, payload: Bytes) -> Bytes {
        let (machine, slot) = &mut *self.machine.lock().unwrap();
        *slot = slot.next();
        let id = ProposalId { node: NodeId(0xa), sequence: slot.0 };
        let entry = Entry { slot: *slot, ballot: Ballot::default(), kind: Kind::Command, id, payload };
        let mut replies = Vec::new();
        machine.apply(&[entry], &|_| true, &mut replies);
        replies.pop().unwrap().1
    }
}

impl Backend for Fake {
    fn propose(&self, command: Bytes) -> BoxFuture<'_, Result<Bytes, ProposeError>> {
        Box::pin(async move {
            match self.fault() {
                Some(Fault::Propose(error)) => Err(error),
                Some(Fault::Hang) => std::future::pending().await,
                Some(fault @ (Fault::Barrier(_) | Fault::Renew(_))) => panic!("{fault:?} met a proposal"),
                None => Ok(self.apply(command)),
            }
        })
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), BarrierError>> {
        Box::pin(async move {
            match self.fault() {
                Some(Fault::Barrier(error)) => Err(error),
                Some(Fault::Hang) => std::future::pending().await,
                Some(fault @ (Fault::Propose(_) | Fault::Renew(_))) => panic!("{fault:?} met a barrier"),
                None => Ok(()),
            }
        })
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }

    fn identity(&self) -> Identity {
        Identity { cluster_id: 0xc, member_id: 0xa }
    }

    fn raft(&self) -> RaftStatus {
        *self.raft.lock().unwrap()
    }

    fn members(&self) -> Vec<Member> {
        vec![Member { id: 0xa, name: "m1".to_owned(), ..Member::default() }]
    }

    fn change_members(&self, _: Change) -> BoxFuture<'_, Result<u64, EtcdError>> {
        Box::pin(async { Err(EtcdError::MemberNotFound) })
    }

    fn move_leader(&self, _: u64) -> BoxFuture<'_, Result<(), EtcdError>> {
        Box::pin(async { Err(EtcdError::NotLeader) })
    }

    fn renew_lease(&self, id: i64) -> BoxFuture<'_, Result<Option<i64>, EtcdError>> {
        Box::pin(async move {
            if let Some(Fault::Renew(error)) = self.fault() {
                return Err(error);
            }
            let (now, lessor) = &mut *self.deadlines.0.lock().unwrap();
            match lessor.renew(*now, id) {
                Renewal::Renewed { ttl_seconds } => Ok(Some(ttl_seconds)),
                Renewal::Unknown => Ok(None),
                Renewal::Later => panic!("nothing is under way"),
            }
        })
    }

    fn lease_left(&self, id: i64) -> BoxFuture<'_, Result<Option<i64>, EtcdError>> {
        Box::pin(async move {
            let (now, lessor) = &*self.deadlines.0.lock().unwrap();
            Ok(lessor.left_seconds(*now, id))
        })
    }

    fn key_changes(&self) -> &dyn KeyChanges {
        &*self.awaited
    }

    fn storage(&self) -> StorageStatus {
        StorageStatus { size_bytes: 4096, in_use_bytes: 1024 }
    }

    fn metrics(&self) -> BackendMetrics {
        let snapshots = SnapshotMetrics { begun: 3, resumed: 1, failed: 2, bytes: 4096 };
        BackendMetrics { leader_changes: 2, snapshots, ..BackendMetrics::default() }
    }
}

/// A front on a free port.
pub(crate) struct Running {
    pub(crate) front: Front,
    pub(crate) fake: Arc<Fake>,
}

/// Starts a front with the shortest request timeout there is: five seconds and two of these.
pub(crate) fn start(change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config {
        listen_client_urls: vec![Url::new("127.0.0.1", 0)],
        heartbeat_interval: std::time::Duration::from_millis(10),
        election_timeout: std::time::Duration::from_millis(50),
        ..Config::default()
    };
    change(&mut config);
    let listeners = Listeners::bind(&config).unwrap();
    let fake = Arc::new(Fake::new());
    Running { front: Front::serve(listeners, &config, fake.clone()), fake }
}

impl Running {
    pub(crate) fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.front.client_addr());
        Endpoint::from_shared(uri).unwrap().connect_lazy()
    }

    pub(crate) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
    }
}

/// `Code: text`, or what came instead.
pub(crate) fn told<T>(outcome: Result<T, Status>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

pub(crate) fn lines(all: impl IntoIterator<Item = impl Display>) -> String {
    all.into_iter().map(|line| format!("{line}\n")).collect()
}
