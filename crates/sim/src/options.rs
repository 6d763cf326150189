//! What a seed decides before a run begins: which faults there are, how strong, and what the load is like.
//!
//! *Swarm testing* (Groce and others, 2012): a run in which every fault is on at once rarely gets far enough to meet the rare bugs, and one
//! without any meets none; so each seed switches each fault on or off and draws its strength.

use std::time::Duration;

use conclave_consensus::Timing;

use crate::{
    clock::{MS, SECOND, SimTime},
    rng::Rng,
};

/// Loss, duplication, reordering and delay on every link. Probabilities are per million packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Lost.
    pub loss_ppm: u64,
    /// Arrives twice.
    pub duplication_ppm: u64,
    /// Does not wait for what was sent before it on the same lane.
    pub reordering_ppm: u64,
    /// Takes up to `hiccup` longer.
    pub hiccup_ppm: u64,
    /// How much longer.
    pub hiccup: SimTime,
    /// The shortest delay.
    pub delay_min: SimTime,
    /// The longest ordinary delay.
    pub delay_max: SimTime,
    /// Whether packets travel as bytes, through the transport's own encoder and decoder.
    pub wire: bool,
    /// Of those, a copy is read with one bit flipped.
    pub garbled_ppm: u64,
}

/// How often each fault strikes, on average over the whole cluster; 0 is never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultOptions {
    /// A node loses power at some moment.
    pub crash_every: SimTime,
    /// A node loses power inside one of its next disk operations.
    pub disk_crash_every: SimTime,
    /// All nodes lose power at once.
    pub blackout_every: SimTime,
    /// The longest that a crashed node stays down.
    pub down_max: SimTime,
    /// Links are cut.
    pub partition_every: SimTime,
    /// The longest that they stay so.
    pub partition_max: SimTime,
    /// A node stands still, and goes on as if nothing had been.
    pub pause_every: SimTime,
    /// The longest that it does.
    pub pause_max: SimTime,
    /// A node's clock jumps forward.
    pub jump_every: SimTime,
    /// The farthest that it does.
    pub jump_max: SimTime,
    /// The clocks' greatest drift, in parts per million.
    pub drift_ppm: u64,
    /// Leadership is handed over.
    pub transfer_every: SimTime,
    /// How often, in a million times that a node writes a term or vote, truncates its log or takes a snapshot, its power is cut
    /// within about the time of a sync, or everybody's is.
    pub ambush_ppm: u64,
    /// A node's process ends, and the power stays.
    pub kill_every: SimTime,
    /// One of a node's next syncs fails.
    pub sync_failure_every: SimTime,
    /// A node's disk is full for a while.
    pub full_every: SimTime,
    /// The longest that it stays so.
    pub full_max: SimTime,
    /// A bit rots on the disk of one of the [suspects](Options::suspects).
    pub rot_every: SimTime,
    /// The disk of one of the suspects loses a write that it confirms, or puts it elsewhere.
    pub lie_every: SimTime,
    /// One of the suspects loses its disk.
    pub disk_loss_every: SimTime,
    /// Whoever leads is asked to change who is a member.
    pub change_every: SimTime,
    /// How often, in a million times, what is most delicate for a change of membership is made to happen right at one: a change asked of
    /// a leader that was just elected, a partition between those who leave and those who come.
    pub change_ambush_ppm: u64,
    /// How long at most a replica that was removed goes on before its node is wiped.
    pub retire_max: SimTime,
}

/// How long a node's threads take. A latency is drawn from `0..2 * mean`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Mean time of a sync.
    pub sync: SimTime,
    /// How many syncs in a million take `stall`.
    pub stall_ppm: u64,
    /// How long a stalled one takes.
    pub stall: SimTime,
    /// Mean time to read from the log.
    pub read: SimTime,
    /// Mean time to apply what is queued.
    pub apply: SimTime,
    /// Mean time to write a checkpoint.
    pub checkpoint: SimTime,
    /// A checkpoint is due after so many entries.
    pub checkpoint_entries: u64,
    /// A checkpoint is due after so many bytes.
    pub checkpoint_bytes: usize,
    /// How many bytes of checkpointed values the key-value machine keeps in memory.
    pub value_cache_bytes: usize,
    /// How many entries below a checkpoint the log keeps for laggards.
    pub trailing: u64,
    /// How many it keeps, at most, for a live laggard: enough to catch up after a snapshot, or it would need the next one at once.
    pub trailing_for_live: u64,
    /// The size of a log segment.
    pub segment_bytes: u64,
    /// The size of a snapshot's pieces.
    pub piece_bytes: usize,
    /// Append messages that a follower may have under way.
    pub inflight_messages_max: usize,
    /// Entries handed out beyond the last applied.
    pub apply_window_entries: u64,
    /// Bytes of applied entries that a core keeps in memory.
    pub cache_kept_bytes: usize,
    /// Bytes of entries that it keeps at all.
    pub cache_bytes_max: usize,
}

