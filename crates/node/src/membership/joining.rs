//! A member's first steps: into a cluster that runs already, or among those that found one.

use std::{collections::BTreeSet, io};

use conclave_consensus::{LogState, NodeId, Slot};
use conclave_transport::{About, ClusterId, Doorkeeper, HandshakeError, Plain, Refusal, enquire};
use prost::Message as _;
use thiserror::Error;
use tokio::time::{Duration, Instant, sleep};

use super::wire::ClusterAbout;
use crate::{
    config::{Config, url::Url},
    engine::Engine,
    identity::{Bootstrap, Identity, Peer, new_incarnation},
};

/// How long a cluster may take to answer one that wants to join: the members that are asked may not all know of it yet.
const JOINING: Duration = Duration::from_secs(15);
/// How long one member may take.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);
/// How often one that waits says for what.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Why a running cluster cannot be joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// There is nobody to ask.
    #[error(
        "--initial-cluster-state=existing joins a running cluster, but --initial-cluster names no other member: list them all, as \
         `etcdctl member add` printed them"
    )]
    Alone,
    /// Nobody answers.
    #[error("cannot join: none of the members in --initial-cluster answers; the last one said: {0}")]
    Nobody(HandshakeError),
    /// The cluster does not know this member.
    #[error(
        "cannot join: the running cluster has no member with the peer URLs {0}; add it first, with `etcdctl member add`, or correct \
         --initial-advertise-peer-urls"
    )]
    NotAMember(String),
    /// The cluster runs on another engine.
    #[error("cannot join: the running cluster runs on {found}, not on {configured}: give --engine {found}")]
    OtherEngine {
        /// The cluster's.
        found: String,
        /// The one that was asked for.
        configured: Engine,
    },
    /// The flags describe another cluster.
    #[error(
        "cannot join: error validating peerURLs: --initial-cluster lists {listed}, the running cluster has {found}"
    )]
    Unequal {
        /// By the flags.
        listed: String,
        /// By the cluster.
        found: String,
    },
}

/// Asks the members of a running cluster who this one is among them, until half of them answer, or as many as do within [`JOINING`].
///
/// # Errors
/// See [`JoinError`], once [`JOINING`] has passed.
pub(crate) async fn find_cluster(config: &Config) -> Result<Bootstrap, JoinError> {
    let others: Vec<&Url> = config
        .initial_cluster
        .iter()
        .filter(|(name, _)| **name != config.name)
        .flat_map(|(_, u)| u)
        .collect();
    let until = Instant::now() + JOINING;
    let mut why = JoinError::Alone;
    loop {
        let late = Instant::now() >= until;
        // Of several answers the newest counts, and one alone counts little: whoever lags may still know who had this address before.
        let mut newest: Option<(ClusterAbout, About)> = None;
        let mut answered = BTreeSet::new();
        for url in &others {
            match enquire(&Plain, &url.authority(), (NodeId(0), ClusterId(0)), 0, PATIENCE).await {
                Ok(about) => {
                    let cluster = ClusterAbout::decode(about.about.clone()).unwrap_or_default();
                    answered.insert(about.node);
                    if newest.as_ref().is_none_or(|(known, _)| known.next_replica < cluster.next_replica) {
                        newest = Some((cluster, about));
                    }
                }
                Err(error) if matches!(why, JoinError::Alone | JoinError::Nobody(_)) => {
                    why = JoinError::Nobody(error);
                }
                Err(_) => {}
            }
        }
        if let Some((cluster, about)) = newest {
            match among(config, &cluster, &about) {
                Ok(bootstrap) if late || 2 * answered.len() + 1 >= config.initial_cluster.len() => {
                    return Ok(bootstrap);
                }
                Ok(_) => {}
                Err(error) => why = error,
            }
        }
        if others.is_empty() || late {
            return Err(why);
        }
        sleep(PAUSE).await;
    }
}

/// Finds this member among those of a cluster, which must be those of the flags.
fn among(config: &Config, cluster: &ClusterAbout, about: &About) -> Result<Bootstrap, JoinError> {
    let found = if cluster.engine.is_empty() { Engine::Raft.name() } else { &cluster.engine };
    if found != config.engine.name() {
        return Err(JoinError::OtherEngine { found: found.to_owned(), configured: config.engine });
    }
    let own: BTreeSet<String> = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
    let is_own = |urls: &[String]| urls.iter().cloned().collect::<BTreeSet<_>>() == own;
    let Some(this) = cluster.members.iter().find(|member| is_own(&member.peer_urls) && member.replica > 0)
    else {
        return Err(JoinError::NotAMember(own.into_iter().collect::<Vec<_>>().join(",")));
    };
    let listed: BTreeSet<String> =
        config.initial_cluster.values().flatten().map(ToString::to_string).collect();
    let found: BTreeSet<String> = cluster.members.iter().flat_map(|m| m.peer_urls.clone()).collect();
    if listed != found {
        let join = |urls: BTreeSet<String>| urls.into_iter().collect::<Vec<_>>().join(",");
        return Err(JoinError::Unequal { listed: join(listed), found: join(found) });
    }
    let members = cluster.members.iter().map(|member| Peer {
        id: member.id,
        name: member.name.clone(),
        peer_urls: member.peer_urls.iter().filter_map(|url| Url::parse(url).ok()).collect(),
        replica: member.replica,
    });
    Ok(Bootstrap {
        identity: Identity { cluster_id: about.cluster.0, member_id: this.id },
        members: members.collect(),
        founding: false,
        replica: this.replica,
        quorums: cluster.quorums(),
        incarnation: new_incarnation(),
    })
}

