//! Breadth-first search over the states of all replicas together.

use std::collections::{BTreeSet, HashSet};

use conclave_consensus::{Config, ReplicaId};
use conclave_raft::describe;

use super::{
    Bounds, Bug, Counterexample, REPLICAS_MAX, Report,
    facts::Facts,
    replica::{Action, Change, Replica, founders},
    table::{Effect, Table, fingerprint},
};
use crate::check::Violation;

/// What of the bounds is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Spent {
    proposals: u8,
    crashes: u8,
    repetitions: u8,
    changes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// By replica; those there are not stay 0.
    replicas: [u32; REPLICAS_MAX],
    facts: u32,
    spent: Spent,
    /// In order, without repetition.
    in_flight: Box<[u32]>,
}

/// A step from one state to another.
#[derive(Clone, Copy, Debug)]
enum Step {
    Acts {
        replica: u8,
        action: Action,
    },
    /// As a delivery, but the message stays in flight.
    Repeats(u32),
    Loses(u32),
}

struct Search {
    bounds: Bounds,
    founders: Config,
    bug: Option<Bug>,
    table: Table,
    known: HashSet<u128>,
    /// How each state was reached first: from which, by what.
    origins: Vec<(u32, Step)>,
    steps: u64,
    found: Option<(u32, Step, Violation)>,
}

/// Walks all states within the bounds, or until a violation is found.
///
/// # Panics
/// If the bounds name no or too many replicas, or more than 2^32 states fit into memory.
#[must_use]
pub fn explore(bounds: Bounds, bug: Option<Bug>) -> Report {
    assert!((1..=REPLICAS_MAX).contains(&bounds.replicas), "1 to {REPLICAS_MAX} replicas");
    assert!(!bounds.spare || bounds.replicas > 1, "somebody must be a member");
    let mut search = Search {
        bounds,
        founders: founders((bounds.replicas - usize::from(bounds.spare)) as u64),
        bug,
        table: Table::default(),
        known: HashSet::new(),
        origins: Vec::new(),
        steps: 0,
        found: None,
    };
    let mut level = vec![(0, search.start())];
    let mut depth = 0;
    let mut complete = true;
    while search.found.is_none() {
        let mut next = Vec::new();
        for (number, state) in &level {
            search.expand(*number, state, &mut next);
            if search.found.is_some() || search.origins.len() >= bounds.states_max {
                complete = false;
                break;
            }
        }
        if next.is_empty() {
            break;
        }
        depth += 1;
        level = next;
        if !complete {
            break;
        }
    }
    search.report(depth, complete)
}

impl Search {
    fn start(&mut self) -> State {
        let mut replicas = [0; REPLICAS_MAX];
        let voters = self.founders.voters.len() as u64;
        for (place, id) in replicas.iter_mut().take(self.bounds.replicas).zip(1..) {
            let replica = if id <= voters { Replica::new(id, voters) } else { Ok(Replica::vacant(voters)) };
            *place = self.table.replica(replica.expect("an empty disk is a first boot"));
        }
        let facts = self.table.facts(&Facts::default());
        let mut state = State { replicas, facts, spent: Spent::default(), in_flight: Box::default() };
        if self.bounds.led {
            self.lead(&mut state);
        }
        self.known.insert(fingerprint(&state));
        self.origins.push((0, Step::Loses(0)));
        state
    }

    /// The first replica stands before any other, everything arrives and is written, until all is at rest.
    fn lead(&mut self, state: &mut State) {
        for place in 0..self.founders.voters.len() {
            self.force(state, place, Action::Silence);
        }
        self.force(state, 0, Action::Tick);
        loop {
            let written =
                (0..self.bounds.replicas).filter(|place| self.force(state, *place, Action::Persist));
            let written = written.count();
            let Some((message, rest)) = state.in_flight.split_first() else {
                if written == 0 {
                    break;
                }
                continue;
            };
            let message = *message;
            state.in_flight = rest.into();
            self.force(state, self.place(message), Action::Receive(message));
        }
        assert!(self.table.view(state.replicas[0]).leads, "nobody stood in its way");
    }

