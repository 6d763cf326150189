//! When leases run out: never early, late by no more than a change of leader, and in the order of the log.

use std::{collections::BTreeMap, time::Duration};

use conclave_consensus::{Slot, Time};
use conclave_kv::{CHECKPOINT_EVERY, Granted, LeaseChange, LeaseInfo, Lessor, Renewal};
use proptest::{collection::vec, prelude::*};

const EXTENSION: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Time {
    Time(1_000_000_000 * (1_000 + seconds))
}

fn lease(id: i64, ttl_seconds: i64) -> LeaseInfo {
    let granted = Granted { id, slot: Slot(id.unsigned_abs()) };
    LeaseInfo { granted, ttl_seconds, remaining_seconds: 0 }
}

/// A lessor that was told of grants.
fn granted(now: Time, leases: &[LeaseInfo]) -> Lessor {
    let mut lessor = Lessor::new(now, EXTENSION, &[]);
    leases.iter().for_each(|lease| lessor.changed(now, &LeaseChange::Granted(*lease)));
    lessor
}

fn renewed(ttl_seconds: i64) -> Renewal {
    Renewal::Renewed { ttl_seconds }
}

#[test]
fn a_lease_is_due_when_its_time_is_up_and_not_before() {
    let mut lessor = granted(at(0), &[lease(1, 10)]);
    assert_eq!(lessor.next_deadline(), Some(at(10)));
    assert_eq!(lessor.due(Time(at(10).0 - 1), 9), []);
    assert_eq!(lessor.due(at(10), 9), [lease(1, 10).granted]);
    assert_eq!(lessor.renew(at(10), 1), renewed(10), "nothing was decided yet");
    assert_eq!((lessor.due(at(19), 9).len(), lessor.next_deadline()), (0, Some(at(20))));
    assert_eq!((lessor.left_seconds(at(13), 1), lessor.left_seconds(at(21), 1)), (Some(7), Some(0)));
    assert_eq!((lessor.left_seconds(at(13), 2), lessor.renew(at(13), 2)), (None, Renewal::Unknown));
}

#[test]
fn the_longest_due_comes_first_and_no_more_than_asked_for() {
    let lessor = granted(at(0), &[lease(1, 12), lease(2, 10), lease(3, 11), lease(4, 99)]);
    let ids = |max| lessor.due(at(50), max).iter().map(|granted| granted.id).collect::<Vec<_>>();
    assert_eq!((ids(2), ids(9)), (vec![2, 3], vec![2, 3, 1]));
}

#[test]
fn a_lease_that_is_expiring_is_not_renewed_until_the_decision_came_to_nothing() {
    let mut lessor = granted(at(0), &[lease(1, 10)]);
    let due = lessor.due(at(10), 9);
    lessor.expiring(&due, at(15));
    assert_eq!((lessor.renew(at(11), 1), lessor.due(at(14), 9).len()), (Renewal::Later, 0));
    assert_eq!(lessor.due(at(15), 9), due, "what nobody heard of is proposed again");
    lessor.not_expired(&due);
    assert_eq!(lessor.renew(at(12), 1), renewed(10));
    assert_eq!(lessor.due(at(21), 9), []);
}

#[test]
fn a_decision_in_doubt_is_never_taken_back() {
    let mut lessor = granted(at(0), &[lease(1, 10)]);
    let due = lessor.due(at(10), 9);
    lessor.expiring(&due, at(15));
    lessor.in_doubt(&due);
    // A second attempt is refused for certain; the first may still be chosen.
    lessor.expiring(&due, at(20));
    lessor.not_expired(&due);
    assert_eq!(lessor.renew(at(16), 1), Renewal::Later);
    assert_eq!(lessor.due(at(20), 9), due);
    lessor.changed(at(21), &LeaseChange::Ended(due[0]));
    assert_eq!((lessor.renew(at(21), 1), lessor.next_deadline()), (Renewal::Unknown, None));
}

#[test]
fn an_id_granted_anew_is_another_lease() {
    let mut lessor = granted(at(0), &[lease(1, 10)]);
    let first = lessor.due(at(10), 9);
    lessor.expiring(&first, at(15));
    lessor.changed(at(11), &LeaseChange::Ended(first[0]));
    let again = LeaseInfo { granted: Granted { id: 1, slot: Slot(50) }, ..lease(1, 10) };
    lessor.changed(at(11), &LeaseChange::Granted(again));
    lessor.not_expired(&first);
    lessor.changed(at(12), &LeaseChange::Ended(first[0]));
    lessor.changed(at(12), &LeaseChange::Granted(lease(1, 10)));
    assert_eq!((lessor.renew(at(12), 1), lessor.due(at(21), 9).len()), (renewed(10), 0));
    assert_eq!(lessor.due(at(22), 9), [again.granted]);
}