/// The clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// How many, each with one operation in flight.
    pub clients: u32,
    /// Mean pause between two operations of a client.
    pub think: SimTime,
    /// How long a client waits for an answer.
    pub patience: SimTime,
    /// How many keys are in use at a time.
    pub keys: u32,
    /// After so long other keys come into use, so that each key's history stays short enough to be judged.
    pub keys_for: SimTime,
    /// Weights of put, delete, swap, put of several, compaction, read.
    pub weights: [u64; 6],
    /// So long nobody asks anything, again and again; 0 is never.
    pub lull: SimTime,
    /// How long there is work between two lulls.
    pub lull_after: SimTime,
}

impl LoadOptions {
    /// When a client that has something to ask at `at` asks it: after the lull, if it falls into one.
    pub(crate) fn awake(&self, at: SimTime) -> SimTime {
        if self.lull == 0 {
            return at;
        }
        let period = self.lull_after + self.lull;
        let phase = at % period;
        if phase < self.lull_after { at } else { at - phase + period + (phase - self.lull_after) / 16 }
    }
}

/// Nodes that say once for their groups that they live, and groups that sleep by it when nothing is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepOptions {
    /// How often a node says it.
    pub alive_every: Duration,
    /// For how long it is believed.
    pub alive_for: Duration,
}

/// Everything that a seed decides beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many nodes.
    pub nodes: u64,
    /// How many of them, from the first on, are members when a run begins; the others are spare.
    pub members: u64,
    /// How many of these, from the first on, have a vote; the others learn.
    pub voters: u64,
    /// The bound on the drift of clocks that leaders rely on to read under a lease; `None` if they keep none.
    pub lease_drift_ppm: Option<u32>,
    /// Whether groups sleep, and by what.
    pub sleep: Option<SleepOptions>,
    /// How long the phase of faults lasts.
    pub duration: SimTime,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// The links.
    pub network: NetworkOptions,
    /// The faults.
    pub faults: FaultOptions,
    /// The nodes.
    pub node: NodeOptions,
    /// The clients.
    pub load: LoadOptions,
}

impl Options {
    /// Takes every fault out.
    pub fn calm_down(&mut self) {
        self.network = NetworkOptions::healthy();
        self.faults = FaultOptions::none();
        self.node.stall_ppm = 0;
    }

    /// Leaders keep leases and rely on this bound, while clocks drift by as much as they ever do.
    pub fn rely_on(&mut self, bound_ppm: u32) {
        self.keep_leases(DRIFT_PPM_MAX);
        self.lease_drift_ppm = Some(bound_ppm);
    }

    /// Whether members come and go.
    #[must_use]
    pub fn has_spares(&self) -> bool {
        self.nodes > self.members
    }

    /// How many nodes may have a disk that deceives or dies: what a quorum can do without.
    #[must_use]
    pub fn suspects(&self) -> u64 {
        (self.voters - 1) / 2
    }

    /// Draws the options of a run whose faults last `duration`.
    #[must_use]
    pub fn draw(rng: &mut Rng, duration: SimTime) -> Self {
        let faults = FaultOptions::draw(rng);
        let voters = if rng.chance(if faults.is_hectic() { 500_000 } else { 200_000 }) { 5 } else { 3 };
        let nodes = voters + u64::from(rng.chance(200_000));
        let election_ms = *rng.pick(&[300, 500, 1000]);
        let timing = Timing {
            heartbeat: Duration::from_millis(election_ms / rng.between(5, 10)),
            election: Duration::from_millis(election_ms),
        };
        let mut options = Self {
            nodes,
            members: nodes,
            voters,
            lease_drift_ppm: None,
            sleep: None,
            duration,
            timing,
            network: NetworkOptions::draw(rng),
            faults,
            node: NodeOptions::draw(rng),
            load: LoadOptions::draw(rng),
        };
        // From a stream of their own, so that a run without them is the run it would be.
        let mut apart = Rng::new(!rng.clone().bits());
        options.draw_changes(&mut apart);
        options.draw_leases(&mut apart);
        options.draw_sleep(&mut apart);
        options
    }

    fn draw_changes(&mut self, rng: &mut Rng) {
        let faults = &mut self.faults;
        faults.change_every = *rng.pick(&[0, 0, 1, 3, 8]) * SECOND;
        if faults.change_every > 0 {
            self.nodes += rng.between(1, 3);
            faults.change_ambush_ppm = *rng.pick(&[0, 300_000, 700_000]);
            faults.retire_max = *rng.pick(&[10 * MS, SECOND, 6 * SECOND]);
        }
    }

