//! A change of membership is made as it was asked, once at most, and not at all if it was refused for certain; what was acknowledged is made; and
//! nothing but changes changes a group, apart from the end of a joint configuration.
//!
//! What [`check_durability`](super::check_durability) and [`check_replay`](super::check_replay) say of commands. Members are compared by the nodes
//! that they live on: which ids new ones get is not asked.

use std::collections::{BTreeMap, BTreeSet};

use conclave_consensus::{Config, MembershipChange, NodeId, ProposalId, ReplicaId};

use super::Violation;

const NAME: &str = "changes of membership";

/// Remembers what was asked and what came of it.
#[derive(Debug)]
pub struct Changes {
    /// The last that was chosen.
    config: Config,
    asked: BTreeMap<ProposalId, Vec<MembershipChange>>,
    refused: BTreeSet<ProposalId>,
    acknowledged: BTreeSet<ProposalId>,
    made: BTreeSet<ProposalId>,
}

impl Default for Changes {
    fn default() -> Self {
        Self::founded_as(Config::default())
    }
}

fn broken<T>(what: String) -> Result<T, Violation> {
    Err(Violation::new(NAME, what))
}

impl Changes {
    /// In a group that begins like this.
    #[must_use]
    pub fn founded_as(config: Config) -> Self {
        Self {
            config,
            asked: BTreeMap::new(),
            refused: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            made: BTreeSet::new(),
        }
    }

    /// Somebody asks.
    pub fn asked(&mut self, id: ProposalId, changes: &[MembershipChange]) {
        self.asked.insert(id, changes.to_vec());
    }

    /// Whoever asked is told for certain that it will not be.
    pub fn refused(&mut self, id: ProposalId) {
        self.refused.insert(id);
    }

    /// Whoever asked is told that it is made.
    pub fn acknowledged(&mut self, id: ProposalId) {
        self.acknowledged.insert(id);
    }

    /// The next configuration is chosen. Gives the one before.
    ///
    /// # Errors
    /// If it is not what was asked for, or was made before.
    pub fn chosen(&mut self, id: ProposalId, config: &Config) -> Result<Config, Violation> {
        if id.is_none() {
            // Numbers are the engine's.
            if *config != (Config { number: config.number, ..self.config.after_joint() }) {
                return broken(format!("{config:?}, which nobody asked for, follows on {:?}", self.config));
            }
        } else {
            let Some(changes) = self.asked.get(&id) else {
                return broken(format!("{id:?} was made, and nobody asked for it"));
            };
            if !self.made.insert(id) {
                return broken(format!("{id:?} was made again"));
            }
            if !self.are_made_in(config, changes) {
                let what = format!("{id:?} asks for {changes:?} in {:?} and gives {config:?}", self.config);
                return broken(what);
            }
        }
        Ok(std::mem::replace(&mut self.config, config.clone()))
    }

    fn are_made_in(&self, config: &Config, changes: &[MembershipChange]) -> bool {
        let (mut voters, mut learners) =
            (on(&self.config, &self.config.voters), on(&self.config, &self.config.learners));
        let before = voters.clone();
        for change in changes {
            let node = |replica: &ReplicaId| self.config.nodes.get(replica).copied();
            match change {
                MembershipChange::AddVoter(added) => {
                    voters.insert(*added);
                }
                MembershipChange::AddLearner(added) => {
                    learners.insert(*added);
                }
                MembershipChange::Promote(replica) => {
                    let node = node(replica).filter(|node| learners.remove(node));
                    voters.extend(node);
                }
                MembershipChange::SetQuorums(_) => {}
                MembershipChange::Remove(replica) => {
                    let Some(node) = node(replica) else { return false };
                    voters.remove(&node);
                    learners.remove(&node);
                }
            }
        }
        let outgoing = if voters == before { BTreeSet::new() } else { before };
        let stays = |(replica, node): (&ReplicaId, &NodeId)| match self.config.nodes.get(replica) {
            Some(same) => same == node,
            None => !self.config.nodes.values().any(|taken| taken == node),
        };
        on(config, &config.voters) == voters
            && on(config, &config.learners) == learners
            && on(config, &config.outgoing) == outgoing
            && config.nodes.iter().all(stays)
    }

