//! What a log synced is there after a crash; only what is durable here is applied here; and what is chosen is durable on a quorum
//! (Raft, section 5.2: persistent state is updated before responding; thesis, section 3.8).
//!
//! Kept from what each log was asked to write and when its sync returned: the *durable* part, and behind it what is *pending*, element by
//! element. A crash may keep any number of pending elements from the first on, and nothing else may change. So a log that boots with
//! anything else lost, or served, what it ought to have refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_consensus::{Ballot, Config, Entry, Kind, LogOp, ReplicaId, Slot};

use super::{MirrorEntry, Violation, log_matching::Mirror};

const NAME: &str = "durable log";

#[derive(Debug, Default)]
struct Durable {
    log: Mirror,
    pending: VecDeque<Vec<LogOp>>,
    /// Of which ballots it ever held an entry, cut or truncated since or not.
    held: BTreeSet<Ballot>,
}

impl Durable {
    fn change(&mut self, ops: &[LogOp]) {
        self.log.change_all(ops);
        for op in ops {
            match op {
                LogOp::Put(entries) => self.held.extend(entries.iter().map(|entry| entry.ballot)),
                LogOp::Reset(meta) => {
                    self.held.insert(meta.ballot);
                }
                LogOp::Meta(_) | LogOp::TruncateFrom(_) | LogOp::CutBelow(_) => {}
            }
        }
    }
}

/// What each replica's disk holds for certain.
#[derive(Debug, Default)]
pub struct DurableLog {
    asleep: bool,
    replicas: BTreeMap<ReplicaId, Durable>,
    /// Configurations by which a joint one is left, of any log, and where they stand.
    ends: Vec<(Slot, Ballot, Config)>,
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
            {
                let end = (entry.slot, entry.ballot, config);
                if !self.ends.contains(&end) {
                    self.ends.push(end);
                }
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
        for ops in std::mem::take(&mut of.pending) {
            of.change(&ops);
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
            of.change(&ops);
        }
        if let Some(slot) = of.log.differs_above(first, &held) {
            let (was, is) = (of.log.at(slot), held.at(slot));
            let what =
                format!("replica {replica} booted with {is:?} at slot {slot}, where {was:?} was durable");
            return Err(Violation::new(NAME, what));
        }
        (of.log, of.pending) = (held, VecDeque::new());
        Ok(())
    }

    /// A replica begins anew with nothing. One whose disk is lost goes on counting with what it held: it may have said so already.
    pub fn forget(&mut self, replica: ReplicaId) {
        self.replicas.remove(&replica);
    }

    /// Whether a commit quorum of a configuration durably holds an entry of this ballot, or held one: others may have replaced it since, unknown to
    /// the leader.
    pub(super) fn has_quorum_in(&self, config: &Config, ballot: Ballot) -> bool {
        let holds = |replica| self.replicas.get(&replica).is_some_and(|of| of.held.contains(&ballot));
        self.asleep || config.is_commit_quorum(holds)
    }

