//! The suite of [`StateEngine`] and [`StateStore`].

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use conclave_consensus::{Ballot, Config, GroupId, NodeId, ReplicaId, Slot, SnapshotMeta};

use crate::{
    Checkpoint, Pair, STATE_KEY_BYTES_MAX, StateBuilder, StateEngine, StateError, StateStore, StateView,
};

type Model = BTreeMap<Bytes, Bytes>;
type Change = (Bytes, Option<Bytes>);

/// Holds an engine to the contract of [`StateEngine`] and [`StateStore`].
///
/// `boot` opens the engine as a new process does, over what the last one left durable; everything opened from the last one was dropped.
///
/// # Panics
/// At the first violation.
pub fn state_store(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    a_new_store_is_empty(boot);
    an_ingestion_is_seen_and_survives(boot);
    a_refused_run_changes_nothing(boot);
    bounds_and_directions_agree_with_a_map(boot);
    a_scan_and_a_view_see_no_later_ingestion(boot);
    groups_do_not_meet(boot);
    a_built_generation_waits_for_the_switch(boot);
    an_unfinished_generation_leaves_nothing(boot);
    a_generation_that_nobody_switched_to_goes_with_the_next(boot);
    boot_keeps_the_generation_it_names(boot);
    many_overlapping_runs_agree_with_a_map(boot);
}

fn a_new_store_is_empty(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let engine = boot();
    let store = open(&engine, 1, 0);
    assert_eq!(store.checkpoint(), None);
    assert_eq!(store.generation(), 0);
    assert_eq!(store.get(b"").expect("get"), None);
    assert_same(&store, &Model::new());
    let view = store.view();
    assert_eq!(view.checkpoint(), None);
    assert_eq!(view.scan(Bound::Unbounded).count(), 0);
    assert!(matches!(engine.store(GroupId(2), 3), Err(StateError::NoGeneration(3))));
}

fn an_ingestion_is_seen_and_survives(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    // The empty key, a key of zeros, keys that are prefixes of others, and the longest.
    let longest = "k".repeat(STATE_KEY_BYTES_MAX);
    let keys: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"a", b"ab", longest.as_bytes(), b"\xff\xff"];
    let mut model = Model::new();
    {
        let store = open(&boot(), 3, 0);
        let run = keys.iter().map(|key| put(key, b"one"));
        ingest(&store, &mut model, 1, run.collect());
        assert_same(&store, &model);
        ingest(&store, &mut model, 2, vec![put(b"", b"two"), remove(b"a"), put(b"b", b""), remove(b"never")]);
        assert_same(&store, &model);
        // A checkpoint of nothing is a checkpoint.
        ingest(&store, &mut model, 3, Vec::new());
        assert_eq!(store.checkpoint(), Some(checkpoint(3, 0)));
        assert_same(&store, &model);
    }
    let store = open(&boot(), 3, 0);
    assert_eq!(store.checkpoint(), Some(checkpoint(3, 0)));
    assert_same(&store, &model);
    ingest(&store, &mut model, 4, vec![remove(b""), put(b"a", b"again")]);
    assert_same(&store, &model);
    drop(store);
    let store = open(&boot(), 3, 0);
    assert_eq!(store.checkpoint(), Some(checkpoint(4, 0)));
    assert_same(&store, &model);
}

fn a_refused_run_changes_nothing(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let mut model = Model::new();
    let too_long = "k".repeat(STATE_KEY_BYTES_MAX + 1);
    {
        let store = open(&boot(), 4, 0);
        ingest(&store, &mut model, 1, vec![put(b"a", b"1"), put(b"b", b"1")]);
        let refused: [(Vec<Change>, StateError); 3] = [
            (vec![put(b"b", b"2"), put(b"a", b"2")], StateError::Unsorted),
            (vec![put(b"a", b"2"), put(b"a", b"3")], StateError::Unsorted),
            (vec![put(b"a", b"2"), put(too_long.as_bytes(), b"2")], StateError::KeyTooLong(too_long.len())),
        ];
        for (run, why) in refused {
            let error = store.ingest(checkpoint(2, 0), &mut run.into_iter()).expect_err("a bad run");
            assert_eq!(error.to_string(), why.to_string());
            assert_eq!(store.checkpoint(), Some(checkpoint(1, 0)));
            assert_same(&store, &model);
        }
        assert_eq!(store.get(too_long.as_bytes()).expect("get"), None);
        // It can still be used.
        ingest(&store, &mut model, 2, vec![put(b"c", b"2")]);
        assert_same(&store, &model);
    }
    let store = open(&boot(), 4, 0);
    assert_eq!(store.checkpoint(), Some(checkpoint(2, 0)));
    assert_same(&store, &model);
}

