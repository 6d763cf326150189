//! Requests that come more than once: applied once, and answered as the first time, at every replica.

use std::collections::BTreeMap;

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
    },
};
use conclave_consensus::{Ballot, Entry, Epoch, Kind, NodeId, ProposalId, Slot};
use conclave_kv::{
    ANSWER_BYTES_MAX, CLIENTS_MAX, ClientId, KvError, OUTCOMES_MAX, Reply, RequestId,
    command::{self, Revision},
};
use conclave_storage::StateMachine;
use proptest::{collection::vec, prelude::*};

use crate::harness::{Replica, error, put, range};

fn id(client: u128, sequence: u64) -> RequestId {
    RequestId { client: ClientId(client), sequence }
}

fn put_command(key: &str, value: &str) -> Bytes {
    command::put(Revision::Next, &put(key, value))
}

fn named(store: &mut Replica, id: RequestId, command: &Bytes) -> Result<Reply, KvError> {
    store.command(command::identified(command, id))
}

fn text(outcome: &Result<Reply, KvError>) -> String {
    format!("{outcome:?}")
}

/// Reads, writes and shows what was before: an answer that a replica at which nobody waits would not need.
fn read_and_write(key: &str, value: &str) -> Bytes {
    let ops = [
        Request::RequestRange(range("a", "z")),
        Request::RequestPut(PutRequest { prev_kv: true, ..put(key, value) }),
    ];
    let success = ops.map(|request| RequestOp { request: Some(request) }).to_vec();
    command::txn(Revision::Next, &TxnRequest { success, ..TxnRequest::default() })
}

#[test]
fn a_repetition_is_answered_as_the_first_time_whatever_it_says() {
    let mut store = Replica::new();
    let first = named(&mut store, id(1, 1), &put_command("a", "1")).unwrap();
    store.set("a", "2");
    let hash = store.reader.hash().unwrap();
    let delete = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
    for other in
        [put_command("a", "1"), put_command("b", "9"), command::delete_range(Revision::Next, &delete)]
    {
        assert_eq!(named(&mut store, id(1, 1), &other).unwrap(), first);
    }
    assert_eq!((store.reader.revision(), store.reader.hash().unwrap()), (3, hash));
    // Another sequence, and another client, are other requests.
    named(&mut store, id(1, 0), &put_command("a", "3")).unwrap();
    named(&mut store, id(2, 1), &put_command("a", "4")).unwrap();
    assert_eq!((store.reader.revision(), store.texts("a", "", 0)), (5, vec!["a=4".to_owned()]));
}

#[test]
fn errors_are_outcomes_too() {
    let mut store = Replica::new();
    let keep = command::put(Revision::Next, &PutRequest { ignore_value: true, ..put("a", "") });
    let lease = command::put(Revision::Next, &PutRequest { lease: 5, ..put("a", "1") });
    let compaction = |revision| command::compaction(&CompactionRequest { revision, physical: false });
    assert_eq!(error(named(&mut store, id(1, 1), &keep)), EtcdError::KeyNotFound);
    assert_eq!(error(named(&mut store, id(1, 2), &lease)), EtcdError::LeaseNotFound);
    assert_eq!(error(named(&mut store, id(1, 3), &compaction(9))), EtcdError::FutureRev);
    for _ in 0..9 {
        store.set("a", "1");
    }
    store.compact(5).unwrap();
    assert_eq!(error(named(&mut store, id(1, 4), &compaction(5))), EtcdError::Compacted);
    store.checkpoint();
    store.crash();
    assert_eq!(error(named(&mut store, id(1, 1), &keep)), EtcdError::KeyNotFound);
    assert_eq!(error(named(&mut store, id(1, 2), &put_command("a", "2"))), EtcdError::LeaseNotFound);
    assert_eq!(error(named(&mut store, id(1, 3), &compaction(9))), EtcdError::FutureRev);
    assert_eq!(error(named(&mut store, id(1, 4), &compaction(8))), EtcdError::Compacted);
    assert_eq!((store.reader.compact_revision(), store.reader.revision()), (5, 10));
}

