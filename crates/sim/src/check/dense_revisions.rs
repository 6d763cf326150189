//! The store's revision grows by exactly one with each modifying transaction, so that the revisions clients were told
//! of are all different, and those they were not told of can only be operations whose outcome they do not know.

use std::collections::BTreeMap;

use super::Violation;
use crate::history::{Action, Ending, History, Operation};

const NAME: &str = "dense revisions";

/// Checks a history against the store's final revision.
///
/// # Errors
/// If two acknowledged modifications share a revision, one has a revision beyond the last, or more revisions are missing than there are
/// operations of unknown outcome.
pub fn check_dense_revisions(history: &History, last: i64) -> Result<(), Violation> {
    let mut owners: BTreeMap<i64, usize> = BTreeMap::new();
    let mut unknown = 0;
    for (index, operation) in history.operations().iter().enumerate() {
        match modified(operation) {
            Modified::At(revision) => {
                if let Some(other) = owners.insert(revision, index) {
                    let what = format!("operations {other} and {index} were both told revision {revision}");
                    return Err(Violation::new(NAME, what));
                }
            }
            Modified::Perhaps => unknown += 1,
            Modified::No => {}
        }
    }
    if let Some((told, operation)) = owners.iter().next_back().filter(|(told, _)| **told > last) {
        let what = format!("operation {operation} was told revision {told}, and the store ends at {last}");
        return Err(Violation::new(NAME, what));
    }
    let missing = last - 1 - owners.len() as i64;
    if missing > unknown {
        let what = format!(
            "{missing} revisions up to {last} belong to no acknowledged operation, and only {unknown} are unknown"
        );
        return Err(Violation::new(NAME, what));
    }
    Ok(())
}

enum Modified {
    At(i64),
    Perhaps,
    No,
}

fn modified(operation: &Operation) -> Modified {
    let writes = match (&operation.action, &operation.ending) {
        (Action::Read { .. } | Action::Compact { .. }, _) | (_, Ending::Refused { .. }) => false,
        (_, Ending::Unknown) => return Modified::Perhaps,
        (Action::Delete { .. }, Ending::Answered { answer, .. }) => !answer.seen.is_empty(),
        (_, Ending::Answered { answer, .. }) => answer.done,
    };
    match operation.answer() {
        Some(answer) if writes => Modified::At(answer.revision),
        _ => Modified::No,
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::ProposalId;

    use super::*;
    use crate::history::Answer;

    fn history(revisions: &[Option<i64>]) -> History {
        let mut history = History::default();
        for (value, revision) in (1..).zip(revisions) {
            let action = Action::Put { key: 1, value };
            let operation = history.call(1, 1, value, action, ProposalId::NONE);
            if let Some(revision) = *revision {
                let answer = Answer { revision, done: true, seen: Vec::new() };
                history.end(operation, Ending::Answered { at: value, answer });
            }
        }
        history
    }

    #[test]
    fn fires_on_a_revision_given_twice() {
        assert!(check_dense_revisions(&history(&[Some(2), Some(3)]), 3).is_ok());
        assert!(check_dense_revisions(&history(&[Some(2), Some(2)]), 3).is_err());
    }

    #[test]
    fn fires_on_a_gap_that_no_unknown_operation_explains() {
        assert!(check_dense_revisions(&history(&[Some(2), None, Some(4)]), 4).is_ok());
        assert!(check_dense_revisions(&history(&[Some(2), Some(4)]), 4).is_err());
        assert!(check_dense_revisions(&history(&[Some(2), Some(4)]), 3).is_err());
    }
}