fn bounds_and_directions_agree_with_a_map(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let store = open(&boot(), 5, 0);
    let mut model = Model::new();
    let run = ["a", "b", "ba", "c", "e"].iter().map(|key| put(key.as_bytes(), b"1"));
    ingest(&store, &mut model, 1, run.collect());
    ingest(&store, &mut model, 2, vec![put(b"", b"2"), remove(b"b"), put(b"d", b"2")]);
    let longer = "d".repeat(STATE_KEY_BYTES_MAX + 9);
    let keys = ["", "a", "b", "ba", "bz", "c", "d", longer.as_str(), "z"];
    let mut bounds = vec![Bound::Unbounded];
    for key in keys {
        bounds.push(Bound::Included(key.as_bytes()));
        bounds.push(Bound::Excluded(key.as_bytes()));
    }
    for from in &bounds {
        for to in &bounds {
            for reverse in [false, true] {
                let mut expected: Vec<Pair> = model
                    .iter()
                    .filter(|(key, _)| within(key, *from, *to))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                if reverse {
                    expected.reverse();
                }
                assert_eq!(collect(store.scan(*from, *to, reverse)), expected, "reverse {reverse}");
            }
        }
    }
}

fn a_scan_and_a_view_see_no_later_ingestion(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let store = open(&boot(), 6, 0);
    let mut model = Model::new();
    let number = |n: u32| n.to_be_bytes();
    ingest(&store, &mut model, 1, (0..500).map(|n| put(&number(n), b"1")).collect());
    let (before, view) = (model.clone(), store.view());
    let mut scan = store.scan(Bound::Unbounded, Bound::Unbounded, false);
    let first: Vec<Pair> = scan.by_ref().take(10).map(|pair| pair.expect("scan")).collect();
    // Enough to have any engine merge what the view still reads.
    for round in 2..40_u64 {
        let run = (0..500_u32).filter(|n| u64::from(*n) % 3 != round % 3).map(|n| {
            if u64::from(n) % 7 == round % 7 {
                remove(&number(n))
            } else {
                put(&number(n), &round.to_be_bytes())
            }
        });
        ingest(&store, &mut model, round, run.collect());
    }
    let rest = first.into_iter().chain(scan.map(|pair| pair.expect("scan")));
    assert_eq!(rest.collect::<Model>(), before, "a scan under way");
    assert_eq!(view.checkpoint(), Some(checkpoint(1, 0)));
    assert_view(&view, &before);
    let resumed = collect(view.scan(Bound::Excluded(&number(100))));
    assert_eq!(resumed.first().map(|pair| pair.0.clone()), Some(Bytes::copy_from_slice(&number(101))));
    drop(view);
    assert_same(&store, &model);
}

fn groups_do_not_meet(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let engine = boot();
    let (left, right) = (open(&engine, 7, 0), open(&engine, 8, 0));
    let (mut left_model, mut right_model) = (Model::new(), Model::new());
    ingest(&left, &mut left_model, 1, vec![put(b"k", b"left")]);
    ingest(&right, &mut right_model, 9, vec![put(b"k", b"right")]);
    assert_same(&left, &left_model);
    assert_same(&right, &right_model);
    assert_eq!(left.checkpoint(), Some(checkpoint(1, 0)));
}

fn a_built_generation_waits_for_the_switch(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let (mut old, mut new) = (Model::new(), Model::new());
    {
        let store = open(&boot(), 9, 0);
        ingest(&store, &mut old, 1, vec![put(b"a", b"old"), put(b"z", b"old")]);
        let view = store.view();
        assert!(matches!(store.built(1), Err(StateError::NoGeneration(1))));
        let builder = store.build(1).expect("build");
        assert!(matches!(store.built(1), Err(StateError::NoGeneration(1))), "before it is finished");
        drop(builder);
        build(&store, &mut new, 1, 50, &[b"a", b"b", b"c"]);
        assert_same(&store, &old);
        let built = store.built(1).expect("a view before the switch");
        assert_eq!(built.checkpoint(), Some(checkpoint(50, 1)));
        assert_view(&built, &new);
        drop(built);
        assert_eq!(store.built(0).expect("the present one").checkpoint(), Some(checkpoint(1, 0)));
        // The old generation goes on until the switch.
        ingest(&store, &mut old, 2, vec![put(b"y", b"old")]);
        assert_same(&store, &old);
        assert!(matches!(store.switch(2), Err(StateError::NoGeneration(2))));
        store.switch(1).expect("switch");
        store.switch(1).expect("a repeated switch changes nothing");
        assert_eq!((store.generation(), store.checkpoint()), (1, Some(checkpoint(50, 1))));
        assert_same(&store, &new);
        assert_view(&store.built(1).expect("now the present one"), &new);
        assert!(matches!(store.built(0), Err(StateError::NoGeneration(0))), "replaced");
        assert_eq!(view.checkpoint(), Some(checkpoint(1, 0)), "a view outlives its generation");
        assert_eq!(collect(view.scan(Bound::Unbounded)).len(), 2);
        ingest_generation(&store, &mut new, 51, 1, vec![put(b"d", b"new"), remove(b"a")]);
        assert_same(&store, &new);
        assert!(matches!(store.build(1), Err(StateError::InUse(1))));
    }
    let store = open(&boot(), 9, 1);
    assert_eq!((store.generation(), store.checkpoint()), (1, Some(checkpoint(51, 1))));
    assert_same(&store, &new);
}

