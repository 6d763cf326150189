//! Tables: what they hold, how they change, and their bytes.

use conclave_hashring::{
    Cluster, DecodeError, KeyHash, Member, Move, NodeId, Plan, Reason, Slot, Step, Table, TableError,
    Throttle,
};

use super::Rng;

fn ids(row: &[u64]) -> Vec<NodeId> {
    row.iter().copied().map(NodeId).collect()
}

fn pairs() -> Table {
    Table::from_rows(&[ids(&[1, 2]), ids(&[2, 3]), ids(&[3, 1])]).unwrap()
}

fn change(slot: u32, from: Option<u64>, to: u64) -> Move {
    Move { slot: Slot(slot), from: from.map(NodeId), to: NodeId(to), reason: Reason::Vacant, bytes: 0 }
}

fn planned(rows: u32, replicas: u8, nodes: u32) -> Table {
    let mut table = Table::vacant(rows, replicas).unwrap();
    let members = (0..nodes).map(|number| Member::new(&format!("n{number}"))).collect();
    let plan = Plan::new(&table, &Cluster { members, ..Cluster::default() }, &[], &Throttle::NONE).unwrap();
    plan.steps.iter().for_each(|step| table.apply(step).unwrap());
    table
}

#[test]
fn a_table_says_who_has_what() {
    let table = pairs();
    assert_eq!(table.owner(Slot(1)), Some(NodeId(2)));
    assert_eq!(table.row(Slot(2)).collect::<Vec<_>>(), ids(&[3, 1]));
    assert_eq!((table.owner(Slot(3)), table.epoch(Slot(3)), table.row(Slot(3)).count()), (None, None, 0));
    assert_eq!((table.owner(Slot(u32::MAX)), table.row(Slot(u32::MAX)).count()), (None, 0));
    assert_eq!((table.load(NodeId(1)), table.load(NodeId(9))), (2, 0));
    assert_eq!((table.rows(), table.replicas(), table.version()), (3, 2, 0));
    assert_eq!(Table::vacant(4, 2).unwrap().owner(Slot(0)), None);
}

#[test]
fn tables_that_cannot_be_are_refused() {
    assert_eq!(Table::vacant(0, 1), Err(TableError::Rows(0)));
    assert_eq!(Table::vacant(65_537, 1), Err(TableError::Rows(65_537)));
    assert_eq!(Table::vacant(1, 0), Err(TableError::Replicas(0)));
    assert_eq!(Table::vacant(1, 9), Err(TableError::Replicas(9)));
    assert_eq!(Table::from_rows(&[]), Err(TableError::Rows(0)));
    assert_eq!(Table::from_rows(&[ids(&[1]), ids(&[1, 2])]), Err(TableError::Shape(Slot(1))));
    assert_eq!(Table::from_rows(&[ids(&[1, 1])]), Err(TableError::Twice { slot: Slot(0), node: NodeId(1) }));
}

#[test]
fn a_step_changes_epochs_of_its_slots_and_the_version() {
    let mut table = pairs();
    table.apply(&Step { version: 0, moves: vec![change(0, Some(1), 4), change(2, Some(1), 2)] }).unwrap();
    assert_eq!(table.row(Slot(0)).collect::<Vec<_>>(), ids(&[4, 2]));
    assert_eq!(table.row(Slot(2)).collect::<Vec<_>>(), ids(&[3, 2]));
    assert_eq!([0, 1, 2].map(|slot| table.epoch(Slot(slot))), [Some(1), Some(0), Some(1)]);
    assert_eq!((table.version(), table.nodes()), (1, &ids(&[2, 3, 4])[..]));
}

