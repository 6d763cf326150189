//! What members ask each other, and what one who is yet to join is told.

use conclave_api::errors::EtcdError;
use conclave_consensus::Quorums;

/// A question of one member to another; without a change, who it is.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Question {
    #[prost(oneof = "Change", tags = "1, 2, 3, 4")]
    pub(super) change: Option<Change>,
}

/// A change of membership, asked of the leader.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Change {
    /// Adds a member.
    #[prost(message, tag = "1")]
    Add(Add),
    /// Removes the member of this id.
    #[prost(fixed64, tag = "2")]
    Remove(u64),
    /// Notes other peer addresses of a member.
    #[prost(message, tag = "3")]
    Update(Update),
    /// Makes the learner of this id a voter.
    #[prost(fixed64, tag = "4")]
    Promote(u64),
}

/// A member to be added.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Add {
    /// Where the others are to reach it.
    #[prost(string, repeated, tag = "1")]
    pub peer_urls: Vec<String>,
    /// Whether it is to learn only, until it is promoted by hand.
    #[prost(bool, tag = "2")]
    pub learner: bool,
}

/// Other peer addresses of a member.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Update {
    /// The member.
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    /// Where the others reach it from now on.
    #[prost(string, repeated, tag = "2")]
    pub peer_urls: Vec<String>,
}

/// The answer to a question with a change.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Changed {
    /// The number of the [`EtcdError`], zero if it was done.
    #[prost(uint32, tag = "1")]
    error: u32,
    /// The member.
    #[prost(fixed64, tag = "2")]
    id: u64,
}

impl Changed {
    pub(super) fn of(outcome: Result<u64, EtcdError>) -> Self {
        match outcome {
            Ok(id) => Self { error: 0, id },
            Err(error) => Self { error: u32::from(error.number()), id: 0 },
        }
    }

    pub(super) fn outcome(self) -> Result<u64, EtcdError> {
        if self.error == 0 {
            return Ok(self.id);
        }
        let known = u16::try_from(self.error).ok().and_then(EtcdError::from_number);
        // A newer member's error: whether it was done is not known here.
        Err(known.unwrap_or(EtcdError::Timeout))
    }
}

/// What a member says of itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Introduction {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) client_urls: Vec<String>,
}

/// What a member tells whoever enquires at its peer address.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ClusterAbout {
    #[prost(message, repeated, tag = "1")]
    pub(super) members: Vec<MemberAbout>,
    /// It has promised nothing to anybody: its log holds nothing.
    #[prost(bool, tag = "2")]
    pub(super) blank: bool,
    /// The next replica's number: whoever has a lower one and is not listed was removed. The higher, the newer is this answer.
    #[prost(uint64, tag = "3")]
    pub(super) next_replica: u64,
    /// The name of the engine that the cluster runs on; empty is Raft.
    #[prost(string, tag = "4")]
    pub(super) engine: String,
    /// Sizes of the cluster's quorums; zero for majorities.
    #[prost(uint32, tag = "5")]
    pub(super) elect_quorum: u32,
    #[prost(uint32, tag = "6")]
    pub(super) commit_quorum: u32,
}

impl ClusterAbout {
    /// Sizes of the cluster's quorums.
    pub(super) fn quorums(&self) -> Option<Quorums> {
        let (elect, commit) = (u8::try_from(self.elect_quorum).ok()?, u8::try_from(self.commit_quorum).ok()?);
        (elect > 0 && commit > 0).then_some(Quorums { elect, commit })
    }
}

/// One of the members.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct MemberAbout {
    #[prost(fixed64, tag = "1")]
    pub(super) id: u64,
    /// Its replica; zero if that is not known yet.
    #[prost(uint64, tag = "2")]
    pub(super) replica: u64,
    #[prost(string, repeated, tag = "3")]
    pub(super) peer_urls: Vec<String>,
    #[prost(string, tag = "4")]
    pub(super) name: String,
}
