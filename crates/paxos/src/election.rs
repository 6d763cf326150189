//! Who leads: election by quorum connection (Ng, Haridi and Carbone, *Omni-Paxos*, 2023, section 5).
//!
//! In Paxos any replica may lead, whatever its log lacks: phase 1 tells it. So what makes a good leader is that it hears a quorum, and nothing else
//! is asked of it. A replica that hears no leader sends *rounds* of beats; whoever gets one answers, and says whether it is *free*: hears no
//! leader either. Who is answered by free replicas that could elect it, and by enough to choose anything, stands: it takes a ballot above all it
//! has seen and runs phase 1 ([`crate::recovery`]). Of several the one of the highest priority goes first, then the one that knows most to be
//! chosen; should it not, the others do after a moment. Two that stand at once are told apart by their ballots, not by chance.
//!
//! # Invariants
//! 1. A replica that looks for a leader changes nothing, neither its own promise nor anyone's: ballots are not gossiped, so whoever is cut
//!    off comes back without disturbing anyone. (In Raft that takes pre-votes; here the beats are the question.)
//! 2. A replica that heard a leader within an election timeout promises nothing to another, unless the leader itself sent it. A booted replica
//!    keeps from it as long, for it may have answered a leader just before.
//! 3. A leader that is not answered by replicas that could choose an entry, and confirm a read, for an election timeout steps down and says so, and so
//!    does one whose disk hangs as long.
//! 4. A leader that learns of a higher promise stands anew at once if enough still follow it: they promise it, and nobody else does who hears another leader. Else
//!    one that stood too late would depose it. Only who answered it as a leader is known to follow; while others may, it waits for their answers, or two that
//!    were promised office one after the other would take it from each other in turn. If too few do, it asks whether it may lead anew: if another one
//!    was elected, nobody is free.
//! 5. Who stood asks anew before it stands again: what it was answered before says nothing of what was promised since.

use std::collections::BTreeMap;

use conclave_consensus::{Ballot, MEMBERS_MAX, ReplicaId, Slot, Time};

use crate::{
    core::{Paxos, Role},
    progress::Peer,
    wire::{self, Beat, BeatReply, Body},
};

/// For how many heartbeats one that hears a quorum waits for another that should stand before it.
const PATIENCE_BEATS: u32 = 2;

/// What makes one a better leader than another: priority, then what it knows to be chosen, then the higher id.
type Rank = (u8, Slot, ReplicaId);

/// What is known of another replica while nobody leads.
#[derive(Clone, Copy, Debug, Default)]
struct Neighbour {
    /// When it last answered a round of ours.
    answered: Option<Time>,
    /// It would promise.
    free: bool,
    /// When it last said that it looks for a leader and hears a quorum, and with which rank.
    seeks: Option<(Time, Rank)>,
}

/// A search for a leader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seek {
    /// Counted in a boot.
    round: u64,
    /// When this replica began to hear a quorum without a leader.
    connected_since: Option<Time>,
    neighbours: BTreeMap<ReplicaId, Neighbour>,
    /// The highest round of a ballot that was seen.
    ballots_seen: u64,
    /// The latest configuration of which a ballot was seen: what ended those before it is chosen.
    config_seen: u64,
}

impl Paxos {
    /// Sets when to look for a leader: an election timeout from now and up to half of one more, and not before a promise is over.
    pub(crate) fn rearm_election(&mut self) {
        let least = self.config.timing.election;
        let drawn = self.random.between(least, least + least / 2);
        self.election_due = self.now.after(drawn).max(self.promised_until);
    }

    /// Whether this replica must not help to depose a leader.
    pub(crate) fn hears_leader(&self) -> bool {
        self.is_leader() || self.now < self.heard_until || self.now < self.promised_until
    }

    /// Whether it would promise the asker a ballot.
    fn is_free_for(&self, asker: ReplicaId) -> bool {
        if self.leader == Some(asker) {
            return true;
        }
        let gives_time = self.gives_time() && self.ballot().replica != asker;
        !self.hears_leader() && !gives_time && !matches!(self.role, Role::Candidate(_))
    }

