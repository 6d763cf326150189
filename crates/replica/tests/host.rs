//! The host on its own, around a core that does as it is told.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Class, Config, Consensus, Effect, Epoch, GroupId, Input, Mark, Message, NodeId, Outcome,
    Proposal, ProposalId, ReadError, ReadId, ReplicaId, Slot, SnapshotMeta, Status, StepError, Time,
};
use conclave_replica::{Host, HostConfig, HostEffect, HostInput, ProposeError};
use conclave_transport::Packet;
use parking_lot::Mutex;

const GROUP: GroupId = GroupId(1);

#[derive(Debug, Default)]
struct Script {
    steps: Vec<String>,
    refuse: Option<StepError>,
    effects: Vec<Effect>,
    deadline: Option<Time>,
}

#[derive(Debug)]
struct FakeCore(Arc<Mutex<Script>>);

impl Consensus for FakeCore {
    fn step(&mut self, _: Time, input: Input) -> Result<(), StepError> {
        let mut script = self.0.lock();
        let name = match &input {
            Input::Propose { batch, .. } => format!("propose {}", batch.len()),
            Input::Message(message) => format!("message from {}", message.from),
            Input::SnapshotReady(meta) => format!("snapshot at {}", meta.slot),
            other => format!("{other:?}"),
        };
        script.steps.push(name);
        script.refuse.clone().map_or(Ok(()), Err)
    }

    fn next_deadline(&self) -> Option<Time> {
        self.0.lock().deadline
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        out.append(&mut self.0.lock().effects);
    }

    fn status(&self) -> Status {
        Status {
            replica: ReplicaId(1),
            ballot: Ballot::term(1),
            leader: None,
            serving: false,
            last: Slot(0),
            persisted: Slot(0),
            committed: Slot(0),
            applied: Slot(0),
            config: Config::of_voters((1..=3).map(|n| (ReplicaId(n), NodeId(n * 10)))),
            progress: Vec::new(),
        }
    }

    fn replica(&self) -> ReplicaId {
        ReplicaId(1)
    }

    fn leader(&self) -> Option<ReplicaId> {
        None
    }
}

struct Fixture {
    host: Host,
    script: Arc<Mutex<Script>>,
}

impl Fixture {
    fn new() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let config = HostConfig { parked_max: 2, ..HostConfig::of(NodeId(10), Epoch(3)) };
        let mut host = Host::new(config);
        host.add_group(GROUP, Box::new(FakeCore(Arc::clone(&script))), 4);
        Self { host, script }
    }

    fn led_by(leader: Option<u64>) -> Self {
        let mut fixture = Self::new();
        fixture.emit(role(leader));
        fixture.host.drain(&mut Vec::new());
        fixture
    }

    fn emit(&mut self, effect: Effect) {
        self.script.lock().effects.push(effect);
        // Any input makes the host look at the group.
        self.host.step(Time(0), HostInput::Applied { group: GROUP, slot: Slot(0) });
    }

    fn step(&mut self, at: Time, input: HostInput) -> Vec<HostEffect> {
        self.host.step(at, input);
        let mut effects = Vec::new();
        self.host.drain(&mut effects);
        effects
    }

    fn steps(&self) -> Vec<String> {
        self.script.lock().steps.clone()
    }
}

fn role(leader: Option<u64>) -> Effect {
    Effect::Role { ballot: Ballot::term(2), leader: leader.map(ReplicaId), serving: leader == Some(1) }
}

fn proposal(node: u64, sequence: u64) -> Proposal {
    Proposal { id: ProposalId { node: NodeId(node), sequence }, payload: Bytes::from_static(b"x") }
}

fn propose(sequence: u64) -> HostInput {
    HostInput::Propose { group: GROUP, batch: vec![proposal(10, sequence)] }
}

fn failures(effects: &[HostEffect]) -> Vec<(u64, ProposeError)> {
    let failed = |effect: &HostEffect| match effect {
        HostEffect::Failed { id, why } => Some((id.sequence, *why)),
        _ => None,
    };
    effects.iter().filter_map(failed).collect()
}

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
    fixture.step(Time(1), HostInput::Tick);
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
    let message = Message {
        from: ReplicaId(2),
        to: ReplicaId(1),
        class: Class::Control,
        head: Bytes::new(),
        entries: Vec::new(),
    };
    let packet = Packet::Consensus { group: GROUP, message };
    fixture.step(Time(0), HostInput::Packets { from: NodeId(30), packets: vec![packet.clone()] });
    assert_eq!((fixture.steps().len(), fixture.host.counters().bad_messages), (0, 1));
    fixture.step(Time(0), HostInput::Packets { from: NodeId(20), packets: vec![packet] });
    assert_eq!(fixture.steps(), ["message from 2"]);
}

