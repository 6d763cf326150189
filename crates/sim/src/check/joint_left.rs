//! A joint configuration is left: whoever leads and serves in one appends what follows, whoever began it (thesis, section 4.3; etcd#12136, in which a
//! step-down left a group in one for good).
//!
//! A group in one needs both majorities for everything, and changes no more. Judged only when nothing breaks: what a leader has chosen then it
//! goes on from at once, or as soon as a hand-over of leadership is given up.

use conclave_consensus::{Config, NodeId};

use super::Violation;
use crate::clock::SimTime;

/// Remembers in which joint configuration the same leader has served, and since when.
#[derive(Debug, Default)]
pub struct JointLeft {
    since: Option<(SimTime, NodeId, Config)>,
}

impl JointLeft {
    /// At a time after the faults, the group is in a configuration, and this node leads and serves, if any does.
    ///
    /// # Errors
    /// If it has done so in the same joint configuration for longer than `patience`.
    pub fn at(
        &mut self,
        now: SimTime,
        serves: Option<NodeId>,
        config: &Config,
        patience: SimTime,
    ) -> Result<(), Violation> {
        let Some(node) = serves.filter(|_| config.is_joint()) else {
            self.since = None;
            return Ok(());
        };
        let (since, ..) = match &self.since {
            Some(same) if (same.1, &same.2) == (node, config) => same,
            _ => self.since.insert((now, node, config.clone())),
        };
        if now - since <= patience {
            return Ok(());
        }
        let ms = (now - since) / crate::clock::MS;
        let what = format!("node {node} has led and served for {ms} ms in {config:?}, and does not leave it");
        Err(Violation::new("joint configuration", what))
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{MembershipChange, ReplicaId};

    use super::*;

    #[test]
    fn fires_on_a_leader_that_stays_in_a_joint_configuration() {
        let simple = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let joint = simple.changed(&[MembershipChange::AddVoter(NodeId(4))], ReplicaId(0)).unwrap();
        let mut check = JointLeft::default();
        let mut at = |now, node: u64, config| {
            let serves = (node > 0).then_some(NodeId(node));
            check.at(now, serves, config, 100)
        };
        assert!(at(0, 1, &joint).is_ok() && at(100, 1, &joint).is_ok());
        assert!(at(101, 1, &joint).is_err());
        assert!(at(200, 2, &joint).is_ok(), "another one leads");
        assert!(at(250, 0, &joint).is_ok() && at(320, 2, &joint).is_ok(), "nobody led between");
        assert!(at(330, 2, &simple).is_ok() && at(500, 2, &simple).is_ok(), "one may stay in a simple one");
        assert!(at(600, 2, &joint).is_ok() && at(701, 2, &joint).is_err());
    }
}