    /// Lets a replica act outside of the search; says whether it could.
    fn force(&mut self, state: &mut State, place: usize, action: Action) -> bool {
        let effect = self.table.act(state.replicas[place], action, None);
        let Effect::Done { next, sent, .. } = self.table.effect(effect) else { return false };
        state.replicas[place] = *next;
        state.in_flight = state.in_flight.iter().chain(sent).copied().collect();
        let mut facts = self.table.facts_at(state.facts).clone();
        facts
            .learn(place, self.table.view(state.replicas[place]), &[])
            .expect("nothing is wrong with one leader");
        state.facts = self.table.facts(&facts);
        true
    }

    /// Where the receiver of a message lives: whoever was no member at first is on the last node.
    fn place(&self, message: u32) -> usize {
        let to = self.table.message_at(message).to.0;
        usize::try_from(to).unwrap_or(usize::MAX).min(self.founders.voters.len() + 1) - 1
    }

    /// Finds every state that is one step away.
    fn expand(&mut self, number: u32, state: &State, next: &mut Vec<(u32, State)>) {
        for message in state.in_flight.iter().copied() {
            let replica = self.place(message);
            let mut fewer = state.clone();
            fewer.in_flight = state.in_flight.iter().copied().filter(|other| *other != message).collect();
            let action = Action::Receive(message);
            self.acts(number, &fewer, replica, action, Step::Acts { replica: replica as u8, action }, next);
            if state.spent.repetitions < self.bounds.repetitions {
                let mut again = state.clone();
                again.spent.repetitions += 1;
                let step = Step::Repeats(message);
                self.acts(number, &again, replica, action, step, next);
            }
            self.arrive(number, fewer, Step::Loses(message), next);
        }
        for replica in 0..self.bounds.replicas {
            let mut actions = vec![Action::Tick, Action::Silence, Action::Persist];
            let view = self.table.view(state.replicas[replica]);
            if view.leads && state.spent.proposals < self.bounds.proposals {
                actions.push(Action::Propose(state.spent.proposals));
            }
            if state.spent.crashes < self.bounds.crashes {
                actions.extend((0..=view.writes as u8).map(|kept| Action::Crash { kept }));
            }
            if view.leads && state.spent.changes < self.bounds.changes {
                let number = state.spent.changes;
                let changes = changes_of(&view.config, self.bounds.spare);
                actions.extend(changes.into_iter().map(|change| Action::Change { number, change }));
            }
            for action in actions {
                let mut after = state.clone();
                match action {
                    Action::Propose(_) => after.spent.proposals += 1,
                    Action::Crash { .. } => after.spent.crashes += 1,
                    Action::Change { .. } => after.spent.changes += 1,
                    _ => {}
                }
                self.acts(
                    number,
                    &after,
                    replica,
                    action,
                    Step::Acts { replica: replica as u8, action },
                    next,
                );
            }
        }
    }

    /// Lets a replica act in `state`, of which everything else is as it will be after.
    fn acts(
        &mut self,
        number: u32,
        state: &State,
        replica: usize,
        action: Action,
        step: Step,
        next: &mut Vec<(u32, State)>,
    ) {
        if self.found.is_some() {
            return;
        }
        let effect = self.table.act(state.replicas[replica], action, self.bug);
        let (after, sent, dropped) = match self.table.effect(effect) {
            Effect::Disabled => return,
            Effect::Broken(what) => {
                let violation = Violation { invariant: "a core's own", what: what.clone() };
                self.found = Some((number, step, violation));
                return;
            }
            Effect::Done { next, sent, dropped } => (*next, sent, dropped),
        };
        let view = self.table.view(after);
        if view.term > self.bounds.terms || view.writes > self.bounds.writes {
            return;
        }
        let mut in_flight: Vec<u32> = state.in_flight.to_vec();
        in_flight.extend(sent);
        in_flight.sort_unstable();
        in_flight.dedup();
        if in_flight.len() > self.bounds.in_flight {
            return;
        }
        let mut facts = self.table.facts_at(state.facts).clone();
        if let Err(violation) = facts.learn(replica, view, dropped) {
            self.found = Some((number, step, violation));
            return;
        }
        let mut replicas = state.replicas;
        replicas[replica] = after;
        let facts =
            if facts == *self.table.facts_at(state.facts) { state.facts } else { self.table.facts(&facts) };
        let state = State { replicas, facts, spent: state.spent, in_flight: in_flight.into() };
        self.arrive(number, state, step, next);
    }

