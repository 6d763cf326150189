//! What a message says, in one line: for logs, transcripts and people.

use std::fmt::Write as _;

use conclave_consensus::{Ballot, Kind, Message};

use crate::wire::{self, Body};

/// One line for a message, such as `1→2 accept 0.3.1 chosen 6 [8 9]`. Ballots are shown as configuration, round and replica.
#[must_use]
pub fn describe(message: &Message) -> String {
    let mut line = format!("{}→{} ", message.from, message.to);
    let (ballot, body) = match wire::decode(message) {
        Ok(decoded) => decoded,
        Err(why) => return line + "unreadable: " + why,
    };
    let ballot = name(ballot);
    let what = match body {
        Body::Beat(b) => {
            let stage = match b.stage {
                wire::SEEKS if b.hears_quorum => "seeks, hears a quorum",
                wire::SEEKS => "seeks",
                wire::PREPARES => "prepares",
                wire::LEADS => "leads",
                _ => "led",
            };
            format!("beat {ballot} {stage}, chosen {} round {}", b.chosen, b.round)
        }
        Body::BeatReply(r) => {
            let free = if r.free { "free" } else { "not free" };
            format!("beat-reply {ballot} {free}, received {} round {}", r.received, r.round)
        }
        Body::Prepare(p) => {
            let why = if p.transfer { " (transfer)" } else { "" };
            format!("prepare {ballot} from {}{why}", p.from)
        }
        Body::Promise(p) => {
            let more = if p.done { "" } else { ", more" };
            format!("promise {ballot} {}..{}{more}, chosen {} {}", p.from, p.next, p.chosen, entries(message))
        }
        Body::Accept(a) => format!("accept {ballot} chosen {} {}", a.chosen, entries(message)),
        Body::Accepted(a) => {
            let mut line = format!("accepted {ballot} up to {}", a.upto);
            for (first, last) in a.runs() {
                let _ = write!(line, ", {first}–{last}");
            }
            line
        }
        Body::Nack(n) => format!("nack {} promised {ballot}, chosen {}", name(n.refused.into()), n.chosen),
        Body::Ask(a) => format!("ask from {}", a.from),
        Body::Tell(t) if t.snapshot > 0 => format!("tell: a snapshot of at least {}", t.snapshot),
        Body::Tell(t) => format!("tell: chosen {} {}", t.chosen, entries(message)),
        Body::SnapshotOffer(o) => format!("snapshot-offer {ballot} at least {}", o.at_least),
        Body::TakeOver(_) => format!("take-over {ballot}"),
        Body::ReadAsk(a) => format!("read-ask {ballot} #{}", a.context),
        Body::ReadReply(r) if r.refused => format!("read-reply {ballot} #{} refused", r.context),
        Body::ReadReply(r) => format!("read-reply {ballot} #{} at {}", r.context, r.at),
    };
    line.push_str(&what);
    line
}

fn name(ballot: Ballot) -> String {
    format!("{}.{}.{}", ballot.config, ballot.round, ballot.replica)
}

fn entries(message: &Message) -> String {
    let mut list = String::from("[");
    for (place, entry) in message.entries.iter().enumerate() {
        let space = if place == 0 { "" } else { " " };
        let kind = match entry.kind {
            Kind::Command => "",
            Kind::Noop => " noop",
            Kind::Config => " config",
        };
        let _ = write!(list, "{space}{}{kind}", entry.slot);
    }
    list + "]"
}
