//! Client leases on a running node: the leader's lessor and what it decides, and the way of keep-alives to it.
//!
//! # Roles
//! Every member applies grants and ends as commands. The leader's also keeps the deadlines: its [`Lessor`] begins once the leader serves, has confirmed
//! that it leads, and has applied all that leaders before it proposed; it is dropped when the ballot is over.
//!
//! # Invariants
//! 1. What a renewal is answered, and that a lease has run out, is said by a leader whose ballot a quorum confirmed after it was asked, or after the
//!    deadline passed: a read barrier that began later, and the same ballot before and after.
//! 2. Ends and checkpoints are proposed in that ballot only, one after the other.
//! 3. A storm of expiries is worked off in batches of bounded leases, keys and bytes, one under way at a time, so that it shares the log with everybody
//!    else's commands.
//! 4. A renewal writes nothing to the log, unless the log knows of less than all of the lease's time.

mod keeper;
mod renewals;
mod wire;

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{Ballot, NodeId};
use conclave_kv::{LeaseChange, LeaseObserver, Lessor, Reader, Renewal};
use conclave_replica::{Answerer, Handle, Responder, Role, boot_time};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, watch};

use self::{
    renewals::Wanted,
    wire::{Envelope, GONE, LATER, LeaseAnswer, LeaseQuestion},
};
use crate::{
    config::Config,
    membership::Members,
    metrics::{Counter, LeaseMetrics, TtlHistogram},
    replicated::DATA,
};

/// How many leases one question to the leader names at most.
const QUESTION_LEASES_MAX: usize = 1_024;
/// How many renewals may wait here for a question to take them along; more are refused as too many requests.
const RENEWALS_MAX: usize = 16_384;

/// The leases, as this member sees and, where it leads, keeps them.
pub(crate) struct Leases {
    member: NodeId,
    /// By how much a new leader extends every lease.
    election_timeout: Duration,
    request_timeout: Duration,
    /// The deadlines, while this member leads.
    led: Mutex<Option<Led>>,
    /// Rung when something may be due earlier than it was.
    bell: Notify,
    renewals: mpsc::Sender<Wanted>,
    /// Taken by the task that serves them.
    wanted: Mutex<Option<mpsc::Receiver<Wanted>>>,
    counts: Counts,
    running: OnceLock<Running>,
}

#[derive(Debug, Default)]
struct Counts {
    granted: Counter,
    ended: Counter,
    renewed: Counter,
    ttl: TtlHistogram,
}

/// What there is once the group runs.
struct Running {
    handle: Handle,
    role: watch::Receiver<Role>,
    reader: Reader,
    runtime: tokio::runtime::Handle,
}

/// What a leader keeps in one ballot.
struct Led {
    ballot: Ballot,
    /// `None` while it is being made.
    lessor: Option<Lessor>,
    /// What was applied meanwhile.
    untold: Vec<LeaseChange>,
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("member", &self.member).finish_non_exhaustive()
    }
}

impl Leases {
    pub(crate) fn new(member: NodeId, config: &Config) -> Arc<Self> {
        let (renewals, wanted) = mpsc::channel(RENEWALS_MAX);
        Arc::new(Self {
            member,
            election_timeout: config.election_timeout,
            request_timeout: config.request_timeout(),
            led: Mutex::default(),
            bell: Notify::new(),
            renewals,
            wanted: Mutex::new(Some(wanted)),
            counts: Counts::default(),
            running: OnceLock::new(),
        })
    }

    /// The group runs: from here on this member renews leases, its own as leader and those of others by asking theirs.
    pub(crate) fn begin(
        self: &Arc<Self>,
        handle: Handle,
        reader: Reader,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let Some(role) = handle.role(DATA) else { return Vec::new() };
        let runtime = tokio::runtime::Handle::current();
        // Called once.
        let _ = self.running.set(Running { handle, role, reader, runtime });
        let mut tasks = vec![tokio::spawn(Arc::clone(self).keep())];
        if let Some(wanted) = self.wanted.lock().take() {
            tasks.push(tokio::spawn(Arc::clone(self).serve_renewals(wanted)));
        }
        tasks
    }

