//! What must be remembered of the past to judge a state, and the invariants over all replicas.

use conclave_consensus::{Config, ProposalId, ReplicaId};

use super::replica::{Cell, View};
use crate::check::Violation;

/// The past, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Facts {
    /// Who led, by term.
    pub(super) leaders: Vec<(u64, usize)>,
    /// What was chosen, from slot 1 on, and the term in which it was found to be.
    pub(super) chosen: Vec<(Cell, u64)>,
    /// What was said to be dropped.
    dropped: Vec<ProposalId>,
}

fn violation(invariant: &'static str, what: String) -> Violation {
    Violation { invariant, what }
}

impl Facts {
    /// Takes in what a replica shows after a step.
    pub(super) fn learn(
        &mut self,
        replica: usize,
        view: &View,
        dropped: &[ProposalId],
    ) -> Result<(), Violation> {
        if view.leads {
            match self.leaders.iter().find(|(term, _)| *term == view.term) {
                Some((term, other)) if *other != replica => {
                    let what = format!("replicas {} and {} lead in term {term}", other + 1, replica + 1);
                    return Err(violation("election safety", what));
                }
                Some(_) => {}
                None => {
                    self.leaders.push((view.term, replica));
                    self.leaders.sort_unstable();
                }
            }
        }
        for slot in 0..view.committed {
            let Some(cell) = view.log.get(slot) else {
                let what = format!(
                    "replica {} says that slot {} is committed and does not hold it",
                    replica + 1,
                    slot + 1
                );
                return Err(violation("state machine safety", what));
            };
            match self.chosen.get(slot) {
                Some((chosen, _)) if chosen != cell => {
                    let what = format!(
                        "at slot {} {chosen:?} was chosen, and {cell:?} is committed at replica {}",
                        slot + 1,
                        replica + 1
                    );
                    return Err(violation("state machine safety", what));
                }
                Some(_) => {}
                None => self.chosen.push((*cell, view.term)),
            }
        }
        self.dropped
            .extend(dropped.iter().filter(|id| !self.dropped.contains(id)).copied().collect::<Vec<_>>());
        self.dropped.sort_unstable();
        match self.chosen.iter().find(|((_, id), _)| self.dropped.contains(id)) {
            Some(((_, id), _)) => {
                Err(violation("one outcome", format!("{id:?} was said to be dropped and is chosen")))
            }
            None => Ok(()),
        }
    }

    /// Judges all replicas together, of a group that began with the membership `founders`.
    pub(super) fn check(&self, views: &[&View], founders: &Config) -> Result<(), Violation> {
        for (number, one) in views.iter().enumerate() {
            for (other_number, other) in views.iter().enumerate().skip(number + 1) {
                logs_match(&one.log, &other.log).map_err(|slot| {
                    let what = format!(
                        "the logs of replicas {} and {} agree on the term at slot {slot} and differ at or below",
                        number + 1,
                        other_number + 1
                    );
                    violation("log matching", what)
                })?;
            }
            if one.leads {
                self.leader_is_complete(number, one)?;
            }
        }
        for (slot, (cell, _)) in self.chosen.iter().enumerate() {
            let holds = |id: ReplicaId| {
                views.iter().any(|view| view.id == id && view.durable.get(slot) == Some(cell))
            };
            if !self.may_have_counted(slot, views, founders, &|config| config.is_commit_quorum(holds)) {
                let holders: Vec<u64> =
                    views.iter().map(|view| view.id).filter(|id| holds(*id)).map(|id| id.0).collect();
                let what =
                    format!("{cell:?} was chosen at slot {} and is durable on {holders:?} only", slot + 1);
                return Err(violation("durability", what));
            }
        }
        Ok(())
    }

    /// Whether a membership satisfies `quorum` by which a leader can have counted when it found the entry at `slot` chosen: the last chosen one
    /// before that slot, or a later one. A chosen joint one is followed by its successor, which may be in no log any more.
    fn may_have_counted(
        &self,
        slot: usize,
        views: &[&View],
        founders: &Config,
        quorum: &dyn Fn(&Config) -> bool,
    ) -> bool {
        let logged = || views.iter().flat_map(|view| view.configs.iter().map(move |config| (*view, config)));
        let is_chosen = |view: &View, at: usize| {
            self.chosen.get(at).is_some_and(|(chosen, _)| view.log.get(at) == Some(chosen))
        };
        let before = logged().filter(|(view, (at, _))| *at < slot && is_chosen(view, *at));
        let begin = before.map(|(_, (at, _))| *at).max();
        (begin.is_none() && quorum(founders))
            || logged().any(|(_, (at, config))| {
                begin.is_none_or(|begin| *at >= begin) && (quorum(config) || quorum(&config.after_joint()))
            })
    }

