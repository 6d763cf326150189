//! On which node a replica is reached that the membership in force does not name.

use conclave_consensus::{Ballot, Config, Effect, Mark, NodeId, ReplicaId, Slot, StepError, Time};
use conclave_replica::{HostEffect, HostInput};
use conclave_transport::Packet;

use crate::fixture::{Fixture, message, propose, receivers, role, says};

fn drained(fixture: &mut Fixture) -> Vec<HostEffect> {
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    effects
}

#[test]
fn a_replica_that_knows_no_membership_answers_whoever_speaks_to_it() {
    let mut fixture = Fixture::of(Config::default());
    fixture.emit(Effect::Send(message(1, 2)));
    assert_eq!(receivers(&drained(&mut fixture)), []);
    fixture.step(Time(0), says(2, 20));
    fixture.emit(Effect::Send(message(1, 2)));
    assert_eq!(receivers(&drained(&mut fixture)), [20]);
    let mark = Mark { ballot: Ballot::term(1), sequence: 1 };
    fixture.emit(Effect::Persist { mark, ops: Vec::new(), then: vec![message(1, 2)] });
    let effects = drained(&mut fixture);
    assert!(matches!(&effects[..], [HostEffect::Log { then, .. }] if then[0].0 == NodeId(20)), "{effects:?}");
    // What its clients ask goes to the leader it follows, and what it lacks it fetches there.
    fixture.emit(role(Some(2)));
    assert!(matches!(drained(&mut fixture)[..], [HostEffect::Role { leader: Some(NodeId(20)), .. }]));
    assert_eq!(receivers(&fixture.step(Time(0), propose(1))), [20]);
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2)] });
    let effects = drained(&mut fixture);
    assert!(
        matches!(&effects[..], [HostEffect::Send { to: NodeId(20), packet: Packet::SnapshotPull { .. } }]),
        "{effects:?}"
    );
}

#[test]
fn what_the_core_refuses_is_not_remembered() {
    let mut fixture = Fixture::of(Config::default());
    fixture.script.lock().refuse = Some(StepError::BadMessage { from: ReplicaId(2), why: "garbage" });
    fixture.step(Time(0), says(2, 66));
    fixture.script.lock().refuse = None;
    fixture.step(Time(0), says(2, 20));
    fixture.emit(Effect::Send(message(1, 2)));
    assert_eq!(receivers(&drained(&mut fixture)), [20]);
}

#[test]
fn a_replica_heard_from_one_node_is_not_heard_from_another() {
    let mut fixture = Fixture::of(Config::default());
    fixture.step(Time(0), says(2, 20));
    fixture.step(Time(0), says(2, 66));
    assert_eq!((fixture.steps().len(), fixture.host.counters().bad_messages), (1, 1));
}

#[test]
fn who_leaves_is_written_to_and_heard_for_as_long_as_the_core_does() {
    let mut fixture = Fixture::new();
    let config = Config::of_voters([1, 2].map(|n| (ReplicaId(n), NodeId(n * 10))));
    fixture.emit(Effect::Membership { config: config.into(), at: Slot(5), committed: false });
    fixture.emit(Effect::Send(message(1, 3)));
    assert_eq!(receivers(&drained(&mut fixture)), [30]);
    let steps = fixture.steps().len();
    fixture.step(Time(0), says(3, 30));
    assert_eq!(fixture.steps().len(), steps + 1);
    fixture.step(Time(0), HostInput::Tick);
    fixture.step(Time(0), says(3, 20));
    assert_eq!(fixture.steps().len(), steps + 1, "its id is of its node for ever");
}
