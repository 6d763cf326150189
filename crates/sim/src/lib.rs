//! A deterministic simulator, fault models and history checkers for consensus systems.
//!
//! A cluster of nodes runs in one thread, in simulated time, under one seed. What decides runs unchanged: the host of
//! `conclave-replica`, the Raft core, the write-ahead log's own code on a [disk] that fails as disks do, the key-value machine on a
//! state engine that forgets at a crash everything since its last checkpoint. Threads, sockets, timers and clocks are events.
//!
//! # Vocabulary
//! A *seed* decides everything: the [options] (which faults there are and how strong, how long threads take, what the load is
//! like), when faults strike, and each outcome. A *fault* breaks something: power, links, clocks, the attention of a process. A *checker*
//! ([`check`]) is told facts and says whether an invariant is broken. A *history* is what clients asked and were told. A *mutant* is a
//! bug put in on purpose, to show that the checkers see it.
//!
//! # How a run goes
//! [`run`] describes the phases: faults under load, heal, liveness, one more blackout, and the verdict on the history as a whole. Each seed runs
//! twice, and both runs must leave the same [trace].
//!
//! # Invariants of the simulator itself
//! 1. Nothing reads a real clock, draws from another source than the seed, or iterates a map whose order is not fixed. (The judge of
//!    linearizability is bounded in real time; a search that exceeds it is a violation.)
//! 2. One part drawing more does not shift another's draws: links, disks, clients and faults have a stream each.
//! 3. Checkers know nothing of hosts, logs and links, so that each has a test in which it fires.
//! 4. A failure prints the seed and the command that runs it again; the seed is kept in `seeds.txt`.
//!
//! # Caveats
//! A thread here does its work in one step at one moment, so races inside a thread's step are not explored. The state engine is the one in
//! memory, whose ingestion is atomic; the engine on disk has its own tests.

#![forbid(unsafe_code)]

pub mod check;
pub mod clock;
pub mod disk;
pub mod engine;
pub mod explore;
pub mod history;
pub mod model;
pub mod net;
pub mod options;
pub mod recovery;
pub mod rng;
pub mod run;
pub mod trace;
pub mod world;