    /// What was counted so far.
    pub(crate) fn metrics(&self) -> LeaseMetrics {
        LeaseMetrics {
            granted: self.counts.granted.value(),
            ended: self.counts.ended.value(),
            renewed: self.counts.renewed.value(),
            ttl: self.counts.ttl.snapshot(),
        }
    }

    /// Answers as the leader, if this member is: nothing else can be said by anybody.
    async fn answer_here(&self, running: &Running, question: &LeaseQuestion) -> LeaseAnswer {
        let asked = boot_time();
        let mut answer = LeaseAnswer::default();
        if !running.confirm(self.request_timeout).await {
            return answer;
        }
        let mut led = self.led.lock();
        let Some(Led { ballot, lessor: Some(lessor), .. }) = &mut *led else { return answer };
        let now = boot_time();
        // Stopped in between for so long that another leader may have been elected since it was confirmed: who reckons from the answer's
        // arrival would reckon wrong.
        if !running.leads_in(*ballot) || now.since(asked) > self.election_timeout {
            return answer;
        }
        let mut renewed = 0;
        for id in &question.renew {
            answer.renewed.push(match lessor.renew(now, *id) {
                Renewal::Renewed { ttl_seconds } => {
                    renewed += 1;
                    ttl_seconds
                }
                Renewal::Unknown => GONE,
                Renewal::Later => LATER,
            });
        }
        answer.left.extend(question.left.iter().map(|id| lessor.left_seconds(now, *id).unwrap_or(GONE)));
        drop(led);
        self.counts.renewed.add(renewed);
        if answer.renewed.contains(&LATER) {
            // A checkpoint may have to be forgotten first.
            self.bell.notify_one();
        }
        answer
    }

    async fn answer(self: Arc<Self>, question: LeaseQuestion, respond: Responder) {
        let Some(running) = self.running.get() else { return };
        respond.send(self.answer_here(running, &question).await.encode_to_vec().into());
    }
}

impl Running {
    /// Whether a leader was confirmed by a round that began after the call, and all that it had committed is applied here. Says nothing of who it is:
    /// see [`leads_in`](Self::leads_in).
    async fn confirm(&self, patience: Duration) -> bool {
        let barrier = self.handle.read_barrier(DATA);
        matches!(tokio::time::timeout(patience, barrier).await, Ok(Ok(())))
    }

    /// Whether this member leads in a ballot, as far as it knows. Ballots only grow: if that held before a confirmed barrier and holds after it, the
    /// ballot was the one confirmed.
    fn leads_in(&self, ballot: Ballot) -> bool {
        let role = self.role.borrow();
        role.serving && role.ballot == ballot
    }
}

impl LeaseObserver for Leases {
    fn leases_changed(&self, changes: &[LeaseChange]) {
        for change in changes {
            match change {
                LeaseChange::Granted(lease) => {
                    self.counts.granted.increment();
                    self.counts.ttl.observe(lease.ttl_seconds.unsigned_abs());
                }
                LeaseChange::Ended(_) => self.counts.ended.increment(),
            }
        }
        let mut led = self.led.lock();
        let Some(led) = &mut *led else { return };
        let Some(lessor) = &mut led.lessor else {
            led.untold.extend_from_slice(changes);
            return;
        };
        let (before, now) = (lessor.next_deadline(), boot_time());
        changes.iter().for_each(|change| lessor.changed(now, change));
        if lessor.next_deadline().is_some_and(|at| before.is_none_or(|before| at < before)) {
            self.bell.notify_one();
        }
    }
}

/// Answers what other members ask: about leases, and about members. Those who answer hold the shell, which holds this: so they end with the node.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) members: Weak<Members>,
    pub(crate) leases: Weak<Leases>,
}

impl Answerer for Questions {
    fn answer(&self, from: NodeId, question: Bytes, respond: Responder) {
        let (Some(members), Some(leases)) = (self.members.upgrade(), self.leases.upgrade()) else { return };
        let lease = Envelope::decode(question.clone()).ok().and_then(|envelope| envelope.lease);
        match lease {
            None => members.answer(from, question, respond),
            Some(lease) if lease.renew.len() + lease.left.len() <= QUESTION_LEASES_MAX => {
                let Some(running) = leases.running.get() else { return };
                running.runtime.spawn(Arc::clone(&leases).answer(lease, respond));
            }
            Some(_) => respond.send(Bytes::new()),
        }
    }
}
