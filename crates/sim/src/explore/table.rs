//! Numbers for states of replicas, messages and pasts, and what each action does to each state, computed once.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use conclave_consensus::{Message, ProposalId};

use super::{
    Bug,
    facts::Facts,
    replica::{Acted, Action, Replica, View},
};

/// What an action does to a replica's state.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Disabled,
    Broken(String),
    Done { next: u32, sent: Vec<u32>, dropped: Vec<ProposalId> },
}

#[derive(Debug, Default)]
pub(super) struct Table {
    replicas: Vec<(Replica, View)>,
    replica_numbers: HashMap<u128, u32>,
    messages: Vec<Message>,
    message_numbers: HashMap<String, u32>,
    facts: Vec<Facts>,
    facts_numbers: BTreeMap<Facts, u32>,
    effects: HashMap<(u32, Action), u32>,
    effect_list: Vec<Effect>,
}

/// 128 bits of a hash: of so many states no two meet.
pub(super) fn fingerprint(of: &(impl Hash + ?Sized)) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        of.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// Numbers stay far below what memory could hold of states.
fn number(length: usize) -> u32 {
    u32::try_from(length).expect("fewer than 2^32 states of single replicas")
}

impl Table {
    pub(super) fn replica(&mut self, replica: Replica) -> u32 {
        let text = replica.canonical();
        let next = number(self.replicas.len());
        let found = *self.replica_numbers.entry(fingerprint(&text)).or_insert(next);
        if found == next {
            let view = replica.view();
            self.replicas.push((replica, view));
        }
        found
    }

    pub(super) fn facts(&mut self, facts: &Facts) -> u32 {
        if let Some(found) = self.facts_numbers.get(facts) {
            return *found;
        }
        let next = number(self.facts.len());
        self.facts.push(facts.clone());
        self.facts_numbers.insert(facts.clone(), next);
        next
    }

    fn message(&mut self, message: Message) -> u32 {
        let next = number(self.messages.len());
        let found = *self.message_numbers.entry(format!("{message:?}")).or_insert(next);
        if found == next {
            self.messages.push(message);
        }
        found
    }

    pub(super) fn view(&self, replica: u32) -> &View {
        &self.replicas[replica as usize].1
    }

    /// Every state of a replica that was met.
    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        self.replicas.iter().map(|(_, view)| view)
    }

    pub(super) fn message_at(&self, message: u32) -> &Message {
        &self.messages[message as usize]
    }

    pub(super) fn facts_at(&self, facts: u32) -> &Facts {
        &self.facts[facts as usize]
    }

    /// How many states of replicas and messages there are.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.replicas.len(), self.messages.len())
    }

    /// The pasts that were met.
    pub(super) fn all_facts(&self) -> impl Iterator<Item = &Facts> {
        self.facts.iter()
    }

    /// What the action does to the replica, by number.
    pub(super) fn act(&mut self, replica: u32, action: Action, bug: Option<Bug>) -> u32 {
        if let Some(effect) = self.effects.get(&(replica, action)) {
            return *effect;
        }
        let message = match action {
            Action::Receive(message) => Some(&self.messages[message as usize]),
            _ => None,
        };
        let effect = match self.replicas[replica as usize].0.act(action, message, bug) {
            Acted::Disabled => Effect::Disabled,
            Acted::Broken(what) => Effect::Broken(what),
            Acted::Done(next, said) => {
                let next = self.replica(*next);
                let mut sent: Vec<u32> = said.sent.into_iter().map(|message| self.message(message)).collect();
                sent.sort_unstable();
                sent.dedup();
                // What changes nothing and says nothing leads nowhere.
                if next == replica && sent.is_empty() && !matches!(action, Action::Receive(_)) {
                    Effect::Disabled
                } else {
                    Effect::Done { next, sent, dropped: said.dropped }
                }
            }
        };
        let found = number(self.effect_list.len());
        self.effect_list.push(effect);
        self.effects.insert((replica, action), found);
        found
    }

    pub(super) fn effect(&self, effect: u32) -> &Effect {
        &self.effect_list[effect as usize]
    }
}
