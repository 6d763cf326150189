//! How configurations follow on one another (thesis, chapter 4), and that a state names the one of its slot.
//!
//! * Who votes changes through a joint configuration alone, and a joint one is left for its incoming voters (section 4.3).
//! * A leader appends a configuration only after an entry of its own term is committed (Ongaro's note of 2015 on section 4.1): before, the
//!   one in force may not be what a leader between has made of it.
//! * Where configurations are numbered, a leader appends the one whose number follows on that of its ballot, and nothing beyond it in that ballot: it
//!   is what ends the configuration (Lampson 1996; *Omni-Paxos*, section 6).
//! * A log begins with the configuration that the group was founded with.
//! * A snapshot and a checkpoint carry the membership as of their last slot.

use std::collections::{BTreeMap, BTreeSet};

use conclave_consensus::{Ballot, Config, Entry, Kind, LogOp, ReplicaId, Slot, SnapshotMeta};

use super::{DurableLog, Violation};

const NAME: &str = "membership";

/// Remembers the configurations of every log, and the chosen ones.
#[derive(Debug, Default)]
pub struct MembershipRules {
    /// Each with the ballot of its entry.
    logs: BTreeMap<u64, BTreeMap<Slot, (Ballot, Config)>>,
    chosen: BTreeMap<Slot, Config>,
    /// Who has a vote in any that was ever in a log.
    voters: BTreeSet<ReplicaId>,
    /// The first entry of every log is what the group was founded with.
    founding_in_log: bool,
}

impl MembershipRules {
    /// Of a group that was founded with this, which stands in its log's first entry or in none.
    #[must_use]
    pub fn of(founding: &Config, in_log: bool) -> Self {
        let chosen = BTreeMap::from([(Slot(0), founding.clone())]);
        Self { chosen, founding_in_log: in_log, ..Self::default() }
    }

    /// A node booted with a state of `slot`, and these entries above.
    pub fn booted(&mut self, node: u64, slot: Slot, config: &Config, entries: &[Entry]) {
        self.logs.insert(node, BTreeMap::from([(slot, (Ballot::default(), config.clone()))]));
        entries.iter().for_each(|entry| self.put(node, entry));
    }

    /// What stood at the slot before stands there no more.
    fn put(&mut self, node: u64, entry: &Entry) {
        let log = self.logs.entry(node).or_default();
        match (entry.kind, Config::decode(&entry.payload)) {
            (Kind::Config, Ok(config)) => {
                self.voters.extend(config.members().filter(|replica| config.is_voter(*replica)));
                log.insert(entry.slot, (entry.ballot, config));
            }
            _ => drop(log.remove(&entry.slot)),
        }
    }

    /// The slot of the last configuration that was chosen.
    #[must_use]
    pub fn last_chosen(&self) -> Slot {
        self.chosen.keys().next_back().copied().unwrap_or_default()
    }

    /// The last configuration of a node's log.
    #[must_use]
    pub fn in_force(&self, node: u64) -> Option<&Config> {
        self.logs.get(&node)?.values().next_back().map(|(_, config)| config)
    }

