//! The suite of [`LogStore`].

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Config, Entry, GroupId, Kind, LogOp, LogSlice, LogState, NodeId, ProposalId, ReplicaId, Slot,
    SlotRange, SnapshotMeta,
};

use crate::{HOST_GROUP, LogError, LogStore};

/// Opens one log again and again, each time as a new process does: everything opened before was dropped.
pub type LogBoot<'a> = Box<dyn FnMut() -> Arc<dyn LogStore> + 'a>;

/// What a group's log holds: its state and every entry that can be read.
pub type LogContents = BTreeMap<GroupId, (LogState, Vec<Entry>)>;

/// Holds a log to the contract of [`LogStore`]. Each call of `fresh` begins with an empty log, which must take elements of 16 KiB.
///
/// # Panics
/// At the first violation.
pub fn log_store<'a>(fresh: &dyn Fn() -> LogBoot<'a>) {
    a_new_log_is_empty(fresh());
    what_was_put_is_read_after_a_boot(fresh());
    every_field_survives(fresh());
    reads_are_bounded_and_contiguous(fresh());
    reads_that_cannot_be_are_refused(fresh());
    slots_may_come_out_of_order_and_again(fresh());
    truncation_forgets_what_is_above(fresh());
    cutting_forgets_what_is_below(fresh());
    a_reset_keeps_a_suffix_that_continues_it(fresh());
    a_reset_within_one_batch_sees_what_came_before(fresh());
    groups_do_not_meet(fresh());
    large_entries_are_kept(fresh());
    readers_and_a_writer_go_together(fresh());
    random_operations_agree_with_a_model(fresh());
}

/// Reads everything a log holds, entry by entry where there are gaps.
///
/// # Panics
/// If the log cannot be read.
#[must_use]
pub fn log_contents(log: &dyn LogStore) -> LogContents {
    log.groups().into_iter().map(|group| (group, (log.state(group), entries(log, group)))).collect()
}

fn entries(log: &dyn LogStore, group: GroupId) -> Vec<Entry> {
    let state = log.state(group);
    let (mut found, mut slot) = (Vec::new(), state.first);
    while slot <= state.last {
        match log.read(group, SlotRange { from: slot, to: state.last.next() }, 300) {
            Ok(LogSlice::Entries(run)) => {
                assert!(!run.is_empty(), "a run has at least one entry");
                slot = Slot(slot.0 + run.len() as u64);
                found.extend(run);
            }
            Ok(LogSlice::Compacted) => panic!("slot {slot} is not below {}", state.first),
            Err(LogError::Misuse(_)) => slot = slot.next(),
            Err(error) => panic!("slot {slot} cannot be read: {error}"),
        }
    }
    found
}

const GROUP: GroupId = GroupId(1);

fn entry(slot: u64, round: u64) -> Entry {
    Entry {
        slot: Slot(slot),
        ballot: Ballot::term(round),
        kind: Kind::Command,
        id: ProposalId { node: NodeId(7), sequence: slot },
        payload: Bytes::from(format!("slot {slot} in round {round}")),
    }
}

fn put(slot: u64, round: u64) -> LogOp {
    LogOp::Put(entry(slot, round).into())
}

fn puts(slots: impl IntoIterator<Item = u64>, round: u64) -> Vec<LogOp> {
    slots.into_iter().map(|slot| put(slot, round)).collect()
}

fn snapshot(slot: u64, round: u64) -> SnapshotMeta {
    SnapshotMeta {
        slot: Slot(slot),
        ballot: Ballot::term(round),
        config: Config::of_voters([(ReplicaId(1), NodeId(7)), (ReplicaId(2), NodeId(8))]),
        generation: slot + 100,
    }
}

fn write(log: &Arc<dyn LogStore>, ops: Vec<LogOp>) {
    log.append(&[(GROUP, ops)]).expect("append");
    log.sync().expect("sync");
}

/// The slots and rounds a group holds, and its bounds, now and after a boot.
fn check(
    boot: &mut LogBoot<'_>,
    log: Arc<dyn LogStore>,
    bounds: (u64, u64),
    expected: &[(u64, u64)],
) -> Arc<dyn LogStore> {
    check_once(&log, bounds, expected);
    drop(log);
    let log = boot();
    check_once(&log, bounds, expected);
    log
}

fn check_once(log: &Arc<dyn LogStore>, (first, last): (u64, u64), expected: &[(u64, u64)]) {
    let state = log.state(GROUP);
    assert_eq!((state.first, state.last), (Slot(first), Slot(last)));
    let expected: Vec<_> = expected.iter().map(|(slot, round)| entry(*slot, *round)).collect();
    assert_eq!(entries(&**log, GROUP), expected);
}

