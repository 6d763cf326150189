//! The engine's part of a message: its head. Entries ride beside it, see [`conclave_consensus::Message`].
//!
//! A head is a protobuf message of at most [`HEAD_BYTES_MAX`] bytes. Fields may be added: a reader skips those that it does not
//! know. `version` is the lowest version of reader that the sender believes can make sense of it.

use bytes::Bytes;
use conclave_consensus::{Ballot, Class, Entry, Kind, Message, ReplicaId, Slot};
use prost::Message as _;

/// Heads are a few dozen bytes; the rest is room for what later versions add.
pub(crate) const HEAD_BYTES_MAX: usize = 1_024;
/// A term beyond this is no term: elections cannot have got there, and adding one must not overflow.
pub(crate) const TERM_MAX: u64 = 1 << 62;
/// An election timeout is at most an hour, and so is a promise not to vote.
pub(crate) const PROMISE_US_MAX: u64 = 3_600_000_000;
pub(crate) const SLOT_MAX: u64 = 1 << 62;
const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Head {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// The sender's term.
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub(crate) body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    /// Would you vote for me in the next term? (Thesis, section 9.6.)
    #[prost(message, tag = "3")]
    PreVote(Candidacy),
    #[prost(message, tag = "4")]
    PreVoteReply(VoteReply),
    /// Vote for me in this term (Figure 2, RequestVote).
    #[prost(message, tag = "5")]
    Vote(Candidacy),
    #[prost(message, tag = "6")]
    VoteReply(VoteReply),
    /// Entries, or none to probe and to tell of a commit (Figure 2, AppendEntries).
    #[prost(message, tag = "7")]
    Append(Append),
    #[prost(message, tag = "8")]
    AppendReply(AppendReply),
    /// I still lead.
    #[prost(message, tag = "9")]
    Beat(Beat),
    #[prost(message, tag = "10")]
    BeatReply(BeatReply),
    /// What you need is no longer in my log: fetch a snapshot.
    #[prost(message, tag = "11")]
    SnapshotOffer(SnapshotOffer),
    /// Stand for election now (thesis, section 3.10).
    #[prost(message, tag = "12")]
    TimeoutNow(TimeoutNow),
    /// From which slot on may the reads that wait here be served?
    #[prost(message, tag = "13")]
    ReadAsk(ReadAsk),
    #[prost(message, tag = "14")]
    ReadReply(ReadReply),
    /// Your term is over.
    #[prost(message, tag = "15")]
    Stale(Stale),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Candidacy {
    #[prost(uint64, tag = "1")]
    pub(crate) last_slot: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) last_term: u64,
    /// The present leader asked for this election: voters need not wait until it falls silent.
    #[prost(bool, tag = "3")]
    pub(crate) transfer: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct VoteReply {
    #[prost(bool, tag = "1")]
    pub(crate) granted: bool,
    /// The candidate's term when it asked: a pre-vote changes no term, so the head's cannot tell.
    #[prost(uint64, tag = "2")]
    pub(crate) asked_in: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Append {
    #[prost(uint64, tag = "1")]
    pub(crate) prev_slot: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) prev_term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) committed: u64,
    /// It only tells of a commit: to be answered if it does not match, and not if it does.
    #[prost(bool, tag = "4")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct AppendReply {
    /// Accepted: durable and equal to the leader's log up to this slot. Rejected: the `prev_slot` that did not match.
    #[prost(uint64, tag = "1")]
    pub(crate) slot: u64,
    #[prost(bool, tag = "2")]
    pub(crate) rejected: bool,
    /// Rejected: the last slot that may match, and its term.
    #[prost(uint64, tag = "3")]
    pub(crate) hint_slot: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) hint_term: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Beat {
    /// At most what the receiver is known to hold.
    #[prost(uint64, tag = "1")]
    pub(crate) committed: u64,
    /// The confirmation round of reads (thesis, section 6.4); comes back in the reply.
    #[prost(uint64, tag = "2")]
    pub(crate) round: u64,
    /// For how long the answer promises not to vote for another ([`crate::lease`]), in microseconds; zero if the leader asks for no promise.
    #[prost(uint64, tag = "3")]
    pub(crate) promise_us: u64,
    /// Nothing is to be done: sleep, if you hold all of it ([`crate::quiescence`]).
    #[prost(bool, tag = "4")]
    pub(crate) sleep: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct BeatReply {
    #[prost(uint64, tag = "1")]
    pub(crate) round: u64,
    /// The sender's priority, at most 255 ([`crate::transfer`]).
    #[prost(uint32, tag = "2")]
    pub(crate) priority: u32,
    /// It sleeps, as it was asked to.
    #[prost(bool, tag = "3")]
    pub(crate) asleep: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct SnapshotOffer {
    /// The snapshot must contain this slot, or the log cannot follow on it.
    #[prost(uint64, tag = "1")]
    pub(crate) at_least: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct TimeoutNow {}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ReadAsk {
    /// Drawn at boot: tells the asker's lives apart, so that an answer to a former one cannot pass for today's.
    #[prost(fixed64, tag = "1")]
    pub(crate) life: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) context: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ReadReply {
    #[prost(fixed64, tag = "1")]
    pub(crate) life: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) context: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) at: u64,
    #[prost(bool, tag = "4")]
    pub(crate) refused: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Stale {}

impl Body {
    /// Whether only who was asked, or is served, says this: everything but what a leader or a candidate asks for.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::PreVoteReply(_)
            | Self::VoteReply(_)
            | Self::AppendReply(_)
            | Self::BeatReply(_)
            | Self::ReadAsk(_)
            | Self::ReadReply(_)
            | Self::Stale(_) => true,
            Self::PreVote(_)
            | Self::Vote(_)
            | Self::Append(_)
            | Self::Beat(_)
            | Self::SnapshotOffer(_)
            | Self::TimeoutNow(_) => false,
        }
    }

    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Append(_) => Class::Append,
            Self::Beat(_) | Self::BeatReply(_) => Class::Beat,
            _ => Class::Control,
        }
    }
}

