//! Only a replica that has a vote leads (thesis, section 4.2.1: a server that is being caught up counts for nothing).

use conclave_consensus::{Config, NodeId, ReplicaId};

use super::Violation;

/// A replica begins to lead under a configuration.
///
/// # Errors
/// If it has no vote in it.
pub fn check_leader_votes(node: NodeId, replica: ReplicaId, config: &Config) -> Result<(), Violation> {
    if config.is_voter(replica) {
        return Ok(());
    }
    let what = format!("replica {replica} on node {node} leads and has no vote in {config:?}");
    Err(Violation::new("leader votes", what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_leader_without_a_vote() {
        let mut config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        assert!(check_leader_votes(NodeId(3), ReplicaId(3), &config).is_ok());
        config.voters.remove(&ReplicaId(3));
        config.learners.insert(ReplicaId(3));
        assert!(check_leader_votes(NodeId(3), ReplicaId(3), &config).is_err());
        config.outgoing.insert(ReplicaId(3));
        assert!(
            check_leader_votes(NodeId(3), ReplicaId(3), &config).is_ok(),
            "it votes until the joint phase ends"
        );
    }
}