    fn leader_is_complete(&self, number: usize, view: &View) -> Result<(), Violation> {
        for (slot, (cell, in_term)) in self.chosen.iter().enumerate() {
            if *in_term <= view.term && view.log.get(slot) != Some(cell) {
                let what = format!(
                    "replica {} leads in term {} without {cell:?}, chosen at slot {} in term {in_term}",
                    number + 1,
                    view.term,
                    slot + 1
                );
                return Err(violation("leader completeness", what));
            }
        }
        Ok(())
    }
}

/// Where two logs agree on a slot's term, they are the same up to it. Gives a slot where they are not.
fn logs_match(one: &[Cell], other: &[Cell]) -> Result<(), usize> {
    let agree = one.iter().zip(other).rposition(|(one, other)| one.0 == other.0);
    match agree {
        Some(last) if one[..=last] != other[..=last] => Err(last + 1),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{MembershipChange, NodeId};

    use super::*;

    fn cell(term: u64, sequence: u64) -> Cell {
        (term, ProposalId { sequence, ..ProposalId::NONE })
    }

    fn founders() -> Config {
        Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))))
    }

    fn view(term: u64, leads: bool, committed: usize, log: &[Cell]) -> View {
        let (id, config, configs) = (ReplicaId(1), founders(), Vec::new());
        View {
            id,
            config,
            configs,
            term,
            leads,
            committed,
            log: log.to_vec(),
            durable: log.to_vec(),
            writes: 0,
        }
    }

    /// Judges replicas 1, 2 and so on.
    fn check(facts: &Facts, views: &[&View]) -> &'static str {
        let named = (1..).zip(views).map(|(id, view)| View { id: ReplicaId(id), ..View::clone(view) });
        let named: Vec<View> = named.collect();
        invariant(facts.check(&named.iter().collect::<Vec<_>>(), &founders()))
    }

    fn invariant(result: Result<(), Violation>) -> &'static str {
        result.err().map_or("none", |violation| violation.invariant)
    }

    #[test]
    fn two_leaders_in_a_term_are_seen() {
        let mut facts = Facts::default();
        facts.learn(0, &view(1, true, 0, &[]), &[]).unwrap();
        facts.learn(1, &view(2, true, 0, &[]), &[]).unwrap();
        assert_eq!(invariant(facts.learn(2, &view(1, true, 0, &[]), &[])), "election safety");
    }

    #[test]
    fn another_choice_at_a_slot_is_seen() {
        let mut facts = Facts::default();
        facts.learn(0, &view(1, true, 1, &[cell(1, 1)]), &[]).unwrap();
        let mut again = facts.clone();
        assert_eq!(invariant(again.learn(1, &view(2, true, 1, &[cell(2, 0)]), &[])), "state machine safety");
        assert_eq!(invariant(facts.learn(1, &view(2, true, 1, &[]), &[])), "state machine safety");
    }

    #[test]
    fn a_choice_that_was_dropped_is_seen() {
        let mut facts = Facts::default();
        facts.learn(0, &view(1, true, 0, &[cell(1, 1)]), &[cell(1, 1).1]).unwrap();
        assert_eq!(invariant(facts.learn(1, &view(1, false, 1, &[cell(1, 1)]), &[])), "one outcome");
    }

    #[test]
    fn what_all_replicas_show_together_is_judged() {
        let mut facts = Facts::default();
        let (full, empty) = (view(1, true, 1, &[cell(1, 1)]), view(1, false, 0, &[]));
        facts.learn(0, &full, &[]).unwrap();
        assert_eq!(check(&facts, &[&full, &empty, &empty]), "durability");
        assert_eq!(check(&facts, &[&full, &full, &view(2, true, 0, &[])]), "leader completeness");
        let differs = view(1, false, 0, &[cell(1, 2)]);
        assert_eq!(check(&facts, &[&full, &full, &differs]), "log matching");
        assert_eq!(check(&facts, &[&full, &full, &empty]), "none");
    }

    #[test]
    fn what_is_chosen_after_a_change_is_counted_by_what_it_changed_to() {
        let (log, config) = ([cell(1, 1), cell(1, 2)], founders());
        let joint = config.changed(&[MembershipChange::Remove(ReplicaId(2))], ReplicaId(0)).unwrap();
        let mut facts = Facts::default();
        let changed = View { configs: vec![(0, joint)], ..view(1, true, 2, &log) };
        let follower = View { leads: false, ..changed.clone() };
        let (behind, empty) = (view(1, false, 0, &log[..1]), view(1, false, 0, &[]));
        facts.learn(0, &changed, &[]).unwrap();
        // The change itself counts by three, or by both; what follows by both, or by the two that are left.
        assert_eq!(check(&facts, &[&changed, &behind, &follower]), "none");
        assert_eq!(check(&facts, &[&changed, &empty, &follower]), "none");
        assert_eq!(check(&facts, &[&changed, &follower, &behind]), "durability");
    }
}