fn range(from: u64, to: u64) -> SlotRange {
    SlotRange { from: Slot(from), to: Slot(to) }
}

fn a_new_log_is_empty(mut boot: LogBoot<'_>) {
    for _ in 0..2 {
        let log = boot();
        assert_eq!(log.groups(), []);
        let empty = LogState { first: Slot(1), last: Slot(0), ..LogState::default() };
        assert_eq!(log.state(GROUP), empty);
        log.sync().expect("a sync of nothing");
        log.append(&[]).expect("an append of nothing");
        log.append(&[(GROUP, Vec::new())]).expect("an element of nothing");
        assert_eq!(log.groups(), [], "an element without operations writes nothing");
    }
}

fn what_was_put_is_read_after_a_boot(mut boot: LogBoot<'_>) {
    let mut log = boot();
    for slot in 1..=20 {
        write(&log, vec![put(slot, 1)]);
        let expected: Vec<_> = (1..=slot).map(|slot| (slot, 1)).collect();
        log = check(&mut boot, log, (1, slot), &expected);
    }
}

fn every_field_survives(mut boot: LogBoot<'_>) {
    let log = boot();
    let odd = Entry {
        slot: Slot(1),
        ballot: Ballot { config: 3, round: u64::MAX, replica: ReplicaId(9) },
        kind: Kind::Config,
        id: ProposalId { node: NodeId(u64::MAX), sequence: u64::MAX },
        payload: Bytes::from((0..=255).collect::<Vec<u8>>()),
    };
    let noop =
        Entry { slot: Slot(2), kind: Kind::Noop, id: ProposalId::NONE, payload: Bytes::new(), ..odd.clone() };
    let meta = Bytes::from_static(b"voted for 3");
    log.append(&[
        (HOST_GROUP, vec![LogOp::Meta(Bytes::from_static(b"host"))]),
        (
            GROUP,
            vec![
                LogOp::Meta(Bytes::from_static(b"older")),
                LogOp::Put(odd.clone().into()),
                LogOp::Put(noop.clone().into()),
            ],
        ),
        (GROUP, vec![LogOp::Meta(meta.clone())]),
        (GroupId(u64::MAX), vec![LogOp::Reset(Box::new(snapshot(9, 4)))]),
    ])
    .expect("append");
    log.sync().expect("sync");
    drop(log);
    let log = boot();
    assert_eq!(log.groups(), [HOST_GROUP, GROUP, GroupId(u64::MAX)]);
    assert_eq!(log.state(HOST_GROUP).meta, Bytes::from_static(b"host"));
    assert_eq!(log.state(GROUP), LogState { meta, reset: None, first: Slot(1), last: Slot(2) });
    assert_eq!(entries(&*log, GROUP), [odd, noop]);
    let reset = LogState { meta: Bytes::new(), reset: Some(snapshot(9, 4)), first: Slot(10), last: Slot(9) };
    assert_eq!(log.state(GroupId(u64::MAX)), reset);
}

fn reads_are_bounded_and_contiguous(mut boot: LogBoot<'_>) {
    let log = boot();
    write(&log, puts((1..=30).chain(33..=40), 1));
    let read = |from, to, bytes_max| match log.read(GROUP, range(from, to), bytes_max).expect("read") {
        LogSlice::Entries(entries) => entries,
        LogSlice::Compacted => panic!("nothing was cut"),
    };
    let slots = |entries: Vec<Entry>| entries.iter().map(|entry| entry.slot.0).collect::<Vec<_>>();
    assert_eq!(slots(read(5, 8, usize::MAX)), [5, 6, 7], "the end is not included");
    assert_eq!(slots(read(29, 40, usize::MAX)), [29, 30], "a run ends at a gap");
    assert_eq!(slots(read(38, 99, usize::MAX)), [38, 39, 40], "and at the end");
    assert_eq!(slots(read(1, 31, 0)), [1], "at least one entry");
    let some = read(1, 31, 1000);
    assert!((2..31).contains(&some.len()), "{} entries in 1000 bytes", some.len());
    assert!(some.iter().map(Entry::size_bytes).sum::<usize>() <= 1000);
}