    /// A lease holds where clocks keep to a bound, so none jumps.
    fn draw_leases(&mut self, rng: &mut Rng) {
        if rng.chance(250_000) {
            let drift = if rng.bits() & 1 == 0 { DRIFT_PPM_MAX } else { self.faults.drift_ppm };
            self.keep_leases(drift);
        }
    }

    fn keep_leases(&mut self, drift_ppm: u64) {
        self.faults.drift_ppm = drift_ppm;
        self.faults.jump_every = 0;
        self.faults.partition_every = 2 * SECOND;
        self.lease_drift_ppm = u32::try_from(drift_ppm).ok();
    }

    /// A group sleeps only where nobody asks anything for a while.
    fn draw_sleep(&mut self, rng: &mut Rng) {
        if rng.chance(250_000) {
            let alive_for = self.timing.election / rng.between(1, 2) as u32;
            let alive_every = alive_for / rng.between(3, 8) as u32;
            self.sleep = Some(SleepOptions { alive_every, alive_for });
            self.load.lull_after = rng.between(SECOND, 5 * SECOND);
            self.load.lull = rng.between(SECOND, 4 * SECOND);
            // As many operations as without.
            self.load.think =
                self.load.think * self.load.lull_after / (self.load.lull_after + self.load.lull);
        }
    }
}

/// With even odds `value`, else nothing.
fn perhaps(rng: &mut Rng, value: u64) -> u64 {
    if rng.bits() & 1 == 0 { value } else { 0 }
}

impl NetworkOptions {
    fn draw(rng: &mut Rng) -> Self {
        let strengths = [1_000, 10_000, 50_000, 150_000, 300_000];
        let fault = |rng: &mut Rng| {
            let strength = *rng.pick(&strengths);
            perhaps(rng, strength)
        };
        let (loss_ppm, duplication_ppm) = (fault(rng), fault(rng));
        let (reordering_ppm, hiccup_ppm) = (fault(rng), fault(rng) / 10);
        let delay_min = rng.between(20_000, MS);
        Self {
            loss_ppm,
            duplication_ppm,
            reordering_ppm,
            hiccup_ppm,
            hiccup: rng.between(50 * MS, 2 * SECOND),
            delay_min,
            delay_max: delay_min + rng.between(10_000, 15 * MS),
            wire: rng.bits() & 1 == 0,
            garbled_ppm: 20_000,
        }
    }

    /// A network in good health.
    #[must_use]
    pub fn healthy() -> Self {
        Self {
            loss_ppm: 0,
            duplication_ppm: 0,
            reordering_ppm: 0,
            hiccup_ppm: 0,
            hiccup: 0,
            delay_min: 100_000,
            delay_max: MS,
            wire: true,
            garbled_ppm: 0,
        }
    }
}

/// The farthest that a clock's rate is off, in parts per million: as far as a core lets an operator state.
const DRIFT_PPM_MAX: u64 = 100_000;

/// How often a node crashes where faults are many and short.
const HECTIC_CRASH: SimTime = 800 * MS;

impl FaultOptions {
    fn is_hectic(&self) -> bool {
        self.crash_every == HECTIC_CRASH
    }

    fn draw(rng: &mut Rng) -> Self {
        let every = |rng: &mut Rng, low: SimTime, high: SimTime| {
            let mean = rng.between(low, high);
            perhaps(rng, mean)
        };
        let seldom = |rng: &mut Rng, low: SimTime, high: SimTime| {
            let mean = every(rng, low, high);
            perhaps(rng, mean)
        };
        // Many faults, each short: leaders change before what they began is done.
        let hectic = rng.chance(200_000);
        let ambush = *rng.pick(&[0, 0, 10_000, 50_000, 200_000]);
        let drift = *rng.pick(&[0, 50, 500, DRIFT_PPM_MAX]);
        Self {
            crash_every: if hectic { HECTIC_CRASH } else { every(rng, 2 * SECOND, 15 * SECOND) },
            disk_crash_every: every(rng, 2 * SECOND, 15 * SECOND),
            blackout_every: every(rng, 10 * SECOND, 40 * SECOND),
            down_max: rng.between(50 * MS, if hectic { 500 * MS } else { 6 * SECOND }),
            partition_every: if hectic { 500 * MS } else { every(rng, 3 * SECOND, 20 * SECOND) },
            partition_max: rng.between(200 * MS, if hectic { SECOND } else { 8 * SECOND }),
            pause_every: every(rng, 3 * SECOND, 20 * SECOND),
            pause_max: rng.between(100 * MS, 4 * SECOND),
            jump_every: every(rng, 5 * SECOND, 30 * SECOND),
            jump_max: rng.between(10 * MS, 5 * SECOND),
            drift_ppm: drift,
            transfer_every: every(rng, 3 * SECOND, 20 * SECOND),
            ambush_ppm: ambush,
            kill_every: every(rng, 3 * SECOND, 20 * SECOND),
            sync_failure_every: every(rng, 4 * SECOND, 30 * SECOND),
            full_every: every(rng, 5 * SECOND, 30 * SECOND),
            full_max: rng.between(100 * MS, 4 * SECOND),
            rot_every: seldom(rng, 5 * SECOND, 60 * SECOND),
            lie_every: seldom(rng, 2 * SECOND, 30 * SECOND),
            disk_loss_every: seldom(rng, 20 * SECOND, 100 * SECOND),
            change_every: 0,
            change_ambush_ppm: 0,
            retire_max: 0,
        }
    }