#[test]
fn a_step_that_does_not_fit_changes_nothing() {
    let step = |moves| Step { version: 0, moves };
    for (step, error) in [
        (Step { version: 3, moves: vec![] }, TableError::Version { table: 0, step: 3 }),
        (step(vec![change(0, Some(1), 4), change(3, Some(1), 4)]), TableError::NoSuchSlot(Slot(3))),
        (step(vec![change(0, Some(3), 4)]), TableError::NotThere(Slot(0))),
        (step(vec![change(0, Some(9), 4)]), TableError::NotThere(Slot(0))),
        (step(vec![change(0, None, 4)]), TableError::NotThere(Slot(0))),
        (step(vec![change(0, Some(1), 2)]), TableError::Twice { slot: Slot(0), node: NodeId(2) }),
        (step(vec![change(0, Some(1), 3), change(0, Some(2), 4)]), TableError::ChangedTwice(Slot(0))),
    ] {
        let mut table = pairs();
        assert_eq!(table.apply(&step), Err(error));
        assert_eq!(table, pairs());
    }
}

#[test]
fn bytes_bring_a_table_back_and_are_compact() {
    for (rows, replicas, nodes) in [(1, 1, 1), (7, 3, 3), (16_384, 1, 3), (16_384, 1, 1000), (1000, 3, 64)] {
        let table = planned(rows, replicas, nodes);
        let bytes = table.encode();
        assert_eq!(Table::decode(&bytes), Ok(table.clone()));
        assert!(bytes.len() < table.memory_bytes());
    }
    assert_eq!(planned(16_384, 1, 3).encode().len(), 33 + 24 + 16_384 * 2 / 8);
    assert_eq!(planned(16_384, 1, 1000).encode().len(), 33 + 8_000 + 16_384 * 10 / 8);
    let vacant = Table::vacant(16_384, 3).unwrap();
    assert_eq!(Table::decode(&vacant.encode()), Ok(vacant.clone()));
    assert_eq!(vacant.encode().len(), 33, "nothing but head and checksum");
}

/// The format's bytes, once and for all.
#[test]
fn these_are_the_bytes() {
    let mut table = pairs();
    table.apply(&Step { version: 0, moves: vec![change(0, Some(1), 4)] }).unwrap();
    let hex: String = table.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "434b535401010000000000000003000000020400000000000101000000000000000200000000000000030000000000000004000000000000004b2404378fc73ca30cffc0"
    );
}

/// Bytes with another checksum that fits: damage that the checksum does not show.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 8);
    let checksum = KeyHash::of(&bytes).0;
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn damaged_bytes_are_told() {
    let bytes = planned(64, 2, 5).encode();
    for at in 0..bytes.len() {
        assert!(Table::decode(&bytes[..at]).is_err());
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(Table::decode(&flipped).is_err(), "byte {at}, bit {bit}");
        }
    }
    let changed = |at: usize, to: u8| {
        let mut changed = bytes.clone();
        changed[at] = to;
        Table::decode(&sealed(changed)).unwrap_err()
    };
    assert_eq!(Table::decode(&[]), Err(DecodeError::Length { expected: 33, found: 0 }));
    assert_eq!(changed(0, b'X'), DecodeError::Magic);
    assert_eq!(changed(4, 9), DecodeError::Format(9));
    assert_eq!(changed(17, 0), DecodeError::Table(TableError::Replicas(0)));
    assert_eq!(changed(24, 33), DecodeError::NotCanonical);
    assert!(matches!(changed(13, 65), DecodeError::Length { .. }));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(Table::decode(&longer), Err(DecodeError::Length { .. })));
}

#[test]
fn what_decodes_is_what_encodes() {
    let seeds: Vec<Vec<u8>> =
        [(5, 2, 3), (9, 1, 2), (3, 3, 5)].map(|(r, k, n)| planned(r, k, n).encode()).to_vec();
    let mut rng = Rng(11);
    let mut accepted = 0;
    for _ in 0..60_000 {
        let mut bytes = seeds[rng.index(seeds.len())].clone();
        for _ in 0..rng.between(1, 3) {
            let at = rng.index(bytes.len());
            bytes[at] = if rng.below(2) == 0 { rng.bits() as u8 } else { bytes[at] ^ (1 << rng.below(8)) };
        }
        let bytes = sealed(bytes);
        if let Ok(table) = Table::decode(&bytes) {
            accepted += 1;
            assert_eq!(table.encode(), bytes);
        }
    }
    assert!(accepted > 1_000, "{accepted} mutations were tables");
}
