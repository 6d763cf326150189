//! States and writes in a line.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Ballot, Entry, LogOp, ReplicaId, Slot, Status};

/// A replica's state in a line, and its membership.
pub(super) fn state(status: &Status, log: &BTreeMap<Slot, Entry>) -> (String, String) {
    let ballot = ballot(status.ballot);
    let role = match status.leader {
        Some(leader) if leader == status.replica && status.serving => format!("leads {ballot}, serving"),
        Some(leader) if leader == status.replica => format!("leads {ballot}"),
        Some(leader) => format!("follows {leader} in {ballot}"),
        None => format!("knows no leader in {ballot}"),
    };
    let mut runs = String::new();
    let mut run: Option<(Slot, Slot, Ballot)> = None;
    for entry in log.values() {
        run = match run {
            Some((first, last, of)) if of == entry.ballot && last.next() == entry.slot => {
                Some((first, entry.slot, of))
            }
            before => {
                runs += &run_line(before);
                Some((entry.slot, entry.slot, entry.ballot))
            }
        };
    }
    runs += &run_line(run);
    let log = if runs.is_empty() { " empty" } else { &runs };
    let (persisted, committed, applied) = (status.persisted, status.committed, status.applied);
    let state = format!("{role}; log{log}; durable {persisted}, committed {committed}, applied {applied}");
    let list = |set: &BTreeSet<ReplicaId>| set.iter().map(|id| format!(" {id}")).collect::<String>();
    let voters = list(&status.config.voters);
    let mut members = format!("voters{}", if voters.is_empty() { " unknown" } else { &voters });
    for (name, set) in [("instead of", &status.config.outgoing), ("learners", &status.config.learners)] {
        if !set.is_empty() {
            members += &format!(", {name}{}", list(set));
        }
    }
    (state, members)
}

fn ballot(ballot: Ballot) -> String {
    let Ballot { config, round, replica } = ballot;
    if (config, replica) == (0, ReplicaId(0)) {
        format!("t{round}")
    } else {
        format!("b{config}.{round}.{replica}")
    }
}

fn run_line(run: Option<(Slot, Slot, Ballot)>) -> String {
    match run {
        Some((first, last, of)) if first == last => format!(" {first}:{}", ballot(of)),
        Some((first, last, of)) => format!(" {first}..={last}:{}", ballot(of)),
        None => String::new(),
    }
}

pub(super) fn ops(ops: &[LogOp]) -> String {
    let mut puts = Vec::new();
    let mut parts = Vec::new();
    for op in ops {
        match op {
            LogOp::Meta(_) => parts.push("meta".to_owned()),
            LogOp::Put(entries) => {
                puts.extend(entries.iter().map(|entry| format!("{}:{}", entry.slot, ballot(entry.ballot))));
            }
            LogOp::TruncateFrom(slot) => parts.push(format!("truncate-from {slot}")),
            LogOp::CutBelow(slot) => parts.push(format!("cut-below {slot}")),
            LogOp::Reset(meta) => parts.push(format!("reset {}", meta.slot)),
        }
    }
    if !puts.is_empty() {
        parts.push(format!("[{}]", puts.join(" ")));
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}