fn an_unfinished_generation_leaves_nothing(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let mut old = Model::new();
    {
        let store = open(&boot(), 10, 0);
        ingest(&store, &mut old, 1, vec![put(b"a", b"old")]);
        let mut builder = store.build(1).expect("build");
        add(&mut builder, &[b"x", b"y"]).expect("add");
        assert!(
            matches!(add(&mut builder, &[b"y"]), Err(StateError::Unsorted)),
            "keys ascend over all calls"
        );
        drop(builder);
        assert!(matches!(store.switch(1), Err(StateError::NoGeneration(1))));
        // Built anew under the same number, nothing of the first attempt is left; and a third attempt replaces the second.
        let (mut second, mut third) = (Model::new(), Model::new());
        build(&store, &mut second, 1, 20, &[b"m"]);
        build(&store, &mut third, 1, 30, &[b"n"]);
        store.switch(1).expect("switch");
        assert_same(&store, &third);
        let mut builder = store.build(2).expect("build");
        add(&mut builder, &[b"x"]).expect("add");
        drop(builder);
    }
    // A crash in the middle of a build: the generation is not there.
    let engine = boot();
    assert!(matches!(engine.store(GroupId(10), 2), Err(StateError::NoGeneration(2))));
}

fn a_generation_that_nobody_switched_to_goes_with_the_next(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let (mut old, mut first, mut second) = (Model::new(), Model::new(), Model::new());
    {
        let store = open(&boot(), 13, 0);
        ingest(&store, &mut old, 1, vec![put(b"a", b"old")]);
        build(&store, &mut first, 1, 20, &[b"m"]);
        let view = store.built(1).expect("finished");
        let builder = store.build(2).expect("build");
        assert!(matches!(store.built(1), Err(StateError::NoGeneration(1))));
        assert!(matches!(store.switch(1), Err(StateError::NoGeneration(1))));
        assert_view(&view, &first);
        assert_same(&store, &old);
        drop((view, builder));
        build(&store, &mut second, 3, 30, &[b"n"]);
        store.switch(3).expect("switch");
        assert_same(&store, &second);
    }
    assert!(matches!(boot().store(GroupId(13), 1), Err(StateError::NoGeneration(1))));
}

fn boot_keeps_the_generation_it_names(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let (mut old, mut new, mut newer) = (Model::new(), Model::new(), Model::new());
    {
        let store = open(&boot(), 11, 0);
        ingest(&store, &mut old, 1, vec![put(b"a", b"old")]);
        build(&store, &mut new, 1, 20, &[b"m"]);
    }
    {
        // A crash before `Reset` was durable: the log names the old one.
        let store = open(&boot(), 11, 0);
        assert_same(&store, &old);
        assert!(matches!(store.switch(1), Err(StateError::NoGeneration(1))), "the other was deleted");
        build(&store, &mut newer, 1, 30, &[b"n"]);
    }
    {
        // A crash after it, before the switch: the log names the new one.
        let store = open(&boot(), 11, 1);
        assert_eq!(store.checkpoint(), Some(checkpoint(30, 1)));
        assert_same(&store, &newer);
    }
    let store = open(&boot(), 11, 0);
    assert_eq!(store.checkpoint(), None, "the old one was deleted");
}