    /// Counts a step, and looks at the state it leads to if that is a new one.
    fn arrive(&mut self, from: u32, state: State, step: Step, next: &mut Vec<(u32, State)>) {
        if self.found.is_some() {
            return;
        }
        self.steps += 1;
        if !self.known.insert(fingerprint(&state)) {
            return;
        }
        let number = u32::try_from(self.origins.len()).expect("fewer than 2^32 states");
        self.origins.push((from, step));
        let views: Vec<_> =
            state.replicas[..self.bounds.replicas].iter().map(|replica| self.table.view(*replica)).collect();
        if let Err(violation) = self.table.facts_at(state.facts).check(&views, &self.founders) {
            self.found = Some((from, step, violation));
            return;
        }
        next.push((number, state));
    }

    fn report(self, depth: usize, complete: bool) -> Report {
        let (replica_states, messages) = self.table.sizes();
        let violation = self.found.as_ref().map(|(from, last, violation)| {
            let mut steps = vec![self.in_words(*last)];
            let mut at = *from;
            while at != 0 {
                let (before, step) = self.origins[at as usize];
                steps.push(self.in_words(step));
                at = before;
            }
            steps.reverse();
            Counterexample { violation: violation.clone(), steps }
        });
        let leaders: HashSet<(u64, usize)> =
            self.table.all_facts().flat_map(|facts| facts.leaders.iter().copied()).collect();
        let in_words = |config: &Config| {
            let set = |ids: &BTreeSet<ReplicaId>| ids.iter().map(|id| format!(" {id}")).collect::<String>();
            let joint =
                if config.is_joint() { format!(" for{}", set(&config.outgoing)) } else { String::new() };
            format!("voters{}{joint}, learners{}", set(&config.voters), set(&config.learners))
        };
        let memberships: BTreeSet<String> = self.table.views().map(|view| in_words(&view.config)).collect();
        Report {
            memberships: memberships.into_iter().collect(),
            states: self.origins.len(),
            steps: self.steps,
            depth,
            complete,
            replica_states,
            messages,
            leaders: leaders.len(),
            chosen: self.table.all_facts().map(|facts| facts.chosen.len()).max().unwrap_or(0),
            violation,
        }
    }

    fn in_words(&self, step: Step) -> String {
        let message = |message: u32| describe(self.table.message_at(message));
        match step {
            Step::Acts { action: Action::Receive(number), .. } => format!("delivered: {}", message(number)),
            Step::Repeats(number) => {
                format!("delivered, not for the last time: {}", message(number))
            }
            Step::Loses(number) => format!("lost: {}", message(number)),
            Step::Acts { replica, action } => {
                let what = match action {
                    Action::Receive(_) | Action::Tick => "its deadline comes".to_owned(),
                    Action::Silence => "an election timeout passes".to_owned(),
                    Action::Propose(number) => format!("command {number} is proposed"),
                    Action::Persist => "its oldest write is done".to_owned(),
                    Action::Crash { kept } => format!("crash and boot, {kept} writes kept"),
                    Action::Change { change, .. } => match change {
                        Change::AddVoter => "asked to add a voter".to_owned(),
                        Change::AddLearner => "asked to add a learner".to_owned(),
                        Change::Promote(other) => format!("asked to promote replica {other}"),
                        Change::Remove(other) => format!("asked to remove replica {other}"),
                        Change::Alone => "asked to remove all others".to_owned(),
                    },
                };
                format!("replica {}: {what}", replica + 1)
            }
        }
    }
}

/// The changes that a leader is asked for.
fn changes_of(config: &Config, spare: bool) -> Vec<Change> {
    let mut changes: Vec<Change> = config.nodes.keys().map(|id| Change::Remove(*id)).collect();
    changes.extend(config.learners.iter().map(|id| Change::Promote(*id)));
    if spare {
        changes.extend([Change::AddVoter, Change::AddLearner]);
    }
    if config.nodes.len() > 2 {
        changes.push(Change::Alone);
    }
    changes
}