#[test]
fn a_minted_revision_that_came_too_late_is_no_outcome() {
    let mut store = Replica::new();
    store.set("a", "1");
    let at = |revision| command::put(Revision::At(revision), &put("a", "2"));
    assert!(matches!(named(&mut store, id(1, 1), &at(2)), Err(KvError::RevisionPassed)));
    let first = named(&mut store, id(1, 1), &at(7)).unwrap();
    assert_eq!((named(&mut store, id(1, 1), &at(8)).unwrap(), store.reader.revision()), (first, 7));
}

#[test]
fn what_is_older_than_the_outcomes_kept_is_refused() {
    let mut store = Replica::new();
    // They need not come in order, nor without gaps.
    let sequences: Vec<u64> = (0..OUTCOMES_MAX as u64 - 1).map(|at| 1000 + at * 7 % 64 * 10).collect();
    for sequence in &sequences {
        named(&mut store, id(1, *sequence), &put_command("a", "1")).unwrap();
    }
    named(&mut store, id(1, 3), &put_command("a", "2")).unwrap();
    let revision = store.reader.revision();
    let is_too_old = |outcome| matches!(outcome, Err(KvError::RequestTooOld));
    assert!(is_too_old(named(&mut store, id(1, 2), &put_command("a", "3"))));
    assert!(!is_too_old(named(&mut store, id(1, 3), &put_command("a", "3"))));
    assert_eq!(store.reader.revision(), revision);
    named(&mut store, id(1, u64::MAX), &put_command("a", "4")).unwrap();
    assert!(is_too_old(named(&mut store, id(1, 3), &put_command("a", "3"))));
    assert!(!is_too_old(named(&mut store, id(2, 3), &put_command("a", "5"))));
    store.checkpoint();
    store.crash();
    assert!(is_too_old(named(&mut store, id(1, 3), &put_command("a", "3"))));
    assert!(sequences.iter().all(|at| named(&mut store, id(1, *at), &put_command("a", "3")).is_ok()));
    assert_eq!(store.reader.revision(), revision + 2);
}

#[test]
fn of_an_answer_too_large_to_keep_the_revision_is_told() {
    let mut store = Replica::new();
    store.set("a", &"x".repeat(ANSWER_BYTES_MAX + 1));
    let request = PutRequest { prev_kv: true, ..put("a", "2") };
    let command = command::put(Revision::Next, &request);
    let Ok(Reply::Put(first)) = named(&mut store, id(1, 1), &command) else { panic!("no put") };
    assert_eq!(first.prev_kv.unwrap().value.len(), ANSWER_BYTES_MAX + 1, "the first time it is whole");
    for _ in 0..2 {
        let again = named(&mut store, id(1, 1), &command);
        assert!(matches!(again, Err(KvError::AnswerNotKept { revision: 3 })), "{again:?}");
        store.checkpoint();
        store.crash();
    }
    store.set("a", &"x".repeat(ANSWER_BYTES_MAX - 100));
    let first = named(&mut store, id(1, 2), &command).unwrap();
    assert_eq!(named(&mut store, id(1, 2), &command).unwrap(), first);
}

#[test]
fn a_repetition_at_another_replica_gets_the_first_outcome() {
    let mut store = Replica::new();
    store.set("a", "before");
    let first = named(&mut store, id(1, 1), &read_and_write("a", "1")).unwrap();
    // Replicas that applied the log with nobody waiting: at once, after a crash, and above a checkpoint or a snapshot.
    let mut followers = std::array::from_fn::<_, 4, _>(|_| Replica::new());
    followers[0].follow(&store.log);
    followers[1].follow(&store.log);
    followers[1].crash();
    followers[2].follow(&store.log);
    followers[2].checkpoint();
    followers[2].crash();
    store.checkpoint();
    followers[3].install_from(&store, 100);
    for follower in followers.iter_mut().chain([&mut store]) {
        assert_eq!(named(follower, id(1, 1), &read_and_write("a", "2")).unwrap(), first);
        assert_eq!(follower.texts("a", "", 0), ["a=1"]);
    }
}