/// Writes a message.
pub(crate) fn message(from: ReplicaId, to: ReplicaId, term: u64, body: Body, entries: Vec<Entry>) -> Message {
    let class = body.class();
    let head = Head { version: VERSION, term, body: Some(body) };
    Message { from, to, class, head: Bytes::from(head.encode_to_vec()), entries }
}

/// Reads a head and judges everything that can be judged without the replica's state.
pub(crate) fn decode(message: &Message) -> Result<(u64, Body), &'static str> {
    if message.head.len() > HEAD_BYTES_MAX {
        return Err("head is too long");
    }
    let head = Head::decode(message.head.as_ref()).map_err(|_| "head cannot be decoded")?;
    if head.version != VERSION {
        return Err("unknown version");
    }
    let body = head.body.ok_or("unknown kind of message")?;
    // Before the first election there is only term 0, and all that can be done in it is to ask for one.
    let before_terms = matches!(body, Body::PreVote(_) | Body::PreVoteReply(_));
    if head.term > TERM_MAX || (head.term == 0 && !before_terms) {
        return Err("term out of range");
    }
    match &body {
        Body::Append(append) => check_entries(head.term, append, &message.entries)?,
        _ if !message.entries.is_empty() => return Err("entries where none belong"),
        Body::PreVote(c) | Body::Vote(c) if c.last_slot > SLOT_MAX || c.last_term > head.term => {
            return Err("candidate's log is out of range");
        }
        Body::AppendReply(reply) if reply.slot > SLOT_MAX || reply.hint_slot > SLOT_MAX => {
            return Err("slot out of range");
        }
        Body::AppendReply(reply) if reply.rejected && reply.hint_slot >= reply.slot => {
            return Err("hint is not before the rejected slot");
        }
        Body::Beat(beat) if beat.committed > SLOT_MAX => return Err("slot out of range"),
        Body::Beat(beat) if beat.promise_us > PROMISE_US_MAX => return Err("promise out of range"),
        Body::SnapshotOffer(offer) if offer.at_least > SLOT_MAX => return Err("slot out of range"),
        Body::ReadReply(reply) if reply.at > SLOT_MAX => return Err("slot out of range"),
        _ => {}
    }
    Ok((head.term, body))
}

fn check_entries(term: u64, append: &Append, entries: &[Entry]) -> Result<(), &'static str> {
    if append.prev_slot > SLOT_MAX || append.committed > SLOT_MAX || append.prev_term > term {
        return Err("append is out of range");
    }
    let mut slot = Slot(append.prev_slot);
    let mut ballot = Ballot::term(append.prev_term);
    for entry in entries {
        slot = slot.next();
        if entry.slot != slot {
            return Err("entries are not contiguous");
        }
        if entry.ballot < ballot
            || entry.ballot != Ballot::term(entry.ballot.round)
            || entry.ballot.round > term
        {
            return Err("an entry's term is out of order");
        }
        if entry.kind == Kind::Config && conclave_consensus::Config::decode(&entry.payload).is_err() {
            return Err("a configuration entry cannot be decoded");
        }
        ballot = entry.ballot;
    }
    Ok(())
}