    /// Whether someone else's phase 1 is under way, as far as is known.
    fn gives_time(&self) -> bool {
        self.now < self.candidate_until && self.ballot().replica != self.id
    }

    pub(crate) fn saw_ballot(&mut self, ballot: Ballot) {
        self.seek.ballots_seen = self.seek.ballots_seen.max(ballot.round);
        self.seek.config_seen = self.seek.config_seen.max(ballot.config);
    }

    pub(crate) fn other_voters(&self) -> Vec<ReplicaId> {
        let config = self.members.config();
        config.members().filter(|replica| *replica != self.id && config.is_voter(*replica)).collect()
    }

    /// Ends whatever this replica was in its ballot.
    pub(crate) fn become_follower(&mut self, leader: Option<ReplicaId>) {
        match std::mem::replace(&mut self.role, Role::Follower) {
            Role::Follower => {}
            Role::Candidate(_) => self.rearm_election(),
            Role::Leader(leading) => {
                self.leave_leadership(*leading);
                self.rearm_election();
            }
        }
        if self.leader != leader {
            self.leader = leader;
            self.fail_asked_reads();
        }
    }

    /// A message of the promised ballot shows who leads in it.
    pub(crate) fn follow(&mut self, leader: ReplicaId) {
        if self.leader != Some(leader) || !matches!(self.role, Role::Follower) {
            self.become_follower(Some(leader));
        }
        self.heard_until = self.heard_until.max(self.now.after(self.config.timing.election));
        self.candidate_until = Time(0);
        self.seek.connected_since = None;
        self.rearm_election();
    }

    /// Enters a higher ballot. The record is written before anything is said of it.
    pub(crate) fn enter_ballot(&mut self, ballot: Ballot) {
        if ballot > self.ballot() {
            self.become_follower(None);
            self.meta.promise = crate::synod::Promise::new(ballot);
            self.saw_ballot(ballot);
            self.write_meta();
            self.acknowledge = None;
            self.received = self.chosen;
        }
    }

    /// Whether this replica has what a leader needs besides a quorum.
    fn may_stand(&self) -> bool {
        self.members.config().is_voter(self.id) && !self.fetch.is_installing() && !self.disk_stalls()
    }

    /// Nothing was heard of a leader for long enough: a round.
    pub(crate) fn look_for_leader(&mut self) {
        if !self.may_stand() {
            self.rearm_election();
            return;
        }
        self.become_follower(None);
        let heartbeat = self.config.timing.heartbeat;
        self.election_due = self.now.after(self.random.between(heartbeat, heartbeat * 2));
        self.seek.round += 1;
        let hears_quorum = self.is_connected();
        for to in self.other_voters() {
            let beat = self.beat_of(wire::SEEKS, self.seek.round, hears_quorum);
            let message = self.message(to, Body::Beat(beat));
            self.outbox.after_promise(message);
        }
        self.stand_if_connected();
    }

    fn beat_of(&self, stage: u32, round: u64, hears_quorum: bool) -> Beat {
        Beat {
            round,
            stage,
            hears_quorum,
            chosen: self.chosen.0,
            settled: self.members.settled(),
            promise_us: 0,
            priority: u32::from(self.config.priority),
        }
    }

    /// A candidate keeps those who promised it from looking for another.
    pub(crate) fn beat_as_candidate(&mut self) {
        for to in self.other_voters() {
            let message = self.message(to, Body::Beat(self.beat_of(wire::PREPARES, 0, true)));
            self.outbox.after_promise(message);
        }
    }

    fn has_answered(&self, replica: ReplicaId, needs_free: bool) -> bool {
        let Some(neighbour) = self.seek.neighbours.get(&replica) else { return false };
        let recent = neighbour.answered.is_some_and(|at| self.now.since(at) < self.config.timing.election);
        recent && (neighbour.free || !needs_free)
    }

    /// Whether those who answer could elect this replica and choose what it proposes.
    fn is_connected(&self) -> bool {
        let config = self.members.config();
        let is_here = |replica: ReplicaId| replica == self.id || self.has_answered(replica, false);
        config.is_elect_quorum(is_here) && config.is_commit_quorum(is_here)
    }