#[test]
fn a_new_leader_never_shortens_a_lease() {
    let checkpointed = LeaseInfo { remaining_seconds: 400, ..lease(2, 1000) };
    let mut lessor = Lessor::new(at(0), EXTENSION, &[lease(1, 10), checkpointed]);
    assert_eq!(lessor.next_deadline(), Some(at(11)));
    assert_eq!((lessor.due(at(10), 9).len(), lessor.due(at(11), 9).len()), (0, 1));
    assert_eq!((lessor.left_seconds(at(0), 1), lessor.left_seconds(at(1), 2)), (Some(10), Some(400)));
    assert_eq!(lessor.due(at(401), 9).len(), 2);
    assert_eq!(lessor.renew(at(0), 1), renewed(10));
    assert_eq!(lessor.due(at(10), 9).len(), 0, "a renewal does not take back what the change of leader gave");
}

#[test]
fn a_checkpointed_lease_is_renewed_only_after_the_log_has_forgotten_it() {
    let mut lessor = granted(at(0), &[lease(1, 1000), lease(2, 300)]);
    let every = CHECKPOINT_EVERY.as_secs();
    assert_eq!(lessor.next_deadline(), Some(at(every)), "which is when the short one is due too");
    assert_eq!(lessor.checkpoints_due(at(every - 1), 9), []);
    let told = lessor.checkpoints_due(at(every), 9);
    assert_eq!(told, [(lease(1, 1000).granted, 701)]);
    // Even before it is known to be applied.
    assert_eq!(lessor.renew(at(every + 1), 1), Renewal::Later);
    lessor.checkpointed(&told);
    assert_eq!(lessor.renew(at(every + 2), 1), Renewal::Later);
    assert_eq!(lessor.next_deadline(), Some(Time(0)), "somebody waits");
    let forgotten = lessor.checkpoints_due(at(every + 2), 9);
    assert_eq!(forgotten, [(lease(1, 1000).granted, 0)]);
    assert_eq!(lessor.renew(at(every + 2), 1), Renewal::Later);
    lessor.checkpointed(&forgotten);
    assert_eq!(lessor.renew(at(every + 3), 1), renewed(1000));
    let after_a_change = LeaseInfo { remaining_seconds: 5, ..lease(3, 10) };
    let mut next = Lessor::new(at(0), EXTENSION, &[after_a_change]);
    assert_eq!(next.renew(at(1), 3), Renewal::Later, "the leader before told the log of it");
}

#[test]
fn checkpoints_come_in_bounded_batches_and_again_and_again() {
    let leases: Vec<LeaseInfo> = (1..=10).map(|id| lease(id, 10_000)).collect();
    let mut lessor = granted(at(0), &leases);
    let every = CHECKPOINT_EVERY.as_secs();
    assert_eq!([4, 4, 4].map(|max| lessor.checkpoints_due(at(every), max).len()), [4, 4, 2]);
    assert_eq!(lessor.next_deadline(), Some(at(2 * every)));
    assert_eq!(lessor.checkpoints_due(at(2 * every), 1)[0].1, 10_000 - 2 * i64::try_from(every).unwrap() + 1);
}

/// A process that was stopped finds everything due at once; renewals that wait in its sockets come first, and what they renew is not due.
#[test]
fn after_a_pause_who_renews_before_the_decision_keeps_the_lease() {
    let leases: Vec<LeaseInfo> = (1..=3).map(|id| lease(id, 10)).collect();
    let mut lessor = granted(at(0), &leases);
    assert_eq!(lessor.due(at(500), 9).len(), 3);
    assert_eq!(lessor.renew(at(500), 2), renewed(10));
    let due: Vec<i64> = lessor.due(at(500), 9).iter().map(|granted| granted.id).collect();
    assert_eq!(due, [1, 3]);
}

