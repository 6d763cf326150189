//! The Synod: how replicas choose one value (Lamport, *The Part-Time Parliament*, 1998; *Paxos Made Simple*, 2001).
//!
//! # The problem
//! Any replica may propose a value; messages are lost, repeated and reordered, replicas stop and come back with what their disk held. At most one
//! value may ever be *chosen*, and whoever learns what was chosen must learn the same. A value is chosen when a *commit quorum* of acceptors
//! has accepted it in one ballot.
//!
//! # The rules
//! A [`Ballot`] names one attempt of one proposer; ballots are totally ordered, and no two proposers share one.
//!
//! 1. **Phase 1.** A proposer asks the acceptors to *promise* its ballot. An acceptor does so unless it has promised a higher one, and reports
//!    the last value it accepted ([`Promise::prepare`]). It will never again take part in a lower ballot.
//! 2. **Phase 2.** Once an *elect quorum* has promised, the proposer's value is fixed: of the reported values the one of the highest ballot; if none
//!    was reported, its own wish ([`Reports`]). It asks the acceptors to accept that, and an acceptor does unless it promised a higher ballot
//!    since ([`Promise::accept`]).
//! 3. Promise and acceptance are durable before they are told.
//!
//! # Why it is safe
//! Every elect quorum meets every commit quorum. Suppose *v* was chosen in ballot *b*, and let *c* be the lowest higher ballot that proposes another
//! value. Some acceptor both accepted *v* in *b* and promised *c*; it did so in this order, or it would have refused *b*. So it reported *v*, or
//! what it accepted between *b* and *c*, which is *v* too, *c* being the lowest. Nobody can have reported a higher ballot with another
//! value. So *c* proposes *v*, against what was supposed. Of majorities nothing was said: it is enough that the two kinds of quorums meet (Howard,
//! Malkhi and Spiegelman, *Flexible Paxos*, 2016).
//!
//! # From here to a log
//! Multi-Paxos is one Synod a slot, with the first phase run once for all slots at a time. The log keeps a single [`Promise`] for all of its slots, what
//! stands at a slot is the last acceptance there, and a new leader keeps [`Reports`] for each slot that may be open. [`Acceptor`] and [`Proposer`]
//! put the same pieces together for one slot. `examples/synod.rs` shows two proposers at once.

use std::collections::BTreeSet;

use conclave_consensus::{Ballot, Config, ReplicaId};

/// The ballot below which an acceptor takes part in nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise(Ballot);

/// A higher ballot was promised: the proposer has to begin anew above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ballot {} of replica {} was promised", .promised.round, .promised.replica)]
pub struct Refused {
    /// The ballot that was promised.
    pub promised: Ballot,
}

impl Promise {
    /// What was recorded before.
    #[must_use]
    pub fn new(ballot: Ballot) -> Self {
        Self(ballot)
    }

    /// The highest ballot promised.
    #[must_use]
    pub fn ballot(self) -> Ballot {
        self.0
    }

    /// Phase 1: promises the ballot. A repeated request is promised again.
    ///
    /// # Errors
    /// If a higher one was promised.
    pub fn prepare(&mut self, ballot: Ballot) -> Result<(), Refused> {
        if ballot < self.0 {
            return Err(Refused { promised: self.0 });
        }
        self.0 = ballot;
        Ok(())
    }

    /// Phase 2: whether something may be accepted in the ballot; if so, that is a promise as well.
    ///
    /// # Errors
    /// If a higher one was promised.
    pub fn accept(&mut self, ballot: Ballot) -> Result<(), Refused> {
        self.prepare(ballot)
    }
}

/// A value and the ballot in which an acceptor accepted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance<V> {
    /// In which ballot.
    pub ballot: Ballot,
    /// What.
    pub value: V,
}

/// What acceptors reported about one decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports<V>(Option<Acceptance<V>>);

impl<V> Default for Reports<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V> Reports<V> {
    /// Takes a report. Of two in one ballot either will do: a ballot proposes one value.
    pub fn add(&mut self, report: Acceptance<V>) {
        if self.0.as_ref().is_none_or(|highest| highest.ballot < report.ballot) {
            self.0 = Some(report);
        }
    }

    /// The value that must be proposed, `None` if the proposer is free.
    pub fn binding(self) -> Option<V> {
        self.0.map(|highest| highest.value)
    }
}

/// One acceptor of one decision. Its two fields are durable before its answers leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptor<V> {
    promise: Promise,
    accepted: Option<Acceptance<V>>,
}

impl<V> Default for Acceptor<V> {
    fn default() -> Self {
        Self { promise: Promise::default(), accepted: None }
    }
}

impl<V: Clone> Acceptor<V> {
    /// Phase 1: promises, and reports what it accepted.
    ///
    /// # Errors
    /// If a higher ballot was promised.
    pub fn prepare(&mut self, ballot: Ballot) -> Result<Option<Acceptance<V>>, Refused> {
        self.promise.prepare(ballot)?;
        Ok(self.accepted.clone())
    }

    /// Phase 2: accepts.
    ///
    /// # Errors
    /// If a higher ballot was promised.
    pub fn accept(&mut self, ballot: Ballot, value: V) -> Result<(), Refused> {
        self.promise.accept(ballot)?;
        self.accepted = Some(Acceptance { ballot, value });
        Ok(())
    }
}

/// One proposer's attempt in one ballot, which nobody else may use.
#[derive(Clone, Debug)]
pub struct Proposer<V> {
    config: Config,
    wish: V,
    promised: BTreeSet<ReplicaId>,
    reports: Reports<V>,
    /// Fixed once an elect quorum has promised.
    value: Option<V>,
    accepted: BTreeSet<ReplicaId>,
}

impl<V: Clone> Proposer<V> {
    /// Wants `wish` to be chosen by the quorums of the configuration.
    #[must_use]
    pub fn new(config: Config, wish: V) -> Self {
        let (promised, accepted) = (BTreeSet::new(), BTreeSet::new());
        Self { config, wish, promised, reports: Reports::default(), value: None, accepted }
    }

    /// An acceptor promised the ballot. Gives the value to be accepted, as soon as it is fixed.
    pub fn on_promise(&mut self, from: ReplicaId, report: Option<Acceptance<V>>) -> Option<&V> {
        if self.value.is_none() {
            self.promised.insert(from);
            report.into_iter().for_each(|report| self.reports.add(report));
            if self.config.is_elect_quorum(|replica| self.promised.contains(&replica)) {
                let binding = std::mem::take(&mut self.reports).binding();
                self.value = Some(binding.unwrap_or_else(|| self.wish.clone()));
            }
        }
        self.value.as_ref()
    }

    /// An acceptor accepted the value. Gives it once it is chosen.
    pub fn on_accepted(&mut self, from: ReplicaId) -> Option<&V> {
        self.accepted.insert(from);
        let chosen = self.config.is_commit_quorum(|replica| self.accepted.contains(&replica));
        self.value.as_ref().filter(|_| chosen)
    }
}
