//! Transcripts of small stories. Each file says in prose what is to be seen; a change of one is to be understood, not just accepted
//! (`UPDATE_EXPECT=1` writes them anew).

use conclave_consensus::{MembershipChange, NodeId, ReadMode};
use conclave_raft::RaftConfig;
use expect_test::{ExpectFile, expect_file};

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

/// What a step of a story says of itself, and what it does.
type Step<'a> = (&'a str, &'a dyn Fn(&mut Cluster));

/// Plays the story's steps, and compares prose and transcript with the file.
fn check(expected: ExpectFile, prose: &str, mut cluster: Cluster, steps: &[Step<'_>]) {
    cluster.transcript.clear();
    for (title, step) in steps {
        cluster.say(format!("> {title}"));
        step(&mut cluster);
    }
    let mut text = String::new();
    for line in prose.trim().lines() {
        text += &format!("# {}\n", line.trim());
    }
    text += "\n";
    text += &cluster.transcript.join("\n");
    text += "\n";
    expected.assert_eq(&text);
}

fn led_by_one() -> Cluster {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster
}

#[test]
fn election_of_three() {
    check(
        expect_file!["../../testdata/election_of_three.txt"],
        "The first election of a group. Replica 1 asks for pre-votes, which change nothing anywhere; then it writes its term and its
         own vote, and only with that write do its requests leave. Its log is empty, so its first entry says who the members are, and once that is
         chosen it serves.",
        Cluster::new(3, 1),
        &[
            ("replica 1 has heard of no leader for two election timeouts", &|cluster| {
                cluster.now = cluster.now.after(ELECTION * 2);
                cluster.input(replica(1), conclave_consensus::Input::Tick).unwrap();
            }),
            ("everything arrives and is synced", &Cluster::settle),
        ],
    );
}

#[test]
fn proposals_batched() {
    check(
        expect_file!["../../testdata/proposals_batched.txt"],
        "Two batches, the second before the first is acknowledged. A follower's acknowledgement waits for its own disk. The commit of the
         first is told as soon as one follower and the leader hold it.",
        led_by_one(),
        &[
            ("three commands", &|cluster| drop(cluster.propose(replica(1), 3))),
            ("one more", &|cluster| drop(cluster.propose(replica(1), 1))),
            ("everything arrives and is synced", &Cluster::settle),
        ],
    );
}

#[test]
fn reads_on_a_follower() {
    check(
        expect_file!["../../testdata/reads_on_a_follower.txt"],
        "Two reads on replica 3. The first question leaves at once, and the second follows without waiting for its answer. Of three, leader and
         asker are a quorum, so the leader answers without asking anyone.",
        led_by_one(),
        &[
            ("two reads", &|cluster| {
                cluster.read(replica(3), ReadMode::Follower);
                cluster.read(replica(3), ReadMode::Follower);
            }),
            ("everything arrives", &Cluster::settle),
        ],
    );
}

#[test]
fn leader_deposed_and_back() {
    check(
        expect_file!["../../testdata/leader_deposed_and_back.txt"],
        "Replica 1 takes two commands while it is cut off, and steps down for want of a quorum. Replica 2 is elected. When 1 is back, its
         two entries give way to 2's no-op; as soon as that is known to be chosen, the two commands are known to be lost for good.",
        led_by_one(),
        &[
            ("replica 1 is cut off and takes two commands", &|cluster| {
                cluster.isolate(replica(1));
                cluster.propose(replica(1), 2).unwrap();
                cluster.settle();
            }),
            ("an election timeout later", &|cluster| {
                cluster.now = cluster.now.after(ELECTION);
                cluster.input(replica(1), conclave_consensus::Input::Tick).unwrap();
            }),
            ("replica 2 stands for election", &|cluster| {
                cluster.now = cluster.now.after(ELECTION);
                cluster.input(replica(2), conclave_consensus::Input::Tick).unwrap();
                cluster.settle();
            }),
            ("replica 1 is back, and the leader's next beat is due", &|cluster| {
                cluster.cut.clear();
                cluster.now = cluster.now.after(HEARTBEAT);
                cluster.input(replica(2), conclave_consensus::Input::Tick).unwrap();
                cluster.settle();
            }),
            ("two beats later", &|cluster| {
                for _ in 0..2 {
                    cluster.now = cluster.now.after(HEARTBEAT);
                    cluster.input(replica(2), conclave_consensus::Input::Tick).unwrap();
                    cluster.settle();
                }
            }),
        ],
    );
}

#[test]
fn transfer_of_leadership() {
    check(
        expect_file!["../../testdata/transfer_of_leadership.txt"],
        "The heir holds everything, so it is told to stand at once. Its request says that the leader wants it, so the others vote although
         they hear that leader. The old leader cannot know who will win: the transfer's outcome is unknown to it, and Role tells.",
        led_by_one(),
        &[
            ("hand leadership to replica 3", &|cluster| drop(cluster.transfer(replica(1), replica(3)))),
            ("everything arrives and is synced", &Cluster::settle),
        ],
    );
}

#[test]
fn idle_group_goes_to_sleep() {
    let config = RaftConfig { quiesce: true, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.alive_for = Some(ELECTION / 2);
    cluster.elect_this(replica(1));
    check(
        expect_file!["../../testdata/idle_group_goes_to_sleep.txt"],
        "Three beats in a row find nothing to do, and the third asks the followers to sleep. They hold everything and know it to be
         committed, and the leader's node lives: so they say that they sleep, and once both have, nobody sends anything. A proposal is
         sent as if the group had been awake; the followers wake by it.",
        cluster,
        &[
            ("four heartbeats pass", &|cluster| cluster.run(HEARTBEAT * 4)),
            ("a minute passes", &|cluster| cluster.run(ELECTION * 60)),
            ("a command", &|cluster| {
                cluster.propose(replica(1), 1).unwrap();
                cluster.settle();
            }),
        ],
    );
}

#[test]
fn membership_through_a_joint_configuration() {
    check(
        expect_file!["../../testdata/membership_through_a_joint_configuration.txt"],
        "Replica 3 gives way to a replica on node 4, in one request. The joint configuration is in force as soon as it is appended: 1 and 2 are a
         majority of the old voters and of the new ones, so it is chosen without the replica that is added. With that the leader appends
         what follows on it. The one that leaves is written to until it knows that it is out; the one that is added begins with an
         empty log and the number of a term in its id.",
        led_by_one(),
        &[
            ("replace 3 by a replica on node 4", &|cluster| {
                let changes = [MembershipChange::AddVoter(NodeId(4)), MembershipChange::Remove(replica(3))];
                cluster.reconfigure(replica(1), &changes).unwrap();
            }),
            ("everything arrives and is synced", &Cluster::settle),
        ],
    );
}

#[test]
fn leader_removed_from_its_group() {
    check(
        expect_file!["../../testdata/leader_removed_from_its_group.txt"],
        "The leader is asked to remove itself. It leads until the last configuration is committed, and from its append on it does not count
         itself: only with the acknowledgements of both 2 and 3 is that the case. Then it tells the commit, has one of them stand at
         once, and goes.",
        led_by_one(),
        &[
            ("remove replica 1", &|cluster| {
                cluster.reconfigure(replica(1), &[MembershipChange::Remove(replica(1))]).unwrap();
            }),
            ("everything arrives and is synced", &Cluster::settle),
        ],
    );
}

#[test]
fn snapshot_for_a_laggard() {
    let config =
        RaftConfig { compaction_margin_entries: 1, compaction_lag_entries_max: 2, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.crash(replica(3));
    cluster.propose(replica(1), 5).unwrap();
    cluster.run(ELECTION * 2);
    cluster.checkpoint(replica(1));
    check(
        expect_file!["../../testdata/snapshot_for_a_laggard.txt"],
        "Replica 3 was away, and what it lacks is no longer in the leader's log. It is told which slot a snapshot must contain, fetches one,
         makes it its state, and acknowledges it once that is durable. From there it is sent entries again.",
        cluster,
        &[
            ("replica 3 boots, and the leader's next beats are due", &|cluster| {
                cluster.restart(replica(3));
                for _ in 0..2 {
                    cluster.now = cluster.now.after(HEARTBEAT);
                    cluster.input(replica(1), conclave_consensus::Input::Tick).unwrap();
                    cluster.settle();
                }
            }),
            ("the snapshot arrives", &|cluster| {
                assert!(cluster.fetch(replica(3)));
                cluster.settle();
            }),
            ("one more command", &|cluster| {
                cluster.propose(replica(1), 1).unwrap();
                cluster.settle();
            }),
        ],
    );
}