    /// The run is over.
    ///
    /// # Errors
    /// If something refused was made, something acknowledged was not, or the group is left between two configurations.
    pub fn end(&self) -> Result<(), Violation> {
        if let Some(id) = self.refused.intersection(&self.made).next() {
            return broken(format!("{id:?} was refused, and made"));
        }
        if let Some(id) = self.acknowledged.difference(&self.made).next() {
            return broken(format!("{id:?} was acknowledged, and is gone"));
        }
        if self.config.is_joint() {
            return broken(format!("the group is left in {:?}", self.config));
        }
        Ok(())
    }
}

/// The nodes of these replicas.
fn on(config: &Config, replicas: &BTreeSet<ReplicaId>) -> BTreeSet<NodeId> {
    replicas.iter().filter_map(|replica| config.nodes.get(replica)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use MembershipChange::{AddLearner, AddVoter, Promote, Remove};

    fn id(sequence: u64) -> ProposalId {
        ProposalId { node: NodeId(1), sequence }
    }

    fn three() -> Config {
        Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))))
    }

    /// The first of the changes is asked under id 1, and 2 under id 2; nothing is made.
    fn asked(changes: &[MembershipChange]) -> Changes {
        let mut check = Changes::founded_as(three());
        check.asked(id(1), changes);
        check.asked(id(2), &[AddLearner(NodeId(9))]);
        check
    }

    fn made(changes: &[MembershipChange]) -> Config {
        three().changed(changes, ReplicaId(70_000)).unwrap()
    }

    #[test]
    fn what_was_asked_is_made_in_its_steps() {
        let changes = [AddVoter(NodeId(4)), AddLearner(NodeId(5)), Remove(ReplicaId(1))];
        let mut check = asked(&changes);
        assert_eq!(check.chosen(ProposalId::NONE, &three()), Ok(three()), "the founding configuration");
        let joint = made(&changes);
        check.chosen(id(1), &joint).unwrap();
        assert!(check.end().is_err(), "half made");
        check.chosen(ProposalId::NONE, &joint.after_joint()).unwrap();
        let learner = check.config.clone();
        let promoted = *learner.learners.first().unwrap();
        check.asked(id(3), &[Promote(promoted)]);
        check.chosen(id(3), &learner.changed(&[Promote(promoted)], ReplicaId(0)).unwrap()).unwrap();
        check.chosen(ProposalId::NONE, &check.config.after_joint()).unwrap();
        check.acknowledged(id(1));
        check.refused(id(2));
        assert_eq!(check.end(), Ok(()));
    }

    #[test]
    fn fires_on_what_was_not_asked() {
        let learner = [AddLearner(NodeId(4))];
        assert!(asked(&learner).chosen(id(7), &made(&learner)).is_err(), "by nobody");
        assert!(asked(&learner).chosen(ProposalId::NONE, &made(&learner)).is_err());
        assert!(asked(&learner).chosen(id(1), &made(&[AddLearner(NodeId(5))])).is_err());
        assert!(asked(&learner).chosen(id(1), &three()).is_err());
        let voter = [AddVoter(NodeId(4))];
        assert!(asked(&voter).chosen(id(1), &made(&voter).after_joint()).is_err(), "at once");
        let remove = [Remove(ReplicaId(3))];
        let mut other = made(&remove);
        other.nodes.insert(ReplicaId(2), NodeId(8));
        assert!(asked(&remove).chosen(id(1), &other).is_err(), "a replica moved");
    }

    #[test]
    fn fires_on_what_is_made_twice_or_although_it_was_refused_or_gone_although_it_was_acknowledged() {
        let none = [Remove(ReplicaId(9))];
        assert!(asked(&none).chosen(id(1), &three()).is_err(), "nobody of this name");
        let learner = [AddLearner(NodeId(4))];
        let mut check = asked(&learner);
        check.chosen(id(1), &made(&learner)).unwrap();
        assert_eq!(check.end(), Ok(()));
        assert!(check.chosen(id(1), &made(&learner)).is_err());
        check.acknowledged(id(2));
        assert!(check.end().is_err());
        let mut check = asked(&learner);
        check.refused(id(1));
        check.chosen(id(1), &made(&learner)).unwrap();
        assert!(check.end().is_err());
    }
}
