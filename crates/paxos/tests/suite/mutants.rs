//! Must fire: each known bug, put back by name, is seen by the cluster's checks within so many random schedules, and without it
//! the same schedules pass.

use std::panic::{AssertUnwindSafe, catch_unwind};

use conclave_consensus::Mutant;
use conclave_paxos::PaxosConfig;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use crate::{
    cluster::Cluster,
    schedules::{act_or_change, config, play},
};

const SEEDS: u64 = 3_000;

/// One schedule, the same for the same seed.
fn run(seed: u64) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let acts = prop::collection::vec(act_or_change(), 20..150).new_tree(&mut runner).unwrap().current();
    let config = PaxosConfig { lease_drift_ppm: (seed % 4 == 0).then_some(0), ..config(seed % 2 == 0) };
    play(Cluster::with([3, 5, 3, 4][usize::try_from(seed / 4 % 4).unwrap()], 0, seed, config), seed, &acts);
}

/// The seed that shows it.
fn caught(mutant: Mutant) -> Option<u64> {
    std::panic::set_hook(Box::new(|_| {}));
    let caught = (0..SEEDS).find(|seed| {
        Mutant::choose_here(Some(mutant));
        let failed = catch_unwind(AssertUnwindSafe(|| run(*seed))).is_err();
        Mutant::choose_here(None);
        failed
    });
    let _ = std::panic::take_hook();
    caught
}

#[test]
fn each_is_caught() {
    let mut survived = Vec::new();
    for mutant in [
        Mutant::RecoveredBeyondStop,
        Mutant::GapOverwritten,
        Mutant::PromiseLostOnRestart,
        Mutant::CommitQuorumTooSmall,
        Mutant::AcknowledgedBeforeDurable,
        Mutant::CommittedBeforeOwnDurable,
        Mutant::VoteBeforeDurable,
        Mutant::LateDurableOfOldTerm,
        Mutant::AppliedBeyondLog,
        Mutant::TruncatedReportedDropped,
        Mutant::NonVotersCounted,
        Mutant::ReadBeforeCommitInTerm,
        Mutant::ReadIdReused,
        Mutant::LeaseKeptInTransfer,
        Mutant::BootedReplicaVotes,
        Mutant::JointNeverLeft,
        Mutant::SnapshotStaleMembership,
    ] {
        let Some(seed) = caught(mutant) else {
            survived.push(mutant.name());
            continue;
        };
        println!("{} caught by seed {seed}", mutant.name());
        run(seed);
    }
    assert!(survived.is_empty(), "survived {SEEDS} schedules: {survived:?}");
}
