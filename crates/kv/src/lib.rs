//! The replicated etcd data model: revisions, MVCC, ranges and transactions as a deterministic state machine.
//!
//! # Vocabulary
//! A *revision* numbers the changes of a store; all changes of one transaction share it. A *generation* is what one change made of one
//! key: a value with its creation revision, version and lease, or a *deletion*. A store *compacted* to `c` can be
//! read at `c` and later, no earlier.
//!
//! # Where things are
//! ```text
//!            newest generation of each key         older generations
//! memory     map, ordered by key                   head: all since the last checkpoint, chained from newer to older
//! engine     index: a key's numbers, and its       every generation of the last checkpoint, with its value;
//!            value if that is small                history: which keys changed in which revision
//! ```
//! A generation enters map and head when it is applied, and the engine with the next checkpoint; then the head lets go of it, and the
//! map keeps its numbers, and as many values as fit [`Options::value_cache_bytes`]. So memory grows with the number of keys that exist, not with their history.
//!
//! # Invariants
//! 1. Applying is a function of the commands alone. What is in memory or in the engine, cached or not, removed physically or not, changes
//!    no answer and no hash.
//! 2. Readers read at a revision, never "now": a command's changes become readable all at once when the revision is published, and a long
//!    read may let go of the lock between two pages.
//! 3. The engine is never read under the lock by a reader. Generations never change, so the only thing that can happen to one that was
//!    promised meanwhile is physical removal, which the compaction revision, checked again afterwards, reveals.
//! 4. `top` (the highest revision applied) and `readable` (below which nothing more can happen) are two numbers, equal as long as one group
//!    mints its own revisions.
//!
//! # How to drive it
//! [`Machine::open`] on a [`StateStore`](conclave_storage::StateStore); replay the log above the checkpoint through
//! [`apply`](conclave_storage::StateMachine::apply); hand clones of the [`Reader`] to whoever reads. Proposers check requests
//! with [`validate`] first and wrap them with [`command`]; [`Reply::decode`] reads what `apply` answered.
//!
//! # Leases
//! Which leases there are, and what is attached to them, is replicated; when one has run out is found by the leader's [`Lessor`], a value of its own
//! that is stepped with the time, and takes effect by a command ([`command::expire_leases`]).
//!
//! # Beside the keys
//! A group also knows the nodes it may run on ([`registry`]). They are replicated and are in checkpoints and snapshots; revisions, hashes
//! and the history do not know of them.
//!
//! And it knows what became of the requests that their clients named ([`command::identified`]): a named request is applied once, and whoever
//! repeats it, at whichever replica, gets the first outcome, whatever the repetition says. Errors are outcomes too. Kept are the
//! [`OUTCOMES_MAX`] highest sequences of a client, and of [`CLIENTS_MAX`] clients those used last in the log; a sequence below
//! those is refused. Of an answer larger than [`ANSWER_BYTES_MAX`] only the revision is kept: whoever repeats the request is told that it was
//! applied, and not a part of the answer that could be taken for all of it.
//!
//! # Changes as they come
//! [`Reader::changes`] gives the history by revision, whole revisions at a time, from memory or from the engine; [`watch`] serves any number of watches from it. A
//! [`RevisionObserver`] is told when there is more.
//!
//! # Deviations from etcd
//! * Keys end at [`KEY_BYTES_MAX`]; a longer one is "request is too large".
//! * A deletion "from a key on" that overlaps a put of the same transaction is a duplicate key; etcd overlooks it.
//! * Equal keys of a sort stay in key order; etcd leaves them in any.

#![forbid(unsafe_code)]

mod awaited;
mod changes;
mod checkpoint;
pub mod command;
mod hash;
mod head;
mod history;
mod interval;
mod keymap;
mod layout;
mod leases;
mod lessor;
mod machine;
mod outcomes;
mod pages;
mod range;
mod reader;
pub mod registry;
mod request_id;
mod snapshot;
mod state;
mod txn;
pub mod validate;
pub mod watch;

pub use awaited::KeyObserver;
pub use changes::{Changes, HistoryError, RevisionObserver};
pub use command::{KvError, Reply};
pub use conclave_api::conclave::kv::v1::RegisteredNode;
pub use leases::{Granted, LEASE_TTL_MAX_SECONDS, LEASES_MAX, LeaseChange, LeaseInfo, LeaseObserver};
pub use lessor::{CHECKPOINT_EVERY, Lessor, Renewal};
pub use machine::{Machine, OpenError, Options};
pub use outcomes::{ANSWER_BYTES_MAX, CLIENTS_MAX, OUTCOMES_MAX};
pub use range::RangeStream;
pub use reader::{Reader, Stats};
pub use registry::StoreObserver;
pub use request_id::{ClientId, MalformedRequestId, RequestId};
pub use validate::{KEY_BYTES_MAX, Limits};
