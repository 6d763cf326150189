//! The engine's part of a message: its head. Entries ride beside it, see [`conclave_consensus::Message`].
//!
//! A head is a protobuf message of at most [`HEAD_BYTES_MAX`] bytes. Fields may be added: a reader skips those that it does not
//! know. `version` is the lowest version of reader that the sender believes can make sense of it.

use conclave_consensus::{Ballot, Class, Config, Entries, Entry, Kind, Message, ReplicaId, Slot};
use prost::Message as _;

/// Heads are a few dozen bytes; the rest is room for what later versions add.
pub(crate) const HEAD_BYTES_MAX: usize = 2_048;
/// A round beyond this is no round: elections cannot have got there, and adding one must not overflow.
pub(crate) const ROUND_MAX: u64 = 1 << 62;
/// An election timeout is at most an hour, and so is a promise to a lease.
pub(crate) const PROMISE_US_MAX: u64 = 3_600_000_000;
pub(crate) const SLOT_MAX: u64 = 1 << 62;
/// Runs of slots in one acknowledgement.
pub(crate) const RUNS_MAX: usize = 32;
const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Head {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(message, required, tag = "2")]
    pub(crate) ballot: WireBallot,
    #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub(crate) body: Option<Body>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct WireBallot {
    #[prost(uint64, tag = "1")]
    pub(crate) config: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) round: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) replica: u64,
}

impl From<Ballot> for WireBallot {
    fn from(ballot: Ballot) -> Self {
        Self { config: ballot.config, round: ballot.round, replica: ballot.replica.0 }
    }
}

impl From<WireBallot> for Ballot {
    fn from(wire: WireBallot) -> Self {
        Self { config: wire.config, round: wire.round, replica: ReplicaId(wire.replica) }
    }
}

/// The head's ballot is the one that the message is about: the sender's as a leader or candidate, or the one that is answered. In
/// [`Beat`]s of replicas that do not lead, their answers, [`Nack`], [`Ask`] and [`Tell`] it is what the sender promised.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    /// A leader, a candidate or a replica that looks for a leader makes itself heard.
    #[prost(message, tag = "3")]
    Beat(Beat),
    #[prost(message, tag = "4")]
    BeatReply(BeatReply),
    /// Phase 1 for all slots from one on.
    #[prost(message, tag = "5")]
    Prepare(Prepare),
    /// A page of what was accepted from there on.
    #[prost(message, tag = "6")]
    Promise(Promise),
    /// Phase 2: a run of slots, or none to tell what is chosen.
    #[prost(message, tag = "7")]
    Accept(Accept),
    #[prost(message, tag = "8")]
    Accepted(Accepted),
    /// A higher ballot was promised, or the configuration is over.
    #[prost(message, tag = "9")]
    Nack(Nack),
    /// What was chosen from this slot on?
    #[prost(message, tag = "10")]
    Ask(Ask),
    /// This was.
    #[prost(message, tag = "11")]
    Tell(Tell),
    /// What you need is no longer in my log: fetch a snapshot.
    #[prost(message, tag = "12")]
    SnapshotOffer(SnapshotOffer),
    /// Stand for election now.
    #[prost(message, tag = "13")]
    TakeOver(TakeOver),
    /// From which slot on may the reads that wait here be served?
    #[prost(message, tag = "14")]
    ReadAsk(ReadAsk),
    #[prost(message, tag = "15")]
    ReadReply(ReadReply),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Beat {
    /// Counted by the sender; comes back in the reply.
    #[prost(uint64, tag = "1")]
    pub(crate) round: u64,
    /// 0: looks for a leader, 1: asks for promises, 2: leads, 3: led until now.
    #[prost(uint32, tag = "2")]
    pub(crate) stage: u32,
    /// Whether the sender hears enough replicas to lead.
    #[prost(bool, tag = "3")]
    pub(crate) hears_quorum: bool,
    #[prost(uint64, tag = "4")]
    pub(crate) chosen: u64,
    /// The number of the newest configuration whose quorums hold all that led to it.
    #[prost(uint64, tag = "5")]
    pub(crate) settled: u64,
    /// For how long the answer promises to promise nothing to another ([`crate::lease`]), in microseconds; zero if no such promise is asked for.
    #[prost(uint64, tag = "6")]
    pub(crate) promise_us: u64,
    /// At most 255.
    #[prost(uint32, tag = "7")]
    pub(crate) priority: u32,
}

