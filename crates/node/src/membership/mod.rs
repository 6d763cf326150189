//! Who belongs to the cluster: what of it is replicated, what members tell each other, and how it changes.
//!
//! Three sources make up the list of members:
//! - the *configuration* of the group, which says whose replicas there are and which of them vote. It alone decides;
//! - the *registry* of nodes in the replicated state: each member's peer addresses, and whether it is to vote;
//! - *introductions*, by which members tell each other their names and client addresses.
//!
//! # How a member comes and goes
//! A member is registered, then added as a learner: that needs no word from the new one, which is started only afterwards. One that is to vote
//! is promoted by the leader once it answers and lacks little of what the leader holds, so a member that never starts costs the others nothing. A member that is
//! removed leaves the configuration first; its registration goes a while later, when it has had the time to learn of it.
//!
//! # Invariants
//! 1. A member's id, and its replica's, are never given to another.
//! 2. What a leader does here it may do twice: it finds from registry and configuration what is left to do, whoever began it.

mod acquaintances;
mod changes;
mod introductions;
mod joining;
mod keeper;
mod lone;
mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use conclave_api::etcdserverpb::Member;
use conclave_consensus::{Config as Membership, NodeId, ReplicaId};
use conclave_kv::{Reader, StoreObserver};
use conclave_replica::{Answerer, Handle, Responder};
use conclave_storage::LogStore;
use conclave_transport::{Refusal, TcpTransport};
use prost::Message as _;
use tokio::sync::watch;

pub(crate) use self::{
    acquaintances::Acquaintances,
    joining::{find_cluster, holds_nothing, wait_for_recognition},
};
use self::{introductions::Introductions, wire::Question};
pub use self::{
    joining::JoinError,
    wire::{Add, Change, Update},
};
use crate::{
    config::url::Url,
    engine::Engine,
    identity::{Bootstrap, Identity, Peer},
    replicated::DATA,
};

/// The members, as this one knows them.
pub(crate) struct Members {
    bootstrap: Bootstrap,
    token: String,
    engine: Engine,
    introductions: Introductions,
    /// How long a request may wait for consensus.
    request_timeout: Duration,
    /// A leader's patience in units of which members come and go.
    election_timeout: Duration,
    /// Learners that etcd allows.
    learners_max: usize,
    /// Whether changes that endanger the quorum are refused.
    strict: bool,
    /// One change at a time, that those that follow see what it did.
    changing: tokio::sync::Mutex<()>,
    /// Counts the changes of the registry.
    registry: Arc<watch::Sender<u64>>,
    /// See [`is_learner`](Self::is_learner).
    learns: AtomicBool,
    door: Arc<Acquaintances>,
    log: OnceLock<Arc<dyn LogStore>>,
    /// See [`is_blank`](Self::is_blank): not any more, once it was seen not to be.
    blank: AtomicBool,
    /// Whether this member held nothing when it started.
    began_with_nothing: AtomicBool,
    /// One came who may show that this member lost what it held.
    suspects: AtomicBool,
    /// Set when the others say that this member is none of them.
    dismissed: watch::Sender<Option<Refusal>>,
    running: OnceLock<Running>,
    this: Weak<Self>,
}

/// What there is once the group runs.
struct Running {
    handle: Handle,
    reader: Reader,
    transport: Arc<TcpTransport>,
    runtime: tokio::runtime::Handle,
}

/// Counts when the store's registry changes.
#[derive(Debug)]
struct RegistryBell(Arc<watch::Sender<u64>>);

impl StoreObserver for RegistryBell {
    fn nodes_changed(&self) {
        self.0.send_modify(|changes| *changes += 1);
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("identity", &self.bootstrap.identity).finish_non_exhaustive()
    }
}

impl Members {
    pub(crate) fn new(
        bootstrap: &Bootstrap,
        config: &crate::config::Config,
        door: Arc<Acquaintances>,
    ) -> Arc<Self> {
        let urls = config.advertise_client_urls.iter().map(ToString::to_string).collect();
        Arc::new_cyclic(|this| Self {
            bootstrap: bootstrap.clone(),
            token: config.initial_cluster_token.clone(),
            engine: config.engine,
            introductions: Introductions::new(bootstrap.identity.member_id, &config.name, urls),
            request_timeout: config.request_timeout(),
            election_timeout: config.election_timeout,
            learners_max: config.max_learners as usize,
            strict: config.strict_reconfig_check,
            changing: tokio::sync::Mutex::default(),
            registry: Arc::new(watch::Sender::new(0)),
            learns: AtomicBool::new(!bootstrap.founding),
            door,
            log: OnceLock::new(),
            blank: AtomicBool::new(true),
            began_with_nothing: AtomicBool::new(false),
            suspects: AtomicBool::new(false),
            dismissed: watch::Sender::new(None),
            running: OnceLock::new(),
            this: this.clone(),
        })
    }

    /// To be told by the store when the registry changes.
    pub(crate) fn observer(&self) -> Arc<dyn StoreObserver> {
        Arc::new(RegistryBell(Arc::clone(&self.registry)))
    }