#[test]
fn a_checkpoint_holds_what_it_froze_and_no_more() {
    let mut store = Replica::new();
    let first = named(&mut store, id(1, 1), &put_command("a", "1")).unwrap();
    let pending_bytes = store.machine.pending_bytes();
    store.freeze();
    assert_eq!(store.machine.pending_bytes(), pending_bytes);
    let second = named(&mut store, id(1, 2), &put_command("a", "2")).unwrap();
    assert_eq!(named(&mut store, id(1, 1), &put_command("a", "3")).unwrap(), first, "while it is written");
    store.write();
    assert_eq!(named(&mut store, id(1, 1), &put_command("a", "3")).unwrap(), first);
    store.log.truncate(1);
    store.crash();
    assert_eq!(named(&mut store, id(1, 1), &put_command("a", "3")).unwrap(), first);
    assert_eq!(
        named(&mut store, id(1, 2), &put_command("a", "2")).unwrap(),
        second,
        "applied for the first time"
    );
    store.checkpoint();
    assert_eq!(store.machine.pending_bytes(), 0);
}

#[test]
fn a_name_that_is_none_is_malformed() {
    let mut store = Replica::new();
    let mut command = command::identified(&put_command("a", "1"), id(u128::MAX, 1)).to_vec();
    let at = command.iter().position(|byte| *byte == 16).unwrap();
    for length in [0, 15, 17, 0xff] {
        command[at] = length;
        assert!(matches!(store.command(command.clone().into()), Err(KvError::Malformed)));
    }
    let nothing = command::identified(b"", id(1, 1));
    assert!(matches!(store.command(nothing), Err(KvError::Malformed)));
    assert_eq!(store.reader.revision(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    /// A command, named or not.
    Command(Option<(u128, u64)>, Bytes),
    Freeze,
    Write,
    Thaw,
    Crash,
    Snapshot,
    Follow,
    FollowerCheckpoint,
    /// The two change places.
    Move,
}

fn any_command() -> impl Strategy<Value = Bytes> {
    let key = || prop::sample::select(vec!["a", "b", "c"]);
    let value = || prop::sample::select(vec!["1", "2"]);
    prop_oneof![
        3 => (key(), value()).prop_map(|(key, value)| put_command(key, value)),
        2 => (key(), value()).prop_map(|(key, value)| read_and_write(key, value)),
        1 => key().prop_map(|key| {
            command::put(Revision::Next, &PutRequest { ignore_value: true, prev_kv: true, ..put(key, "") })
        }),
        2 => key().prop_map(|key| {
            let request = DeleteRangeRequest { key: key.into(), range_end: "c".into(), prev_kv: true };
            command::delete_range(Revision::Next, &request)
        }),
        1 => (0..20_i64).prop_map(|revision| command::compaction(&CompactionRequest { revision, physical: false })),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop::option::weighted(0.8, (0..2_u128, prop_oneof![1 => 0..6_u64, 1 => 0..150_u64]));
    prop_oneof![
        30 => (name, any_command()).prop_map(|(name, command)| Step::Command(name, command)),
        2 => Just(Step::Freeze),
        1 => Just(Step::Write),
        2 => Just(Step::Thaw),
        1 => Just(Step::Crash),
        1 => Just(Step::Snapshot),
        2 => Just(Step::Follow),
        1 => Just(Step::FollowerCheckpoint),
        1 => Just(Step::Move),
    ]
}

/// The twin applies what it was never told before, without a name, and writes the answers down.
fn run(steps: Vec<Step>) {
    let (mut replica, mut other, mut twin) = (Replica::new(), Replica::new(), Replica::new());
    let mut answers: BTreeMap<(u128, u64), String> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Command(None, command) => {
                assert_eq!(text(&replica.command(command.clone())), text(&twin.command(command)));
            }
            Step::Command(Some((client, sequence)), command) => {
                let answer = named(&mut replica, id(client, sequence), &command);
                // None is ever dropped from what the twin wrote down: the oldest kept are the last 64 of a client's.
                let above = answers.range((client, sequence + 1)..=(client, u64::MAX)).count();
                if above >= OUTCOMES_MAX {
                    assert!(matches!(answer, Err(KvError::RequestTooOld)), "{answer:?}");
                } else {
                    let expected =
                        answers.entry((client, sequence)).or_insert_with(|| text(&twin.command(command)));
                    assert_eq!(&text(&answer), expected, "{client} {sequence}");
                }
            }
            Step::Freeze => replica.freeze(),
            Step::Write => replica.write(),
            Step::Thaw => replica.thaw(),
            Step::Crash => replica.crash(),
            Step::Snapshot => other.install_from(&replica, 100),
            Step::Follow => other.follow(&replica.log),
            Step::FollowerCheckpoint => other.checkpoint(),
            Step::Move => {
                other.follow(&replica.log);
                std::mem::swap(&mut replica, &mut other);
            }
        }
    }
    other.follow(&replica.log);
    for replica in [&replica, &other] {
        assert_eq!(replica.reader.hash().unwrap(), twin.reader.hash().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4 * ProptestConfig::default().cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_has_one_effect_and_one_answer(steps in vec(step(), 1..400)) {
        run(steps);
    }
}

/// Which clients the rule keeps, each with where it was last used.
struct Kept(BTreeMap<u128, u64>);

impl Kept {
    /// Notes a request; whether its client was known.
    fn request(&mut self, client: u128, slot: u64) -> bool {
        let known = self.0.insert(client, slot).is_some();
        if self.0.len() > CLIENTS_MAX {
            let oldest = *self.0.iter().min_by_key(|(_, used)| **used).unwrap().0;
            self.0.remove(&oldest);
        }
        known
    }
}

fn entry(slot: u64, client: u128) -> Entry {
    let payload = command::identified(&put_command("a", &slot.to_string()), id(client, 1));
    let id = ProposalId::new(NodeId(1), Epoch(1), slot);
    Entry { slot: Slot(slot), ballot: Ballot::term(1), kind: Kind::Command, id, payload }
}

#[test]
fn replicas_drop_the_same_clients_however_they_came_by_them() {
    // As many clients as there is room for, some of which come back; then more, and those that may have been dropped.
    let full = CLIENTS_MAX as u128;
    let clients =
        (0..full).chain((0..60).step_by(7)).chain(full..full + 40).chain((0..60).rev()).chain(20..90);
    let log: Vec<Entry> = (1..).zip(clients.clone()).map(|(slot, client)| entry(slot, client)).collect();
    let mut kept = Kept(BTreeMap::new());
    let known: Vec<bool> = (1..).zip(clients).map(|(slot, client)| kept.request(client, slot)).collect();
    assert!(known[CLIENTS_MAX + 49..].contains(&false), "some came back after they were dropped");

    let mut replayed = Replica::new();
    let mut answers = Vec::new();
    replayed.log.clone_from(&log);
    replayed.machine.apply(&log, &|_| true, &mut answers);
    let mut revision = 1;
    for ((_, answer), known) in answers.iter().zip(&known) {
        let Ok(Reply::Put(response)) = Reply::decode(answer.clone()) else { panic!("no put") };
        revision += i64::from(!known);
        assert_eq!(response.header.unwrap().revision < revision, *known);
    }
    for at in [1000, CLIENTS_MAX, CLIENTS_MAX + 30, CLIENTS_MAX + 60, log.len() - 50] {
        let (mut source, mut restored) = (Replica::new(), Replica::new());
        source.follow(&log[..at / 2]);
        source.checkpoint();
        source.follow(&log[..at]);
        source.checkpoint();
        restored.install_from(&source, 1 << 20);
        restored.crash();
        let mut rest = Vec::new();
        restored.machine.apply(&log[at..], &|_| true, &mut rest);
        assert!(rest == answers[at..], "restored at {at}");
        assert_eq!(restored.reader.hash().unwrap(), replayed.reader.hash().unwrap());
    }
}