fn many_overlapping_runs_agree_with_a_map(boot: &mut dyn FnMut() -> Arc<dyn StateEngine>) {
    let mut model = Model::new();
    let mut random = Random(7);
    let mut store = open(&boot(), 12, 0);
    let mut views: Vec<(Arc<dyn StateView>, Model)> = Vec::new();
    for round in 1..=60_u64 {
        let mut run = BTreeMap::new();
        for _ in 0..random.below(200) {
            let key = Bytes::from(format!("{:03}", random.below(300)));
            let value = (random.below(3) > 0).then(|| Bytes::from(format!("{round}")));
            run.insert(key, value);
        }
        ingest(&store, &mut model, round, run.into_iter().collect());
        if random.below(5) == 0 {
            views.push((store.view(), model.clone()));
        }
        if random.below(4) == 0 && !views.is_empty() {
            let at = usize::try_from(random.below(views.len() as u64)).expect("an index");
            let (view, expected) = views.swap_remove(at);
            assert_view(&view, &expected);
        }
        if round % 20 == 0 {
            for (view, expected) in views.drain(..) {
                assert_view(&view, &expected);
            }
            drop(store);
            store = open(&boot(), 12, 0);
            assert_eq!(store.checkpoint(), Some(checkpoint(round, 0)));
        }
        assert_same(&store, &model);
    }
}

fn open(engine: &Arc<dyn StateEngine>, group: u64, generation: u64) -> Arc<dyn StateStore> {
    engine.store(GroupId(group), generation).expect("open")
}

fn checkpoint(slot: u64, generation: u64) -> Checkpoint {
    let config = Config::of_voters([(ReplicaId(1), NodeId(1)), (ReplicaId(2), NodeId(2))]);
    let meta = SnapshotMeta { slot: Slot(slot), ballot: Ballot::term(slot / 2), config, generation };
    Checkpoint { meta, record: Bytes::from(format!("record {slot}")) }
}

fn put(key: &[u8], value: &[u8]) -> Change {
    (Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)))
}

fn remove(key: &[u8]) -> Change {
    (Bytes::copy_from_slice(key), None)
}

fn ingest(store: &Arc<dyn StateStore>, model: &mut Model, slot: u64, run: Vec<Change>) {
    ingest_generation(store, model, slot, 0, run);
}

/// Ingests a run, sorted here, and does the same to a map.
fn ingest_generation(
    store: &Arc<dyn StateStore>,
    model: &mut Model,
    slot: u64,
    generation: u64,
    mut run: Vec<Change>,
) {
    run.sort();
    store.ingest(checkpoint(slot, generation), &mut run.clone().into_iter()).expect("ingest");
    for (key, value) in run {
        match value {
            Some(value) => model.insert(key, value),
            None => model.remove(&key),
        };
    }
    assert_eq!(store.checkpoint(), Some(checkpoint(slot, generation)));
}

fn add(builder: &mut Box<dyn StateBuilder>, keys: &[&[u8]]) -> Result<(), StateError> {
    builder.add(&mut keys.iter().map(|key| (Bytes::copy_from_slice(key), Bytes::from_static(b"new"))))
}

fn build(store: &Arc<dyn StateStore>, model: &mut Model, generation: u64, slot: u64, keys: &[&[u8]]) {
    let mut builder = store.build(generation).expect("build");
    for key in keys {
        add(&mut builder, &[key]).expect("add");
        model.insert(Bytes::copy_from_slice(key), Bytes::from_static(b"new"));
    }
    builder.finish(checkpoint(slot, generation)).expect("finish");
}

fn collect(scan: crate::Scan<'static>) -> Vec<Pair> {
    scan.map(|pair| pair.expect("scan")).collect()
}

/// Every way of reading a store shows the same map.
fn assert_same(store: &Arc<dyn StateStore>, model: &Model) {
    let expected: Vec<Pair> = model.clone().into_iter().collect();
    assert_eq!(collect(store.scan(Bound::Unbounded, Bound::Unbounded, false)), expected);
    let mut reversed = collect(store.scan(Bound::Unbounded, Bound::Unbounded, true));
    reversed.reverse();
    assert_eq!(reversed, expected);
    assert_view(&store.view(), model);
    for (key, value) in model.iter().step_by(1 + model.len() / 50) {
        assert_eq!(store.get(key).expect("get").as_ref(), Some(value));
    }
    assert_eq!(store.get(b"no such key").expect("get"), None);
}

fn assert_view(view: &Arc<dyn StateView>, model: &Model) {
    let expected: Vec<Pair> = model.clone().into_iter().collect();
    assert_eq!(collect(view.scan(Bound::Unbounded)), expected);
}

fn within(key: &[u8], from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    let above = match from {
        Bound::Unbounded => true,
        Bound::Included(from) => key >= from,
        Bound::Excluded(from) => key > from,
    };
    let below = match to {
        Bound::Unbounded => true,
        Bound::Included(to) => key <= to,
        Bound::Excluded(to) => key < to,
    };
    above && below
}

/// A linear congruential generator: enough to vary the cases, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
