//! Proposals, reads and messages: where they go, and how they end.

use std::time::Duration;

use conclave_consensus::{
    Ballot, Effect, Mark, NodeId, Outcome, ReadError, ReadId, ReplicaId, Slot, StepError, Time,
};
use conclave_replica::{HostEffect, HostInput, ProposeError};
use conclave_transport::Packet;

use crate::fixture::{Fixture, GROUP, failures, message, proposal, propose, role};

#[test]
fn proposals_go_to_the_leaders_node_and_only_once() {
    let mut fixture = Fixture::led_by(Some(2));
    let effects = fixture.step(Time(0), propose(7));
    assert!(
        matches!(&effects[..], [HostEffect::Send { to: NodeId(20), packet: Packet::Forward { batch, .. } }] if batch.len() == 1)
    );
    // One that was forwarded to us while we do not lead goes back, it does not go on.
    fixture.script.lock().refuse = Some(StepError::NotLeader { leader: Some(ReplicaId(2)) });
    let forwarded = Packet::Forward { group: GROUP, batch: vec![proposal(30, 1)] };
    let effects = fixture.step(Time(0), HostInput::Packets { from: NodeId(30), packets: vec![forwarded] });
    assert!(matches!(
        &effects[..],
        [HostEffect::Send {
            to: NodeId(30),
            packet: Packet::Refused { outcome: Outcome::Dropped, busy: false, .. }
        }]
    ));
}

#[test]
fn what_is_of_use_in_one_ballot_alone_is_neither_forwarded_nor_parked() {
    let ballot = Ballot::term(3);
    let propose_in = || HostInput::ProposeIn { group: GROUP, ballot, proposal: proposal(10, 7) };
    for leader in [Some(1), Some(2), None] {
        let mut fixture = Fixture::led_by(leader);
        // Whether this is the ballot is for the core to say, whoever the host takes for the leader.
        assert!(fixture.step(Time(0), propose_in()).is_empty());
        assert_eq!(fixture.steps().last().map(String::as_str), Some("propose 1 in term 3"));
        for (refusal, expected) in [
            (StepError::NotLeader { leader: Some(ReplicaId(2)) }, ProposeError::LeaderChanged),
            (StepError::Busy, ProposeError::Busy),
            (StepError::TooLarge { size_bytes: 2, size_bytes_max: 1 }, ProposeError::TooLarge),
        ] {
            fixture.script.lock().refuse = Some(refusal);
            let effects = fixture.step(Time(0), propose_in());
            assert_eq!((effects.len(), failures(&effects)), (1, vec![(7, expected)]));
        }
    }
}

#[test]
fn a_refusal_tells_how_certain_it_is() {
    for (outcome, busy, expected) in [
        (Outcome::Dropped, true, ProposeError::Busy),
        (Outcome::Dropped, false, ProposeError::LeaderChanged),
        (Outcome::Unknown, false, ProposeError::Unknown),
    ] {
        let mut fixture = Fixture::led_by(Some(2));
        let ids = vec![proposal(10, 5).id, proposal(20, 6).id];
        let refused = Packet::Refused { group: GROUP, ids, outcome, busy };
        let effects = fixture.step(Time(0), HostInput::Packets { from: NodeId(20), packets: vec![refused] });
        assert_eq!(failures(&effects), [(5, expected)], "another node's proposal is not ours to fail");
    }
}

#[test]
fn a_leader_that_refused_and_went_leaves_nothing_due() {
    let mut fixture = Fixture::led_by(Some(1));
    fixture.script.lock().refuse = Some(StepError::NotLeader { leader: None });
    assert!(fixture.step(Time(0), propose(1)).is_empty());
    fixture.emit(role(None));
    fixture.host.drain(&mut Vec::new());
    let due = fixture.host.next_deadline().unwrap();
    assert!(fixture.step(due, HostInput::Tick).is_empty());
    let next = fixture.host.next_deadline().unwrap();
    assert!(next > due, "a deadline that passed may not stay: {next:?}");
    assert_eq!(failures(&fixture.step(next, HostInput::Tick)), [(1, ProposeError::NoLeader)]);
}

#[test]
fn proposals_wait_for_a_leader_bounded_in_number_and_time() {
    let mut fixture = Fixture::led_by(None);
    assert!(fixture.step(Time(0), propose(1)).is_empty());
    assert!(fixture.step(Time(0), propose(2)).is_empty());
    assert_eq!(failures(&fixture.step(Time(0), propose(3))), [(3, ProposeError::Busy)]);
    let late = fixture.host.next_deadline().unwrap();
    assert_eq!(
        failures(&fixture.step(late, HostInput::Tick)),
        [(1, ProposeError::NoLeader), (2, ProposeError::NoLeader)]
    );
    assert_eq!(fixture.host.next_deadline(), None);
}

