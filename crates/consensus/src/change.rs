//! Changes of membership: what an operator asks for, and the configuration that comes of it.
//!
//! A request holds any number of changes and is taken as a whole or not at all. Where it changes who votes, an engine goes from the
//! old voters to the new ones through a *joint* configuration, in which both must agree (Ongaro's thesis, section 4.3); where it
//! changes learners alone, there is nothing to agree on twice and the step is *simple*.
//!
//! Replica ids are allotted here, from [`Config::next_replica`] on, and never again: whoever is below it and not a member was removed, or
//! is of an addition that came to nothing; whoever is not below it has yet to be added. An addition may be in force before it is
//! committed, and then vanish; so that the next one allots *other* ids, each engine begins where no other leader can have: see
//! [`Config::changed`].

use crate::{Config, MEMBERS_MAX, NodeId, Quorums, QuorumsError, ReplicaId};

/// One change of membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a learner on the node: it receives entries and counts for nothing.
    AddLearner(NodeId),
    /// Adds a voter on the node. It begins with an empty log, so until it caught up the group tolerates less; a learner that is
    /// promoted later spares that.
    AddVoter(NodeId),
    /// Makes a learner a voter.
    Promote(ReplicaId),
    /// Removes a replica, voter or learner.
    Remove(ReplicaId),
    /// Gives the voters that are left in the end quorums of these sizes, or majorities. Where the number of voters changes and sizes are set, they
    /// must fit what comes of it.
    SetQuorums(Option<Quorums>),
}

/// Why changes cannot be made to a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The request holds no change.
    #[error("nothing to change")]
    Nothing,
    /// The configuration is joint already: one change at a time.
    #[error("another change is under way")]
    Joint,
    /// No member has this id.
    #[error("replica {0} is not a member")]
    UnknownReplica(ReplicaId),
    /// Only a learner is promoted.
    #[error("replica {0} is not a learner")]
    NotLearner(ReplicaId),
    /// The node has a replica of the group; one that is to leave stays until the change is done.
    #[error("node {0} has a member")]
    NodeTaken(NodeId),
    /// Nobody would be left to decide.
    #[error("no voter would be left")]
    NoVoters,
    /// The ballot has no ids left to allot.
    #[error("no replica ids are left in this ballot")]
    IdsExhausted,
    /// More than [`MEMBERS_MAX`] members, those that leave included.
    #[error("more than {MEMBERS_MAX} members")]
    TooManyMembers,
    /// The sizes of quorums that are set do not fit the voters.
    #[error(transparent)]
    Quorums(#[from] QuorumsError),
}

impl Config {
    /// The configuration to be appended for these changes, made in order: joint if they change who votes, else simple. Replicas that are
    /// added get ids from `first` on, or from `next_replica` if that is higher. With `first` derived from the ballot, no two ballots
    /// allot the same id, not even where the one's entry is replaced by the other's: two replicas that answered to one name
    /// could both be elected by the votes given to it.
    ///
    /// # Errors
    /// See [`ChangeError`]. A node that had a member before the changes is taken, even if one of them removes that member.
    pub fn changed(&self, changes: &[MembershipChange], first: ReplicaId) -> Result<Self, ChangeError> {
        if self.is_joint() {
            return Err(ChangeError::Joint);
        }
        if changes.is_empty() {
            return Err(ChangeError::Nothing);
        }
        let mut next = self.clone();
        next.next_replica = self.next_replica.max(first).max(ReplicaId(1));
        for change in changes {
            next.change(*change)?;
        }
        if next.voters.is_empty() {
            return Err(ChangeError::NoVoters);
        }
        if let Some(sizes) = next.quorums {
            sizes.check(next.voters.len())?;
        }
        if next.voters != self.voters || next.quorums != self.quorums {
            next.outgoing = self.voters.clone();
            next.outgoing_quorums = self.quorums;
        }
        next.forget_addresses();
        if next.nodes.len() > MEMBERS_MAX {
            return Err(ChangeError::TooManyMembers);
        }
        Ok(next)
    }

