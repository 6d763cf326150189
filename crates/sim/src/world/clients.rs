//! The load: clients that each have one operation under way, and remember what they saw.

use std::collections::BTreeMap;

use conclave_consensus::ProposalId;

use super::{
    Context,
    queue::{Event, NodeEvent, Op},
};
use crate::{
    check::Violation,
    clock::{MS, SimTime},
    history::{Action, Ending, Key, Value},
    rng::Rng,
};

/// Who asks on behalf of the runner: not one of the load's clients.
pub(crate) const PROBE: u32 = u32::MAX;

/// All clients.
#[derive(Debug)]
pub(crate) struct Clients {
    rng: Rng,
    /// What any client last saw in a key, to swap against.
    seen: BTreeMap<Key, Value>,
    revision: i64,
    values: Value,
    /// For each operation the highest revision told before it was asked.
    floors: Vec<i64>,
    /// For each operation whether its client waits no longer.
    closed: Vec<bool>,
    stopped: bool,
}

impl Clients {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            seen: BTreeMap::new(),
            revision: 1,
            values: 0,
            floors: Vec::new(),
            closed: Vec::new(),
            stopped: false,
        }
    }

    /// Lets every client begin.
    pub(crate) fn begin(&mut self, context: &mut Context) {
        for client in 0..context.options.load.clients {
            let load = &context.options.load;
            let at = load.awake(context.now + self.rng.interval(load.think));
            context.queue.push(at, Event::Think { client });
        }
    }

    /// From now on nobody asks anything new.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// A client asks something of some node.
    pub(crate) fn think(&mut self, context: &mut Context, client: u32) {
        if !self.stopped {
            let node = self.rng.between(1, context.options.nodes);
            let action = self.draw(context);
            let patience = context.options.load.patience;
            self.ask(context, client, node, action, patience);
        }
    }

    /// Writes a key of its own, on behalf of the runner.
    pub(crate) fn probe(&mut self, context: &mut Context, node: u64, patience: SimTime) -> Op {
        self.values += 1;
        let action = Action::Put { key: PROBE_KEYS + node as Key, value: self.values };
        self.ask(context, PROBE, node, action, patience)
    }

    /// Reads what the runner writes.
    pub(crate) fn look(&mut self, context: &mut Context, node: u64, patience: SimTime) -> Op {
        let action = Action::Read { from: PROBE_KEYS, to: PROBE_KEYS + 1 };
        self.ask(context, PROBE, node, action, patience)
    }

    fn ask(
        &mut self,
        context: &mut Context,
        client: u32,
        node: u64,
        action: Action,
        patience: SimTime,
    ) -> Op {
        let now = context.now;
        let op = context.history.call(client, node, now, action, ProposalId::NONE);
        self.floors.push(context.checks.freshness.floor());
        self.closed.push(false);
        let arrives = now + self.rng.between(20_000, 2 * MS);
        context.queue.push(arrives, Event::At { node, life: 0, event: NodeEvent::Request { op } });
        context.queue.push(now + patience, Event::GiveUp { op });
        op
    }

    fn draw(&mut self, context: &Context) -> Action {
        let load = &context.options.load;
        let epoch = (context.now / load.keys_for.max(1)) as Key;
        let first = epoch * load.keys;
        let key = first + self.rng.below(u64::from(load.keys)) as Key;
        let to = (key + 1 + self.rng.below(4) as Key).min(first + load.keys);
        self.values += 1;
        let value = self.values;
        let mut ticket = self.rng.below(load.weights.iter().sum());
        let kind = load.weights.iter().position(|weight| {
            let hit = ticket < *weight;
            ticket = ticket.saturating_sub(*weight);
            hit
        });
        match kind {
            Some(0) => Action::Put { key, value },
            Some(1) => Action::Delete { from: key, to },
            Some(2) => {
                let expect = self.seen.get(&key).copied();
                // Now and then it expects what cannot be, so that refusals are seen too.
                let expect = if self.rng.chance(100_000) { Some(Value::MAX) } else { expect };
                Action::Swap { key, expect, value }
            }
            Some(3) => Action::PutAll { keys: (key..to).collect(), value },
            Some(4) => Action::Compact { revision: self.revision - self.rng.below(40) as i64 },
            _ => Action::Read { from: key, to },
        }
    }

    /// A client is told how its operation ended, if it still waits.
    pub(crate) fn reply(&mut self, context: &mut Context, op: Op, ending: Ending) -> Result<(), Violation> {
        let Some(operation) = context.history.get(op) else { return Ok(()) };
        if operation.ending != Ending::Unknown || self.closed[op] {
            return Ok(());
        }
        let (client, node) = (operation.client, operation.node);
        self.closed[op] = true;
        match &ending {
            Ending::Answered { answer, .. } => {
                context.counters.answered += 1;
                if answer.done || !matches!(operation.action, Action::Compact { .. }) {
                    context.checks.freshness.answered(node, self.floors[op], answer.revision)?;
                    context.checks.freshness.told(answer.revision);
                    self.revision = self.revision.max(answer.revision);
                }
                self.learn(&operation.action, answer.done, &answer.seen);
            }
            Ending::Refused { .. } => context.counters.refused += 1,
            Ending::Unknown => context.counters.unknown += 1,
        }
        if ending != Ending::Unknown {
            context.history.end(op, ending);
        }
        self.next(context, client);
        Ok(())
    }

    /// A client waits no longer; it will never know.
    pub(crate) fn give_up(&mut self, context: &mut Context, op: Op) {
        if std::mem::replace(&mut self.closed[op], true) {
            return;
        }
        context.counters.unknown += 1;
        if let Some(client) = context.history.get(op).map(|operation| operation.client) {
            self.next(context, client);
        }
    }

    fn next(&mut self, context: &mut Context, client: u32) {
        if client != PROBE {
            let load = &context.options.load;
            let at = load.awake(context.now + self.rng.interval(load.think));
            context.queue.push(at, Event::Think { client });
        }
    }

    fn forget(&mut self, from: Key, to: Key) {
        for key in from..to {
            self.seen.remove(&key);
        }
    }

    fn learn(&mut self, action: &Action, done: bool, seen: &[crate::history::Seen]) {
        match action {
            Action::Put { key, value } => {
                self.seen.insert(*key, *value);
            }
            Action::Swap { key, value, .. } if done => {
                self.seen.insert(*key, *value);
            }
            Action::PutAll { keys, value } => {
                self.seen.extend(keys.iter().map(|key| (*key, *value)));
            }
            Action::Delete { from, to } => self.forget(*from, *to),
            Action::Read { from, to } => {
                self.forget(*from, *to);
                self.seen.extend(seen.iter().map(|seen| (seen.key, seen.value)));
            }
            Action::Swap { .. } | Action::Compact { .. } => {
                self.seen.extend(seen.iter().map(|seen| (seen.key, seen.value)));
            }
        }
    }
}

/// Keys from here on belong to the runner.
pub(crate) const PROBE_KEYS: Key = 90_000_000;
