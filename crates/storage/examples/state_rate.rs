//! What the state engine costs: ingestion, point reads, the scan at boot, merging, disk and memory.
//!
//! ```sh
//! cargo run --release -p conclave-storage --example state_rate -- [DIRECTORY]
//! ```
//! Keys are 24 bytes and a suffix of 8, values 256 bytes that do not compress. CPU is this process's, all threads.

use std::{
    collections::BTreeSet,
    error::Error,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use conclave_consensus::{Ballot, Config, GroupId, Slot, SnapshotMeta};
use conclave_storage::{Checkpoint, LsmEngine, LsmOptions, StateEngine, StateStore};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let directory = std::env::args_os().nth(1).map_or_else(
        || std::env::temp_dir().join(format!("conclave-state-rate-{}", std::process::id())),
        PathBuf::from,
    );
    println!("start: {} MiB resident", resident_mib()?);
    load(&directory.join("65k"), 65_536, 16)?;
    load(&directory.join("262k"), 262_144, 4)?;
    overwrite(&directory.join("overlap"))?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// A million distinct keys in a few runs, then reads, then a restart.
fn load(directory: &Path, run: u64, runs: u64) -> Outcome<()> {
    println!("\n{runs} runs of {run} new keys");
    {
        let store = open(directory)?;
        for slot in 0..runs {
            // Every run spans the whole key space.
            ingest(&store, slot, (0..run).map(|n| key(n * runs + slot)).collect())?;
        }
        settle(&store)?;
        gets(&store, run * runs, "point reads, just written")?;
    }
    let started = Instant::now();
    let store = open(directory)?;
    println!("  open: {:.1} ms", millis(started));
    scan(&store, "scan at boot")?;
    gets(&store, run * runs, "point reads")?;
    println!("  {} MiB on disk, {} MiB resident", store.size_bytes() >> 20, resident_mib()?);
    Ok(())
}

/// Fifty checkpoints that each rewrite 65,536 of 262,144 keys.
fn overwrite(directory: &Path) -> Outcome<()> {
    let (keys, run, runs) = (262_144, 65_536, 50);
    println!("\n{runs} runs of {run} out of {keys} keys, in haste");
    let mut random = Random(1);
    let store = open(directory)?;
    let (started, cpu) = (Instant::now(), cpu()?);
    let mut disk_max = 0;
    for slot in 0..runs {
        let mut chosen = BTreeSet::new();
        while chosen.len() < run {
            chosen.insert(random.next() % keys);
        }
        ingest(&store, slot, chosen.into_iter().map(key).collect())?;
        disk_max = disk_max.max(disk_bytes(directory)?);
        if slot % 10 == 9 {
            println!(
                "  after {:>2} runs: {} MiB in the tree, {} MiB in files",
                slot + 1,
                store.size_bytes() >> 20,
                disk_bytes(directory)? >> 20
            );
            gets(&store, keys, "point reads")?;
            scan(&store, "scan")?;
        }
    }
    settle(&store)?;
    println!(
        "  all: {:.1} s, {:.1} s of CPU, live data {} MiB, {} MiB in files at most, {} MiB now, {} MiB resident",
        started.elapsed().as_secs_f64(),
        self::cpu()?.saturating_sub(cpu).as_secs_f64(),
        (keys * (32 + 256)) >> 20,
        disk_max >> 20,
        disk_bytes(directory)? >> 20,
        resident_mib()?
    );
    Ok(())
}

fn open(directory: &Path) -> Outcome<Arc<dyn StateStore>> {
    std::fs::create_dir_all(directory)?;
    Ok(LsmEngine::open(directory, &LsmOptions::default())?.store(GroupId(1), 0)?)
}

fn ingest(store: &Arc<dyn StateStore>, slot: u64, keys: Vec<Bytes>) -> Outcome<()> {
    let mut random = Random(slot + 1);
    let count = keys.len();
    let mut pairs: Vec<(Bytes, Option<Bytes>)> =
        keys.into_iter().map(|key| (key, Some(value(&mut random)))).collect();
    pairs.sort_unstable();
    let meta =
        SnapshotMeta { slot: Slot(slot), ballot: Ballot::term(1), config: Config::default(), generation: 0 };
    let (started, before, thread) = (Instant::now(), cpu()?, thread_cpu()?);
    store.ingest(Checkpoint { meta, record: Bytes::new() }, &mut pairs.into_iter())?;
    let per_put = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count as f64;
    println!(
        "  ingest {:>2}: {:.0} ms, CPU {:.2} us a put ({:.2} with merging beside it)",
        slot,
        millis(started),
        per_put(thread_cpu()?.saturating_sub(thread)),
        per_put(cpu()?.saturating_sub(before))
    );
    Ok(())
}

/// Waits until nothing is merged any more, and says what that took.
fn settle(store: &Arc<dyn StateStore>) -> Outcome<()> {
    let (started, before) = (Instant::now(), cpu()?);
    let mut quiet = 0;
    let mut last = cpu()?;
    while quiet < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = cpu()?;
        quiet = if now.saturating_sub(last) > Duration::from_millis(5) { 0 } else { quiet + 1 };
        last = now;
    }
    println!(
        "  merging to rest: {:.0} ms, CPU {:.0} ms, {} MiB on disk",
        millis(started),
        cpu()?.saturating_sub(before).as_secs_f64() * 1e3,
        store.size_bytes() >> 20
    );
    Ok(())
}

fn gets(store: &Arc<dyn StateStore>, keys: u64, what: &str) -> Outcome<()> {
    let count = 100_000_u32;
    let mut random = Random(99);
    for (kind, absent) in [("present", false), ("absent", true)] {
        let (started, mut found) = (Instant::now(), 0_u32);
        for _ in 0..count {
            let mut key = key(random.next() % keys);
            if absent {
                key = [&key[..], b"?"].concat().into();
            }
            found += u32::from(store.get(&key)?.is_some());
        }
        println!(
            "  {what}, {kind}: {:.2} us each, {found} found",
            started.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        );
    }
    Ok(())
}

fn scan(store: &Arc<dyn StateStore>, what: &str) -> Outcome<()> {
    let started = Instant::now();
    let (mut pairs, mut bytes) = (0_u64, 0);
    for pair in store.scan(Bound::Unbounded, Bound::Unbounded, false) {
        let (key, value) = pair?;
        pairs += 1;
        bytes += key.len() + value.len();
    }
    println!("  {what}: {pairs} pairs, {} MiB in {:.0} ms", bytes >> 20, millis(started));
    Ok(())
}

fn key(n: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(32);
    key.put_slice(format!("/registry/pods/{n:09}").as_bytes());
    key.put_u64(1);
    key.freeze()
}

fn value(random: &mut Random) -> Bytes {
    let mut value = BytesMut::with_capacity(256);
    for _ in 0..32 {
        value.put_u64(random.next());
    }
    value.freeze()
}

/// Steele, Lea, Flood: *Fast splittable pseudorandom number generators*, OOPSLA '14.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn cpu() -> Outcome<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        nanos += schedstat(&task?.path().join("schedstat"))?;
    }
    Ok(Duration::from_nanos(nanos))
}

fn thread_cpu() -> Outcome<Duration> {
    Ok(Duration::from_nanos(schedstat(Path::new("/proc/thread-self/schedstat"))?))
}

fn schedstat(path: &Path) -> Outcome<u64> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.split_whitespace().next().ok_or("an empty schedstat")?.parse()?)
}

fn resident_mib() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no VmRSS")?.parse::<u64>()? / 1024)
}

fn disk_bytes(directory: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // A table may be deleted between its listing and here.
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path())?,
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    Ok(bytes)
}
