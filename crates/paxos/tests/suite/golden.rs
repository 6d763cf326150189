//! The catalogue of small stories in `testdata`, each a script and what the core makes of it. A change of one is to be understood, not just
//! accepted; `cargo xtask bless` writes them anew. A script is that of the story of the same name in the other engine's catalogue, so that the two can be
//! read side by side: `cargo xtask tidy` checks it.

use std::{collections::BTreeSet, path::Path};

use conclave_consensus::{
    Boot, Consensus, Message, ReplicaId,
    story::{Engine, play},
};
use conclave_paxos::{Paxos, PaxosConfig, describe};
use expect_test::expect_file;

struct OfPaxos;

impl Engine for OfPaxos {
    fn boot(&self, boot: Boot, words: &[String]) -> Result<Box<dyn Consensus>, String> {
        let mut config = PaxosConfig::default();
        for word in words {
            match word.as_str() {
                "leased" => config.lease_drift_ppm = Some(0),
                "one-entry-a-message" => config.message_bytes_max = 1,
                "short-log" => {
                    (config.compaction_margin_entries, config.compaction_lag_entries_max) = (1, 2);
                }
                "prefers-3" => config.priority = u8::from(boot.replica == ReplicaId(3)),
                unknown => return Err(format!("there is no word {unknown}")),
            }
        }
        Ok(Box::new(Paxos::new(boot, config).map_err(|error| error.to_string())?))
    }

    fn describe(&self, message: &Message) -> String {
        describe(message)
    }
}

fn testdata() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
}

fn check(name: &str) {
    let path = testdata().join(name).with_extension("txt");
    let story = std::fs::read_to_string(&path).unwrap();
    assert!(story.starts_with("# "), "a story begins with what is to be seen");
    let played = play(&OfPaxos, &story).unwrap_or_else(|error| panic!("{name}: {error}"));
    expect_file![path].assert_eq(&played);
}

macro_rules! catalogue {
    ($($name:ident)*) => {
        const CATALOGUE: &[&str] = &[$(stringify!($name),)*];
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

catalogue! {
    // Elections.
    election_of_three
    leader_that_hears_nobody_goes
    leader_with_a_hanging_disk_goes
    transfer_of_leadership
    transfer_given_up
    leadership_goes_where_it_is_preferred

    // Replication.
    proposals_batched
    crash_forgets_what_was_not_synced
    snapshot_for_a_laggard
    leader_deposed_and_back

    // Reads.
    read_confirmed_by_a_round
    reads_on_a_follower
    read_under_a_lease

    // Membership.
    membership_through_a_joint_configuration
    leader_removed_from_its_group
}

#[test]
fn every_file_is_in_the_catalogue_and_nothing_else_is() {
    let files = std::fs::read_dir(testdata()).unwrap().map(|file| file.unwrap().file_name());
    let files: BTreeSet<String> = files.map(|name| name.into_string().unwrap()).collect();
    let catalogue: BTreeSet<String> = CATALOGUE.iter().map(|name| format!("{name}.txt")).collect();
    assert_eq!(files, catalogue);
}
