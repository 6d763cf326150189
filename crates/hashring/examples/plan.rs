//! A cluster that grows, gets a heavier node, drains one and loses a zone: what each plan moves, and why.
//!
//! `cargo run -p conclave-hashring --example plan`

#![forbid(unsafe_code)]

use std::error::Error;

use conclave_hashring::{Cluster, Member, Plan, SLOTS_DEFAULT, Slot, Table, Throttle, Weight};

/// What a slot holds, for the estimate.
const SLOT_BYTES: u64 = 4 << 20;
const REPLICAS: u8 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut table = Table::vacant(SLOTS_DEFAULT, REPLICAS)?;
    let mut cluster = Cluster::default();
    for number in 1..=6 {
        cluster.members.push(Member::new(&format!("n{number}")).in_zone(["a", "b", "c"][number % 3]));
    }
    println!("{SLOTS_DEFAULT} slots, {REPLICAS} replicas, zones a, b and c\n");
    change(&mut table, &cluster, "six nodes begin")?;

    cluster.members.push(Member::new("n7").in_zone("a"));
    change(&mut table, &cluster, "n7 joins zone a")?;

    cluster.members.push(Member::new("n8").in_zone("d").weighing(Weight::new(2.0)?));
    change(&mut table, &cluster, "n8 joins in a zone of its own, twice as heavy")?;

    cluster.members[2].draining = true;
    change(&mut table, &cluster, "n3 drains")?;
    cluster.members.remove(2);

    cluster.members.retain(|member| member.zone.as_deref() != Some("b"));
    change(&mut table, &cluster, "zone b is lost")?;
    println!(
        "The table takes {} bytes in memory and {} encoded.",
        table.memory_bytes(),
        table.encode().len()
    );
    Ok(())
}

fn change(table: &mut Table, cluster: &Cluster, what: &str) -> Result<(), Box<dyn Error>> {
    let throttle = Throttle { moves_max: 512, node_moves_max: 256, bytes_max: u64::MAX };
    let sizes = vec![SLOT_BYTES; table.rows() as usize];
    let plan = Plan::new(table, cluster, &sizes, &throttle)?;
    let before: Vec<u32> = cluster.members.iter().map(|member| table.load(member.id)).collect();
    for step in &plan.steps {
        table.apply(step)?;
    }
    println!(
        "== {what}: {} moves in {} steps, {} GiB",
        plan.moves().count(),
        plan.steps.len(),
        plan.bytes() >> 30
    );
    println!("{:>6}{:>6}{:>8}{:>10}{:>10}   bounds", "node", "zone", "weight", "before", "after");
    for (member, before) in cluster.members.iter().zip(before) {
        let bounds = plan.bounds.get(&member.id).copied().unwrap_or_default();
        println!(
            "{:>6}{:>6}{:>8}{:>10}{:>10}   {}..={}",
            member.name,
            member.zone.as_deref().unwrap_or("-"),
            member.weight.to_string(),
            before,
            table.load(member.id),
            bounds.least,
            bounds.most
        );
    }
    for change in plan.moves().take(3) {
        println!("  {}", plan.explain(change));
    }
    let owner = table.owner(Slot(0)).and_then(|id| cluster.members.iter().find(|member| member.id == id));
    println!(
        "  slot 0 is owned by {}, epoch {}\n",
        owner.map_or("nobody", |member| member.name.as_str()),
        table.epoch(Slot(0)).unwrap_or(0)
    );
    Ok(())
}
