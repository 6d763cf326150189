//! When which group wants to be looked at: an ordered index, so that a host of many groups visits only those that are due.

use std::collections::BTreeSet;

use conclave_consensus::{GroupId, Time};

use super::{Group, Host, fetch::Fetch};

/// Groups by when they are due. A group knows its own entry.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    due: BTreeSet<(Time, GroupId)>,
    /// Groups whose deadline may have moved since it was last looked at.
    moved: BTreeSet<GroupId>,
}

impl Deadlines {
    pub(super) fn moved(&mut self, group: GroupId) {
        self.moved.insert(group);
    }

    pub(super) fn first(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Every group that is due, in order.
    pub(super) fn due(&self, now: Time) -> Vec<GroupId> {
        self.due.range(..=(now, GroupId(u64::MAX))).map(|(_, group)| *group).collect()
    }
}

impl Group {
    fn deadline(&self) -> Option<Time> {
        let parked = self.parked.front().map(|parked| parked.until);
        let fetch = self.fetch.as_ref().map(Fetch::deadline);
        let kept = self.kept_fetch.as_ref().map(|(_, until)| *until);
        [self.core.next_deadline(), parked, self.unpark_at, fetch, kept].into_iter().flatten().min()
    }
}

impl Host {
    /// Brings the index up to date. Costs as much as groups were stepped.
    pub(super) fn index_deadlines(&mut self) {
        while let Some(group) = self.deadlines.moved.pop_first() {
            let Some(g) = self.groups.get_mut(&group) else { continue };
            let deadline = g.deadline();
            if deadline == g.indexed {
                continue;
            }
            if let Some(old) = std::mem::replace(&mut g.indexed, deadline) {
                self.deadlines.due.remove(&(old, group));
            }
            if let Some(new) = deadline {
                self.deadlines.due.insert((new, group));
            }
        }
    }
}
