//! Changes of membership: refused by name, lost as any proposal, never forwarded.

use conclave_consensus::{
    ChangeError, Effect, GroupId, MembershipChange, NodeId, Outcome, ProposalId, ReplicaId, Slot, StepError,
    Time,
};
use conclave_replica::{HostEffect, HostInput, ProposeError, ReconfigureError};

use crate::fixture::{Fixture, GROUP, failures};

const ID: ProposalId = ProposalId { node: NodeId(10), sequence: 7 };

fn change(group: GroupId) -> HostInput {
    HostInput::Reconfigure { group, id: ID, changes: vec![MembershipChange::AddLearner(NodeId(40))] }
}

fn refusal(effects: &[HostEffect]) -> ReconfigureError {
    match effects {
        [HostEffect::ChangeRefused { id: ID, why }] => *why,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn each_refusal_has_its_name_and_nothing_is_forwarded() {
    let not_ready = StepError::LearnerNotReady { replica: ReplicaId(4), matched: Slot(1), last: Slot(100) };
    for (refused, told) in [
        (
            StepError::NotLeader { leader: Some(ReplicaId(2)) },
            ReconfigureError::NotLeader { leader: Some(NodeId(20)) },
        ),
        (StepError::NotLeader { leader: None }, ReconfigureError::NotLeader { leader: None }),
        (StepError::NotServing, ReconfigureError::NotServing),
        (StepError::ChangeInProgress, ReconfigureError::InProgress),
        (not_ready, ReconfigureError::LearnerNotReady),
        (StepError::Change(ChangeError::NoVoters), ReconfigureError::Change(ChangeError::NoVoters)),
        (StepError::Busy, ReconfigureError::Busy),
        (StepError::Unsupported("changes"), ReconfigureError::Dropped),
    ] {
        let mut fixture = Fixture::led_by(Some(2));
        fixture.script.lock().refuse = Some(refused);
        assert_eq!(refusal(&fixture.step(Time(0), change(GROUP))), told);
    }
    let mut fixture = Fixture::new();
    assert_eq!(refusal(&fixture.step(Time(0), change(GroupId(99)))), ReconfigureError::NoGroup);
}

#[test]
fn a_change_that_was_begun_is_lost_as_any_entry() {
    for (outcome, why) in
        [(Outcome::Dropped, ProposeError::LeaderChanged), (Outcome::Unknown, ProposeError::Unknown)]
    {
        let mut fixture = Fixture::new();
        assert!(fixture.step(Time(0), change(GROUP)).is_empty());
        fixture.emit(Effect::Lost { id: ID, outcome });
        let mut effects = Vec::new();
        fixture.host.drain(&mut effects);
        assert_eq!(failures(&effects), [(7, why)]);
    }
    let of = ReconfigureError::from;
    assert_eq!(of(ProposeError::LeaderChanged), ReconfigureError::Dropped);
    assert_eq!(of(ProposeError::Unknown), ReconfigureError::Unknown);
}