#[test]
fn a_storm_is_worked_off_in_batches_and_renewals_go_on_in_between() {
    let leases: Vec<LeaseInfo> = (1..=100_000).map(|id| lease(id, 10)).collect();
    let mut lessor = granted(at(0), &leases);
    lessor.changed(at(9), &LeaseChange::Granted(lease(200_000, 10)));
    let mut batches = 0;
    while let due = lessor.due(at(10), 256)
        && !due.is_empty()
    {
        batches += 1;
        lessor.expiring(&due, at(15));
        assert_eq!(lessor.renew(at(10), 200_000), renewed(10));
        due.iter().for_each(|granted| lessor.changed(at(10), &LeaseChange::Ended(*granted)));
    }
    assert_eq!((batches, lessor.len()), (391, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Grant(i64, i64),
    Renew(i64),
    /// Proposes what is due; whether it is chosen, dropped, or nobody knows.
    Expire(u8),
    Decide,
    Checkpoint(bool),
    Revoke(i64),
    ChangeLeader,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![3 => 0..20_u64, 1 => 200..700_u64].prop_map(Step::Pass),
        4 => (1..5_i64, prop_oneof![2..30_i64, 400..2000_i64]).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        6 => (1..5_i64).prop_map(Step::Renew),
        5 => (0..4_u8).prop_map(Step::Expire),
        2 => Just(Step::Decide),
        5 => any::<bool>().prop_map(Step::Checkpoint),
        1 => (1..5_i64).prop_map(Step::Revoke),
        1 => Just(Step::ChangeLeader),
    ]
}

/// A replicated store of leases, and until when each was promised to whoever holds it.
#[derive(Default)]
struct World {
    now: Time,
    slot: u64,
    /// What is applied.
    leases: BTreeMap<i64, LeaseInfo>,
    promised: BTreeMap<i64, Time>,
    /// How long each lease may take to end at most if nobody renews it.
    latest: BTreeMap<i64, Time>,
    /// Ends that were proposed under the leader of now, and may still be chosen.
    in_doubt: Vec<Vec<Granted>>,
}

impl World {
    fn end(&mut self, lessor: &mut Lessor, granted: Granted) {
        if self.leases.get(&granted.id).is_some_and(|lease| lease.granted == granted) {
            self.leases.remove(&granted.id);
            lessor.changed(self.now, &LeaseChange::Ended(granted));
        }
    }

    fn expire(&mut self, lessor: &mut Lessor, leases: &[Granted]) {
        for granted in leases {
            if self.leases.get(&granted.id).is_some_and(|lease| lease.granted == *granted) {
                assert!(self.now >= self.promised[&granted.id], "{granted:?} ended early");
            }
            self.end(lessor, *granted);
        }
    }

    fn apply_checkpoints(&mut self, told: &[(Granted, i64)]) {
        for (granted, left) in told {
            if let Some(lease) = self.leases.get_mut(&granted.id).filter(|lease| lease.granted == *granted) {
                lease.remaining_seconds = *left;
            }
        }
    }
}

fn run(steps: Vec<Step>) {
    let mut world = World { now: at(0), ..World::default() };
    let mut lessor = Lessor::new(world.now, EXTENSION, &[]);
    for step in steps {
        match step {
            Step::Pass(seconds) => world.now = world.now.after(Duration::from_secs(seconds)),
            Step::Grant(id, ttl_seconds) => {
                world.slot += 1;
                let granted = Granted { id, slot: Slot(world.slot) };
                let lease = LeaseInfo { granted, ttl_seconds, remaining_seconds: 0 };
                if let std::collections::btree_map::Entry::Vacant(free) = world.leases.entry(id) {
                    free.insert(lease);
                    lessor.changed(world.now, &LeaseChange::Granted(lease));
                    let deadline = world.now.after(Duration::from_secs(ttl_seconds.unsigned_abs()));
                    world.promised.insert(id, deadline);
                    world.latest.insert(id, deadline);
                }
            }
            Step::Renew(id) => match lessor.renew(world.now, id) {
                Renewal::Renewed { ttl_seconds } => {
                    assert_eq!(ttl_seconds, world.leases[&id].ttl_seconds);
                    let deadline = world.now.after(Duration::from_secs(ttl_seconds.unsigned_abs()));
                    world.promised.insert(id, deadline);
                    let latest = world.latest[&id].max(deadline);
                    world.latest.insert(id, latest);
                }
                Renewal::Unknown => assert!(!world.leases.contains_key(&id)),
                Renewal::Later => assert!(world.leases.contains_key(&id)),
            },
            Step::Expire(outcome) => {
                let due = lessor.due(world.now, 2);
                lessor.expiring(&due, world.now.after(Duration::from_secs(5)));
                match outcome {
                    0 => lessor.not_expired(&due),
                    1 => {
                        lessor.in_doubt(&due);
                        world.in_doubt.push(due);
                    }
                    _ => world.expire(&mut lessor, &due),
                }
            }
            Step::Decide => {
                for leases in std::mem::take(&mut world.in_doubt) {
                    world.expire(&mut lessor, &leases);
                }
            }
            Step::Checkpoint(chosen) => {
                let told = lessor.checkpoints_due(world.now, 2);
                if chosen {
                    world.apply_checkpoints(&told);
                    lessor.checkpointed(&told);
                }
            }
            Step::Revoke(id) => {
                if let Some(granted) = world.leases.get(&id).map(|lease| lease.granted) {
                    world.end(&mut lessor, granted);
                }
            }
            Step::ChangeLeader => {
                // Before it serves it has applied whatever will be chosen of the last one's.
                for leases in std::mem::take(&mut world.in_doubt) {
                    world.expire(&mut lessor, &leases);
                }
                let leases: Vec<LeaseInfo> = world.leases.values().copied().collect();
                lessor = Lessor::new(world.now, EXTENSION, &leases);
                for lease in &leases {
                    let all = Duration::from_secs(lease.ttl_seconds.unsigned_abs());
                    world.latest.insert(lease.granted.id, world.now.after(all).after(EXTENSION));
                }
            }
        }
        assert_eq!(lessor.len(), world.leases.len());
        // Late by no more than a change of leader: whatever is past its latest end is due, or its end was proposed.
        let due = lessor.due(Time(u64::MAX), usize::MAX);
        assert_eq!(due.len(), world.leases.len(), "no lease is forgotten");
        for (id, lease) in &world.leases {
            if world.now >= world.latest[id] {
                // Its end is proposed again within five seconds.
                let soon = world.now.after(Duration::from_secs(5));
                assert!(lessor.due(soon, usize::MAX).contains(&lease.granted), "{lease:?} is overdue");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8 * ProptestConfig::default().cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_lease_ends_early_and_none_is_forgotten(steps in vec(step(), 1..120)) {
        run(steps);
    }
}
