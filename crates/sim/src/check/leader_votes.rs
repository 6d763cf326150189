//! Only a replica that has a vote leads (thesis, section 4.2.1: a server that is being caught up counts for nothing).

use conclave_consensus::{Config, NodeId, ReplicaId};

use super::Violation;

/// A replica takes office. `configs` are those of its log that it may not know to be committed, the last of these that is applied included: where it
/// has a vote in any, it may be the only one whose log is complete (section 4.2.2). So may a learner be that another has `promoted`, though it has not
/// heard of that.
///
/// # Errors
/// If it has no vote in any.
pub fn check_leader_votes<'c>(
    node: NodeId,
    replica: ReplicaId,
    configs: impl Iterator<Item = &'c Config> + Clone,
    promoted: bool,
) -> Result<(), Violation> {
    let learns = |config: &Config| config.learners.contains(&replica);
    if configs.clone().any(|config| config.is_voter(replica))
        || promoted && configs.clone().last().is_some_and(learns)
    {
        return Ok(());
    }
    let what = format!("replica {replica} on node {node} leads and has no vote in {:?}", configs.last());
    Err(Violation::new("leader votes", what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_leader_without_a_vote() {
        let mut config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let before = config.clone();
        let promoted = |promoted, configs: &[&Config]| {
            check_leader_votes(NodeId(3), ReplicaId(3), configs.iter().copied(), promoted)
        };
        let check = |configs: &[&Config]| promoted(false, configs);
        assert!(check(&[&config]).is_ok());
        config.voters.remove(&ReplicaId(3));
        config.learners.insert(ReplicaId(3));
        assert!(check(&[&config]).is_err());
        assert!(promoted(true, &[&config]).is_ok(), "another has made it a voter");
        assert!(check(&[&before, &config]).is_ok(), "what ends its vote may be truncated");
        config.outgoing.insert(ReplicaId(3));
        assert!(check(&[&config]).is_ok(), "it votes until the joint phase ends");
    }
}
