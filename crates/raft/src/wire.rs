//! The engine's part of a message: its head. Entries ride beside it, see [`conclave_consensus::Message`].
//!
//! A head is a protobuf message of at most [`HEAD_BYTES_MAX`] bytes. Fields may be added: a reader skips those that it does not
//! know. `version` is the lowest version of reader that the sender believes can make sense of it.

use conclave_consensus::{Ballot, Class, Entries, Entry, Kind, Message, ReplicaId, Slot};
use prost::{Message as _, encoding::decode_varint};

/// Heads are a few dozen bytes; the rest is room for what later versions add.
pub(crate) const HEAD_BYTES_MAX: usize = 1_024;
/// A term beyond this is no term: elections cannot have got there, and adding one must not overflow.
pub(crate) const TERM_MAX: u64 = 1 << 62;
/// An election timeout is at most an hour, and so is a promise not to vote.
pub(crate) const PROMISE_US_MAX: u64 = 3_600_000_000;
pub(crate) const SLOT_MAX: u64 = 1 << 62;
const VERSION: u32 = 1;
/// Room for the longest head that this version writes: two numbers, and a body of four.
const WRITTEN_BYTES_MAX: usize = 64;
/// How the bodies begin that are written and read by hand: number 7 and 8 of [`Body`], each with its length.
const APPEND: u8 = 7 << 3 | 2;
const APPEND_REPLY: u8 = 8 << 3 | 2;

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Head {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// The sender's term.
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub(crate) body: Option<Body>,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
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
pub(crate) fn message(from: ReplicaId, to: ReplicaId, term: u64, body: Body, entries: Entries) -> Message {
    let class = body.class();
    let mut out = Written { bytes: [0; WRITTEN_BYTES_MAX], len: 0 };
    write(term, body, &mut out);
    Message { from, to, class, head: conclave_consensus::Head::written(&out.bytes, out.len), entries }
}

/// A head as it is written.
struct Written {
    bytes: [u8; WRITTEN_BYTES_MAX],
    len: usize,
}

impl Written {
    fn put(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// Zero is not written.
    fn put_field(&mut self, number: u8, mut value: u64) {
        if value == 0 {
            return;
        }
        self.put(number << 3);
        while value >= 0x80 {
            self.put(value as u8 | 0x80);
            value >>= 7;
        }
        self.put(value as u8);
    }
}

/// Writes a head. What is said for every entry is written, and [read](read_common), by hand: its bodies are four numbers.
fn write(term: u64, body: Body, out: &mut Written) {
    let (key, fields) = match body {
        Body::Append(Append { prev_slot, prev_term, committed, quiet }) => {
            (APPEND, [prev_slot, prev_term, committed, quiet.into()])
        }
        Body::AppendReply(AppendReply { slot, rejected, hint_slot, hint_term }) => {
            (APPEND_REPLY, [slot, rejected.into(), hint_slot, hint_term])
        }
        body => {
            let mut rest = &mut out.bytes[..];
            Head { version: VERSION, term, body: Some(body) }.encode_raw(&mut rest);
            out.len = WRITTEN_BYTES_MAX - rest.len();
            return;
        }
    };
    out.put_field(1, u64::from(VERSION));
    out.put_field(2, term);
    out.put(key);
    out.put(0);
    let start = out.len;
    for (number, field) in (1..).zip(fields) {
        out.put_field(number, field);
    }
    // Four fields of at most eleven bytes, so that a length of one byte is enough.
    out.bytes[start - 1] = (out.len - start) as u8;
}

/// The head of one of those two, if it is as [`write`] leaves it. `None` for any other, with more fields than this version knows say, which is
/// for [`Head`] to read.
fn read_common(mut bytes: &[u8]) -> Option<Head> {
    let version = u32::try_from(take_field(1, &mut bytes)?).ok()?;
    let term = take_field(2, &mut bytes)?;
    let [key, len, body @ ..] = bytes else { return None };
    if !matches!(*key, APPEND | APPEND_REPLY) || usize::from(*len) != body.len() {
        return None;
    }
    let mut rest = body;
    let mut fields = [0; 4];
    for (number, field) in (1..).zip(&mut fields) {
        *field = take_field(number, &mut rest)?;
    }
    if !rest.is_empty() {
        return None;
    }
    let [first, second, third, fourth] = fields;
    let body = if *key == APPEND {
        Body::Append(Append { prev_slot: first, prev_term: second, committed: third, quiet: fourth != 0 })
    } else {
        let rejected = second != 0;
        Body::AppendReply(AppendReply { slot: first, rejected, hint_slot: third, hint_term: fourth })
    };
    Some(Head { version, term, body: Some(body) })
}

/// The field, if it comes next; zero, which is not written, if it does not.
#[inline(always)]
fn take_field(number: u8, bytes: &mut &[u8]) -> Option<u64> {
    match *bytes {
        [key, value @ ..0x80, rest @ ..] if *key == number << 3 => {
            *bytes = rest;
            Some(u64::from(*value))
        }
        [key, rest @ ..] if *key == number << 3 => {
            *bytes = rest;
            decode_varint(bytes).ok()
        }
        _ => Some(0),
    }
}

/// Reads a head and judges everything that can be judged without the replica's state.
pub(crate) fn decode(message: &Message) -> Result<(u64, Body), &'static str> {
    if message.head.len() > HEAD_BYTES_MAX {
        return Err("head is too long");
    }
    let head = match read_common(&message.head) {
        Some(head) => head,
        None => Head::decode(&message.head[..]).map_err(|_| "head cannot be decoded")?,
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind of body, its fields as small, as ordinary and as large as can be.
    fn bodies() -> Vec<Body> {
        let mut all = vec![Body::TimeoutNow(TimeoutNow {}), Body::Stale(Stale {})];
        for (number, yes) in [(0, false), (1, true), (300, false), (u64::MAX, true)] {
            let priority = u32::try_from(number).unwrap_or(u32::MAX);
            all.extend([
                Body::PreVote(Candidacy { last_slot: number, last_term: number, transfer: yes }),
                Body::PreVoteReply(VoteReply { granted: yes, asked_in: number }),
                Body::Vote(Candidacy { last_slot: number, last_term: number, transfer: yes }),
                Body::VoteReply(VoteReply { granted: yes, asked_in: number }),
                Body::Append(Append { prev_slot: number, prev_term: number, committed: number, quiet: yes }),
                Body::Append(Append { prev_slot: 7, committed: number, ..Append::default() }),
                Body::AppendReply(AppendReply {
                    slot: number,
                    rejected: yes,
                    hint_slot: number,
                    hint_term: number,
                }),
                Body::AppendReply(AppendReply { slot: number, ..AppendReply::default() }),
                Body::Beat(Beat { committed: number, round: number, promise_us: number, sleep: yes }),
                Body::BeatReply(BeatReply { round: number, priority, asleep: yes }),
                Body::SnapshotOffer(SnapshotOffer { at_least: number }),
                Body::ReadAsk(ReadAsk { life: number, context: number }),
                Body::ReadReply(ReadReply { life: number, context: number, at: number, refused: yes }),
            ]);
        }
        all
    }

    #[test]
    fn what_is_written_by_hand_is_what_the_derived_message_writes_and_reads_back() {
        for body in bodies() {
            for term in [0, 1, 300, u64::MAX] {
                let head = Head { version: VERSION, term, body: Some(body) };
                let message = message(ReplicaId(1), ReplicaId(2), term, body, Entries::default());
                assert_eq!(message.head[..], head.encode_to_vec()[..], "{head:?}");
                let common = matches!(body, Body::Append(_) | Body::AppendReply(_));
                assert_eq!(read_common(&message.head), common.then_some(head));
            }
        }
    }

    #[test]
    fn what_is_read_by_hand_is_what_the_derived_message_reads() {
        let whole = [0x08, 1, 0x10, 5, 0x3a, 9, 0x08, 0x85, 1, 0x10, 4, 0x18, 3, 0x20];
        let mut cases =
            vec![[&whole[..], &[1]].concat(), [&whole[..], &[2]].concat(), vec![0x08, 1, 0x42, 0]];
        for (place, byte) in
            (0..cases[0].len()).flat_map(|place| (0..=u8::MAX).map(move |byte| (place, byte)))
        {
            let mut changed = cases[0].clone();
            changed[place] = byte;
            cases.push(changed.clone());
            cases.push(changed[..place].to_vec());
        }
        let by_hand = cases.iter().filter_map(|bytes| Some((bytes, read_common(bytes)?)));
        let mut count = 0;
        for (bytes, head) in by_hand {
            assert_eq!(Head::decode(&bytes[..]), Ok(head), "{bytes:?}");
            count += 1;
        }
        assert!(count > 500, "only {count} were read by hand");
    }
}