pub(crate) const SEEKS: u32 = 0;
pub(crate) const PREPARES: u32 = 1;
pub(crate) const LEADS: u32 = 2;
pub(crate) const RESIGNED: u32 = 3;

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct BeatReply {
    #[prost(uint64, tag = "1")]
    pub(crate) round: u64,
    /// It would promise a ballot of the asker's.
    #[prost(bool, tag = "2")]
    pub(crate) free: bool,
    /// It accepted everything up to here in the ballot, or knows that it is chosen; perhaps not yet durably.
    #[prost(uint64, tag = "3")]
    pub(crate) received: u64,
    /// Known chosen; where a configuration came in force by it, durably so.
    #[prost(uint64, tag = "4")]
    pub(crate) chosen: u64,
    #[prost(uint32, tag = "5")]
    pub(crate) priority: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Prepare {
    #[prost(uint64, tag = "1")]
    pub(crate) from: u64,
    /// The present leader wants it: acceptors need not wait until that falls silent.
    #[prost(bool, tag = "2")]
    pub(crate) transfer: bool,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Promise {
    /// The page tells all that was accepted in the slots `from..next`.
    #[prost(uint64, tag = "1")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) next: u64,
    /// Nothing was accepted from `next` on.
    #[prost(bool, tag = "3")]
    pub(crate) done: bool,
    /// Held durably and known chosen up to here; it is not told in pages.
    #[prost(uint64, tag = "4")]
    pub(crate) chosen: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Accept {
    #[prost(uint64, tag = "1")]
    pub(crate) chosen: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) settled: u64,
    /// It only tells what is chosen: to be answered by nobody.
    #[prost(bool, tag = "3")]
    pub(crate) quiet: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Accepted {
    /// Durable up to here: each slot accepted in the ballot, or known chosen.
    #[prost(uint64, tag = "1")]
    pub(crate) upto: u64,
    /// Accepted beyond: first slots, and last slots, of runs in order.
    #[prost(uint64, repeated, tag = "2")]
    pub(crate) firsts: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub(crate) lasts: Vec<u64>,
    /// Known chosen; where a configuration came in force by it, durably so.
    #[prost(uint64, tag = "4")]
    pub(crate) chosen: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Nack {
    /// The ballot that was refused.
    #[prost(message, required, tag = "1")]
    pub(crate) refused: WireBallot,
    #[prost(uint64, tag = "2")]
    pub(crate) chosen: u64,
    /// The number of the sender's configuration.
    #[prost(uint64, tag = "3")]
    pub(crate) config: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Ask {
    #[prost(uint64, tag = "1")]
    pub(crate) from: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Tell {
    /// What the sender knows to be chosen.
    #[prost(uint64, tag = "1")]
    pub(crate) chosen: u64,
    /// If not zero, the slot that was asked for is cut: a snapshot must contain this one.
    #[prost(uint64, tag = "2")]
    pub(crate) snapshot: u64,
    /// As in [`Beat`].
    #[prost(uint64, tag = "3")]
    pub(crate) settled: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct SnapshotOffer {
    /// The snapshot must contain this slot, or the log cannot follow on it.
    #[prost(uint64, tag = "1")]
    pub(crate) at_least: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct TakeOver {
    /// What the leader knows to be chosen, so that its heir knows which configuration it leads.
    #[prost(uint64, tag = "1")]
    pub(crate) chosen: u64,
}

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

impl Body {
    /// Whether only who was asked, or is served, says this: everything but what a leader, a candidate or who looks for a leader asks for.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::BeatReply(_)
            | Self::Promise(_)
            | Self::Accepted(_)
            | Self::Nack(_)
            | Self::Tell(_)
            | Self::ReadAsk(_)
            | Self::ReadReply(_) => true,
            Self::Beat(_)
            | Self::Prepare(_)
            | Self::Accept(_)
            | Self::Ask(_)
            | Self::SnapshotOffer(_)
            | Self::TakeOver(_) => false,
        }
    }

    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Accept(_) => Class::Append,
            Self::Beat(_) | Self::BeatReply(_) => Class::Beat,
            Self::Tell(_) => Class::Bulk,
            _ => Class::Control,
        }
    }
}

/// Writes a message.
pub(crate) fn message(
    from: ReplicaId,
    to: ReplicaId,
    ballot: Ballot,
    body: Body,
    entries: impl Into<Entries>,
) -> Message {
    let class = body.class();
    let head = written(&Head { version: VERSION, ballot: ballot.into(), body: Some(body) });
    Message { from, to, class, head, entries: entries.into() }
}

/// A head's bytes; those of a short one, as most are, are written without memory of their own.
fn written(head: &Head) -> conclave_consensus::Head {
    let mut bytes = [0; 64];
    let mut rest = &mut bytes[..];
    let room = rest.len();
    if head.encode(&mut rest).is_ok() {
        let len = room - rest.len();
        return bytes[..len].into();
    }
    head.encode_to_vec()[..].into()
}

/// Reads a head and judges everything that can be judged without the replica's state.
pub(crate) fn decode(message: &Message) -> Result<(Ballot, Body), &'static str> {
    if message.head.len() > HEAD_BYTES_MAX {
        return Err("head is too long");
    }
    let head = Head::decode(message.head.as_ref()).map_err(|_| "head cannot be decoded")?;
    if head.version != VERSION {
        return Err("unknown version");
    }
    let body = head.body.ok_or("unknown kind of message")?;
    let ballot = Ballot::from(head.ballot);
    if ballot.round > ROUND_MAX || ballot.config > ROUND_MAX {
        return Err("ballot out of range");
    }
    let slots_are_sane = match &body {
        Body::Beat(beat) => {
            beat.chosen <= SLOT_MAX && beat.stage <= RESIGNED && beat.promise_us <= PROMISE_US_MAX
        }
        Body::BeatReply(reply) => reply.received <= SLOT_MAX && reply.chosen <= SLOT_MAX,
        Body::Prepare(prepare) => prepare.from <= SLOT_MAX && prepare.from > 0,
        Body::Promise(page) => {
            page.next <= SLOT_MAX && page.from <= page.next && page.from > 0 && page.chosen <= SLOT_MAX
        }
        Body::Accept(accept) => accept.chosen <= SLOT_MAX,
        Body::Accepted(accepted) => accepted.are_runs(),
        Body::Nack(nack) => nack.chosen <= SLOT_MAX,
        Body::Ask(ask) => ask.from <= SLOT_MAX && ask.from > 0,
        Body::Tell(tell) => tell.chosen <= SLOT_MAX && tell.snapshot <= SLOT_MAX,
        Body::SnapshotOffer(offer) => offer.at_least <= SLOT_MAX,
        Body::TakeOver(take_over) => take_over.chosen <= SLOT_MAX,
        Body::ReadAsk(_) => true,
        Body::ReadReply(reply) => reply.at <= SLOT_MAX,
    };
    if !slots_are_sane {
        return Err("a number is out of range");
    }
    // Whoever asks for promises or leads does so in a ballot of its own.
    let is_own = match &body {
        Body::Prepare(_) | Body::Accept(_) | Body::SnapshotOffer(_) | Body::TakeOver(_) => true,
        Body::Beat(beat) => beat.stage != SEEKS,
        _ => false,
    };
    if is_own && ballot.replica != message.from {
        return Err("speaks in another's ballot");
    }
    match &body {
        Body::Accept(_) => check_run(&message.entries, |entry| entry.ballot == ballot)?,
        Body::Tell(_) => check_run(&message.entries, |_| true)?,
        Body::Promise(page) => check_page(ballot, page, &message.entries)?,
        _ if !message.entries.is_empty() => return Err("entries where none belong"),
        _ => {}
    }
    Ok((ballot, body))
}

impl Accepted {
    fn are_runs(&self) -> bool {
        let runs = self.firsts.iter().zip(&self.lasts);
        let mut after = self.upto;
        self.firsts.len() == self.lasts.len()
            && self.firsts.len() <= RUNS_MAX
            && self.upto <= SLOT_MAX
            && self.chosen <= SLOT_MAX
            && runs.into_iter().all(|(first, last)| {
                let follows = *first > after && last >= first && *last <= SLOT_MAX;
                after = *last;
                follows
            })
    }

    /// The runs beyond `upto`.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Slot, Slot)> + '_ {
        self.firsts.iter().zip(&self.lasts).map(|(first, last)| (Slot(*first), Slot(*last)))
    }
}

fn check_entry(entry: &Entry) -> Result<(), &'static str> {
    if entry.slot.0 > SLOT_MAX || entry.slot == Slot(0) {
        return Err("slot out of range");
    }
    // Only a ballot of somebody's was ever accepted in.
    if entry.ballot.round > ROUND_MAX
        || entry.ballot.config > ROUND_MAX
        || entry.ballot.replica == ReplicaId(0)
    {
        return Err("an entry's ballot is out of range");
    }
    if entry.kind == Kind::Config && Config::decode(&entry.payload).is_err() {
        return Err("a configuration entry cannot be decoded");
    }
    Ok(())
}

fn check_run(entries: &[Entry], fits: impl Fn(&Entry) -> bool) -> Result<(), &'static str> {
    for (place, entry) in entries.iter().enumerate() {
        check_entry(entry)?;
        if !fits(entry) {
            return Err("an entry of another ballot");
        }
        if place > 0 && entry.slot != entries[place - 1].slot.next() {
            return Err("entries are not contiguous");
        }
    }
    Ok(())
}

fn check_page(ballot: Ballot, page: &Promise, entries: &[Entry]) -> Result<(), &'static str> {
    let mut least = Slot(page.from);
    for entry in entries {
        check_entry(entry)?;
        if entry.slot < least || entry.slot.0 >= page.next {
            return Err("entries are out of order, or beside the page");
        }
        if entry.ballot > ballot {
            return Err("accepted in a higher ballot than it promises");
        }
        least = entry.slot.next();
    }
    Ok(())
}