    fn holds(&self, replica: ReplicaId, slot: Slot, entry: MirrorEntry) -> bool {
        let log = self.replicas.get(&replica).map(|of| &of.log);
        self.asleep || log.is_some_and(|log| slot < log.first() || log.at(slot) == Some(entry))
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

    /// An entry is known to be chosen, for the first time. `config` is the last at or below its slot, and stands at `since`.
    ///
    /// What counts is what the leader has in force, which may be the one after: where that changes nothing but learners or is joint, its
    /// quorums are quorums here too, and where it is the end of a joint one, the incoming voters decide alone. The joint one itself both sets must
    /// have chosen: only then may its end be appended. So must all that no log holds an end above.
    ///
    /// # Errors
    /// If no commit quorum holds it durably.
    pub fn chosen(
        &self,
        slot: Slot,
        entry: MirrorEntry,
        (since, config): (Slot, &Config),
    ) -> Result<(), Violation> {
        let holds = |replica| self.holds(replica, slot, entry);
        let after = config.after_joint();
        let ended = config.is_joint()
            && slot > since
            && self
                .ends
                .iter()
                .any(|(at, ballot, end)| *at > slot && *ballot >= entry.ballot && *end == after);
        if config.is_commit_quorum(holds) || (ended && after.is_commit_quorum(holds)) {
            return Ok(());
        }
        let holders: Vec<ReplicaId> = config.members().filter(|replica| holds(*replica)).collect();
        let what = format!("slot {slot} counts as chosen, and only replicas {holders:?} hold it durably");
        Err(Violation::new(NAME, what))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{MembershipChange, NodeId, ProposalId};

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
        assert!(check.chosen(Slot(2), kept, (Slot(0), &config)).is_err());
        check.appended(ReplicaId(3), &[LogOp::Put(entry(1, 1).into()), LogOp::Put(entry(2, 1).into())]);
        assert!(check.chosen(Slot(2), kept, (Slot(0), &config)).is_err());
        check.synced(ReplicaId(3));
        assert!(check.chosen(Slot(2), kept, (Slot(0), &config)).is_ok());
        check.forget(ONE);
        assert!(check.chosen(Slot(2), kept, (Slot(0), &config)).is_err());
    }

    #[test]
    fn fires_on_what_only_the_incoming_voters_of_a_joint_configuration_hold() {
        let three = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let swaps: Vec<MembershipChange> =
            (1..=3).map(|id| MembershipChange::Remove(ReplicaId(id))).collect();
        let adds = (4..=6).map(|node| MembershipChange::AddVoter(NodeId(node)));
        let joint = three.changed(&swaps.into_iter().chain(adds).collect::<Vec<_>>(), ReplicaId(4)).unwrap();
        let end = Entry { kind: Kind::Config, payload: joint.after_joint().encode(), ..entry(3, 1) };
        let mut check = DurableLog::default();
        let hold = |check: &mut DurableLog, replicas: std::ops::RangeInclusive<u64>| {
            for replica in replicas.map(ReplicaId) {
                check.appended(replica, &[LogOp::Put(entry(1, 1).into()), LogOp::Put(entry(2, 1).into())]);
                check.synced(replica);
            }
        };
        let kept = |slot| MirrorEntry::of(&entry(slot, 1));
        hold(&mut check, 5..=6);
        assert!(check.chosen(Slot(2), kept(2), (Slot(1), &joint)).is_err());
        check.asked(&LogOp::Put(end.into()));
        assert!(
            check.chosen(Slot(2), kept(2), (Slot(1), &joint)).is_ok(),
            "its leader may have the end in force"
        );
        assert!(check.chosen(Slot(1), kept(1), (Slot(1), &joint)).is_err(), "the joint one itself");
        let late = Entry { slot: Slot(4), ..entry(4, 1) };
        for replica in [5, 6].map(ReplicaId) {
            check.appended(replica, &[LogOp::Put(late.clone().into())]);
            check.synced(replica);
        }
        assert!(
            check.chosen(Slot(4), MirrorEntry::of(&late), (Slot(1), &joint)).is_err(),
            "above the end that is known"
        );
        hold(&mut check, 1..=2);
        assert!(check.chosen(Slot(1), kept(1), (Slot(1), &joint)).is_ok());
    }

    #[test]
    fn a_quorum_in_a_ballot_is_of_those_that_held_an_entry_of_that_very_ballot() {
        let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let mut check = check();
        check.appended(ReplicaId(2), &[LogOp::Put(entry(1, 3).into())]);
        check.synced(ReplicaId(2));
        assert!(!check.has_quorum_in(&config, Ballot::term(1)), "a later ballot is another's");
        check.appended(ReplicaId(3), &[LogOp::Put(entry(1, 1).into())]);
        assert!(!check.has_quorum_in(&config, Ballot::term(1)), "it is not durable");
        check.synced(ReplicaId(3));
        assert!(check.has_quorum_in(&config, Ballot::term(1)));
        check.appended(ReplicaId(3), &[LogOp::TruncateFrom(Slot(1)), LogOp::Put(entry(1, 3).into())]);
        check.synced(ReplicaId(3));
        check.booted(ReplicaId(3), Slot(1), &[entry(1, 3)]).unwrap();
        assert!(check.has_quorum_in(&config, Ballot::term(1)), "it held one");
        check.forget(ReplicaId(3));
        assert!(!check.has_quorum_in(&config, Ballot::term(1)));
    }
}