    /// The log is open; whether this member held nothing before.
    pub(crate) fn set_log(&self, log: Arc<dyn LogStore>, holds_nothing: bool) {
        self.began_with_nothing.store(holds_nothing, Ordering::Release);
        // Called once.
        let _ = self.log.set(log);
    }

    fn began_with_nothing(&self) -> bool {
        self.began_with_nothing.load(Ordering::Acquire)
    }

    /// Whether this member has promised nothing to anybody: its log holds nothing, whether its group runs already or not.
    fn is_blank(&self) -> bool {
        if self.blank.load(Ordering::Relaxed)
            && let Some(log) = self.log.get()
        {
            let blank = holds_nothing(&log.state(DATA));
            self.blank.store(blank, Ordering::Relaxed);
            return blank;
        }
        false
    }

    /// The group runs: from here on members are asked, addresses followed, and, as leader, changes carried out.
    pub(crate) fn begin(
        self: &Arc<Self>,
        handle: Handle,
        reader: Reader,
        transport: Arc<TcpTransport>,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let runtime = tokio::runtime::Handle::current();
        let running = Running { handle, reader, transport, runtime };
        // Called once.
        let _ = self.running.set(running);
        vec![
            tokio::spawn(Arc::clone(self).keep_asking()),
            tokio::spawn(Arc::clone(self).follow_changes()),
            tokio::spawn(Arc::clone(self).keep_house()),
        ]
    }

    fn identity(&self) -> Identity {
        self.bootstrap.identity
    }

    /// The configuration that is committed and applied here; that of the beginning before any is known.
    fn configuration(&self) -> Membership {
        let known = self.running.get().and_then(|running| running.handle.membership(DATA));
        known.map(|known| known.borrow().clone()).unwrap_or_default()
    }

    /// The peer addresses of every node that there is to talk to, this one included: what is registered, and those that it started with.
    fn addresses(&self) -> BTreeMap<u64, Vec<String>> {
        let mut all = addresses_left(&self.bootstrap, &self.configuration());
        all.extend(self.registered());
        all
    }

    fn registered(&self) -> BTreeMap<u64, Vec<String>> {
        let nodes = self.running.get().map(|running| running.reader.nodes()).unwrap_or_default();
        nodes.into_iter().map(|node| (node.id, node.peer_urls)).collect()
    }

    fn bootstrap_addresses(&self) -> BTreeMap<u64, Vec<String>> {
        addresses_left(&self.bootstrap, &Membership::default())
    }

    /// Registered members that are to vote although they only learn so far.
    fn to_be_voters(&self) -> Vec<u64> {
        let nodes = self.running.get().map(|running| running.reader.nodes()).unwrap_or_default();
        nodes.iter().filter(|node| node.votes).map(|node| node.id).collect()
    }

    /// The members as etcd's API shows them, by id. One that was never heard of has no name and no client URLs, as in etcd.
    pub(crate) fn list(&self) -> Vec<Member> {
        let configuration = self.configuration();
        let (addresses, voters) = (self.addresses(), self.to_be_voters());
        let learns = |node: u64| {
            let learner = |replica: &ReplicaId| configuration.nodes.get(replica) == Some(&NodeId(node));
            configuration.learners.iter().any(learner) && !voters.contains(&node)
        };
        let present = |node: &u64| {
            // Whoever is only in the outgoing half of a joint configuration has left.
            configuration.nodes.is_empty()
                || configuration.nodes.iter().any(|(replica, at)| {
                    at.0 == *node
                        && (configuration.voters.contains(replica)
                            || configuration.learners.contains(replica))
                })
        };
        let member = |(id, peer_ur_ls): (u64, Vec<String>)| {
            let said = self.introductions.of(id);
            Member { id, name: said.name, peer_ur_ls, client_ur_ls: said.client_urls, is_learner: learns(id) }
        };
        addresses.into_iter().filter(|(id, _)| present(id)).map(member).collect()
    }

    /// Whether this member only learns, and is to do no more; also while nobody has told it yet what it is. Asked with every request, so it is
    /// kept.
    pub(crate) fn is_learner(&self) -> bool {
        self.learns.load(Ordering::Relaxed)
    }

    fn find_whether_learner(&self) -> bool {
        let configuration = self.configuration();
        let own = NodeId(self.identity().member_id);
        if !self.bootstrap.founding && !configuration.nodes.values().any(|node| *node == own) {
            return true;
        }
        let learns = |replica: &ReplicaId| configuration.nodes.get(replica) == Some(&own);
        configuration.learners.iter().any(learns) && !self.to_be_voters().contains(&own.0)
    }

