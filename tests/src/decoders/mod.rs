//! Every decoder of bytes from the wire, the disk or an operator, as a function that takes any bytes.
//!
//! A [`Target`] panics when a decoder does, or does what it must not: accept what it would write otherwise, answer differently on two
//! replicas, read what was never written. `fuzz/` runs each under libFuzzer; the test target `decoders` runs each on
//! its seeds and on mutations of them, so that the gate does too.

mod disk;
mod network;
mod operator;
mod placement;
mod store;

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// How it is called on the command line.
    pub name: &'static str,
    /// Runs it; panics on a defect.
    pub run: fn(&[u8]),
    /// Valid inputs, to mutate.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many mutations the gate has time for.
    pub mutations: u32,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: network::frames, seeds: network::frame_seeds, mutations: 30_000 },
    Target { name: "heads", run: network::heads, seeds: network::head_seeds, mutations: 30_000 },
    Target { name: "handshake", run: network::handshake, seeds: network::handshake_seeds, mutations: 1_000 },
    Target { name: "raft", run: network::raft, seeds: network::raft_seeds, mutations: 30_000 },
    Target { name: "membership", run: disk::membership, seeds: disk::membership_seeds, mutations: 30_000 },
    Target { name: "records", run: disk::records, seeds: disk::record_seeds, mutations: 30_000 },
    Target { name: "segment", run: disk::segment, seeds: disk::segment_seeds, mutations: 10_000 },
    Target { name: "log-frames", run: disk::log_frames, seeds: disk::log_frame_seeds, mutations: 10_000 },
    Target { name: "commands", run: store::commands, seeds: store::command_seeds, mutations: 20_000 },
    Target { name: "snapshot", run: store::snapshot, seeds: store::snapshot_seeds, mutations: 20_000 },
    Target { name: "checkpoint", run: store::checkpoint, seeds: store::checkpoint_seeds, mutations: 20_000 },
    Target { name: "table", run: placement::table, seeds: placement::table_seeds, mutations: 20_000 },
    Target { name: "cluster", run: placement::cluster, seeds: placement::cluster_seeds, mutations: 5_000 },
    Target {
        name: "identity",
        run: operator::identity_file,
        seeds: operator::identity_seeds,
        mutations: 1_000,
    },
    Target { name: "flags", run: operator::flags, seeds: operator::flag_seeds, mutations: 20_000 },
    Target {
        name: "config-file",
        run: operator::config_file,
        seeds: operator::config_file_seeds,
        mutations: 2_000,
    },
];

/// The target of that name.
///
/// # Panics
/// If there is none: a fuzz target names one as a literal.
#[must_use]
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("a target of that name")
}

/// Draws structure out of bytes: whatever they are, they mean something, and a small change to them is a small change of it.
struct Source<'a> {
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next byte; 0 at the end.
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    /// A number: nearly always a small one, and now and then one at an end of its range.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => 1 << 62,
            253 => u64::from(u32::MAX),
            small => u64::from(small % 16),
        }
    }

    /// A piece of the bytes, its length in front.
    fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.bytes.len());
        let (piece, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        piece
    }
}

/// What [`Source::piece`] reads back, as far as a byte can say the length.
fn piece(bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[..bytes.len().min(255)];
    let mut out = vec![bytes.len() as u8];
    out.extend_from_slice(bytes);
    out
}
