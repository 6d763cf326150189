//! What was acknowledged is chosen, once, and what was refused for certain is not.

use std::collections::BTreeMap;

use conclave_consensus::{ProposalId, Slot};

use super::{Chosen, Violation};
use crate::history::{Ending, History};

const NAME: &str = "durability";

/// Checks a history against everything that was applied, in order, by a node that is caught up at the end.
///
/// # Errors
/// If an acknowledged proposal is missing or stands twice, or a refused one is there.
pub fn check_durability(
    history: &History,
    applied: impl IntoIterator<Item = (Slot, Chosen)>,
) -> Result<(), Violation> {
    let mut slots: BTreeMap<ProposalId, Slot> = BTreeMap::new();
    for (slot, chosen) in applied {
        if chosen.id.is_none() {
            continue;
        }
        if let Some(other) = slots.insert(chosen.id, slot) {
            let what = format!("{:?} was applied at slot {other} and again at {slot}", chosen.id);
            return Err(Violation::new(NAME, what));
        }
    }
    for (index, operation) in history.operations().iter().enumerate() {
        if !operation.action.is_proposal() {
            continue;
        }
        let found = slots.get(&operation.id);
        let what = match (&operation.ending, found) {
            (Ending::Answered { .. }, None) => "was acknowledged and is gone",
            (Ending::Refused { .. }, Some(_)) => "was refused for certain and was applied",
            _ => continue,
        };
        return Err(Violation::new(NAME, format!("operation {index} {what}: {operation:?}, slot {found:?}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use conclave_consensus::NodeId;

    use super::*;
    use crate::{
        check::MirrorEntry,
        history::{Action, Answer},
    };

    fn id(sequence: u64) -> ProposalId {
        ProposalId { node: NodeId(1), sequence }
    }

    fn chosen(slot: u64, sequence: u64) -> (Slot, Chosen) {
        let entry = MirrorEntry { ballot: Default::default(), hash: 0 };
        (Slot(slot), Chosen { id: id(sequence), entry })
    }

    fn history(ending: Ending) -> History {
        let mut history = History::default();
        let operation = history.call(1, 1, 0, Action::Put { key: 1, value: 1 }, id(1));
        if ending != Ending::Unknown {
            history.end(operation, ending);
        }
        history
    }

    #[test]
    fn fires_on_an_acknowledged_write_that_is_gone() {
        let answer = Answer { revision: 2, done: true, seen: Vec::new() };
        let acknowledged = history(Ending::Answered { at: 1, answer });
        assert!(check_durability(&acknowledged, [chosen(1, 1)]).is_ok());
        assert!(check_durability(&acknowledged, []).is_err());
        assert!(check_durability(&history(Ending::Unknown), []).is_ok());
    }

    #[test]
    fn fires_on_a_refused_write_that_happened() {
        assert!(check_durability(&history(Ending::Refused { at: 1 }), [chosen(1, 1)]).is_err());
    }

    #[test]
    fn fires_on_a_write_applied_twice() {
        assert!(check_durability(&history(Ending::Unknown), [chosen(1, 1), chosen(2, 1)]).is_err());
    }
}