/// Asks a member at its addresses in turn, until it answers at one or says that this one is none of them.
///
/// # Errors
/// That word, or what was found at the last address.
pub(super) async fn enquire_of(
    member: u64,
    addresses: impl Iterator<Item = String>,
    own: (NodeId, ClusterId),
    incarnation: u64,
    patience: Duration,
) -> Result<About, HandshakeError> {
    let mut found = HandshakeError::Io(io::ErrorKind::AddrNotAvailable.into());
    for address in addresses {
        match enquire(&Plain, &address, own, incarnation, patience).await {
            Ok(about) if about.node.0 == member => return Ok(about),
            Ok(about) => found = Refusal::Target { wanted: NodeId(member), here: about.node }.into(),
            Err(told @ HandshakeError::Refused(Refusal::Replaced(_) | Refusal::Removed(_))) => {
                return Err(told);
            }
            Err(error) => found = error,
        }
    }
    Err(found)
}

/// Whether a log holds neither a term nor an entry. What a core promises it writes here first, so whoever's log holds nothing has promised
/// nothing, also while its group runs already and waits for a quorum.
pub(crate) fn holds_nothing(log: &LogState) -> bool {
    log.meta.is_empty() && log.last == Slot(0)
}

/// Waits until a member that holds nothing may take part. It cannot know by itself whether it is new or has lost what it held, so it asks
/// the others, and goes on once so many do not know it by another data directory that every quorum it could have been part of has one of them
/// (all of them, of three). A founder also goes on once a quorum, itself included, holds nothing: else no cluster could begin with one
/// absent. One that has gone on still counts until its log holds something, which takes a quorum: else whoever looks a little later would
/// wait for the absent one. What that gives up is in decision 4.
///
/// # Errors
/// If one knows it by another data directory, or knows that it was removed.
pub(crate) async fn wait_for_recognition(
    bootstrap: &Bootstrap,
    door: &dyn Doorkeeper,
) -> Result<(), Refusal> {
    let count = bootstrap.members.len();
    let quorum = bootstrap.quorum_min();
    // With sizes of quorums that differ, each of either kind has one of so many.
    let in_every_quorum = (count / 2 + 1).max(count - quorum + 1);
    let Identity { cluster_id, member_id } = bootstrap.identity;
    let (own, incarnation) = ((NodeId(member_id), ClusterId(cluster_id)), bootstrap.incarnation);
    let others = || bootstrap.members.iter().filter(|peer| peer.id != member_id);
    let mut say_at = Instant::now() + SAY_EVERY;
    let mut told = false;
    loop {
        let (mut strangers, mut blank) = (0, 1);
        let mut silent = Vec::new();
        for peer in others() {
            let addresses = peer.peer_urls.iter().map(Url::authority);
            match enquire_of(peer.id, addresses, own, incarnation, PATIENCE).await {
                Ok(about) if !door.knows_otherwise(about.node, about.incarnation) => {
                    strangers += 1;
                    blank += usize::from(ClusterAbout::decode(about.about).is_ok_and(|about| about.blank));
                }
                Err(HandshakeError::Refused(refusal @ (Refusal::Replaced(_) | Refusal::Removed(_)))) => {
                    return Err(refusal);
                }
                Err(HandshakeError::Refused(refusal)) => {
                    if !told {
                        told = true;
                        tracing::warn!(name = peer.name, "a founding member is not there: {refusal}");
                    }
                    silent.push(peer.name.as_str());
                }
                // Nobody is there, or one that lost what it promised.
                Ok(_) | Err(_) => silent.push(peer.name.as_str()),
            }
        }
        if strangers > count - quorum || (bootstrap.founding && blank >= in_every_quorum) {
            return Ok(());
        }
        if Instant::now() >= say_at {
            say_at = Instant::now() + SAY_EVERY;
            tracing::warn!(
                waits_for = silent.join(","),
                "waiting for the other members to say whether this one was here before"
            );
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::LogOp;
    use conclave_storage::{LogStore as _, MemoryLog};
    use conclave_transport::{TcpOptions, TcpTransport};

    use super::*;
    use crate::{membership::wire::MemberAbout, replicated::DATA};

    #[test]
    fn a_member_is_blank_until_its_log_holds_something() {
        let log = MemoryLog::new();
        assert!(holds_nothing(&log.state(DATA)));
        log.append(&[(DATA, vec![LogOp::Meta(bytes::Bytes::from_static(b"term"))])]).unwrap();
        assert!(!holds_nothing(&log.state(DATA)));
    }

    /// Knows one data directory of everybody, and says this to those that enquire.
    #[derive(Debug)]
    struct Door(u64, ClusterAbout);

    impl Doorkeeper for Door {
        fn recognises(&self, _: NodeId, incarnation: u64) -> io::Result<bool> {
            Ok(incarnation == self.0)
        }

        fn knows_otherwise(&self, _: NodeId, incarnation: u64) -> bool {
            incarnation != 0 && incarnation != self.0
        }

        fn about(&self) -> bytes::Bytes {
            self.1.encode_to_vec().into()
        }
    }

    /// Nobody talks here.
    #[derive(Debug)]
    struct Deaf;

    impl conclave_transport::Inbound for Deaf {
        fn receive(&self, _: NodeId, _: Vec<conclave_transport::Packet>) {}
    }

    /// A node with data directory 6.
    async fn answering(node: u64, port: u16, door: Door) -> TcpTransport {
        let options = TcpOptions {
            incarnation: 6,
            doorkeeper: std::sync::Arc::new(door),
            ..TcpOptions::new(NodeId(node), ClusterId(9), vec![format!("127.0.0.1:{port}")])
        };
        let transport = TcpTransport::bind(options).await.unwrap();
        transport.start(std::sync::Arc::new(Deaf));
        transport
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn one_that_lags_is_not_believed_alone() {
        let urls = |port| vec![Url::new("127.0.0.1", port)];
        let (own, late, absent) = (free_port(), free_port(), free_port());
        let member = |id, replica, port| {
            let peer_urls = urls(port).iter().map(ToString::to_string).collect();
            MemberAbout { id, replica, peer_urls, name: String::new() }
        };
        // Who had this address before was the seventh, and was removed.
        let about = |port, this, next_replica| ClusterAbout {
            members: vec![member(1, 1, port), member(2, 2, late), member(3, 3, absent), this],
            next_replica,
            ..ClusterAbout::default()
        };
        let lagging = free_port();
        let lags = answering(1, lagging, Door(6, about(lagging, member(7, 4, own), 5))).await;
        let knows = Door(6, about(lagging, member(8, 6, own), 7));
        let config = Config {
            name: "n4".to_owned(),
            initial_advertise_peer_urls: urls(own),
            initial_cluster: [("n1", lagging), ("n2", late), ("n3", absent), ("n4", own)]
                .map(|(name, port)| (name.to_owned(), urls(port)))
                .into(),
            ..Config::default()
        };
        let comes = async {
            sleep(Duration::from_millis(300)).await;
            answering(2, late, knows).await
        };
        let (found, knew) = tokio::join!(find_cluster(&config), comes);
        assert_eq!(found.unwrap().identity.member_id, 8);
        lags.shutdown().await;
        knew.shutdown().await;
    }

    #[tokio::test]
    async fn another_that_holds_nothing_counts_unless_it_once_held_something() {
        let free = free_port();
        let blank = ClusterAbout { blank: true, ..ClusterAbout::default() };
        let other = answering(2, 0, Door(5, blank.clone())).await;
        let peer = |id, port| {
            let (name, peer_urls) = (format!("n{id}"), vec![Url::new("127.0.0.1", port)]);
            Peer { id, name, peer_urls, replica: id }
        };
        let bootstrap = Bootstrap {
            identity: Identity { cluster_id: 9, member_id: 1 },
            members: vec![peer(1, 1), peer(2, other.addresses()[0].port()), peer(3, free)],
            founding: true,
            replica: 1,
            quorums: None,
            incarnation: 5,
        };
        let begins = async |known| {
            let door = Door(known, blank.clone());
            let waited = wait_for_recognition(&bootstrap, &door);
            tokio::time::timeout(Duration::from_secs(1), waited).await.is_ok_and(|told| told.is_ok())
        };
        assert!(begins(6).await, "two of three hold nothing");
        assert!(!begins(7).await, "the other is known by another data directory");
        other.shutdown().await;
    }

    #[test]
    fn who_joins_runs_on_the_clusters_engine() {
        let config = Config { engine: Engine::Paxos, ..Config::default() };
        let own = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
        let member = MemberAbout { id: 7, replica: 3, peer_urls: own, ..MemberAbout::default() };
        let about =
            About { node: NodeId(1), cluster: ClusterId(9), incarnation: 0, about: bytes::Bytes::new() };
        let join = |engine: &str| {
            let cluster = ClusterAbout {
                members: vec![member.clone()],
                engine: engine.to_owned(),
                ..ClusterAbout::default()
            };
            among(&config, &cluster, &about)
        };
        assert_eq!(join("paxos").expect("the same engine").identity.member_id, 7);
        for other in ["", "raft"] {
            let told = join(other).expect_err("another engine").to_string();
            assert_eq!(
                told,
                "cannot join: the running cluster runs on raft, not on paxos: give --engine raft"
            );
        }
    }
}