fn reads_that_cannot_be_are_refused(mut boot: LogBoot<'_>) {
    let log = boot();
    write(&log, puts(1..=5, 1));
    write(&log, vec![LogOp::CutBelow(Slot(3))]);
    assert!(matches!(log.read(GROUP, range(2, 5), 100), Ok(LogSlice::Compacted)));
    assert!(matches!(log.read(GROUP, range(6, 9), 100), Err(LogError::Misuse(_))), "never written");
    assert!(matches!(log.read(GROUP, range(4, 4), 100), Err(LogError::Misuse(_))), "no slots");
    assert!(matches!(log.read(GroupId(2), range(1, 2), 100), Err(LogError::Misuse(_))), "no such group");
    assert!(
        matches!(log.read(GROUP, range(3, 6), 10_000), Ok(LogSlice::Entries(_))),
        "a refusal closes nothing"
    );
    log.append(&[(GROUP, vec![put(6, 1)])]).expect("append");
}

fn slots_may_come_out_of_order_and_again(mut boot: LogBoot<'_>) {
    let log = boot();
    write(&log, vec![put(9, 1), put(3, 1), put(5, 1)]);
    let log = check(&mut boot, log, (1, 9), &[(3, 1), (5, 1), (9, 1)]);
    write(&log, vec![put(4, 2), put(5, 2), put(1, 2), put(70, 2), put(200, 2)]);
    let all = [(1, 2), (3, 1), (4, 2), (5, 2), (9, 1), (70, 2), (200, 2)];
    let log = check(&mut boot, log, (1, 200), &all);
    write(&log, vec![LogOp::CutBelow(Slot(5)), put(4, 3), put(3, 3)]);
    check(&mut boot, log, (5, 200), &all[3..]);
}

fn truncation_forgets_what_is_above(mut boot: LogBoot<'_>) {
    let log = boot();
    write(&log, puts(1..=150, 1));
    write(&log, vec![LogOp::TruncateFrom(Slot(4)), put(4, 2), put(5, 2)]);
    let kept = [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)];
    let log = check(&mut boot, log, (1, 5), &kept);
    write(&log, vec![LogOp::TruncateFrom(Slot(6))]);
    let log = check(&mut boot, log, (1, 5), &kept);
    write(&log, vec![LogOp::CutBelow(Slot(4)), LogOp::TruncateFrom(Slot(1))]);
    check(&mut boot, log, (4, 3), &[]);
}

fn cutting_forgets_what_is_below(mut boot: LogBoot<'_>) {
    let log = boot();
    write(&log, puts(1..=150, 1));
    write(&log, vec![LogOp::CutBelow(Slot(149))]);
    let log = check(&mut boot, log, (149, 150), &[(149, 1), (150, 1)]);
    write(&log, vec![LogOp::CutBelow(Slot(10))]);
    let log = check(&mut boot, log, (149, 150), &[(149, 1), (150, 1)]);
    write(&log, vec![LogOp::CutBelow(Slot(300))]);
    let log = check(&mut boot, log, (300, 299), &[]);
    write(&log, vec![put(299, 2), put(300, 2)]);
    check(&mut boot, log, (300, 300), &[(300, 2)]);
}

fn a_reset_keeps_a_suffix_that_continues_it(mut boot: LogBoot<'_>) {
    let log = boot();
    write(&log, puts(1..=10, 1));
    write(&log, vec![LogOp::Reset(Box::new(snapshot(7, 1)))]);
    assert_eq!(log.state(GROUP).reset, Some(snapshot(7, 1)));
    let kept = [(8, 1), (9, 1), (10, 1)];
    let log = check(&mut boot, log, (8, 10), &kept);
    assert_eq!(log.state(GROUP).reset, Some(snapshot(7, 1)));
    // The same snapshot again, as after a crash between the reset and what follows it.
    write(&log, vec![LogOp::Reset(Box::new(SnapshotMeta { generation: 5, ..snapshot(7, 1) }))]);
    let log = check(&mut boot, log, (8, 10), &kept);
    assert_eq!(log.state(GROUP).reset.map(|reset| reset.generation), Some(5));
    // Another ballot at that slot: what follows continues something else.
    write(&log, vec![LogOp::Reset(Box::new(snapshot(9, 2)))]);
    let log = check(&mut boot, log, (10, 9), &[]);
    write(&log, vec![put(10, 3)]);
    write(&log, vec![LogOp::Reset(Box::new(snapshot(40, 3)))]);
    let log = check(&mut boot, log, (41, 40), &[]);
    write(&log, puts(41..=42, 3));
    check(&mut boot, log, (41, 42), &[(41, 3), (42, 3)]);
}

fn a_reset_within_one_batch_sees_what_came_before(mut boot: LogBoot<'_>) {
    let log = boot();
    let mut ops = puts(1..=6, 2);
    ops.push(LogOp::Reset(Box::new(snapshot(4, 2))));
    ops.push(put(7, 2));
    write(&log, ops);
    check(&mut boot, log, (5, 7), &[(5, 2), (6, 2), (7, 2)]);
}