    fn change(&mut self, change: MembershipChange) -> Result<(), ChangeError> {
        match change {
            MembershipChange::AddLearner(node) => {
                let replica = self.allot(node)?;
                self.learners.insert(replica);
            }
            MembershipChange::AddVoter(node) => {
                let replica = self.allot(node)?;
                self.voters.insert(replica);
            }
            MembershipChange::Promote(replica) => {
                if !self.nodes.contains_key(&replica) {
                    return Err(ChangeError::UnknownReplica(replica));
                }
                if !self.learners.remove(&replica) {
                    return Err(ChangeError::NotLearner(replica));
                }
                self.voters.insert(replica);
            }
            MembershipChange::Remove(replica) => {
                if !self.learners.remove(&replica) && !self.voters.remove(&replica) {
                    return Err(ChangeError::UnknownReplica(replica));
                }
            }
            MembershipChange::SetQuorums(quorums) => self.quorums = quorums,
        }
        Ok(())
    }

    /// Gives the node the next id. Members that leave keep their address until the end, so that their nodes count as taken.
    fn allot(&mut self, node: NodeId) -> Result<ReplicaId, ChangeError> {
        if self.nodes.values().any(|taken| *taken == node) {
            return Err(ChangeError::NodeTaken(node));
        }
        let replica = self.next_replica;
        self.next_replica = ReplicaId(replica.0.checked_add(1).ok_or(ChangeError::IdsExhausted)?);
        #[cfg(feature = "mutants")]
        let replica = if crate::Mutant::ReplicaIdReused.is_on() { ReplicaId(node.0) } else { replica };
        self.nodes.insert(replica, node);
        Ok(replica)
    }

    /// The configuration that follows on a joint one: the incoming voters decide alone. A simple one is its own successor.
    #[must_use]
    pub fn after_joint(&self) -> Self {
        let mut next = self.clone();
        next.outgoing.clear();
        next.outgoing_quorums = None;
        next.forget_addresses();
        next
    }

    fn forget_addresses(&mut self) {
        let Self { voters, outgoing, learners, nodes, .. } = self;
        nodes.retain(|id, _| voters.contains(id) || outgoing.contains(id) || learners.contains(id));
    }

    /// Whether the replica was a member once and is no more. One that the configuration has yet to add is not removed. Only of a
    /// *committed* configuration is that final, and only then may what the replica holds be destroyed.
    #[must_use]
    pub fn has_removed(&self, replica: ReplicaId) -> bool {
        replica < self.next_replica && !self.nodes.contains_key(&replica)
    }
}

#[cfg(test)]
mod tests {
    use super::{ChangeError as E, MembershipChange as C, *};

