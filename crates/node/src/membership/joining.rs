//! A member's first steps: into a cluster that runs already, or among those that found one.

use std::collections::BTreeSet;

use conclave_consensus::NodeId;
use conclave_transport::{About, ClusterId, HandshakeError, Plain, Refusal, enquire};
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

/// Asks the members of a running cluster who this one is among them.
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
        // Of several answers the newest counts: one that lags may still know who had this address before.
        let mut newest: Option<(ClusterAbout, About)> = None;
        for url in &others {
            match enquire(&Plain, &url.authority(), (NodeId(0), ClusterId(0)), 0, PATIENCE).await {
                Ok(about) => {
                    let cluster = ClusterAbout::decode(about.about.clone()).unwrap_or_default();
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
                Ok(bootstrap) => return Ok(bootstrap),
                Err(error) => why = error,
            }
        }
        if others.is_empty() || Instant::now() >= until {
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

/// Waits until a member that holds nothing may take part. It cannot know by itself whether it is new or has lost what it held, so it asks
/// the others, and goes on once so many do not know it by another data directory that every quorum it could have been part of has one of them
/// (all of them, of three). A founder also goes on once a quorum, itself included, holds nothing: else no cluster could begin with one
/// absent. What that gives up is in decision 4.
///
/// # Errors
/// If one knows it by another data directory, or knows that it was removed.
pub(crate) async fn wait_for_recognition(bootstrap: &Bootstrap) -> Result<(), Refusal> {
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
            let Some(url) = peer.peer_urls.first() else { continue };
            match enquire(&Plain, &url.authority(), own, incarnation, PATIENCE).await {
                Ok(about) if about.node.0 == peer.id => {
                    strangers += 1;
                    blank += usize::from(ClusterAbout::decode(about.about).is_ok_and(|about| about.blank));
                }
                Err(HandshakeError::Refused(refusal @ (Refusal::Replaced(_) | Refusal::Removed(_)))) => {
                    return Err(refusal);
                }
                Err(HandshakeError::Refused(refusal)) => {
                    if !told {
                        told = true;
                        tracing::warn!(url = %url, "a founding member is not there: {refusal}");
                    }
                    silent.push(peer.name.as_str());
                }
                // Nobody is there, or somebody else.
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
    use super::*;
    use crate::membership::wire::MemberAbout;

    #[test]
    fn who_joins_runs_on_the_clusters_engine() {
        let config = Config { engine: Engine::Paxos, ..Config::default() };
        let own = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
        let member = MemberAbout { id: 7, replica: 3, peer_urls: own, ..MemberAbout::default() };
        let about = About { node: NodeId(1), cluster: ClusterId(9), about: bytes::Bytes::new() };
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