#[test]
fn promises_travel_with_the_log_they_depend_on() {
    let mut fixture = Fixture::new();
    let message = Message {
        from: ReplicaId(1),
        to: ReplicaId(3),
        class: Class::Control,
        head: Bytes::new(),
        entries: Vec::new(),
    };
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

fn pull_of(effects: &[HostEffect]) -> (NodeId, u64, u64) {
    match effects {
        [HostEffect::Send { to, packet: Packet::SnapshotPull { fetch, piece, .. } }] => (*to, *fetch, *piece),
        other => panic!("expected a pull, got {other:?}"),
    }
}

fn piece(fetch: u64, piece: u64, body: &'static [u8], last: bool) -> Packet {
    Packet::SnapshotPiece { group: GROUP, fetch, piece, body: Bytes::from_static(body), last }
}

#[test]
fn a_snapshot_is_fetched_piece_by_piece_into_a_new_generation() {
    let mut fixture = Fixture::new();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2), ReplicaId(3)] });
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    let (to, fetch, first) = pull_of(&effects);
    assert_eq!((to, first), (NodeId(20), 0));
    // From another node, of another fetch, or out of order: nobody's.
    for (from, packet) in [
        (30, piece(fetch, 0, b"a", false)),
        (20, piece(fetch + 1, 0, b"a", false)),
        (20, piece(fetch, 1, b"a", false)),
    ] {
        assert!(
            fixture
                .step(Time(0), HostInput::Packets { from: NodeId(from), packets: vec![packet] })
                .is_empty()
        );
    }
    let arrived = HostInput::Packets { from: NodeId(20), packets: vec![piece(fetch, 0, b"a", false)] };
    let effects = fixture.step(Time(0), arrived);
    assert!(matches!(effects[..], [HostEffect::StorePiece { piece: 0, generation: 5, last: false, .. }]));
    let effects = fixture.step(Time(0), HostInput::PieceStored { group: GROUP, fetch });
    assert_eq!(pull_of(&effects).2, 1);
    // Lost on the way: asked for again.
    let late = fixture.host.next_deadline().unwrap();
    assert_eq!(pull_of(&fixture.step(late, HostInput::Tick)), (NodeId(20), fetch, 1));
    let effects = fixture
        .step(late, HostInput::Packets { from: NodeId(20), packets: vec![piece(fetch, 1, b"b", true)] });
    assert!(matches!(effects[..], [HostEffect::StorePiece { piece: 1, last: true, .. }]));
    let meta = SnapshotMeta { slot: Slot(9), generation: 5, ..SnapshotMeta::default() };
    fixture.step(late, HostInput::SnapshotStored { group: GROUP, fetch, meta });
    assert_eq!(fixture.steps().last().map(String::as_str), Some("snapshot at 9"));
}

#[test]
fn a_source_that_cannot_serve_gives_way_to_the_next_and_then_the_fetch_fails() {
    let mut fixture = Fixture::new();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2), ReplicaId(3)] });
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    let (_, fetch, _) = pull_of(&effects);
    let refused = |from| HostInput::Packets { from: NodeId(from), packets: vec![piece(fetch, 0, b"", true)] };
    assert_eq!(pull_of(&fixture.step(Time(0), refused(20))).0, NodeId(30));
    fixture.step(Time(0), refused(30));
    assert_eq!(fixture.steps().last().map(String::as_str), Some("SnapshotFailed"));
    assert_eq!(fixture.host.next_deadline(), None);
}

#[test]
fn a_silent_source_is_asked_a_few_times() {
    let mut fixture = Fixture::new();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2)] });
    fixture.host.drain(&mut Vec::new());
    let mut now = Time(0);
    for _ in 0..20 {
        now = now.after(Duration::from_secs(3));
        fixture.step(now, HostInput::Tick);
    }
    assert_eq!(fixture.steps().iter().filter(|step| *step == "SnapshotFailed").count(), 1);
}

#[test]
fn snapshots_are_served_to_members_only() {
    let mut fixture = Fixture::new();
    let pull = Packet::SnapshotPull { group: GROUP, fetch: 1, at_least: 1, piece: 0 };
    let from = |node| HostInput::Packets { from: NodeId(node), packets: vec![pull.clone()] };
    assert!(matches!(fixture.step(Time(0), from(20))[..], [HostEffect::ServePiece { to: NodeId(20), .. }]));
    assert!(fixture.step(Time(0), from(99)).is_empty());
}
