//! Who a member is: ids that every member derives alike from the list of members and the cluster's token.
//!
//! As in etcd, ids are digests, so that a cluster needs no coordinator to hand them out: a member's is that of
//! its peer addresses and the token, the cluster's that of its members' ids.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};
use thiserror::Error;

use conclave_consensus::Quorums;

use crate::config::Config;
use crate::config::url::Url;
use crate::engine::Engine;

/// Which member of which cluster a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster. Never zero.
    pub cluster_id: u64,
    /// The member. Never zero.
    pub member_id: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {:x} of cluster {:x}", self.member_id, self.cluster_id)
    }
}

/// A member as the list of members names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its peer addresses, sorted.
    pub peer_urls: Vec<Url>,
    /// Its replica of the data group; zero if that is not known.
    pub replica: u64,
}

/// What a member starts from: it is decided when its data directory is made, and for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Who this member is.
    pub identity: Identity,
    /// All members of that time, this one too, by id.
    pub members: Vec<Peer>,
    /// Whether it was among those that founded the cluster.
    pub founding: bool,
    /// Its replica of the data group.
    pub replica: u64,
    /// Sizes of quorums with which the cluster was founded, or which it had when this member joined; `None` for majorities.
    pub quorums: Option<Quorums>,
    /// Names its data directory: drawn when that is made. Never zero.
    pub incarnation: u64,
}

impl Bootstrap {
    /// The fewest members that can have decided anything together.
    pub(crate) fn quorum_min(&self) -> usize {
        let majority = self.members.len() / 2 + 1;
        self.quorums.map_or(majority, |sizes| usize::from(sizes.elect.min(sizes.commit)))
    }
}

/// Why no ids can be derived.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The configuration's members leave this one out.
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NotAMember(String),
    /// Two members have the same digest.
    #[error("members {0:?} and {1:?} of the initial cluster have the same id")]
    SameId(String, String),
}

/// Derives the ids of a new cluster.
///
/// # Errors
/// Where the configuration was not validated, or two digests are equal.
pub fn bootstrap(config: &Config) -> Result<Bootstrap, IdentityError> {
    let mut by_id = BTreeMap::new();
    for (name, urls) in &config.initial_cluster {
        let id = member_id(urls, &config.initial_cluster_token);
        let peer = Peer { id, name: name.clone(), peer_urls: urls.clone(), replica: 0 };
        if let Some(other) = by_id.insert(id, peer) {
            return Err(IdentityError::SameId(other.name, name.clone()));
        }
    }
    let mut members: Vec<_> = by_id.into_values().collect();
    number_founders(&mut members);
    let this = members
        .iter()
        .find(|peer| peer.name == config.name)
        .ok_or_else(|| IdentityError::NotAMember(config.name.clone()))?;
    let (member_id, replica) = (this.id, this.replica);
    let cluster_id = cluster_id(&members, config.engine, config.quorums);
    Ok(Bootstrap {
        identity: Identity { cluster_id, member_id },
        members,
        founding: true,
        replica,
        quorums: config.quorums,
        incarnation: new_incarnation(),
    })
}

/// The founders' replicas are numbered from 1 in the order of their ids: every member derives the same.
pub(crate) fn number_founders(members: &mut [Peer]) {
    for (replica, peer) in (1..).zip(members) {
        peer.replica = replica;
    }
}

/// An id for a member that is added to a running cluster: like etcd's, of its addresses, the token and the time, so that one who is
/// added again is another.
pub(crate) fn new_member_id(peer_urls: &[String], token: &str) -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let parts = peer_urls.iter().map(|url| url.as_bytes().to_vec());
    digest(parts.chain([token.as_bytes().to_vec(), now.to_be_bytes().to_vec()]))
}

/// A name for a data directory that is being made: of the system's randomness.
pub(crate) fn new_incarnation() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish().max(1)
}

/// etcd's, of the members' ids, for a cluster that runs on Raft. Members that were given different engines, or quorums of different sizes, are
/// of different clusters, so that they refuse each other from the first word.
fn cluster_id(members: &[Peer], engine: Engine, quorums: Option<Quorums>) -> u64 {
    let ids = members.iter().map(|peer| peer.id.to_be_bytes().to_vec());
    let other = (engine != Engine::Raft).then(|| engine.name().as_bytes().to_vec());
    let sizes = quorums.map(|sizes| vec![sizes.elect, sizes.commit]);
    digest(ids.chain(other).chain(sizes))
}

fn member_id(urls: &[Url], token: &str) -> u64 {
    let mut urls: Vec<_> = urls.iter().map(ToString::to_string).collect();
    urls.sort();
    let token = token.to_owned();
    digest(urls.into_iter().chain([token]))
}

/// The first eight bytes of the parts' SHA-256; each part is preceded by its length, so that no two lists of
/// parts read alike.
fn digest(parts: impl Iterator<Item = impl AsRef<[u8]>>) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.as_ref().len() as u64).to_be_bytes());
        hash.update(part.as_ref());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    // Zero is nobody.
    u64::from_be_bytes(first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::url::parse_members;

    fn config(name: &str, members: &str, token: &str) -> Config {
        Config {
            name: name.to_owned(),
            initial_cluster: parse_members(members).unwrap(),
            initial_cluster_token: token.to_owned(),
            ..Config::default()
        }
    }

    #[test]
    fn every_member_derives_the_same_cluster() {
        let members = "a=http://h:1,b=http://h:2,c=http://h:3";
        let a = bootstrap(&config("a", members, "t")).unwrap();
        let b = bootstrap(&config("b", "c=http://h:3,b=http://h:2,a=http://h:1", "t")).unwrap();
        assert_eq!((a.identity.cluster_id, &a.members), (b.identity.cluster_id, &b.members));
        assert_ne!((a.replica, a.incarnation), (b.replica, b.incarnation));
        assert_ne!(a.identity.member_id, b.identity.member_id);
        let other = bootstrap(&config("a", members, "u")).unwrap();
        assert_ne!(a.identity.cluster_id, other.identity.cluster_id);
    }

    #[test]
    fn founders_that_were_given_other_quorums_are_of_another_cluster() {
        let members = "a=http://h:1,b=http://h:2,c=http://h:3";
        let founder = |name, elect, commit| {
            let quorums = Some(Quorums { elect, commit });
            bootstrap(&Config { engine: Engine::Paxos, quorums, ..config(name, members, "t") }).unwrap()
        };
        let majorities = bootstrap(&Config { engine: Engine::Paxos, ..config("a", members, "t") }).unwrap();
        let (a, b, other) = (founder("a", 3, 1), founder("b", 3, 1), founder("c", 2, 2));
        assert_eq!(a.identity.cluster_id, b.identity.cluster_id);
        assert_ne!(a.identity.cluster_id, other.identity.cluster_id);
        assert_ne!(a.identity.cluster_id, majorities.identity.cluster_id);
        assert_eq!([&majorities, &a, &other].map(Bootstrap::quorum_min), [2, 1, 2]);
    }

    #[test]
    fn ids_stay_what_they_are() {
        let lone = bootstrap(&Config::default()).unwrap();
        expect_test::expect!["member 4dc9c8d97897f841 of cluster 680e7f20c92fe2e3"]
            .assert_eq(&lone.identity.to_string());
    }

    #[test]
    fn a_stranger_has_no_identity() {
        assert!(bootstrap(&config("z", "a=http://h:1", "t")).is_err());
    }
}
