//! Small groups explored to the end, and bugs put in on purpose, which the checks must see.

use conclave_sim::explore::{Bounds, Bug, Report, explore};

fn hold(bounds: Bounds) -> Report {
    let report = explore(bounds, None);
    println!("{report}");
    assert!(report.violation.is_none(), "{report}");
    assert!(report.complete, "{report}");
    // With no more than a change of membership two may lead in a term that begins after it, and one before.
    if !bounds.led {
        assert_eq!(report.leaders, bounds.replicas * bounds.terms as usize, "anyone may lead in any term");
    }
    report
}

#[test]
fn two_replicas_hold_in_every_schedule() {
    let report = hold(Bounds { replicas: 2, in_flight: 2, ..Bounds::small() });
    assert!(report.states > 1_000_000 && report.chosen == 2, "the no-op and the command: {report}");
}

#[test]
fn three_replicas_hold_in_every_schedule() {
    let bounds = Bounds { in_flight: 2, writes: 1, crashes: 0, proposals: 0, ..Bounds::small() };
    let report = hold(bounds);
    assert!(report.states > 500_000 && report.chosen == 1, "{report}");
}

/// One founder and an empty node: every way in which it adds the other, or does not, and an election after it.
#[test]
fn a_change_of_membership_holds_in_every_schedule() {
    let bounds = Bounds { replicas: 2, in_flight: 2, writes: 1, proposals: 0, terms: 2, ..changing() };
    let report = hold(bounds);
    assert!(report.states > 1_000_000 && report.leaders == 3 && report.chosen == 4, "{report}");
    let met = |members: &str| report.memberships.iter().any(|met| met.starts_with(members));
    for members in ["voters 1 65536 for 1,", "voters 1 65536,", "voters 1, learners 65536"] {
        assert!(met(members), "{members}: {:?}", report.memberships);
    }
}

fn changing() -> Bounds {
    Bounds { spare: true, led: true, changes: 1, ..Bounds::small() }
}

/// What violates which invariant under the bug, and by how many steps.
fn seen(bounds: Bounds, bug: Bug) -> (&'static str, usize) {
    let report = explore(bounds, Some(bug));
    let found = report.violation.unwrap_or_else(|| panic!("{bug:?} survived {} states", report.states));
    (found.violation.invariant, found.steps.len())
}

#[test]
fn acknowledgements_before_the_disk_has_it_are_seen() {
    assert_eq!(seen(Bounds::small(), Bug::AcknowledgesEarly), ("durability", 8));
}

#[test]
fn a_forgotten_vote_is_seen() {
    let bounds = Bounds { in_flight: 2, writes: 1, proposals: 0, ..Bounds::small() };
    assert_eq!(seen(bounds, Bug::StaleRecord), ("election safety", 21));
}

#[test]
fn a_boot_that_forgets_changes_is_seen() {
    let bounds = Bounds { replicas: 2, proposals: 0, terms: 2, ..changing() };
    assert_eq!(seen(bounds, Bug::ForgetsChanges), ("durability", 5));
}

/// The bug put back into the core itself; only in builds that have it.
#[cfg(feature = "mutants")]
#[test]
fn a_membership_in_force_on_apply_only_is_seen() {
    conclave_consensus::Mutant::choose_here(Some(conclave_consensus::Mutant::ConfigActiveOnApply));
    let bounds =
        Bounds { spare: false, in_flight: 2, writes: 1, crashes: 0, proposals: 0, terms: 2, ..changing() };
    let report = explore(bounds, None);
    conclave_consensus::Mutant::choose_here(None);
    let found = report.violation.unwrap_or_else(|| panic!("survived {} states", report.states));
    assert_eq!((found.violation.invariant, found.steps.len()), ("durability", 20));
}
