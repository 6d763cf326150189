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
    lease, partitions, priority, recovery,
    schedules::{act_or_change, config, play},
    wounds,
};

const SEEDS: u64 = 3_000;

/// One schedule, the same for the same seed.
fn run(seed: u64) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let acts = prop::collection::vec(act_or_change(), 20..150).new_tree(&mut runner).unwrap().current();
    let config = PaxosConfig {
        lease_drift_ppm: seed.is_multiple_of(4).then_some(0),
        ..config(seed.is_multiple_of(2))
    };
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
fn each_is_caught_by_chance() {
    let mut survived = Vec::new();
    for mutant in [
        Mutant::GapOverwritten,
        Mutant::PromiseLostOnRestart,
        Mutant::CommitQuorumTooSmall,
        Mutant::AcknowledgedBeforeDurable,
        Mutant::CommittedBeforeOwnDurable,
        Mutant::VoteBeforeDurable,
        Mutant::AppliedBeyondLog,
        Mutant::TruncatedReportedDropped,
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

#[test]
fn each_is_caught_by_its_test() {
    let mut survived = Vec::new();
    for (mutant, test) in [
        (Mutant::RecoveredBeyondStop, recovery::nothing_is_recovered_beyond_a_stop as fn()),
        (Mutant::LateDurableOfOldTerm, wounds::what_is_written_over_is_durable_only_with_its_own_write),
        (Mutant::ReadBeforeCommitInTerm, wounds::no_read_is_served_before_all_is_chosen_that_was_found),
        (Mutant::ReadIdReused, wounds::a_late_answer_to_a_former_life_answers_no_newer_read),
        (
            Mutant::BootedReplicaVotes,
            wounds::a_booted_replica_promises_nothing_as_long_as_it_may_have_heard_a_leader,
        ),
        (Mutant::HangingDiskKeepsLeadership, wounds::a_leader_whose_disk_hangs_goes),
        (Mutant::TransferToNonVoter, wounds::leadership_is_never_handed_to_a_learner_or_to_nobody),
        (Mutant::NonVotersCounted, wounds::a_learner_counts_for_nothing_and_receives_everything),
        (
            Mutant::LeaseKeptInTransfer,
            lease::a_lease_is_dropped_before_leadership_is_handed_over_and_for_good,
        ),
        (Mutant::TransferBlockedByPreVote, priority::leadership_goes_to_the_highest_priority_that_is_in_step),
        (Mutant::PreVoteWithoutCheckQuorum, partitions::a_leader_that_is_heard_and_hears_nothing_gives_way),
        (Mutant::StaleTermNotTold, partitions::a_higher_promise_of_one_that_was_away_costs_one_election),
    ] {
        test();
        std::panic::set_hook(Box::new(|_| {}));
        Mutant::choose_here(Some(mutant));
        let passed = catch_unwind(test).is_ok();
        Mutant::choose_here(None);
        let _ = std::panic::take_hook();
        if passed {
            survived.push(mutant.name());
        }
    }
    assert!(survived.is_empty(), "survived: {survived:?}");
}