    /// Whether a configuration in any log has ever given a replica a vote.
    #[must_use]
    pub fn had_vote(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica)
    }

    /// The configurations of a node's log from the one in force at `slot` on.
    pub fn from(&self, node: u64, slot: Slot) -> impl Iterator<Item = &Config> + Clone {
        let log = self.logs.get(&node);
        let first = log.and_then(|log| log.range(..=slot).next_back()).map_or(slot, |(at, _)| *at);
        log.into_iter().flat_map(move |log| log.range(first..)).map(|(_, (_, config))| config)
    }

    /// The configuration of a number in a node's log below `slot`, if it is numbered there. It is the first: beyond it, what lost against it may still stand.
    pub fn numbered(&self, node: u64, number: u64, slot: Slot) -> Option<&Config> {
        let mut log = self.logs.get(&node)?.range(..slot).map(|(_, (_, config))| config);
        log.find(|config| config.number == number)
    }

    /// A node's log is changed; by itself if it leads in the ballot.
    ///
    /// # Errors
    /// If a leader appends what may not follow, or too early.
    pub fn change(
        &mut self,
        node: u64,
        op: &LogOp,
        leads: Option<Ballot>,
        disks: &DurableLog,
    ) -> Result<(), Violation> {
        match op {
            LogOp::Put(entries) => {
                for entry in entries {
                    if entry.slot == Slot(1) && self.founding_in_log {
                        self.check_first(node, entry)?;
                    } else if leads == Some(entry.ballot) {
                        self.check_beyond(node, entry)?;
                        self.check_next(node, entry, disks)?;
                    }
                    self.put(node, entry);
                }
            }
            LogOp::TruncateFrom(slot) => {
                self.logs.entry(node).or_default().split_off(slot);
            }
            LogOp::Meta(_) | LogOp::CutBelow(_) | LogOp::Reset(_) => {}
        }
        Ok(())
    }

    /// A node's log begins anew after a snapshot, and goes on with what the log still `holds` above it.
    pub fn reset(&mut self, node: u64, meta: &SnapshotMeta, holds: impl Fn(Slot) -> bool) {
        let log = self.logs.entry(node).or_default();
        log.retain(|slot, _| *slot > meta.slot && holds(*slot));
        log.insert(meta.slot, (meta.ballot, meta.config.clone()));
    }

    /// Whoever joins and replays the log has it from there alone who decided in the beginning.
    fn check_first(&self, node: u64, entry: &Entry) -> Result<(), Violation> {
        let found = (entry.kind == Kind::Config).then(|| Config::decode(&entry.payload).ok()).flatten();
        match self.chosen.get(&Slot(0)) {
            Some(founding) if found.as_ref() != Some(founding) => {
                let what = format!("node {node} begins its log with {found:?}; the group with {founding:?}");
                Err(Violation::new(NAME, what))
            }
            _ => Ok(()),
        }
    }

    /// A leader appends nothing beyond what ends the configuration of its ballot.
    fn check_beyond(&self, node: u64, entry: &Entry) -> Result<(), Violation> {
        let (slot, ended) = (entry.slot, entry.ballot.config + 1);
        let mut log = self.logs.get(&node).into_iter().flat_map(|log| log.range(..slot));
        let ends = |(_, (ballot, config)): &(&Slot, &(Ballot, Config))| {
            *ballot == entry.ballot && config.number == ended
        };
        let Some((at, _)) = log.find(ends) else { return Ok(()) };
        let what = format!(
            "node {node} appends slot {slot} in a ballot whose configuration ends at slot {at} with number {ended}"
        );
        Err(Violation::new(NAME, what))
    }

    fn check_next(&self, node: u64, entry: &Entry, disks: &DurableLog) -> Result<(), Violation> {
        if entry.kind != Kind::Config {
            return Ok(());
        }
        let Ok(next) = Config::decode(&entry.payload) else { return Ok(()) };
        let is_numbered = next.number > 0;
        let now = if is_numbered {
            self.numbered(node, entry.ballot.config, entry.slot)
        } else {
            self.in_force(node)
        };
        if now.is_none() && !is_numbered {
            return Ok(());
        }
        let broken = |what: &str| {
            let (slot, term) = (entry.slot, entry.ballot.round);
            let what =
                format!("node {node} appends {next:?} at slot {slot} in term {term} after {now:?}: {what}");
            Err(Violation::new(NAME, what))
        };
        let Some(now) = now.filter(|now| !is_numbered || next.number == now.number + 1) else {
            return broken("the next configuration is numbered next, and in a ballot of the one before");
        };
        if !follows(now, &next) {
            return broken("who votes changes through a joint configuration");
        }
        if !is_numbered && !disks.has_quorum_in(now, entry.ballot) {
            return broken("no entry of the term is committed");
        }
        Ok(())
    }

    /// A configuration is chosen, whoever appended it.
    ///
    /// # Errors
    /// If it may not follow on the one before.
    pub fn chosen(&mut self, slot: Slot, config: &Config) -> Result<(), Violation> {
        let before = self.chosen.insert(slot, config.clone());
        match self.chosen.range(..slot).next_back() {
            Some((at, last)) if before.is_none() && !follows(last, config) => {
                let what = format!("chosen at slot {slot}: {config:?}, after {last:?} at slot {at}");
                Err(Violation::new(NAME, what))
            }
            _ => Ok(()),
        }
    }

    /// A node booted, installed a snapshot, or made a checkpoint durable, with a state of `slot` that names this membership. Before slot 1 one that
    /// was added names nobody.
    ///
    /// # Errors
    /// If another was in force there.
    pub fn restored(&self, node: u64, slot: Slot, config: &Config) -> Result<(), Violation> {
        match self.chosen.range(..=slot).next_back() {
            Some((at, chosen)) if slot > Slot(0) && chosen != config => {
                let what = format!(
                    "node {node} has a state of slot {slot} with {config:?}; chosen at slot {at}: {chosen:?}"
                );
                Err(Violation::new(NAME, what))
            }
            _ => Ok(()),
        }
    }
}

