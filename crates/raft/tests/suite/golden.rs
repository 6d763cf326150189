//! The catalogue of small stories in `testdata`, each a script and what the core makes of it. A change of one is to be understood, not just
//! accepted; `cargo xtask bless` writes them anew.

use std::{collections::BTreeSet, path::Path};

use conclave_consensus::{
    Boot, Consensus, Message, ReplicaId,
    story::{Engine, ScriptError, StoryError, play},
};
use conclave_raft::{Raft, RaftConfig, describe};
use expect_test::expect_file;

struct OfRaft;

impl Engine for OfRaft {
    fn boot(&self, boot: Boot, words: &[String]) -> Result<Box<dyn Consensus>, String> {
        let mut config = RaftConfig::default();
        for word in words {
            match word.as_str() {
                "leased" => config.lease_drift_ppm = Some(0),
                "one-entry-a-message" => config.message_bytes_max = 1,
                "short-log" => {
                    (config.compaction_margin_entries, config.compaction_lag_entries_max) = (1, 2);
                }
                "prefers-3" => config.priority = u8::from(boot.replica == ReplicaId(3)),
                "sleepy" => config.quiesce = true,
                unknown => return Err(format!("there is no word {unknown}")),
            }
        }
        Ok(Box::new(Raft::new(boot, config).map_err(|error| error.to_string())?))
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
    let played = play(&OfRaft, &story).unwrap_or_else(|error| panic!("{name}: {error}"));
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
    election_refused_by_log
    pre_vote_of_one_that_was_away
    leader_that_hears_nobody_goes
    leader_with_a_hanging_disk_goes
    transfer_of_leadership
    transfer_given_up
    leadership_goes_where_it_is_preferred

    // Replication.
    proposals_batched
    log_conflict_repaired
    commit_of_own_term_only
    crash_forgets_what_was_not_synced
    snapshot_for_a_laggard
    leader_deposed_and_back
    outcome_unknown_after_a_snapshot

    // Reads.
    read_confirmed_by_a_round
    read_waits_for_the_leader_to_serve
    reads_on_a_follower
    read_under_a_lease

    // Membership.
    membership_through_a_joint_configuration
    membership_truncated
    learner_promoted
    leader_removed_from_its_group

    // Sleep.
    idle_group_goes_to_sleep
}

#[test]
fn every_file_is_in_the_catalogue_and_nothing_else_is() {
    let files = std::fs::read_dir(testdata()).unwrap().map(|file| file.unwrap().file_name());
    let files: BTreeSet<String> = files.map(|name| name.into_string().unwrap()).collect();
    let catalogue: BTreeSet<String> = CATALOGUE.iter().map(|name| format!("{name}.txt")).collect();
    assert_eq!(files, catalogue);
}

#[test]
fn what_came_of_a_command_is_written_anew() {
    let script = "# Prose.\n\ngiven group of 1 voters\n> elect 1\n";
    let played = play(&OfRaft, script).unwrap();
    assert!(played.starts_with(script) && played.lines().count() > script.lines().count());
    let stale = played.replace("1 leads", "1 dances").replace("> elect 1\n", "> elect 1\n  nothing\n");
    assert_eq!(play(&OfRaft, &stale), Ok(played));
}

#[test]
fn a_story_that_cannot_be_played_says_where() {
    let script = |text| play(&OfRaft, text).unwrap_err();
    let line = |line, why| StoryError::Script { line, why };
    assert_eq!(script("> settle\n"), StoryError::Group(1));
    assert_eq!(script("given group of 1 voters\ngiven group of 1 voters\n"), StoryError::Group(2));
    assert_eq!(script("given group of 1 voters\nsettle\n"), line(2, ScriptError::NoCommand));
    assert_eq!(script("given group of 1 voters\n> crash 2\n"), StoryError::NoReplica(ReplicaId(2)));
    assert_eq!(script("given group of 3 voters\n> isolate 1\n> elect 1\n"), StoryError::Endless);
    assert!(matches!(script("given group of 1 voters, curious\n"), StoryError::Boot { .. }));
}
