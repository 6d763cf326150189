//! A founder that was a cluster by itself, and may have lost what it held.
//!
//! It has nobody to ask whether it was here before ([`joining`](super::joining)). But if others were added while it had another disk, they know its
//! address and dial it, again and again. So one that holds nothing waits for them, longer than they pause between two dials, before it begins; and
//! whenever one comes whom it cannot know, as nobody was ever added here, the cluster has a past that is not in its data directory. It
//! ends then, and tells the one that came nothing: what it holds is not what the others hold.
//!
//! The others refuse it on their own, by its data directory's number ([`acquaintances`](super::acquaintances)).

use std::sync::atomic::Ordering;

use conclave_consensus::{Config as Membership, NodeId, ReplicaId};
use conclave_transport::Refusal;
use tokio::time::{Duration, Instant, sleep_until};

use super::{Members, Running};
use crate::{identity::Bootstrap, replicated::DATA};

/// Members that are there dial at least once a second, and it takes them a moment.
const ALONE: Duration = Duration::from_millis(1_500);
/// What came before this member could answer is answered within this time.
const ANSWERS: Duration = Duration::from_millis(250);

/// What a node that dials says about the past of this member's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Nothing unheard of.
    Known,
    /// This member lost what it held.
    FromAnotherPast,
    /// The same, if the configuration that is applied here is the last one.
    Suspect,
}

/// Judges a node of the cluster by what is applied here. What is in the log of this member's earlier life may not be yet.
pub(super) fn judge(
    node: NodeId,
    bootstrap: &Bootstrap,
    applied: &Membership,
    began_with_nothing: bool,
) -> Caller {
    let lone = bootstrap.founding && bootstrap.members.len() == 1;
    if !lone || node.0 == bootstrap.identity.member_id || !nobody_was_added(applied) {
        Caller::Known
    } else if began_with_nothing {
        Caller::FromAnotherPast
    } else {
        Caller::Suspect
    }
}

/// Whether a configuration is that of a lone founder from the beginning on, or none at all.
fn nobody_was_added(configuration: &Membership) -> bool {
    configuration.next_replica <= ReplicaId(2)
}

impl Members {
    /// Waits until whoever knows this member from another life had the time to come. It listens since `listening`.
    ///
    /// # Errors
    /// If one came.
    pub(crate) async fn wait_alone(&self, listening: Instant) -> Result<(), Refusal> {
        let until = (listening + ALONE).max(Instant::now() + ANSWERS);
        tokio::select! {
            biased;
            refusal = self.dismissed() => Err(refusal),
            () = sleep_until(until) => Ok(()),
        }
    }

    /// Whether one who dials is answered.
    pub(super) fn admits(&self, node: NodeId) -> bool {
        match judge(node, &self.bootstrap, &self.configuration(), self.began_with_nothing()) {
            Caller::Known => true,
            Caller::FromAnotherPast => {
                self.dismissed.send_replace(Some(self.replaced()));
                false
            }
            // Until a lone leader serves it may have to be told who there is. Afterwards what it has not applied it will have soon.
            Caller::Suspect if !self.leads_alone() => true,
            Caller::Suspect => {
                self.suspects.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    fn leads_alone(&self) -> bool {
        let role = self.running.get().and_then(|running| running.handle.role(DATA));
        role.is_some_and(|role| role.borrow().serving)
    }

    /// Whether one came who shows that this member lost what it held, judged by the configuration in force.
    pub(super) async fn is_of_another_past(&self, running: &Running) -> Option<Refusal> {
        if !self.suspects.swap(false, Ordering::Relaxed) {
            return None;
        }
        let status = running.handle.status(DATA).await?;
        (status.serving && nobody_was_added(&status.config)).then(|| self.replaced())
    }

    fn replaced(&self) -> Refusal {
        Refusal::Replaced(NodeId(self.identity().member_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, identity};

    #[test]
    fn only_who_cannot_know_the_caller_suspects_that_it_lost_its_past() {
        let lone = identity::bootstrap(&Config::default()).unwrap();
        let own = NodeId(lone.identity.member_id);
        let alone = Membership::of_voters([(ReplicaId(1), own)]);
        let caller = |applied: &Membership, anew| judge(NodeId(7), &lone, applied, anew);
        assert_eq!(caller(&alone, true), Caller::FromAnotherPast);
        assert_eq!(caller(&Membership::default(), true), Caller::FromAnotherPast, "nothing is applied yet");
        assert_eq!(caller(&alone, false), Caller::Suspect, "the log may say more");
        let once_added = Membership { next_replica: ReplicaId(3), ..alone.clone() };
        assert_eq!(caller(&once_added, true), Caller::Known, "also if it is none any more");
        assert_eq!(judge(own, &lone, &alone, true), Caller::Known);
        let joined = Bootstrap { founding: false, ..lone.clone() };
        assert_eq!(judge(NodeId(7), &joined, &alone, true), Caller::Known);
        let mut several = lone.clone();
        several.members.push(several.members[0].clone());
        assert_eq!(judge(NodeId(7), &several, &alone, true), Caller::Known, "it asks the others");
    }
}