    fn stand_if_connected(&mut self) {
        if self.gives_time() {
            return; // What it asked before it promised another is answered late.
        }
        let is_free = |replica: ReplicaId| {
            if replica == self.id { !self.hears_leader() } else { self.has_answered(replica, true) }
        };
        if !self.is_connected() || !self.members.config().is_elect_quorum(is_free) {
            self.seek.connected_since = None;
            return;
        }
        let (now, heartbeat) = (self.now, self.config.timing.heartbeat);
        let since = *self.seek.connected_since.get_or_insert(now);
        let rank = (self.config.priority, self.chosen, self.id);
        let better = self.seek.neighbours.values().filter_map(|neighbour| neighbour.seeks);
        let waits = better
            .into_iter()
            .any(|(said, other)| other > rank && now.since(said) < heartbeat * (PATIENCE_BEATS + 1));
        if waits && now.since(since) < heartbeat * PATIENCE_BEATS {
            return;
        }
        if self.last_config() > self.members.number() && self.catch_up.is_asking() {
            return; // Somebody knows more; whether this replica may stand at all is perhaps among it.
        }
        self.stand(false);
    }

    /// The latest configuration that there is for certain, whether or not it is known here who takes part in it.
    fn last_config(&self) -> u64 {
        self.members.number().max(self.ballot().config).max(self.seek.config_seen)
    }

    /// Takes the next ballot of its own and runs phase 1 in it. It is one of the last configuration: nobody takes part in others any more.
    pub(crate) fn stand(&mut self, transfer: bool) {
        let round = self.ballot().round.max(self.seek.ballots_seen);
        if round >= wire::ROUND_MAX {
            return;
        }
        self.enter_ballot(Ballot { config: self.last_config(), round: round + 1, replica: self.id });
        self.seek.connected_since = None;
        self.seek.neighbours.values_mut().for_each(|neighbour| neighbour.answered = None);
        self.meta.lease = std::time::Duration::ZERO;
        let promised_in = self.write_meta();
        self.prepare(promised_in, transfer);
    }

    /// A beat of one that does not lead: answered, and noted.
    pub(crate) fn on_search(&mut self, from: ReplicaId, ballot: Ballot, beat: Beat) {
        self.saw_ballot(ballot);
        let free = self.is_free_for(from);
        #[cfg(feature = "mutants")]
        if free && conclave_consensus::Mutant::PreVoteRefreshesContact.is_on() {
            self.heard_until = self.heard_until.max(self.now.after(self.config.timing.election));
        }
        let (received, priority) = (self.received.0, u32::from(self.config.priority));
        let reply = BeatReply { round: beat.round, free, received, chosen: self.chosen.0, priority };
        let message = self.message(from, Body::BeatReply(reply));
        self.outbox.after_promise(message);
        if self.members.contains(from) {
            let priority = u8::try_from(beat.priority).unwrap_or(u8::MAX);
            let rank = (priority, Slot(beat.chosen), from);
            let now = self.now;
            if let Some(neighbour) = self.neighbour(from) {
                neighbour.seeks = beat.hears_quorum.then_some((now, rank));
            }
        }
        self.hear_of_chosen(from, Slot(beat.chosen));
    }

    /// An answer to a round of the search.
    pub(crate) fn on_search_reply(&mut self, from: ReplicaId, ballot: Ballot, reply: BeatReply) {
        self.saw_ballot(ballot);
        // Of this round or the one before: an older one says nothing of now.
        let is_recent = reply.round <= self.seek.round && reply.round + 1 >= self.seek.round;
        if !is_recent || reply.round == 0 || !matches!(self.role, Role::Follower) {
            return;
        }
        let now = self.now;
        if let Some(neighbour) = self.neighbour(from) {
            (neighbour.answered, neighbour.free) = (Some(now), reply.free);
        }
        self.hear_of_chosen(from, Slot(reply.chosen));
        if self.leader.is_none() && self.may_stand() {
            self.stand_if_connected();
        }
    }

