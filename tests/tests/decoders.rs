//! Every decoder on its seeds, on each of them cut short, and on mutations of them. `cargo xtask fuzz` goes on from there.

use conclave_sim::rng::Rng;
use conclave_tests::decoders::{TARGETS, Target, target};

/// Changes a few bytes, cuts, doubles or joins.
fn mutate(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = rng.pick(seeds).clone();
    for _ in 0..rng.between(1, 4) {
        let at = rng.index(bytes.len());
        match rng.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            1 if !bytes.is_empty() => bytes[at] = rng.bits() as u8,
            2 if !bytes.is_empty() => bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, rng.bits() as u8),
            5 if !bytes.is_empty() => {
                let to = rng.between(at as u64, bytes.len() as u64 - 1) as usize;
                let part = bytes[at..=to].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let other = rng.pick(seeds);
                bytes.extend_from_slice(&other[rng.index(other.len())..]);
            }
        }
        bytes.truncate(1 << 14);
    }
    bytes
}

fn hold(target: Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    for seed in &seeds {
        (target.run)(seed);
        let step = seed.len() / 100 + 1;
        for length in (0..seed.len()).step_by(step) {
            (target.run)(&seed[..length]);
        }
    }
    let mut rng = Rng::new(1);
    for _ in 0..target.mutations {
        (target.run)(&mutate(&seeds, &mut rng));
    }
}

macro_rules! decoders {
    ($($test:ident $name:literal,)*) => {
        $(#[test]
        fn $test() {
            hold(target($name));
        })*

        #[test]
        fn every_decoder_has_a_test() {
            let tested = [$($name),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(tested));
        }
    };
}

decoders! {
    frames "frames",
    heads "heads",
    handshake "handshake",
    raft "raft",
    membership "membership",
    records "records",
    segment "segment",
    log_frames "log-frames",
    commands "commands",
    snapshot "snapshot",
    checkpoint "checkpoint",
    table "table",
    cluster "cluster",
    identity "identity",
    flags "flags",
    config_file "config-file",
}
