//! Three replicas in one thread and in memory: how many entries a second does the engine alone replicate, apply and check?
//!
//! `cargo run --release -p conclave-paxos --example paxos_throughput`

use std::time::Instant;

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Consensus, Effect, Input, Kind, Message, NodeId, Proposal, ProposalId, ReplicaId, Slot,
    SnapshotMeta, Time,
};
use conclave_paxos::{Paxos, PaxosConfig};

const BATCH: u64 = 64;
const BATCHES: u64 = 40_000;
const UNDER_WAY: u64 = 32;

struct Replica {
    core: Paxos,
    inbox: Vec<Input>,
    /// The next command's number that the state machine must see.
    expected: u64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
    let mut replicas = Vec::new();
    for id in 1..=3 {
        let state = SnapshotMeta { config: config.clone(), ..SnapshotMeta::default() };
        let (replica, now) = (ReplicaId(id), Time(0));
        let boot =
            Boot { replica, meta: Bytes::new(), state, entries: Vec::new(), first: Slot(1), now, seed: id };
        let core = Paxos::new(boot, PaxosConfig::default())?;
        replicas.push(Replica { core, inbox: Vec::new(), expected: 0 });
    }
    let mut now = Time(0);
    let mut effects = Vec::new();
    while !replicas[0].core.status().serving {
        now = replicas[0].core.next_deadline().unwrap_or(now);
        replicas[0].inbox.push(Input::Tick);
        while turn(&mut replicas, now, &mut effects)? {}
    }

    // Bounded so that the figure is the engine's and not that of a queue which outgrows the caches.
    let begin = Instant::now();
    let (mut proposed, total) = (0, BATCH * BATCHES);
    while replicas.iter().any(|replica| replica.expected < total) {
        while proposed < total && proposed - replicas[0].expected < BATCH * UNDER_WAY {
            let batch = (proposed..proposed + BATCH).map(command).collect();
            replicas[0].inbox.push(Input::Propose { batch, only_in: None });
            proposed += BATCH;
            turn(&mut replicas, now, &mut effects)?;
        }
        turn(&mut replicas, now, &mut effects)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{total} entries in {seconds:.2} s: {:.0} entries/s", total as f64 / seconds);
    Ok(())
}

fn command(number: u64) -> Proposal {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    let id = ProposalId { node: NodeId(1), sequence: number + 1 };
    Proposal { id, payload: Bytes::copy_from_slice(&payload) }
}

/// Steps every replica with what arrived and drains it once; says whether anything happened.
fn turn(
    replicas: &mut [Replica],
    now: Time,
    effects: &mut Vec<Effect>,
) -> Result<bool, Box<dyn std::error::Error>> {
    let mut busy = false;
    for place in 0..replicas.len() {
        let mut outgoing: Vec<Message> = Vec::new();
        let replica = &mut replicas[place];
        for input in std::mem::take(&mut replica.inbox) {
            busy = true;
            replica.core.step(now, input)?;
        }
        replica.core.drain(effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(message) => outgoing.push(message),
                Effect::Persist { mark, ops, then } => {
                    drop(ops);
                    outgoing.extend(then);
                    replica.inbox.push(Input::Persisted(mark));
                }
                Effect::Commit(entries) => {
                    for entry in &entries {
                        if entry.kind == Kind::Command {
                            let number = u64::from_le_bytes(entry.payload[..8].try_into()?);
                            assert_eq!(number, replica.expected, "commands are applied in order, once each");
                            replica.expected += 1;
                        }
                    }
                    replica.inbox.extend(entries.last().map(|entry| Input::Applied(entry.slot)));
                }
                _ => {}
            }
        }
        for message in outgoing {
            let to = usize::try_from(message.to.0 - 1)?;
            replicas[to].inbox.push(Input::Message(message));
        }
    }
    Ok(busy)
}
