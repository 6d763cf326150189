//! The entries that were chosen, replayed in order on the dumb [`Model`], give exactly the answers that clients were given.
//!
//! With [`check_durability`](super::check_durability) this says that the state machine is right. It trusts the log's order; that the order is one
//! that clients can accept is the business of [`check_linearizability`](super::check_linearizability), which does not.

use std::collections::BTreeMap;

use conclave_consensus::{ProposalId, Slot};

use super::{Chosen, Violation};
use crate::{
    history::{Action, History},
    model::Model,
};

const NAME: &str = "replay";

/// Replays what was applied and returns the final state.
///
/// # Errors
/// If an answer differs from the model's.
pub fn check_replay(
    history: &History,
    applied: impl IntoIterator<Item = (Slot, Chosen)>,
) -> Result<Model, Violation> {
    let asked: BTreeMap<ProposalId, usize> = history
        .operations()
        .iter()
        .enumerate()
        .filter(|(_, operation)| operation.action.is_proposal())
        .map(|(index, operation)| (operation.id, index))
        .collect();
    let mut reads: Vec<usize> = (0..history.operations().len())
        .filter(|index| {
            let operation = &history.operations()[*index];
            !operation.action.is_proposal() && operation.answer().is_some()
        })
        .collect();
    let revision_of = |index: usize| history.operations()[index].answer().map_or(0, |answer| answer.revision);
    // Descending, so that the next one to serve is the last.
    reads.sort_by_key(|index| std::cmp::Reverse(revision_of(*index)));

    let mut model = Model::default();
    serve(history, &mut reads, &mut model, revision_of)?;
    for (slot, chosen) in applied {
        if chosen.id.is_none() {
            continue;
        }
        let Some(index) = asked.get(&chosen.id) else {
            let what = format!("slot {slot} holds {:?}, which nobody proposed", chosen.id);
            return Err(Violation::new(NAME, what));
        };
        let operation = &history.operations()[*index];
        let mut expected = model.apply(&operation.action);
        if !expected.done && matches!(operation.action, Action::Compact { .. }) {
            // A refusal has no header, so no revision.
            expected.revision = 0;
        }
        if let Some(answer) = operation.answer().filter(|answer| **answer != expected) {
            let what = format!(
                "operation {index} at slot {slot}, {:?}, was answered {answer:?}, the model says {expected:?}",
                operation.action
            );
            return Err(Violation::new(NAME, what));
        }
        serve(history, &mut reads, &mut model, revision_of)?;
    }
    if let Some(index) = reads.last() {
        let what = format!(
            "operation {index} read revision {}, the log ends at {}",
            revision_of(*index),
            model.revision()
        );
        return Err(Violation::new(NAME, what));
    }
    Ok(model)
}

/// Serves the reads of the model's present revision.
fn serve(
    history: &History,
    reads: &mut Vec<usize>,
    model: &mut Model,
    revision_of: impl Fn(usize) -> i64,
) -> Result<(), Violation> {
    while let Some(index) = reads.pop_if(|index| revision_of(*index) <= model.revision()) {
        let operation = &history.operations()[index];
        let Action::Read { from, to } = operation.action else { continue };
        let expected = model.read(from, to);
        let Some(answer) = operation.answer() else { continue };
        if answer.seen != expected || answer.revision != model.revision() {
            let what = format!("operation {index} read {answer:?}, the model says {expected:?}");
            return Err(Violation::new(NAME, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use conclave_consensus::NodeId;

    use super::*;
    use crate::{
        check::MirrorEntry,
        history::{Answer, Ending, Seen},
    };

    fn id(sequence: u64) -> ProposalId {
        ProposalId { node: NodeId(1), sequence }
    }

    fn chosen(slot: u64, sequence: u64) -> (Slot, Chosen) {
        (Slot(slot), Chosen { id: id(sequence), entry: MirrorEntry { ballot: Default::default(), hash: 0 } })
    }

    fn seen(value: u64, modified: i64) -> Seen {
        Seen { key: 1, value, modified, created: 2, version: modified - 1 }
    }

    fn history(read: Answer) -> History {
        let mut history = History::default();
        for sequence in [1, 2] {
            let action = Action::Put { key: 1, value: sequence };
            let put = history.call(1, 1, sequence, action, id(sequence));
            let answer = Answer { revision: 1 + sequence as i64, done: true, seen: Vec::new() };
            history.end(put, Ending::Answered { at: sequence, answer });
        }
        let call = history.call(1, 1, 3, Action::Read { from: 0, to: 5 }, ProposalId::NONE);
        history.end(call, Ending::Answered { at: 4, answer: read });
        history
    }

    #[test]
    fn fires_on_a_read_that_does_not_fit_its_revision() {
        let read = |revision, seen| Answer { revision, done: true, seen: vec![seen] };
        let log = || [chosen(1, 1), chosen(2, 2)];
        let model = check_replay(&history(read(3, seen(2, 3))), log()).unwrap();
        assert_eq!(model.revision(), 3);
        assert!(check_replay(&history(read(2, seen(1, 2))), log()).is_ok());
        assert!(check_replay(&history(read(2, seen(2, 3))), log()).is_err());
        assert!(check_replay(&history(read(9, seen(2, 3))), log()).is_err());
    }

    #[test]
    fn fires_on_an_answer_that_the_order_does_not_give() {
        let read = Answer { revision: 3, done: true, seen: vec![seen(2, 3)] };
        assert!(check_replay(&history(read.clone()), [chosen(1, 2), chosen(2, 1)]).is_err());
        assert!(check_replay(&history(read), [chosen(1, 1), chosen(2, 9)]).is_err(), "nobody proposed it");
    }
}
