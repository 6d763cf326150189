//! One decision, two proposers, three acceptors: what Multi-Paxos does at every slot of its log.
//!
//! Messages are calls here, and those that get lost are calls that are not made. Ada proposes and is interrupted; Bob, who does not know of her,
//! must not decide otherwise than she may have.
//!
//! `cargo run -p conclave-paxos --example synod`

use std::collections::BTreeMap;

use conclave_consensus::{Ballot, Config, NodeId, ReplicaId};
use conclave_paxos::synod::{Acceptor, Proposer};

type Value = &'static str;

struct World {
    config: Config,
    acceptors: BTreeMap<ReplicaId, Acceptor<Value>>,
}

/// How far an attempt comes before it is interrupted: which acceptors hear of each phase.
struct Reach<'a> {
    prepare: &'a [u64],
    accept: &'a [u64],
}

impl World {
    fn new() -> Self {
        let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let acceptors = config.members().map(|id| (id, Acceptor::default())).collect();
        Self { config, acceptors }
    }

    /// One proposer's attempt in one ballot. Gives the value if it learns that it is chosen.
    fn attempt(&mut self, who: &str, ballot: Ballot, wish: Value, reach: &Reach<'_>) -> Option<Value> {
        let mut proposer = Proposer::new(self.config.clone(), wish);
        let mut value = None;
        for id in reach.prepare.iter().copied().map(ReplicaId) {
            // An acceptor makes its promise durable before this returns.
            match self.acceptors.get_mut(&id)?.prepare(ballot) {
                Ok(report) => {
                    let reported = report.as_ref().map_or("nothing", |report| report.value);
                    println!("{who}: acceptor {id} promises, and reports {reported}");
                    value = proposer.on_promise(id, report).copied();
                }
                Err(refused) => println!("{who}: acceptor {id} refuses: {refused}"),
            }
        }
        let Some(value) = value else {
            println!("{who}: no quorum of promises");
            return None;
        };
        println!("{who}: proposes {value}");
        let mut chosen = None;
        for id in reach.accept.iter().copied().map(ReplicaId) {
            match self.acceptors.get_mut(&id)?.accept(ballot, value) {
                Ok(()) => {
                    println!("{who}: acceptor {id} accepts {value}");
                    chosen = proposer.on_accepted(id).copied();
                }
                Err(refused) => println!("{who}: acceptor {id} refuses: {refused}"),
            }
        }
        match chosen {
            Some(value) => println!("{who}: {value} is chosen"),
            None => println!("{who}: not known to be chosen"),
        }
        chosen
    }
}

/// The `round`-th attempt of a proposer: no two proposers have the same ballot.
fn ballot(round: u64, proposer: u64) -> Ballot {
    Ballot { config: 0, round, replica: ReplicaId(proposer) }
}

fn main() {
    let everyone = [1, 2, 3];
    println!("-- Ada's value is chosen; Bob asks others than she did, and is bound all the same");
    let mut world = World::new();
    let chosen = world.attempt("Ada", ballot(1, 1), "apples", &Reach { prepare: &everyone, accept: &[1, 2] });
    assert_eq!(chosen, Some("apples"));
    let chosen = world.attempt("Bob", ballot(2, 2), "pears", &Reach { prepare: &[2, 3], accept: &[2, 3] });
    assert_eq!(chosen, Some("apples"), "any two of three meet");

    println!("-- Ada is interrupted after one acceptance, of which Bob does not hear");
    let mut world = World::new();
    let chosen = world.attempt("Ada", ballot(1, 1), "apples", &Reach { prepare: &everyone, accept: &[1] });
    assert_eq!(chosen, None);
    let chosen = world.attempt("Bob", ballot(2, 2), "pears", &Reach { prepare: &[2, 3], accept: &[2, 3] });
    assert_eq!(chosen, Some("pears"), "nothing can have been chosen, so he is free");
    let late = world.attempt("Ada", ballot(1, 1), "apples", &Reach { prepare: &everyone, accept: &everyone });
    assert_eq!(late, None, "what a quorum promised to Bob she cannot get");
    let again =
        world.attempt("Ada", ballot(3, 1), "apples", &Reach { prepare: &everyone, accept: &everyone });
    assert_eq!(again, Some("pears"), "and with a higher ballot she completes what he began");
}
