//! Small groups explored to the end, and bugs put in on purpose, which the checks must see.

use conclave_sim::explore::{Bounds, Bug, Report, explore};

fn hold(bounds: Bounds) -> Report {
    let report = explore(bounds, None);
    println!("{report}");
    assert!(report.violation.is_none(), "{report}");
    assert!(report.complete, "{report}");
    assert_eq!(report.leaders, bounds.replicas * bounds.terms as usize, "anyone may lead in any term");
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
