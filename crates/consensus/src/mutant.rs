//! Known bugs, put back by name at run time, for the checkers that must see them.
//!
//! Only in builds with the feature `mutants`: without it neither this module nor any place that asks it is compiled. A place that
//! can be wrong on purpose asks [`Mutant::is_on`] in one line under `#[cfg(feature = "mutants")]`.
//!
//! A simulator chooses for its thread, so that several seeds run side by side; a process of real threads chooses once for all of
//! them. What a thread chose goes before what its process did.

use std::{cell::Cell, sync::OnceLock};

thread_local! {
    static HERE: Cell<Option<Mutant>> = const { Cell::new(None) };
}
static EVERYWHERE: OnceLock<Mutant> = OnceLock::new();

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A bug that some system of this kind once had.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name by which it is chosen.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

mutants! {
    // Consensus: what is promised and when.
    /// A follower acknowledges entries that its disk does not hold yet.
    AcknowledgedBeforeDurable = "acknowledged-before-durable",
    /// A leader counts its own entries towards a quorum before its disk holds them.
    CommittedBeforeOwnDurable = "committed-before-own-durable",
    /// A vote is told, and counted, before it is durable.
    VoteBeforeDurable = "vote-before-durable",
    /// What a term and a vote rest on reaches the disk before them: entries now, the record of the term with the next batch.
    MetaAfterEntries = "meta-after-entries",
    /// A late "durable" that was asked for before a truncation counts for what was written after it.
    LateDurableOfOldTerm = "late-durable-of-old-term",
    /// Entries are handed out although the own log may lose them.
    AppliedBeyondLog = "applied-beyond-log",
    /// A truncated proposal is reported as dropped at once, although it can be chosen yet.
    TruncatedReportedDropped = "truncated-reported-dropped",

    // Consensus: elections.
    /// A leader that hears nobody goes on: pre-vote without check-quorum.
    PreVoteWithoutCheckQuorum = "pre-vote-without-check-quorum",
    /// Nobody tells a leader, or a candidate, of an earlier term that it is over.
    StaleTermNotTold = "stale-term-not-told",
    /// Granting a pre-vote counts as hearing from a leader.
    PreVoteRefreshesContact = "pre-vote-refreshes-contact",
    /// A replica votes at once after it booted, whatever it promised a leader before.
    BootedReplicaVotes = "booted-replica-votes",
    /// A leader whose disk hangs goes on leading.
    HangingDiskKeepsLeadership = "hanging-disk-keeps-leadership",
    /// The heir of a transfer asks for pre-votes first, which nobody grants who hears the leader.
    TransferBlockedByPreVote = "transfer-blocked-by-pre-vote",
    /// Leadership is handed to a replica that has no vote, and it takes office.
    TransferToNonVoter = "transfer-to-non-voter",
    /// The votes of replicas that have none are counted.
    NonVotersCounted = "non-voters-counted",
    /// A replica that lost its disk comes back under its old id.
    DiskLossSameId = "disk-loss-same-id",

    // Consensus: membership.
    /// A configuration is in force only once it is committed.
    ConfigActiveOnApply = "config-active-on-apply",
    /// A leader takes a change before an entry of its term is committed.
    ChangeBeforeOwnTerm = "change-before-own-term",
    /// Nobody but the leader that began a joint configuration leaves it.
    JointNeverLeft = "joint-never-left",
    /// A snapshot is taken in with the membership that was known before.
    SnapshotStaleMembership = "snapshot-stale-membership",
    /// A replica that was removed comes back under its old id, with an empty disk.
    ReplicaIdReused = "replica-id-reused",

    // Consensus: Paxos alone.
    /// A new leader proposes again what was accepted beyond the entry that ends its configuration.
    RecoveredBeyondStop = "recovered-beyond-stop",
    /// A new leader fills every gap of its own log with a no-op, whatever others accepted there.
    GapOverwritten = "gap-overwritten-by-noop",
    /// An acceptor forgets at a restart what it promised.
    PromiseLostOnRestart = "promise-lost-on-restart",
    /// After a change of membership a leader counts one voter too few.
    CommitQuorumTooSmall = "commit-quorum-too-small-after-reconfiguration",

    // Consensus: reads.
    /// A leader counts on its lease for as long as the promise lasts on its own clock, whatever the others' show.
    LeaseIgnoresDrift = "lease-ignores-drift",
    /// A leader that told its heir to stand keeps its lease.
    LeaseKeptInTransfer = "lease-kept-in-transfer",
    /// A leader confirms reads before it committed an entry of its term.
    ReadBeforeCommitInTerm = "read-before-commit-in-term",
    /// Questions for a read slot all bear the same name, so that a late answer passes for one to a newer question.
    ReadIdReused = "read-id-reused",

    // Storage.
    /// The log's sync does nothing.
    LogSyncDoesNothing = "log-sync-does-nothing",
    /// A failed sync of the log is tried again, and believed when it succeeds.
    FailedSyncRetried = "failed-sync-retried",
    /// A full disk during a write of the log is passed over.
    FullDiskIgnored = "full-disk-ignored",
    /// A torn tail is taken for damage.
    TornTailIsDamage = "torn-tail-is-damage",
    /// A broken middle is taken for a torn tail.
    DamageIsTornTail = "damage-is-torn-tail",
    /// What a recycled segment held before passes as what was written last.
    StaleFramesPass = "stale-frames-pass",
    /// A new segment's name is not made durable.
    NewNameNotSynced = "new-name-not-synced",
    /// A segment is let go before the record that says so is durable.
    ReclaimedBeforeFloor = "reclaimed-before-floor-is-durable",
    /// The log is cut below a checkpoint that was never written.
    LogCutBeforeState = "log-cut-before-state-is-persisted",
    /// A checkpoint's position is written apart from its data.
    AppliedIndexNotAtomic = "applied-index-not-atomic",
    /// A delayed snapshot replaces entries that were acknowledged.
    DelayedSnapshotForgets = "delayed-snapshot-forgets",
    /// What arrives of a snapshot is taken in whatever it continues, and the trailer is not looked at: pieces of two become one.
    SnapshotsMixed = "snapshots-mixed",
    /// The state is switched to a snapshot before the log says so.
    SwitchedBeforeReset = "switched-before-reset",
    /// After a boot the revision is taken from the keys that are left, as compaction left them.
    RevisionFromKeys = "revision-from-keys",

    // Transport.
    /// A length read off the wire is believed, whatever it is.
    LengthBelieved = "length-believed",
}

