//! The parts of a frame that evolve: protobuf messages. Fields are only ever added; a number once used keeps its meaning.
//!
//! Entries stand in a head as *runs*: slots and ids that follow one on the other, under one ballot, are said once, and only
//! lengths of payloads entry by entry. Version 1 of the protocol knew no runs and said each entry in full.
//!
//! Payloads are not in them. They follow the head, one after the other, and the head says how long each is, so that
//! they are written from where they lie and, where they are long, read without being copied. Ids that are hashes are `fixed64`: as varints they
//! would take ten bytes.

/// Head of kind 1: a core's message. The entries' payloads follow. Written and read by hand, in [`crate::consensus`].
#[cfg(test)]
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConsensusHead {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint64, tag = "2")]
    pub from: u64,
    #[prost(uint64, tag = "3")]
    pub to: u64,
    #[prost(uint32, tag = "4")]
    pub class: u32,
    #[prost(bytes = "bytes", tag = "5")]
    pub head: bytes::Bytes,
    /// In version 1: the entries. Else none.
    #[prost(message, repeated, tag = "6")]
    pub entries: Vec<EntryHead>,
    /// From version 2 on: the entries.
    #[prost(message, repeated, tag = "7")]
    pub runs: Vec<RunHead>,
    /// Of each entry of the runs, in order.
    #[prost(uint32, repeated, tag = "8")]
    pub payload_lens: Vec<u32>,
    /// For each entry of the runs by how much its id's sequence is above what follows on the entry before; zero for a run's first.
    /// Empty if all are zero.
    #[prost(uint64, repeated, tag = "9")]
    pub id_gaps: Vec<u64>,
}

/// An entry without its payload.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct EntryHead {
    #[prost(uint64, tag = "1")]
    pub slot: u64,
    #[prost(uint64, tag = "2")]
    pub ballot_round: u64,
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    #[prost(fixed64, tag = "4")]
    pub id_node: u64,
    #[prost(uint64, tag = "5")]
    pub id_sequence: u64,
    #[prost(uint32, tag = "6")]
    pub payload_len: u32,
    #[prost(uint64, tag = "7")]
    pub ballot_config: u64,
    #[prost(uint64, tag = "8")]
    pub ballot_replica: u64,
}

/// Entries at successive slots, of one ballot, kind and proposer, their sequences ascending.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct RunHead {
    /// Of the first entry.
    #[prost(uint64, tag = "1")]
    pub slot: u64,
    /// How many entries there are.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    #[prost(uint64, tag = "3")]
    pub ballot_round: u64,
    #[prost(uint32, tag = "4")]
    pub kind: u32,
    #[prost(fixed64, tag = "5")]
    pub id_node: u64,
    /// Of the first entry.
    #[prost(uint64, tag = "6")]
    pub id_sequence: u64,
    #[prost(uint64, tag = "7")]
    pub ballot_config: u64,
    #[prost(uint64, tag = "8")]
    pub ballot_replica: u64,
}

/// Head of kind 2: a node's sign of life.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct AliveHead {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
}

/// Head of kind 3: forwarded proposals. Their payloads follow.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ForwardHead {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(message, repeated, tag = "2")]
    pub batch: Vec<ProposalHead>,
}

/// A proposal without its payload; in a refusal, its id alone.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ProposalHead {
    #[prost(fixed64, tag = "1")]
    pub node: u64,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(uint32, tag = "3")]
    pub payload_len: u32,
}

/// Head of kind 4: proposals that were not taken or were lost.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RefusedHead {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(message, repeated, tag = "2")]
    pub ids: Vec<ProposalHead>,
    #[prost(uint32, tag = "3")]
    pub outcome: u32,
    #[prost(bool, tag = "4")]
    pub busy: bool,
}

/// Head of kinds 5 and 6: a question and its answer. The body follows.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct CallHead {
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// Head of kind 7: asks for a piece of a snapshot.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct PullHead {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint64, tag = "2")]
    pub fetch: u64,
    #[prost(uint64, tag = "3")]
    pub at_least: u64,
    #[prost(uint64, tag = "4")]
    pub piece: u64,
    #[prost(uint64, tag = "5")]
    pub have_slot: u64,
    #[prost(uint64, tag = "6")]
    pub have_pieces: u64,
    #[prost(fixed64, tag = "7")]
    pub have_digest_high: u64,
    #[prost(fixed64, tag = "8")]
    pub have_digest_low: u64,
}

/// Head of kind 8: a piece of a snapshot. The body follows.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct PieceHead {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint64, tag = "2")]
    pub fetch: u64,
    #[prost(uint64, tag = "3")]
    pub piece: u64,
    #[prost(bool, tag = "4")]
    pub last: bool,
    #[prost(uint64, tag = "5")]
    pub slot: u64,
    /// Of all pieces before this one.
    #[prost(fixed64, tag = "6")]
    pub digest_high: u64,
    #[prost(fixed64, tag = "7")]
    pub digest_low: u64,
}

/// What a dialer says first.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub version_min: u32,
    #[prost(uint32, tag = "2")]
    pub version_max: u32,
    #[prost(fixed64, tag = "3")]
    pub cluster: u64,
    #[prost(fixed64, tag = "4")]
    pub from: u64,
    #[prost(fixed64, tag = "5")]
    pub to: u64,
    #[prost(uint32, tag = "6")]
    pub lane: u32,
    /// Names the data directory of the sender; zero if it does not say.
    #[prost(fixed64, tag = "7")]
    pub incarnation: u64,
    /// The sender only wants to know who is here: the receiver is not looked at, nor the cluster if it is zero.
    #[prost(bool, tag = "8")]
    pub enquires: bool,
    /// Where the sender is reached, each `host:port`: for a receiver that nobody told.
    #[prost(string, repeated, tag = "9")]
    pub addresses: Vec<String>,
}

/// What the node that was dialed answers.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Answer {
    /// Zero: welcome. Else the [`Refusal`](crate::Refusal)'s code.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    #[prost(uint32, tag = "2")]
    pub version_min: u32,
    #[prost(uint32, tag = "3")]
    pub version_max: u32,
    #[prost(fixed64, tag = "4")]
    pub cluster: u64,
    #[prost(fixed64, tag = "5")]
    pub node: u64,
    /// The longest frame it takes, in bytes after the frame's header.
    #[prost(uint64, tag = "6")]
    pub frame_bytes_max: u64,
    /// Names the data directory of the node; zero if it does not say.
    #[prost(fixed64, tag = "7")]
    pub incarnation: u64,
}
