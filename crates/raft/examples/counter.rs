//! A replicated counter: three replicas in one process, with nothing but the engine and its contract.
//!
//! The "disk" calls everything durable at once, the "network" is a queue, the "clock" a number. What is left is what every program
//! around the engine does: step it with what happened, drain it, carry out the effects in order.
//!
//! `cargo run -p conclave-raft --example counter`

use std::collections::VecDeque;

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Consensus, Effect, Epoch, Input, Kind, NodeId, Proposal, ProposalId, ReadId, ReadMode,
    ReplicaId, Slot, SnapshotMeta, Time,
};
use conclave_raft::{Raft, RaftConfig};

type Error = Box<dyn std::error::Error>;

struct Replica {
    core: Raft,
    alive: bool,
    counter: i64, // the state machine
    applied: Slot,
    read: Option<Slot>, // one that waits until its slot is applied
}

struct World {
    now: Time,
    replicas: Vec<Replica>,
    inputs: VecDeque<(usize, Input)>,
    proposals: u64,
    /// The last proposal that came back: its client is answered.
    answered: ProposalId,
}

impl World {
    fn new(count: u64) -> Result<Self, Error> {
        let config = Config::of_voters((1..=count).map(|id| (ReplicaId(id), NodeId(id))));
        let replica = |id| -> Result<Replica, Error> {
            let boot = Boot {
                replica: ReplicaId(id),
                meta: Bytes::new(),
                state: SnapshotMeta { config: config.clone(), ..SnapshotMeta::default() },
                entries: Vec::new(),
                first: Slot(1),
                now: Time(0),
                seed: id,
            };
            let core = Raft::new(boot, RaftConfig::default())?;
            Ok(Replica { core, alive: true, counter: 0, applied: Slot(0), read: None })
        };
        let replicas = (1..=count).map(replica).collect::<Result<_, _>>()?;
        Ok(Self { now: Time(0), replicas, inputs: VecDeque::new(), proposals: 0, answered: ProposalId::NONE })
    }

    /// Lets everything under way happen, and time pass until `done`.
    fn run_until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Error> {
        while !done(self) {
            if let Some((place, input)) = self.inputs.pop_front() {
                self.step(place, input)?;
                continue;
            }
            let live = self.replicas.iter().enumerate().filter(|(_, replica)| replica.alive);
            let due = live.filter_map(|(place, replica)| Some((replica.core.next_deadline()?, place))).min();
            let (due, place) = due.ok_or("nothing will ever happen")?;
            self.now = self.now.max(due);
            self.step(place, Input::Tick)?;
        }
        Ok(())
    }

    fn step(&mut self, place: usize, input: Input) -> Result<(), Error> {
        let replica = &mut self.replicas[place];
        if !replica.alive {
            return Ok(());
        }
        replica.core.step(self.now, input)?;
        let mut effects = Vec::new();
        replica.core.drain(&mut effects);
        let mut outgoing = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(message) => outgoing.push(message),
                Effect::Persist { mark, then, .. } => {
                    // A real one appends `ops`, syncs, and only then sends what rests on it.
                    outgoing.extend(then);
                    self.inputs.push_back((place, Input::Persisted(mark)));
                }
                Effect::Commit(entries) => {
                    for entry in &entries {
                        if entry.kind == Kind::Command {
                            replica.counter += i64::from_le_bytes(entry.payload[..].try_into()?);
                        }
                        (replica.applied, self.answered) = (entry.slot, entry.id);
                    }
                    self.inputs.push_back((place, Input::Applied(replica.applied)));
                }
                Effect::ReadReady { at, .. } => replica.read = Some(at),
                _ => {} // nothing is lost or fetched in so small a world
            }
        }
        for message in outgoing {
            let to = usize::try_from(message.to.0 - 1)?;
            self.inputs.push_back((to, Input::Message(message)));
        }
        Ok(())
    }

    fn leader(&self) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.alive && replica.core.status().serving)
    }

    fn add(&mut self, amount: i64) -> Result<(), Error> {
        self.run_until(|world| world.leader().is_some())?;
        let leader = self.leader().ok_or("no leader")?;
        self.proposals += 1;
        let id = ProposalId::new(NodeId(1), Epoch(1), self.proposals);
        let batch = vec![Proposal { id, payload: Bytes::copy_from_slice(&amount.to_le_bytes()) }];
        self.step(leader, Input::Propose { batch, only_in: None })?;
        self.run_until(|world| world.answered == id)
    }

    /// A linearizable read at any replica: asks for the slot to wait for, and reads once that is applied there.
    fn read(&mut self, place: usize) -> Result<i64, Error> {
        self.run_until(|world| world.replicas[place].core.leader().is_some())?;
        self.replicas[place].read = None;
        self.step(place, Input::ReadBarrier { id: ReadId(1), mode: ReadMode::Follower })?;
        let is_there = |replica: &Replica| replica.read.is_some_and(|at| at <= replica.applied);
        self.run_until(|world| is_there(&world.replicas[place]))?;
        Ok(self.replicas[place].counter)
    }
}

fn main() -> Result<(), Error> {
    let mut world = World::new(3)?;
    for amount in [5, 7, -2] {
        world.add(amount)?;
    }
    println!("every replica counts {}", world.read(0)?);
    assert_eq!(world.replicas[0].counter, 10);
    let leader = world.leader().ok_or("no leader")?;
    world.replicas[leader].alive = false;
    world.add(32)?;
    let other = (0..3).find(|place| *place != leader).ok_or("no other")?;
    println!("and goes on to {} without replica {}", world.read(other)?, leader + 1);
    assert_eq!(world.replicas[other].counter, 42);
    Ok(())
}