    fn three() -> Config {
        Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id * 10))))
    }

    fn ids(set: &std::collections::BTreeSet<ReplicaId>) -> Vec<u64> {
        set.iter().map(|id| id.0).collect()
    }

    #[test]
    fn learners_come_and_go_in_one_simple_step() {
        let one = three().changed(&[C::AddLearner(NodeId(40))], ReplicaId(0)).unwrap();
        assert!(!one.is_joint());
        assert_eq!((ids(&one.learners), one.next_replica), (vec![4], ReplicaId(5)));
        let two = one.changed(&[C::Remove(ReplicaId(4)), C::AddLearner(NodeId(50))], ReplicaId(0)).unwrap();
        assert!(!two.is_joint() && two.has_removed(ReplicaId(4)) && !two.has_removed(ReplicaId(6)));
        assert_eq!(ids(&two.learners), [5], "an id is never used again");
    }

    #[test]
    fn whatever_changes_the_voters_is_joint_and_the_leaving_stay_until_its_end() {
        let changes = [C::AddVoter(NodeId(40)), C::AddLearner(NodeId(50)), C::Remove(ReplicaId(1))];
        let joint = three().changed(&changes, ReplicaId(0)).unwrap();
        assert_eq!((ids(&joint.voters), ids(&joint.outgoing)), (vec![2, 3, 4], vec![1, 2, 3]));
        assert_eq!(joint.nodes.len(), 5);
        assert_eq!(Config::decode(&joint.encode()), Ok(joint.clone()));
        let last = joint.after_joint();
        assert_eq!((ids(&last.voters), ids(&last.learners), last.nodes.len()), (vec![2, 3, 4], vec![5], 4));
        assert!(last.has_removed(ReplicaId(1)) && !joint.has_removed(ReplicaId(1)));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let config = three().changed(&[C::AddLearner(NodeId(40))], ReplicaId(0)).unwrap();
        let refused = |changes: &[C]| config.changed(changes, ReplicaId(0)).unwrap_err();
        assert_eq!(refused(&[]), E::Nothing);
        assert_eq!(refused(&[C::Promote(ReplicaId(9))]), E::UnknownReplica(ReplicaId(9)));
        assert_eq!(refused(&[C::Promote(ReplicaId(1))]), E::NotLearner(ReplicaId(1)));
        assert_eq!(refused(&[C::Remove(ReplicaId(9))]), E::UnknownReplica(ReplicaId(9)));
        assert_eq!(refused(&[C::Remove(ReplicaId(1)); 2]), E::UnknownReplica(ReplicaId(1)));
        assert_eq!(refused(&[C::AddVoter(NodeId(40))]), E::NodeTaken(NodeId(40)));
        assert_eq!(refused(&[C::Remove(ReplicaId(1)), C::AddVoter(NodeId(10))]), E::NodeTaken(NodeId(10)));
        assert_eq!(refused(&[1, 2, 3].map(|id| C::Remove(ReplicaId(id)))), E::NoVoters);
        let many: Vec<C> = (100..161).map(|node| C::AddLearner(NodeId(node))).collect();
        assert_eq!(refused(&many), E::TooManyMembers);
        let joint = config.changed(&[C::Promote(ReplicaId(4))], ReplicaId(0)).unwrap();
        assert_eq!(joint.changed(&[C::AddLearner(NodeId(60))], ReplicaId(0)), Err(E::Joint));
    }

    #[test]
    fn ids_begin_where_the_ballot_says() {
        let config = three().changed(&[C::AddLearner(NodeId(40))], ReplicaId(200)).unwrap();
        assert_eq!((ids(&config.learners), config.next_replica), (vec![200], ReplicaId(201)));
        let config = config.changed(&[C::AddLearner(NodeId(50))], ReplicaId(200)).unwrap();
        assert_eq!(ids(&config.learners), [200, 201]);
        assert!(config.has_removed(ReplicaId(100)), "an addition that came to nothing");
    }

    #[test]
    fn quorums_that_would_not_meet_are_refused_whatever_changes() {
        let five = Config::of_voters((1..=5).map(|id| (ReplicaId(id), NodeId(id * 10))));
        let apart = five.clone().with_quorums(Some(Quorums { elect: 3, commit: 2 })).unwrap_err();
        assert_eq!(
            apart.to_string(),
            "3 of 5 voters that elect and 2 that commit need not meet: together they must be more than 5"
        );
        let fast = five.with_quorums(Some(Quorums { elect: 4, commit: 2 })).unwrap();
        let six = fast.changed(&[C::AddVoter(NodeId(60))], ReplicaId(0));
        assert_eq!(six, Err(E::Quorums(QuorumsError::Apart { elect: 4, commit: 2, voters: 6 })));
        let four = fast.changed(&[C::Remove(ReplicaId(1))], ReplicaId(0)).unwrap();
        assert!(four.is_joint() && four.outgoing_quorums == four.quorums);
        let two = fast.changed(&[1, 2, 3].map(|id| C::Remove(ReplicaId(id))), ReplicaId(0));
        assert_eq!(two, Err(E::Quorums(QuorumsError::Size { size: 4, voters: 2 })));
        let sizes = Some(Quorums { elect: 5, commit: 2 });
        let joint = fast.changed(&[C::SetQuorums(sizes), C::AddVoter(NodeId(60))], ReplicaId(0)).unwrap();
        assert_eq!(Config::decode(&joint.encode()), Ok(joint.clone()));
        assert_eq!((joint.after_joint().quorums, joint.after_joint().outgoing_quorums), (sizes, None));
        let majorities = fast.changed(&[C::SetQuorums(None)], ReplicaId(0)).unwrap();
        assert!(majorities.is_joint() && majorities.voters == majorities.outgoing);
    }

    #[test]
    fn a_change_of_voters_that_leaves_them_as_they_were_is_simple() {
        let changes = [C::AddVoter(NodeId(40)), C::Remove(ReplicaId(4))];
        let config = three().changed(&changes, ReplicaId(0)).unwrap();
        assert!(!config.is_joint() && config.nodes.len() == 3 && config.has_removed(ReplicaId(4)));
    }
}