fn groups_do_not_meet(mut boot: LogBoot<'_>) {
    let log = boot();
    let batch: Vec<_> = (1..=9).map(|group| (GroupId(group), puts(1..=group, group))).collect();
    log.append(&batch).expect("append");
    log.append(&[
        (GroupId(4), vec![LogOp::TruncateFrom(Slot(2))]),
        (GroupId(5), vec![LogOp::CutBelow(Slot(5))]),
    ])
    .expect("append");
    log.sync().expect("sync");
    drop(log);
    let contents = log_contents(&*boot());
    assert_eq!(contents.len(), 9);
    for (group, (_, entries)) in contents {
        let slots = match group.0 {
            4 => 1..=1,
            5 => 5..=5,
            last => 1..=last,
        };
        assert_eq!(entries, slots.map(|slot| entry(slot, group.0)).collect::<Vec<_>>());
    }
}

fn large_entries_are_kept(mut boot: LogBoot<'_>) {
    let log = boot();
    let large = |slot: u64| Entry { payload: Bytes::from(vec![slot as u8; 1500]), ..entry(slot, 1) };
    for slot in 1..=40 {
        write(&log, vec![LogOp::Put(large(slot).into()), LogOp::CutBelow(Slot(slot.saturating_sub(3)))]);
    }
    drop(log);
    assert_eq!(entries(&*boot(), GROUP), (37..=40).map(large).collect::<Vec<_>>());
}

fn readers_and_a_writer_go_together(mut boot: LogBoot<'_>) {
    const SLOTS: u64 = 400;
    let log = boot();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for slot in 1..=SLOTS {
                write(&log, vec![put(slot, 1), LogOp::CutBelow(Slot(slot.saturating_sub(20)))]);
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let state = log.state(GROUP);
                    if state.last < state.first {
                        std::thread::yield_now();
                        continue;
                    }
                    let range = SlotRange { from: state.first, to: state.last.next() };
                    match log.read(GROUP, range, usize::MAX).expect("read") {
                        LogSlice::Entries(run) => {
                            let expected = (state.first.0..=state.last.0).map(|slot| entry(slot, 1));
                            assert!(run.into_iter().eq(expected));
                        }
                        // The writer cut it meanwhile.
                        LogSlice::Compacted => assert!(log.state(GROUP).first > state.first),
                    }
                    if state.last == Slot(SLOTS) {
                        break;
                    }
                }
            });
        }
    });
}

/// What a log is, as plainly as it can be said.
#[derive(Debug, Default)]
struct Model {
    first: u64,
    entries: BTreeMap<u64, u64>,
    reset: Option<(u64, u64)>,
}

impl Model {
    fn reset(&mut self, slot: u64, round: u64) {
        let continues = self.entries.get(&slot) == Some(&round)
            || (self.reset == Some((slot, round)) && self.first == slot + 1);
        self.first = slot + 1;
        self.entries.retain(|at, _| continues && *at > slot);
        self.reset = Some((slot, round));
    }
}

fn random_operations_agree_with_a_model(mut boot: LogBoot<'_>) {
    let mut random = 42u64;
    let mut below = move |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut log = boot();
    let mut model = Model { first: 1, ..Model::default() };
    for step in 0..600u64 {
        let mut ops = Vec::new();
        for _ in 0..1 + below(4) {
            let (slot, round) = (model.first.saturating_sub(3).max(1) + below(40), 1 + step / 50);
            match below(12) {
                0 => {
                    ops.push(LogOp::TruncateFrom(Slot(slot)));
                    model.entries.retain(|at, _| *at < slot);
                }
                1 => {
                    ops.push(LogOp::CutBelow(Slot(slot.min(model.first + 8))));
                    model.first = model.first.max(slot.min(model.first + 8));
                    let first = model.first;
                    model.entries.retain(|at, _| *at >= first);
                }
                2 if below(4) == 0 => {
                    ops.push(LogOp::Reset(Box::new(snapshot(slot, round))));
                    model.reset(slot, round);
                }
                _ => {
                    ops.push(put(slot, round));
                    if slot >= model.first {
                        model.entries.insert(slot, round);
                    }
                }
            }
        }
        write(&log, ops);
        if step % 10 == 0 {
            let expected: Vec<_> = model.entries.iter().map(|(slot, round)| (*slot, *round)).collect();
            let last = expected.last().map_or(model.first - 1, |(slot, _)| *slot);
            log = check(&mut boot, log, (model.first, last), &expected);
        }
    }
}
