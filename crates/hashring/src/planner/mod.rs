//! The planner: from the table as it is and the cluster as it is to be, to the steps between.
//!
//! What a plan reaches:
//!
//! 1. Every place of every slot has a node that is a member, is not draining, and is there once.
//! 2. A node's load is between two *bounds*. Its *share* is `slots × replicas × weight / total`, or less where it, or its zone, cannot hold so much (a node
//!    has a slot once). The upper bound is the greater of `⌈share⌉` and `⌊(1 + ε) share⌋`, the lower one `⌊(1 − ε) share⌋`: bounded loads from both sides,
//!    since with the upper one alone a node that joins could stay empty. What is pinned to a node widens its bounds. Pins come
//!    first, then zones: what they put out of a bound's reach, the bound that is reported gives way to, so that loads are always within it.
//! 3. The replicas of a slot are in different zones while there are enough, and else no zone has more of them than it must. A node without a
//!    zone is a zone by itself.
//! 4. As few places change as these three allow. What may stay stays; what must go goes to the node that draws the best
//!    [rendezvous](crate::Rendezvous) number among those that are to take more.
//!
//! How: `share` computes the bounds and `aim` the loads that the fewest changes lead to, which then lie as close to the shares as that number of changes
//! allows; `fill` fills vacant places, first for those who else would not fit (`pressing`), and takes from who has too much; where zones stand in the way, `chain` finds the
//! shortest chain of moves that frees one (an augmenting path), and `improve` takes back what that cost too much. `steps` orders the moves and throttles them. All of it is
//! integer arithmetic, and the four operations on floating-point numbers that IEEE 754 defines: one plan on every machine.
//!
//! Memory while planning: about 25 bytes for each slot and replica, 300 a node, and 120 for each place that changes, half of which the plan keeps. Where
//! zones stand in the way of up to 1,100 nodes, 12 bytes for each pair of them.

mod aim;
mod chain;
mod fill;
mod improve;
mod pressing;
mod problem;
mod share;
mod steps;

use std::{collections::BTreeMap, fmt};

pub use share::Bounds;
pub use steps::{Step, Throttle};

use crate::{
    key::Slot,
    node::{NODES_MAX, NodeId, Weight},
    table::{Table, TableError},
};
use problem::Problem;

/// A node of the cluster that a plan is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub id: NodeId,
    /// What explanations call it.
    pub name: String,
    /// How much it is to hold.
    pub weight: Weight,
    /// What fails together with it; none: nothing does.
    pub zone: Option<String>,
    /// It is to be emptied.
    pub draining: bool,
}

impl Member {
    /// An ordinary node without a zone, with that name and [its id](NodeId::named).
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            id: NodeId::named(name),
            name: name.to_owned(),
            weight: Weight::ONE,
            zone: None,
            draining: false,
        }
    }

    /// The same in a zone.
    #[must_use]
    pub fn in_zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone.to_owned());
        self
    }

    /// The same with a weight.
    #[must_use]
    pub fn weighing(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// The same, to be emptied.
    #[must_use]
    pub fn draining(mut self) -> Self {
        self.draining = true;
        self
    }
}

/// How far from its share a node may be, in thousandths of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slack(u32);

impl Slack {
    /// So many thousandths; `None` above 1,000.
    #[must_use]
    pub fn thousandths(slack: u32) -> Option<Self> {
        (slack <= 1_000).then_some(Self(slack))
    }
}

impl Default for Slack {
    /// One twentieth.
    fn default() -> Self {
        Self(50)
    }
}

/// What a plan is to reach.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Those that are there. A node that the table names and that is not here is gone.
    pub members: Vec<Member>,
    /// Slots that are to be at a node: it is one of the slot's replicas.
    pub pins: Vec<(Slot, NodeId)>,
    /// How far from its share a node may be.
    pub slack: Slack,
    /// Whether two replicas of a slot may be in one zone where there are fewer zones than replicas.
    pub may_share_zones: bool,
}

