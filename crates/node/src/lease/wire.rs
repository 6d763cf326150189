//! What members ask the leader about leases, over the questions that services ask each other.
//!
//! The numbers of the fields are apart from those of the questions about members, and so are those of the answers: a member that does not know
//! these questions answers with something else, in which an asker finds no answer of ours.

/// The questions about leases within a question of one member to another.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Envelope {
    #[prost(message, optional, tag = "5")]
    pub(crate) lease: Option<LeaseQuestion>,
}

/// Questions to the leader, many at once.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct LeaseQuestion {
    /// Leases to renew.
    #[prost(sfixed64, repeated, tag = "1")]
    pub(crate) renew: Vec<i64>,
    /// Leases of which to tell how long they have left.
    #[prost(sfixed64, repeated, tag = "2")]
    pub(crate) left: Vec<i64>,
}

/// Each list is as long as the one asked, or empty where nothing can be said, as by who does not lead.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct LeaseAnswer {
    /// The time to live of each lease in seconds, [`GONE`] or [`LATER`].
    #[prost(sint64, repeated, tag = "3")]
    pub(crate) renewed: Vec<i64>,
    /// The seconds that each has left, or [`GONE`].
    #[prost(sint64, repeated, tag = "4")]
    pub(crate) left: Vec<i64>,
}

/// There is no such lease.
pub(crate) const GONE: i64 = -1;
/// To be asked again in a moment.
pub(crate) const LATER: i64 = -2;