    /// No faults at all.
    #[must_use]
    pub fn none() -> Self {
        Self {
            crash_every: 0,
            disk_crash_every: 0,
            blackout_every: 0,
            down_max: 0,
            partition_every: 0,
            partition_max: 0,
            pause_every: 0,
            pause_max: 0,
            jump_every: 0,
            jump_max: 0,
            drift_ppm: 0,
            transfer_every: 0,
            ambush_ppm: 0,
            kill_every: 0,
            sync_failure_every: 0,
            full_every: 0,
            full_max: 0,
            rot_every: 0,
            lie_every: 0,
            disk_loss_every: 0,
            change_every: 0,
            change_ambush_ppm: 0,
            retire_max: 0,
        }
    }
}

impl NodeOptions {
    fn draw(rng: &mut Rng) -> Self {
        // Where disks are slower than links, much is known before it is durable.
        let sync =
            if rng.chance(300_000) { rng.between(8 * MS, 40 * MS) } else { rng.between(100_000, 8 * MS) };
        Self {
            sync,
            stall_ppm: perhaps(rng, 2_000),
            stall: rng.between(50 * MS, 3 * SECOND),
            read: rng.between(50_000, 2 * MS),
            apply: rng.between(20_000, 3 * MS),
            checkpoint: rng.between(MS, 800 * MS),
            checkpoint_entries: if rng.chance(400_000) { rng.between(16, 64) } else { rng.between(16, 400) },
            checkpoint_bytes: rng.between(4 << 10, 256 << 10) as usize,
            value_cache_bytes: *rng.pick(&[0, 2 << 10, 1 << 20]),
            trailing: *rng.pick(&[0, 0, 4, 32, 200]),
            trailing_for_live: *rng.pick(&[400, 4_000]),
            segment_bytes: *rng.pick(&[32 << 10, 64 << 10, 256 << 10]),
            piece_bytes: *rng.pick(&[256, 2 << 10, 16 << 10, 1 << 20]),
            inflight_messages_max: *rng.pick(&[1, 4, 256]),
            apply_window_entries: *rng.pick(&[4, 64, 16_384]),
            cache_kept_bytes: *rng.pick(&[0, 4 << 10, 1 << 20]),
            cache_bytes_max: *rng.pick(&[4 << 10, 32 << 10, 32 << 20]),
        }
    }
}

impl LoadOptions {
    fn draw(rng: &mut Rng) -> Self {
        let clients = rng.between(4, 12) as u32;
        Self {
            clients,
            // About 60 operations a second, whatever the number of clients.
            think: u64::from(clients) * SECOND / 80,
            patience: rng.between(200 * MS, 3 * SECOND),
            keys: *rng.pick(&[1, 4, 12, 40]),
            keys_for: rng.between(2 * SECOND, 6 * SECOND),
            weights: [
                rng.between(5, 40),
                rng.between(0, 4),
                rng.between(0, 20),
                rng.between(0, 8),
                rng.between(0, 2),
                rng.between(5, 40),
            ],
            lull: 0,
            lull_after: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything_and_seeds_differ() {
        let draw = |seed| Options::draw(&mut Rng::new(seed), SECOND);
        assert_eq!(draw(5), draw(5));
        let partitions = (0..64).filter(|seed| draw(*seed).faults.partition_every > 0).count();
        assert!((16..48).contains(&partitions), "about half of the seeds cut links, {partitions} of 64 do");
        let sleepers = (0..64).filter(|seed| draw(*seed).sleep.is_some()).count();
        assert!((8..28).contains(&sleepers), "about a quarter of the seeds sleep, {sleepers} of 64 do");
    }

    #[test]
    fn nobody_asks_in_a_lull_and_not_all_at_once_after_it() {
        let mut load = LoadOptions::draw(&mut Rng::new(1));
        assert_eq!(load.awake(1234), 1234);
        (load.lull_after, load.lull) = (100, 160);
        let asked: Vec<u64> = [0, 99, 100, 116, 259, 260].map(|at| load.awake(at)).into();
        assert_eq!(asked, [0, 99, 260, 261, 269, 260]);
    }
}