    /// What one who enquires is told.
    pub(crate) fn about(&self) -> Bytes {
        let configuration = self.configuration();
        let replica = |node: u64| {
            let found = configuration.nodes.iter().find(|(_, at)| at.0 == node);
            found.map_or(0, |(replica, _)| replica.0)
        };
        let members = self.list().into_iter().map(|member| wire::MemberAbout {
            id: member.id,
            replica: replica(member.id),
            peer_urls: member.peer_ur_ls,
            name: member.name,
        });
        // Before the group runs this member knows only what it started from, which may be long ago.
        let members = if self.running.get().is_some() { members.collect() } else { Vec::new() };
        let quorums = configuration.quorums.or(self.bootstrap.quorums);
        let about = wire::ClusterAbout {
            members,
            blank: self.is_blank(),
            next_replica: configuration.next_replica.0,
            engine: self.engine.name().to_owned(),
            elect_quorum: quorums.map_or(0, |sizes| u32::from(sizes.elect)),
            commit_quorum: quorums.map_or(0, |sizes| u32::from(sizes.commit)),
        };
        about.encode_to_vec().into()
    }

    /// Asks the others who they are, until the task is aborted.
    async fn keep_asking(self: Arc<Self>) {
        let Some(running) = self.running.get() else { return };
        let mut changes = self.registry.subscribe();
        loop {
            let own = self.identity().member_id;
            let others: Vec<u64> = self.addresses().into_keys().filter(|id| *id != own).collect();
            let pause = self.introductions.ask_all(&running.handle, &others).await;
            // A new member is asked at once, and again until it is there.
            let _ = tokio::time::timeout(pause, changes.changed()).await;
        }
    }

    /// Follows configuration and registry: has the transport talk to whoever belongs to the cluster, and no more to whoever has left, and keeps
    /// whether this member learns.
    async fn follow_changes(self: Arc<Self>) {
        let Some(running) = self.running.get() else { return };
        let Some(mut configuration) = running.handle.membership(DATA) else { return };
        let mut changes = self.registry.subscribe();
        let mut known = self.bootstrap_addresses();
        loop {
            self.learns.store(self.find_whether_learner(), Ordering::Relaxed);
            let wanted = self.addresses();
            for (id, urls) in &wanted {
                if known.get(id) != Some(urls) {
                    running.transport.set_peer(NodeId(*id), &authorities(urls).collect::<Vec<_>>());
                }
            }
            for gone in known.keys().filter(|id| !wanted.contains_key(id)) {
                running.transport.remove_peer(NodeId(*gone));
            }
            known = wanted;
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                changed = configuration.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// The addresses of the members that this one started with, but for those that an applied configuration has removed. One that it does not
/// name may be yet to come: while this member catches up, what it knows is older than what it started with.
fn addresses_left(bootstrap: &Bootstrap, applied: &Membership) -> BTreeMap<u64, Vec<String>> {
    let urls = |peer: &Peer| peer.peer_urls.iter().map(ToString::to_string).collect();
    let has_left = |peer: &Peer| peer.replica > 0 && applied.has_removed(ReplicaId(peer.replica));
    bootstrap.members.iter().filter(|peer| !has_left(peer)).map(|peer| (peer.id, urls(peer))).collect()
}

/// Where URLs lead to, each `host:port`.
fn authorities(urls: &[String]) -> impl Iterator<Item = String> {
    urls.iter().filter_map(|url| Url::parse(url).ok()).map(|url| url.authority())
}

impl Answerer for Members {
    fn answer(&self, _: NodeId, question: Bytes, respond: Responder) {
        match Question::decode(question).map(|question| question.change) {
            Err(_) => respond.send(Bytes::new()),
            Ok(None) => respond.send(self.introductions.own()),
            Ok(Some(change)) => {
                let (Some(running), Some(this)) = (self.running.get(), self.this.upgrade()) else { return };
                running.runtime.spawn(changes::answer(this, change, respond));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The replicas of a configuration, each on the node with ten times its number.
    fn applied(replicas: &[u64], next_replica: u64) -> Membership {
        let replicas = replicas.iter().map(|id| (ReplicaId(*id), NodeId(id * 10)));
        Membership { next_replica: ReplicaId(next_replica), ..Membership::of_voters(replicas) }
    }

    #[test]
    fn only_who_was_removed_has_left() {
        let peer = |replica: u64| {
            let peer_urls = vec![Url::new("h", u16::try_from(replica).unwrap())];
            Peer { id: replica * 10, name: String::new(), peer_urls, replica }
        };
        // The fourth was started when there was a fifth already.
        let bootstrap = Bootstrap {
            identity: Identity { cluster_id: 1, member_id: 40 },
            members: (1..=5).map(peer).collect(),
            founding: false,
            replica: 4,
            quorums: None,
            incarnation: 1,
        };
        let left = |applied: &Membership| addresses_left(&bootstrap, applied).into_keys().collect::<Vec<_>>();
        assert_eq!(left(&Membership::default()), [10, 20, 30, 40, 50]);
        assert_eq!(left(&applied(&[1, 2, 3, 4], 5)), [10, 20, 30, 40, 50], "the fifth is yet to be added");
        assert_eq!(left(&applied(&[1, 3, 4], 5)), [10, 30, 40, 50]);
        assert_eq!(left(&applied(&[1, 3, 4], 6)), [10, 30, 40], "the fifth came and went");
        let mut unknown = bootstrap.clone();
        unknown.members[4].replica = 0;
        assert!(addresses_left(&unknown, &applied(&[1, 2, 3, 4], 6)).contains_key(&50), "nobody can tell");
    }
}
