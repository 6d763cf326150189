//! When which group wants to be looked at: an ordered index, so that a host of many groups visits only those that are due.

use std::collections::BTreeSet;

use conclave_consensus::{GroupId, Time};

use super::{Group, fetch::Fetch};

/// Groups by when they are due. A group knows its own entry.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BTreeSet<(Time, GroupId)>);

impl Deadlines {
    pub(super) fn first(&self) -> Option<Time> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Every group that is due, in order.
    pub(super) fn due(&self, now: Time) -> Vec<GroupId> {
        self.0.range(..=(now, GroupId(u64::MAX))).map(|(_, group)| *group).collect()
    }

    /// Brings a group's entry up to date.
    pub(super) fn index(&mut self, id: GroupId, group: &mut Group) {
        let deadline = group.deadline();
        if deadline == group.indexed {
            return;
        }
        if let Some(old) = std::mem::replace(&mut group.indexed, deadline) {
            self.0.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.0.insert((new, id));
        }
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
