//! The table of placement, as it is stored and shipped.

use conclave_hashring::{Cluster, KeyHash, Member, Plan, Slot, Table, Throttle};

/// The bytes as a table, and again with a checksum that fits, so that what lies behind it is reached.
pub(super) fn table(data: &[u8]) {
    judge(data);
    let mut sealed = data[..data.len().saturating_sub(8)].to_vec();
    let checksum = KeyHash::of(&sealed).0;
    sealed.extend_from_slice(&checksum.to_le_bytes());
    judge(&sealed);
}

/// What is accepted is what would be written, and can be read and planned from.
fn judge(data: &[u8]) {
    let Ok(table) = Table::decode(data) else { return };
    assert_eq!(table.encode(), data, "one encoding for each table");
    for slot in (0..table.rows()).map(Slot) {
        let row: Vec<_> = table.row(slot).collect();
        assert!(row.len() <= usize::from(table.replicas()));
        assert!(row.iter().all(|id| row.iter().filter(|other| *other == id).count() == 1));
    }
    if table.rows() > 64 {
        return;
    }
    let members = (0..9).map(|number| Member::new(&format!("n{number}"))).collect();
    let cluster = Cluster { members, ..Cluster::default() };
    let plan = Plan::new(&table, &cluster, &[], &Throttle::default());
    let Ok(plan) = plan else { return };
    let mut after = table;
    if plan.steps.iter().all(|step| after.apply(step).is_ok()) {
        assert!((0..after.rows()).all(|slot| after.row(Slot(slot)).count() == usize::from(after.replicas())));
    }
}

pub(super) fn table_seeds() -> Vec<Vec<u8>> {
    let seed = |(rows, replicas, nodes): (u32, u8, u32)| {
        let mut table = Table::vacant(rows, replicas).expect("a shape that can be");
        let members = (0..nodes).map(|number| Member::new(&format!("n{number}"))).collect();
        let cluster = Cluster { members, ..Cluster::default() };
        let plan = Plan::new(&table, &cluster, &[], &Throttle::NONE).expect("a plan");
        plan.steps.iter().for_each(|step| table.apply(step).expect("a step of this plan"));
        table.encode()
    };
    let mut seeds: Vec<_> = [(1, 1, 1), (16, 1, 3), (9, 3, 5), (33, 2, 4)].map(seed).to_vec();
    seeds.push(Table::vacant(8, 2).expect("a shape that can be").encode());
    seeds
}
