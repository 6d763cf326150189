//! Seeds of the simulator that once showed something: none may again. `seeds/` names the engine by the file.

use conclave_sim::run::{Plan, run_twice};

/// The seeds of a file: each line begins with one and goes on with what it showed.
fn seeds(file: &str) -> impl Iterator<Item = u64> + '_ {
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let seed = line.split_whitespace().next().expect("a line has a first word");
        seed.parse().unwrap_or_else(|_| panic!("{line:?} begins with no seed"))
    })
}

#[test]
fn no_seed_shows_again_what_it_once_showed() {
    let violated: Vec<String> = seeds(include_str!("../seeds/raft.txt"))
        .filter_map(|seed| Some(format!("seed {seed}: {}", run_twice(&Plan::of(seed)).violation?)))
        .collect();
    assert!(violated.is_empty(), "{}", violated.join("\n"));
}
