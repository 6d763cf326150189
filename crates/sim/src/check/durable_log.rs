//! What a log synced is there after a crash; only what is durable here is applied here; and what is chosen is durable on a quorum
//! (Raft, section 5.2: persistent state is updated before responding; thesis, section 3.8).
//!
//! Kept from what each log was asked to write and when its sync returned: the *durable* part, and behind it what is *pending*, element by
//! element. A crash may keep any number of pending elements from the first on, and nothing else may change. So a log that boots with
//! anything else lost, or served, what it ought to have refused.

use std::collections::{BTreeMap, VecDeque};

use conclave_consensus::{Ballot, Config, Entry, Kind, LogOp, ReplicaId, Slot};

use super::{MirrorEntry, Violation, log_matching::Mirror};

const NAME: &str = "durable log";

#[derive(Debug, Default)]
struct Durable {
    log: Mirror,
    pending: VecDeque<Vec<LogOp>>,
}

/// What each replica's disk holds for certain.
#[derive(Debug, Default)]
pub struct DurableLog {
    asleep: bool,
    replicas: BTreeMap<ReplicaId, Durable>,
    /// Configurations by which a joint one is left, of any log.
    ends: Vec<Config>,
}

impl DurableLog {
    /// One that is told nothing and sees nothing.
    #[must_use]
    pub fn asleep() -> Self {
        Self { asleep: true, ..Self::default() }
    }

    /// A core asks for this: it may have a configuration in force by which a joint one ends, before its disk has it.
    pub fn asked(&mut self, op: &LogOp) {
        let LogOp::Put(entries) = op else { return };
        for entry in entries.iter().filter(|entry| entry.kind == Kind::Config) {
            if let Ok(config) = Config::decode(&entry.payload)
                && !config.is_joint()
                && !self.ends.contains(&config)
            {
                self.ends.push(config);
            }
        }
    }

    /// A replica hands an element of a batch to its log.
    pub fn appended(&mut self, replica: ReplicaId, ops: &[LogOp]) {
        if !self.asleep {
            self.replicas.entry(replica).or_default().pending.push_back(ops.to_vec());
        }
    }

    /// A replica's log says that everything handed to it is durable.
    pub fn synced(&mut self, replica: ReplicaId) {
        let of = self.replicas.entry(replica).or_default();
        for ops in of.pending.drain(..) {
            of.log.change_all(&ops);
        }
    }

    /// A replica booted: above its state, which ends right before `first`, its log holds these.
    ///
    /// # Errors
    /// If that is not what was durable, followed by a part of what was pending.
    pub fn booted(&mut self, replica: ReplicaId, first: Slot, entries: &[Entry]) -> Result<(), Violation> {
        let of = self.replicas.entry(replica).or_default();
        let mut held = Mirror::beginning_at(first);
        held.put_all(entries);
        while of.log.differs_above(first, &held).is_some() {
            let Some(ops) = of.pending.pop_front() else { break };
            of.log.change_all(&ops);
        }
        if let Some(slot) = of.log.differs_above(first, &held) {
            let (was, is) = (of.log.at(slot), held.at(slot));
            let what =
                format!("replica {replica} booted with {is:?} at slot {slot}, where {was:?} was durable");
            return Err(Violation::new(NAME, what));
        }
        *of = Durable { log: held, pending: VecDeque::new() };
        Ok(())
    }

    /// A replica begins anew with nothing. One whose disk is lost goes on counting with what it held: it may have said so already.
    pub fn forget(&mut self, replica: ReplicaId) {
        self.replicas.remove(&replica);
    }

    /// Whether a commit quorum of a configuration durably holds an entry of this ballot, or may have held one.
    pub(super) fn has_quorum_in(&self, config: &Config, ballot: Ballot) -> bool {
        let holds = |replica| {
            let log = self.replicas.get(&replica).map(|of| &of.log);
            // A log that was cut to nothing held something; later ballots come after that of a leader that is deposed and does not know.
            log.is_some_and(|log| log.last_ballot().map_or(log.first() > Slot(1), |last| last >= ballot))
        };
        self.asleep || config.is_commit_quorum(holds)
    }

    fn holds(&self, replica: ReplicaId, slot: Slot, entry: MirrorEntry) -> bool {
        let log = self.replicas.get(&replica).map(|of| &of.log);
        self.asleep
            || log.is_some_and(|log| slot < log.first() || log.at(slot).is_some_and(|held| held.is(&entry)))
    }