    fn neighbour(&mut self, replica: ReplicaId) -> Option<&mut Neighbour> {
        let members = &self.members;
        if self.seek.neighbours.len() >= 2 * MEMBERS_MAX {
            self.seek.neighbours.retain(|known, _| members.contains(*known));
        }
        members.contains(replica).then(|| self.seek.neighbours.entry(replica).or_default())
    }

    /// A message of its own ballot shows that someone runs phase 1 in it.
    pub(crate) fn on_candidate_beat(&mut self, ballot: Ballot, beat: Beat) {
        if ballot == self.ballot() && matches!(self.role, Role::Follower) && self.leader.is_none() {
            match beat.stage {
                wire::PREPARES => self.give_time(),
                _ => self.candidate_until = Time(0),
            }
        }
    }

    pub(crate) fn give_time(&mut self) {
        let patience = self.config.timing.heartbeat * 3;
        self.candidate_until = self.now.after(patience);
        self.election_due = self.election_due.max(self.now.after(patience));
    }

    /// The leader says that it leads no more.
    pub(crate) fn on_resigned(&mut self, from: ReplicaId, ballot: Ballot) {
        if ballot == self.ballot() && self.leader == Some(from) {
            self.become_follower(None);
            self.heard_until = self.now;
            self.election_due = self.now.max(self.promised_until);
        }
    }

    /// A leader that cannot go on says so, so that nobody waits for it.
    pub(crate) fn resign(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let beat = self.beat_of(wire::RESIGNED, leader.reads.round(), false);
        let peers: Vec<ReplicaId> = leader.peers.keys().copied().collect();
        for to in peers {
            let message = self.message(to, Body::Beat(beat));
            self.outbox.send(message);
        }
        self.become_follower(None);
    }

    /// A peer promised a higher ballot, and takes part in this one no more. Those that follow elect this leader anew, if they are enough; if they are not, another may
    /// have been elected.
    pub(crate) fn on_refused_as_leader(&mut self, peer: ReplicaId) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(peer) = leader.peers.get_mut(&peer)
        {
            peer.refused = true;
        }
        self.stand_anew_if_refused();
    }

    /// What a leader does that was refused, once it knows who follows it. Who promised it and has not answered since may have promised another.
    pub(crate) fn stand_anew_if_refused(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if !leader.peers.values().any(|peer| peer.refused) {
            return;
        }
        let config = self.members.config();
        let is_followed_by = |counts: fn(&Peer) -> bool| {
            let follows = |replica: ReplicaId| {
                let peer = leader.peers.get(&replica);
                replica == self.id || peer.is_some_and(|peer| counts(peer) && self.is_active(peer))
            };
            config.is_elect_quorum(follows) && config.is_commit_quorum(follows)
        };
        let is_last = self.last_config() == self.members.number();
        let may_be_followed = is_followed_by(|peer| !peer.refused);
        if !may_be_followed || !is_last || leader.transfer.is_some() || !self.may_stand() {
            self.resign();
            self.election_due = self.now;
        } else if is_followed_by(|peer| !peer.refused && peer.follows) {
            self.stand(false);
        }
    }

    pub(crate) fn is_active(&self, peer: &Peer) -> bool {
        self.now.since(peer.heard) < self.config.timing.election
    }

    /// A leader's clock: is it still of use, and who must hear of it?
    pub(crate) fn tick_leader(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let is_here = |replica: ReplicaId| {
            replica == self.id || leader.peers.get(&replica).is_some_and(|peer| self.is_active(peer))
        };
        let config = self.members.config();
        let hears_quorum = config.is_commit_quorum(is_here) && config.meets_every_elect_quorum(is_here);
        #[cfg(feature = "mutants")]
        let hears_quorum = hears_quorum || conclave_consensus::Mutant::PreVoteWithoutCheckQuorum.is_on();
        if !hears_quorum || self.disk_stalls() {
            self.resign();
            return;
        }
        self.abort_late_transfer();
        self.beat_if_due();
    }

    /// How the configuration changed, nobody heard before counts now.
    pub(crate) fn forget_neighbours(&mut self) {
        self.seek.neighbours.clear();
        self.seek.connected_since = None;
    }
}