/// What no plan can be made for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no node that is not draining.
    #[error("no node to place anything on")]
    NoNodes,
    /// Too many members, with those of the table that are gone.
    #[error("{0} nodes, and at most {NODES_MAX} are possible")]
    TooManyNodes(usize),
    /// Two members with one id.
    #[error("two nodes with the id {0}")]
    IdTwice(NodeId),
    /// Two members with one name.
    #[error("two nodes called {0:?}")]
    NameTwice(String),
    /// More replicas than nodes that may hold one.
    #[error("{replicas} replicas on {nodes} nodes")]
    TooFewNodes {
        /// Replicas of a slot.
        replicas: u8,
        /// Nodes that are not draining.
        nodes: usize,
    },
    /// More replicas than zones, and they may not share one.
    #[error("{replicas} replicas in {zones} zones, which they are not to share")]
    TooFewZones {
        /// Replicas of a slot.
        replicas: u8,
        /// Zones with a node that is not draining.
        zones: usize,
    },
    /// A pin to a slot that is not there, or to a node that is not there or draining.
    #[error("slot {slot} cannot be pinned to node {node}: one of them is not there, or the node drains")]
    Pin {
        /// The slot.
        slot: Slot,
        /// The node.
        node: NodeId,
    },
    /// A slot is pinned to more nodes than it has replicas, or to too many in one zone.
    #[error("slot {0} is pinned to more nodes than it has places for, or to too many in one zone")]
    PinsCollide(Slot),
    /// Sizes of another number of slots than the table has.
    #[error("{sizes} sizes for {slots} slots")]
    Sizes {
        /// How many are given.
        sizes: usize,
        /// How many are needed.
        slots: u32,
    },
    /// Pins leave a place that no node may take.
    #[error("no node may take a place of slot {0}: pins and zones leave none")]
    Unplaceable(Slot),
    /// The table has too many changes behind it.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Why a place changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody had it.
    Vacant,
    /// Who had it is no member.
    Gone,
    /// Who had it drains.
    Drains,
    /// It is pinned to where it goes.
    Pinned,
    /// Another replica is in the same zone.
    ZoneShared,
    /// Who had it has more than its upper bound.
    AboveBound {
        /// What it had.
        load: u32,
        /// Its upper bound.
        bound: u32,
    },
    /// Who gets it has less than its lower bound, or than the moves that are needed anyway are to leave it.
    BelowBound {
        /// What it had.
        load: u32,
        /// What it is to have.
        aim: u32,
    },
    /// It makes room for another that may go nowhere else.
    MakesRoom,
}

/// One place that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Of which slot.
    pub slot: Slot,
    /// Who had it; none: nobody.
    pub from: Option<NodeId>,
    /// Who gets it.
    pub to: NodeId,
    /// Why.
    pub reason: Reason,
    /// What goes over the wire, as far as sizes were given.
    pub bytes: u64,
}

/// Steps from a table to what its cluster is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order. It is safe to stop after each: see [`Step`].
    pub steps: Vec<Step>,
    /// For each node that is to hold something: between which loads.
    pub bounds: BTreeMap<NodeId, Bounds>,
    names: BTreeMap<NodeId, String>,
}

impl Plan {
    /// Plans. `sizes` has the measured bytes of each slot, or is empty.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(
        table: &Table,
        cluster: &Cluster,
        sizes: &[u64],
        throttle: &Throttle,
    ) -> Result<Self, PlanError> {
        if !sizes.is_empty() && sizes.len() != table.rows() as usize {
            return Err(PlanError::Sizes { sizes: sizes.len(), slots: table.rows() });
        }
        let mut problem = Problem::new(table, cluster)?;
        problem.solve()?;
        let steps = steps::schedule(&problem, table.version(), sizes, throttle)?;
        Ok(Self {
            steps,
            bounds: problem.takers().map(|node| (problem.ids[node], problem.bounds[node])).collect(),
            names: cluster.members.iter().map(|member| (member.id, member.name.clone())).collect(),
        })
    }

    /// Every place that changes, in order.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.steps.iter().flat_map(|step| &step.moves)
    }

    /// What goes over the wire in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moves().fold(0, |sum, change| sum.saturating_add(change.bytes))
    }

    /// Says what a move does and why: `slot 812: g3 → g7, because g3 drains`.
    #[must_use]
    pub fn explain(&self, change: &Move) -> String {
        let to = self.name(Some(change.to));
        let from = self.name(change.from);
        let why = match change.reason {
            Reason::Vacant => "nobody has it".to_owned(),
            Reason::Gone => format!("{from} is gone"),
            Reason::Drains => format!("{from} drains"),
            Reason::Pinned => format!("it is pinned to {to}"),
            Reason::ZoneShared => "two replicas are in one zone".to_owned(),
            Reason::AboveBound { load, bound } => {
                format!("{from} has {load} slots and is to have {bound} at most")
            }
            Reason::BelowBound { load, aim } => format!("{to} has {load} slots and is to have {aim}"),
            Reason::MakesRoom => format!("{from} takes another in its place"),
        };
        match change.from {
            Some(_) => format!("slot {}: {from} → {to}, because {why}", change.slot),
            None => format!("slot {}: → {to}, because {why}", change.slot),
        }
    }

    fn name(&self, node: Option<NodeId>) -> Name<'_> {
        Name(node, node.and_then(|node| self.names.get(&node)).map(String::as_str))
    }
}

/// A node's name, or its number where it has none any more.
struct Name<'a>(Option<NodeId>, Option<&'a str>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name(_, Some(name)) => f.write_str(name),
            Name(Some(node), None) => write!(f, "node {node}"),
            Name(None, None) => f.write_str("nobody"),
        }
    }
}
