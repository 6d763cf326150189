//! Placement that moves as little as it must.
//!
//! Keys go to nodes, nodes come and go, and of the keys no more are to move than the change demands. This crate has the algorithms for that behind
//! one trait, [`Lookup`]; a table of slots for those who store who has what, [`Table`]; and a planner that leads from one table to
//! the next, [`Plan`]. It performs no I/O, reads no clock and draws no randomness; what it answers is the same on every machine.
//!
//! # Which to take
//!
//! | | when | a lookup looks at | memory | balance | moves when one of `n` goes or comes | weights | any may go |
//! |---|---|---|---|---|---|---|---|
//! | [`Table`] and [`Plan`] | there is state to move: who has what is written down, and changed step by step | one cell | 6 B a slot | within 5 %, or 1 slot | the fewest that the bounds allow | yes | yes |
//! | [`Rendezvous`] | up to a hundred nodes; the best replica sets | all nodes | 32 B a node | chance | `1/n` | yes | yes |
//! | [`Skeleton`] | thousands of nodes with weights | 16 + 8 · log₈(n/16) draws | 20 B a node | chance | `1/n` | yes | yes |
//! | [`Anchor`] | any number of nodes that fail and come back | 1 + ln(a/n) buckets | 35 B a node | chance | `1/n` | no | yes |
//! | [`Maglev`] | the load is to be even, and some more may move: load balancers | one entry | 200 B a node, 131 KB at least | within 1 % | `1/n` and a few % | yes | yes |
//! | [`Jump`] | numbered shards, of which the last comes or goes | ln n jumps | 8 B a node | chance | `1/n` | no | only the last |
//! | [`Ring`] | what others expect; replicas clockwise | one arc | 2 to 3 KB a node | `1/√points` | `1/n` | yes | yes |
//! | [`BoundedRing`] | loads that come and go, and none may be too high | arcs until one has room | the ring's | within ε when taken | more than `1/n` | yes | yes |
//!
//! Each has a page with its paper, what that promises and what it costs: [`ring`], [`rendezvous`], [`skeleton`], [`mod@jump`], [`maglev`], [`anchor`], [`bounded`]; and
//! so have what other programs must agree on, [`hash`], [`key`] and [`codec`], and the [`planner`].
//!
//! *Chance*: with `k` keys a node its load differs by `√k`. The charts in `docs/hashring.svg` are drawn by `cargo run --release -p conclave-hashring --example compare`.
//!
//! # From a key to a node
//!
//! ```
//! use conclave_hashring::{Cluster, Keyspace, KeyHash, Lookup, Member, Node, Plan, Rendezvous, Table, Throttle};
//!
//! // Straight, by an algorithm:
//! let nodes = Rendezvous::new(&Node::numbered(5))?;
//! let node = nodes.node(KeyHash::of(b"users/17"));
//!
//! // By a table that a planner fills:
//! let keys = Keyspace::default();
//! let mut table = Table::vacant(keys.slots().count(), 1)?;
//! let mut cluster = Cluster { members: ["g1", "g2", "g3"].map(Member::new).to_vec(), ..Cluster::default() };
//! for step in &Plan::new(&table, &cluster, &[], &Throttle::NONE)?.steps {
//!     table.apply(step)?;
//! }
//! let owner = table.owner(keys.slot(b"users/{17}/cart"));
//! assert!(owner.is_some());
//!
//! // g3 is to go: nothing else moves.
//! cluster.members[2].draining = true;
//! let plan = Plan::new(&table, &cluster, &[], &Throttle::default())?;
//! assert!(plan.moves().all(|change| change.from == Some(cluster.members[2].id)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod anchor;
pub mod bounded;
pub mod codec;
pub mod hash;
pub mod jump;
pub mod key;
pub mod lookup;
pub mod maglev;
pub mod node;
pub mod planner;
pub mod rendezvous;
pub mod ring;
pub mod skeleton;
pub mod table;

#[doc(inline)]
pub use anchor::Anchor;
#[doc(inline)]
pub use bounded::{BoundedRing, Excess};
#[doc(inline)]
pub use codec::DecodeError;
#[doc(inline)]
pub use hash::KeyHash;
#[doc(inline)]
pub use jump::{Jump, jump};
#[doc(inline)]
pub use key::{
    KeyError, Keyspace, PREFIX_BYTES_MAX, PREFIXES_MAX, Policy, SLOTS_DEFAULT, SLOTS_MAX, Slot, Slots,
    placement_key,
};
#[doc(inline)]
pub use lookup::{Lookup, TooFewNodes};
#[doc(inline)]
pub use maglev::{MAGLEV_ENTRIES_DEFAULT, MAGLEV_ENTRIES_MAX, Maglev};
#[doc(inline)]
pub use node::{NODES_MAX, Node, NodeId, NodesError, Weight, WeightError};
#[doc(inline)]
pub use planner::{Bounds, Cluster, Member, Move, Plan, PlanError, Reason, Slack, Step, Throttle};
#[doc(inline)]
pub use rendezvous::Rendezvous;
#[doc(inline)]
pub use ring::{POINTS_DEFAULT, RING_POINTS_MAX, Ring};
#[doc(inline)]
pub use skeleton::{Cluster as SkeletonCluster, Skeleton};
#[doc(inline)]
pub use table::{REPLICAS_MAX, Table, TableError};