impl Mutant {
    /// The mutant of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }

    /// Whether only Paxos can have it.
    #[must_use]
    pub fn is_of_paxos(self) -> bool {
        use Mutant::{CommitQuorumTooSmall, GapOverwritten, PromiseLostOnRestart, RecoveredBeyondStop};
        matches!(self, RecoveredBeyondStop | GapOverwritten | PromiseLostOnRestart | CommitQuorumTooSmall)
    }

    /// Whether only Raft can have it. In Paxos it is no bug that a configuration is in force once it is chosen, and a change that a leader takes at once
    /// comes after all that it has recovered.
    #[must_use]
    pub fn is_of_raft(self) -> bool {
        matches!(self, Self::ConfigActiveOnApply | Self::ChangeBeforeOwnTerm)
    }

    /// Whether this one is chosen.
    #[must_use]
    pub fn is_on(self) -> bool {
        HERE.get().or_else(|| EVERYWHERE.get().copied()) == Some(self)
    }

    /// Chooses for this thread; `None` leaves it to the process again.
    pub fn choose_here(chosen: Option<Self>) {
        HERE.set(chosen);
    }

    /// Chooses for every thread of the process that chooses nothing itself. The first choice stands; says whether this was it.
    pub fn choose_everywhere(self) -> bool {
        EVERYWHERE.set(self).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_find_their_mutant() {
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::named(mutant.name()), Some(*mutant));
        }
        assert_eq!(Mutant::named("none"), None);
    }

    #[test]
    fn a_thread_chooses_for_itself() {
        Mutant::choose_here(Some(Mutant::ReadIdReused));
        assert!(Mutant::ReadIdReused.is_on() && !Mutant::LogSyncDoesNothing.is_on());
        let elsewhere = std::thread::spawn(|| Mutant::ReadIdReused.is_on()).join();
        assert!(!elsewhere.unwrap());
        Mutant::choose_here(None);
        assert!(!Mutant::ReadIdReused.is_on());
    }
}