/// Whether one configuration may come right after another.
fn follows(now: &Config, next: &Config) -> bool {
    let voters = match (now.is_joint(), next.is_joint()) {
        (true, _) => *next == Config { number: next.number, ..now.after_joint() },
        (false, true) => next.outgoing == now.voters && next.voters != now.voters,
        (false, false) => next.voters == now.voters,
    };
    voters && next.next_replica >= now.next_replica
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{MembershipChange, NodeId, ProposalId};

    use super::*;

    fn three() -> Config {
        Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))))
    }

    fn entry(slot: u64, term: u64, kind: Kind, config: &Config) -> Entry {
        let (slot, ballot) = (Slot(slot), Ballot::term(term));
        Entry { slot, ballot, kind, id: ProposalId::NONE, payload: config.encode() }
    }

    /// Node 1 leads in term 2 and appends `next`; so many disks hold an entry of the term.
    fn appends(next: &Config, disks: u64) -> Result<(), Violation> {
        let mut durable = DurableLog::default();
        for replica in (1..=disks).map(ReplicaId) {
            durable.appended(replica, &[LogOp::Put(entry(1, 2, Kind::Noop, &three()).into())]);
            durable.synced(replica);
        }
        let mut check = MembershipRules::default();
        check.booted(1, Slot(0), &three(), &[]);
        let op = LogOp::Put(entry(2, 2, Kind::Config, next).into());
        check.change(1, &op, Some(Ballot::term(2)), &durable)
    }

    #[test]
    fn fires_on_a_change_before_an_entry_of_the_term_is_committed() {
        let next = three().changed(&[MembershipChange::AddVoter(NodeId(4))], ReplicaId(0)).unwrap();
        assert_eq!(appends(&next, 2), Ok(()));
        assert!(appends(&next, 1).is_err());
    }

    #[test]
    fn fires_on_voters_that_change_at_once() {
        let next = three().changed(&[MembershipChange::AddVoter(NodeId(4))], ReplicaId(0)).unwrap();
        assert!(appends(&next.after_joint(), 3).is_err());
        let learner = three().changed(&[MembershipChange::AddLearner(NodeId(4))], ReplicaId(0)).unwrap();
        assert_eq!(appends(&learner, 3), Ok(()));
    }

    #[test]
    fn what_a_snapshot_replaced_is_in_force_no_longer() {
        let mut check = MembershipRules::default();
        let joint = three().changed(&[MembershipChange::AddVoter(NodeId(4))], ReplicaId(0)).unwrap();
        let meta = SnapshotMeta { slot: Slot(4), config: three(), ..SnapshotMeta::default() };
        let mut in_force = |holds: bool| {
            check.booted(1, Slot(0), &three(), &[entry(5, 1, Kind::Config, &joint)]);
            check.reset(1, &meta, |_| holds);
            check.in_force(1).cloned()
        };
        assert_eq!((in_force(true), in_force(false)), (Some(joint.clone()), Some(three())));
    }

    #[test]
    fn fires_on_a_joint_configuration_of_other_voters_and_on_one_that_is_left_for_others() {
        let joint = three().changed(&[MembershipChange::AddVoter(NodeId(4))], ReplicaId(0)).unwrap();
        let chosen = |configs: &[&Config]| {
            let mut check = MembershipRules::of(&three(), true);
            (1..).zip(configs).try_for_each(|(slot, config)| check.chosen(Slot(slot), config))
        };
        assert_eq!(chosen(&[&three(), &joint, &joint.after_joint()]), Ok(()));
        assert!(chosen(&[&joint.after_joint()]).is_err());
        assert!(chosen(&[&joint, &three()]).is_err(), "there is no way back");
        let mut other = joint.clone();
        other.outgoing.remove(&ReplicaId(1));
        assert!(chosen(&[&other]).is_err());
        let (voters, outgoing) = (three().voters, other.outgoing);
        assert!(chosen(&[&Config { voters, outgoing, ..joint.clone() }]).is_err());
        let next_replica = ReplicaId(2);
        assert!(
            chosen(&[&joint, &joint.after_joint(), &Config { next_replica, ..joint.after_joint() }]).is_err()
        );
    }

    /// What a leader of a ballot appends in turn to a log that has configuration 1 at slot 4, and beyond it one that lost.
    fn appends_numbered(ballots: u64, entries: &[(u64, Kind, &Config)]) -> Result<(), Violation> {
        let mut check = MembershipRules::default();
        let ballot = |config| Ballot { config, round: 9, replica: ReplicaId(1) };
        let stands = |slot, number| {
            let config = Config { number, ..three() };
            Entry { ballot: ballot(number - 1), ..entry(slot, 9, Kind::Config, &config) }
        };
        check.booted(1, Slot(0), &three(), &[stands(4, 1), stands(8, 1)]);
        entries.iter().try_for_each(|(slot, kind, config)| {
            let ballot = ballot(ballots);
            let op = LogOp::Put(Entry { ballot, ..entry(*slot, 9, *kind, config) }.into());
            check.change(1, &op, Some(ballot), &DurableLog::default())
        })
    }

    #[test]
    fn numbered_configurations_end_the_one_of_the_ballot() {
        let learner = three().changed(&[MembershipChange::AddLearner(NodeId(4))], ReplicaId(0)).unwrap();
        let numbered = |number| Config { number, ..learner.clone() };
        let (two, three) = (numbered(2), numbered(3));
        assert_eq!(
            appends_numbered(1, &[(9, Kind::Config, &two)]),
            Ok(()),
            "what lost beyond slot 4 is nothing"
        );
        assert!(appends_numbered(1, &[(9, Kind::Config, &three)]).is_err(), "not the next number");
        assert!(
            appends_numbered(2, &[(9, Kind::Config, &three)]).is_err(),
            "in a ballot of one it does not hold"
        );
        for kind in [Kind::Command, Kind::Config] {
            let beyond = [(9, Kind::Config, &two), (10, kind, &two)];
            assert!(appends_numbered(1, &beyond).is_err(), "{kind:?} beyond the end");
        }
    }

    #[test]
    fn what_is_written_over_counts_no_more() {
        let mut check = MembershipRules::default();
        let learner = three().changed(&[MembershipChange::AddLearner(NodeId(4))], ReplicaId(0)).unwrap();
        check.booted(1, Slot(0), &three(), &[entry(4, 1, Kind::Config, &learner)]);
        assert_eq!(check.in_force(1), Some(&learner));
        let op = LogOp::Put(entry(4, 2, Kind::Noop, &learner).into());
        check.change(1, &op, None, &DurableLog::default()).unwrap();
        assert_eq!(check.in_force(1), Some(&three()));
    }

    #[test]
    fn fires_on_a_log_that_does_not_begin_with_the_founders() {
        let mut check = MembershipRules::of(&three(), true);
        let mut begins = |kind, config: &Config| {
            check.change(1, &LogOp::Put(entry(1, 1, kind, config).into()), None, &DurableLog::default())
        };
        assert_eq!(begins(Kind::Config, &three()), Ok(()));
        assert!(begins(Kind::Noop, &three()).is_err());
        let two = Config::of_voters((1..=2).map(|id| (ReplicaId(id), NodeId(id))));
        assert!(begins(Kind::Config, &two).is_err());
    }

    #[test]
    fn fires_on_a_state_with_another_membership() {
        let mut check = MembershipRules::of(&three(), true);
        let four = three().changed(&[MembershipChange::AddVoter(NodeId(4))], ReplicaId(0)).unwrap();
        check.chosen(Slot(5), &four).unwrap();
        assert!(check.restored(1, Slot(4), &three()).is_ok() && check.restored(1, Slot(5), &four).is_ok());
        assert!(check.restored(1, Slot(4), &four).is_err() && check.restored(1, Slot(9), &three()).is_err());
        assert!(check.restored(1, Slot(0), &Config::default()).is_ok(), "it was added, and knows nothing");
        assert!(check.restored(1, Slot(1), &Config::default()).is_err());
    }
}