    /// A replica applies an entry.
    ///
    /// # Errors
    /// If its log could still lose it.
    pub fn applies(&self, replica: ReplicaId, slot: Slot, entry: MirrorEntry) -> Result<(), Violation> {
        if self.holds(replica, slot, entry) {
            return Ok(());
        }
        let what = format!("replica {replica} applies slot {slot}, which its own log does not hold durably");
        Err(Violation::new(NAME, what))
    }

    /// An entry is known to be chosen, for the first time. `config` is the last at or below its slot.
    ///
    /// What counts is what the leader has in force, which may be the one after: where that changes nothing but learners or is joint, its
    /// quorums are quorums here too, and where it is the end of a joint one, the incoming voters decide alone.
    ///
    /// # Errors
    /// If no commit quorum holds it durably.
    pub fn chosen(&self, slot: Slot, entry: MirrorEntry, config: &Config) -> Result<(), Violation> {
        let holds = |replica| self.holds(replica, slot, entry);
        let after = config.after_joint();
        if config.is_commit_quorum(holds) || (self.ends.contains(&after) && after.is_commit_quorum(holds)) {
            return Ok(());
        }
        let holders: Vec<ReplicaId> = config.members().filter(|replica| holds(*replica)).collect();
        let what = format!(
            "slot {slot} counts as chosen, and only replicas {holders:?} of {config:?} hold it durably"
        );
        Err(Violation::new(NAME, what))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{NodeId, ProposalId};

    use super::*;

    const ONE: ReplicaId = ReplicaId(1);

    fn entry(slot: u64, term: u64) -> Entry {
        Entry {
            slot: Slot(slot),
            ballot: Ballot::term(term),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload: Bytes::from_static(b"a"),
        }
    }

    /// Slots 1 and 2 durable; 3 pending; then 2 replaced in a later term, pending.
    fn check() -> DurableLog {
        let mut check = DurableLog::default();
        check.appended(ONE, &[LogOp::Put(entry(1, 1).into()), LogOp::Put(entry(2, 1).into())]);
        check.synced(ONE);
        check.appended(ONE, &[LogOp::Put(entry(3, 1).into())]);
        check.appended(ONE, &[LogOp::TruncateFrom(Slot(2)), LogOp::Put(entry(2, 2).into())]);
        check
    }

    #[test]
    fn a_boot_may_keep_any_part_of_what_was_pending() {
        for kept in [
            vec![entry(1, 1), entry(2, 1)],
            vec![entry(1, 1), entry(2, 1), entry(3, 1)],
            vec![entry(1, 1), entry(2, 2)],
        ] {
            assert_eq!(check().booted(ONE, Slot(1), &kept), Ok(()));
        }
        assert_eq!(check().booted(ONE, Slot(2), &[entry(2, 1)]), Ok(()), "the state has slot 1");
    }

    #[test]
    fn fires_on_a_log_that_lost_what_it_synced() {
        for kept in [
            vec![],
            vec![entry(1, 1)],
            vec![entry(1, 1), entry(2, 3)],
            vec![entry(1, 1), entry(2, 2), entry(3, 1)],
        ] {
            assert!(check().booted(ONE, Slot(1), &kept).is_err(), "{kept:?}");
        }
    }

    #[test]
    fn fires_on_an_entry_applied_before_it_is_durable() {
        let check = check();
        let applies = |entry: Entry| check.applies(ONE, entry.slot, MirrorEntry::of(&entry));
        assert!(applies(entry(2, 1)).is_ok());
        assert!(applies(entry(3, 1)).is_err());
        assert!(applies(entry(2, 2)).is_err());
    }

    #[test]
    fn fires_on_an_entry_chosen_without_a_quorum_of_disks() {
        let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let mut check = check();
        let kept = MirrorEntry::of(&entry(2, 1));
        assert!(check.chosen(Slot(2), kept, &config).is_err());
        check.appended(ReplicaId(3), &[LogOp::Put(entry(1, 1).into()), LogOp::Put(entry(2, 1).into())]);
        assert!(check.chosen(Slot(2), kept, &config).is_err());
        check.synced(ReplicaId(3));
        assert!(check.chosen(Slot(2), kept, &config).is_ok());
        check.forget(ONE);
        assert!(check.chosen(Slot(2), kept, &config).is_err());
    }
}
