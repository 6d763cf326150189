//! What cores are told of nodes, and when a node speaks.

use std::time::Duration;

use conclave_consensus::{Ballot, Effect, Epoch, Mark, NodeId, Time};
use conclave_replica::{HostEffect, HostInput};
use conclave_transport::Packet;

use crate::fixture::{Fixture, GROUP, receivers, role, says};

fn at(ms: u64) -> Time {
    Time(0).after(Duration::from_millis(ms))
}

fn alive(node: u64, epoch: u64) -> HostInput {
    HostInput::Packets { from: NodeId(node), packets: vec![Packet::Alive { epoch: Epoch(epoch) }] }
}

/// What the core was told of nodes since it was last looked at.
fn told(fixture: &mut Fixture) -> Vec<String> {
    let steps = std::mem::take(&mut fixture.script.lock().steps);
    steps.into_iter().filter(|step| step.starts_with("peer")).collect()
}

#[test]
fn a_node_speaks_to_all_it_shares_a_group_with_unless_its_disk_hangs() {
    let mut fixture = Fixture::alive();
    assert_eq!(receivers(&fixture.step(at(0), HostInput::Tick)), [20, 30]);
    assert_eq!(fixture.host.next_deadline(), Some(at(100)));
    assert_eq!(receivers(&fixture.step(at(50), HostInput::Tick)), []);
    assert_eq!(receivers(&fixture.step(at(100), HostInput::Tick)), [20, 30]);
    let mark = |sequence| Mark { ballot: Ballot::term(1), sequence };
    for sequence in [1, 2] {
        fixture.emit(Effect::Persist { mark: mark(sequence), ops: Vec::new(), then: Vec::new() });
        fixture.host.drain(&mut Vec::new());
    }
    assert_eq!(receivers(&fixture.step(at(1_000), HostInput::Tick)), [20, 30]);
    fixture.step(at(1_050), HostInput::Logged { group: GROUP, mark: mark(1) });
    assert_eq!(receivers(&fixture.step(at(2_000), HostInput::Tick)), [20, 30], "it is slow and goes on");
    let silent = fixture.step(at(2_100), HostInput::Tick);
    assert!(!silent.iter().any(|effect| matches!(effect, HostEffect::Send { .. })), "{silent:?}");
    fixture.step(at(2_150), HostInput::Logged { group: GROUP, mark: mark(2) });
    assert_eq!(receivers(&fixture.step(at(2_200), HostInput::Tick)), [20, 30]);
}

#[test]
fn only_news_is_told_and_only_to_those_that_sleep_by_it() {
    let mut fixture = Fixture::alive();
    fixture.emit(role(Some(2)));
    fixture.host.drain(&mut Vec::new());
    told(&mut fixture);
    fixture.step(at(10), alive(20, 1));
    assert_eq!(told(&mut fixture), ["peer 20 epoch 1 until 1010"]);
    for ms in [110, 210, 310] {
        fixture.step(at(ms), alive(20, 1));
    }
    fixture.step(at(320), alive(30, 1));
    assert_eq!(told(&mut fixture), [""; 0], "a heartbeat, and a node that this group is not led on");
    // Before it is asked anything it hears what is known, of its leader's node first.
    fixture.step(at(330), says(3, 30));
    assert_eq!(told(&mut fixture), ["peer 20 epoch 1 until 1310", "peer 30 epoch 1 until 1320"]);
    fixture.step(at(340), says(3, 30));
    assert_eq!(told(&mut fixture), [""; 0]);
    fixture.step(at(350), alive(20, 2));
    assert_eq!(told(&mut fixture)[0], "peer 20 epoch 2 until 1350", "another life");
    fixture.step(at(360), alive(20, 1));
    assert_eq!(told(&mut fixture), [""; 0], "late, of an earlier life");
    fixture.step(at(1_349), HostInput::Tick);
    assert_eq!(told(&mut fixture), [""; 0]);
    assert_eq!(fixture.host.next_deadline(), Some(at(1_350)));
    fixture.step(at(1_350), HostInput::Tick);
    assert_eq!(told(&mut fixture)[0], "peer 20 epoch 2 until 1350", "silence");
    fixture.step(at(1_400), alive(20, 2));
    assert_eq!(told(&mut fixture)[0], "peer 20 epoch 2 until 2400", "it is back");
    fixture.step(at(1_500), alive(99, 1));
    assert_eq!(told(&mut fixture), [""; 0], "who shares no group is nobody");
}

#[test]
fn a_leader_hears_of_every_node_at_once() {
    let mut fixture = Fixture::alive();
    fixture.emit(role(Some(1)));
    fixture.host.drain(&mut Vec::new());
    told(&mut fixture);
    fixture.step(at(10), alive(20, 1));
    fixture.step(at(20), alive(30, 1));
    assert_eq!(told(&mut fixture).len(), 3);
}