#[test]
fn a_tick_sees_what_was_stepped_since_the_last_drain() {
    let mut fixture = Fixture::led_by(None);
    fixture.host.step(Time(0), propose(1));
    let late = Time(0).after(Duration::from_secs(4));
    assert_eq!(failures(&fixture.step(late, HostInput::Tick)), [(1, ProposeError::NoLeader)]);
}

#[test]
fn parked_proposals_go_on_once_there_is_a_leader() {
    let mut fixture = Fixture::led_by(None);
    fixture.step(Time(0), propose(1));
    fixture.emit(role(Some(1)));
    fixture.host.drain(&mut Vec::new());
    assert_eq!(fixture.steps().last().map(String::as_str), Some("propose 1"));
}

#[test]
fn parked_under_a_leader_that_refuses_they_are_tried_again() {
    let mut fixture = Fixture::led_by(Some(1));
    fixture.script.lock().refuse = Some(StepError::NotLeader { leader: Some(ReplicaId(1)) });
    assert!(fixture.step(Time(0), propose(1)).is_empty());
    fixture.script.lock().refuse = None;
    let soon = fixture.host.next_deadline().unwrap();
    assert!(soon < Time(0).after(Duration::from_secs(1)), "long before they fail");
    fixture.step(soon, HostInput::Tick);
    assert_eq!(fixture.steps(), ["Applied(Slot(0))", "propose 1", "propose 1"]);
}

#[test]
fn load_is_told_from_leadership() {
    let mut fixture = Fixture::led_by(Some(1));
    fixture.script.lock().refuse = Some(StepError::Busy);
    assert_eq!(failures(&fixture.step(Time(0), propose(1))), [(1, ProposeError::Busy)]);
    fixture.script.lock().refuse = Some(StepError::TooLarge { size_bytes: 2, size_bytes_max: 1 });
    assert_eq!(failures(&fixture.step(Time(0), propose(2))), [(2, ProposeError::TooLarge)]);
}

#[test]
fn a_replica_speaks_only_from_its_own_node() {
    let mut fixture = Fixture::new();
    let message = message(2, 1);
    let packet = Packet::Consensus { group: GROUP, message };
    fixture.step(Time(0), HostInput::Packets { from: NodeId(30), packets: vec![packet.clone()] });
    assert_eq!((fixture.steps().len(), fixture.host.counters().bad_messages), (0, 1));
    fixture.step(Time(0), HostInput::Packets { from: NodeId(20), packets: vec![packet] });
    assert_eq!(fixture.steps(), ["message from 2"]);
}

#[test]
fn promises_travel_with_the_log_they_depend_on() {
    let mut fixture = Fixture::new();
    let message = message(1, 3);
    let mark = Mark { ballot: Ballot::term(1), sequence: 1 };
    fixture.emit(Effect::Persist { mark, ops: Vec::new(), then: vec![message] });
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    assert!(
        matches!(&effects[..], [HostEffect::Log { mark: Some(_), then, .. }] if then.len() == 1 && then[0].0 == NodeId(30))
    );
}

#[test]
fn an_invariant_broken_halts() {
    let mut fixture = Fixture::new();
    fixture.script.lock().refuse = Some(StepError::Broken("two leaders"));
    let effects = fixture.step(Time(0), HostInput::Applied { group: GROUP, slot: Slot(1) });
    assert!(matches!(effects[..], [HostEffect::Halt { why: "two leaders", .. }]));
}

#[test]
fn a_read_that_cannot_begin_fails_at_once() {
    let mut fixture = Fixture::new();
    fixture.script.lock().refuse = Some(StepError::NotLeader { leader: None });
    let effects = fixture.step(Time(0), HostInput::ReadBarrier { group: GROUP, id: ReadId(1) });
    assert!(matches!(effects[..], [HostEffect::ReadFailed { why: ReadError::NoLeader, .. }]));
}

#[test]
fn parked_under_a_leader_that_is_lost_they_wait_for_the_next_in_peace() {
    let mut fixture = Fixture::led_by(Some(1));
    fixture.script.lock().refuse = Some(StepError::NotLeader { leader: None });
    fixture.step(Time(0), propose(1));
    fixture.emit(role(None));
    fixture.host.drain(&mut Vec::new());
    let soon = fixture.host.next_deadline().unwrap();
    fixture.step(soon, HostInput::Tick);
    assert!(fixture.host.next_deadline().unwrap() > soon.after(Duration::from_secs(1)), "when they fail");
}
