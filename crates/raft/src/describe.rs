//! What a message says, in one line: for logs, transcripts and people.

use std::fmt::Write as _;

use conclave_consensus::{Kind, Message};

use crate::wire::{self, Body};

/// One line for a message, such as `1→2 append t3 after 7/2 commit 6 [8/3]`. Slots are shown with their terms, as `slot/term`.
#[must_use]
pub fn describe(message: &Message) -> String {
    let mut line = format!("{}→{} ", message.from, message.to);
    let (term, body) = match wire::decode(message) {
        Ok(decoded) => decoded,
        Err(why) => return line + "unreadable: " + why,
    };
    let what = match body {
        Body::PreVote(c) => format!("pre-vote t{term} with {}/{}", c.last_slot, c.last_term),
        Body::PreVoteReply(r) => format!("pre-vote-reply t{term} {}", yes_or_no(r.granted)),
        Body::Vote(c) => {
            let why = if c.transfer { " (transfer)" } else { "" };
            format!("vote t{term} with {}/{}{why}", c.last_slot, c.last_term)
        }
        Body::VoteReply(r) => format!("vote-reply t{term} {}", yes_or_no(r.granted)),
        Body::Append(a) => {
            format!(
                "append t{term} after {}/{} commit {} {}",
                a.prev_slot,
                a.prev_term,
                a.committed,
                entries(message)
            )
        }
        Body::AppendReply(r) if r.rejected => {
            format!("append-reply t{term} rejects {}, try {}/{}", r.slot, r.hint_slot, r.hint_term)
        }
        Body::AppendReply(r) => format!("append-reply t{term} holds {}", r.slot),
        Body::Beat(b) => {
            let sleep = if b.sleep { ", sleep" } else { "" };
            format!("beat t{term} commit {} round {}{sleep}", b.committed, b.round)
        }
        Body::BeatReply(r) => {
            let asleep = if r.asleep { ", asleep" } else { "" };
            format!("beat-reply t{term} round {}{asleep}", r.round)
        }
        Body::SnapshotOffer(o) => format!("snapshot-offer t{term} at least {}", o.at_least),
        Body::TimeoutNow(_) => format!("timeout-now t{term}"),
        Body::ReadAsk(a) => format!("read-ask t{term} #{}", a.context),
        Body::ReadReply(r) if r.refused => format!("read-reply t{term} #{} refused", r.context),
        Body::ReadReply(r) => format!("read-reply t{term} #{} at {}", r.context, r.at),
        Body::Stale(_) => format!("stale t{term}"),
    };
    line.push_str(&what);
    line
}

fn yes_or_no(granted: bool) -> &'static str {
    if granted { "granted" } else { "refused" }
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
        let _ = write!(list, "{space}{}/{}{kind}", entry.slot, entry.ballot.round);
    }
    list + "]"
}
