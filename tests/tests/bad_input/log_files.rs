//! Log files that are not as the log left them.
//!
//! What the log promises: a file under a segment's name always has its whole length and a header, so a shorter one is damage, also if
//! nothing but zeros is missing. An invalid frame that a later one proves to have been synced is damage. Behind the last frame there may
//! be anything: the tail that a power cut leaves. Damage is never repaired by guessing: the node halts, names the place, and changes
//! nothing, so that with the bytes put back all is there.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use conclave_tests::solo::{Refusal, Solo, Written};
use tempfile::TempDir;

/// A node that was killed after it acknowledged writes.
struct Killed {
    solo: Solo,
    written: Written,
    _directory: TempDir,
}

impl Killed {
    async fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut solo = Solo::start(directory.path())?;
        let written = Written::keys(&mut solo.client()?, 200).await?;
        solo.kill()?;
        Ok(Self { solo, written, _directory: directory })
    }

    fn segment(&self, number: u32) -> PathBuf {
        self.solo.data_dir().join("log").join(format!("{number:08x}.wal"))
    }

    fn open(&self, number: u32) -> Result<File> {
        Ok(OpenOptions::new().read(true).write(true).open(self.segment(number))?)
    }

    /// The number of bytes up to the last that is not zero.
    fn used_bytes(&self, number: u32) -> Result<u64> {
        let bytes = fs::read(self.segment(number))?;
        let last = bytes.iter().rposition(|byte| *byte != 0).context("an empty segment")?;
        Ok(last as u64 + 1)
    }

    /// With whatever was wrong put right: nothing is lost, and new writes are taken.
    async fn check(mut self) -> Result<()> {
        self.solo.restart()?;
        let mut kv = self.solo.client()?;
        self.written.check(&mut kv).await?;
        let more = Written::keys(&mut kv, self.written.count() + 50).await?;
        self.solo.kill()?;
        self.solo.restart()?;
        more.check(&mut self.solo.client()?).await
    }
}

/// The offset that a report of damage names.
fn damaged_at(refusal: &Refusal, segment: &str) -> Result<u64> {
    let prefix = format!("log segment {segment} is damaged at offset ");
    let rest = refusal.line.strip_prefix(&prefix).with_context(|| format!("{refusal:?}"))?;
    ensure!(refusal.code == 1, "{refusal:?}");
    Ok(rest.split(':').next().unwrap_or_default().parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synced_byte_that_changed() -> Result<()> {
    let mut killed = Killed::new().await?;
    let file = killed.open(1)?;
    let place = killed.used_bytes(1)? / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, place)?;
    file.write_all_at(&[byte[0] ^ 0x10], place)?;
    let offset = damaged_at(&killed.solo.restart_refused()?, "00000001.wal")?;
    ensure!(offset <= place && place - offset < 1024, "{offset} is not the frame of {place}");
    // Once more: the first refusal changed nothing that the second would miss.
    ensure!(damaged_at(&killed.solo.restart_refused()?, "00000001.wal")? == offset, "another place");
    file.write_all_at(&byte, place)?;
    killed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment() -> Result<()> {
    let mut killed = Killed::new().await?;
    let file = killed.open(1)?;
    let size_bytes = file.metadata()?.len();
    let used_bytes = killed.used_bytes(1)?;
    let used = fs::read(killed.segment(1))?[..used_bytes as usize].to_vec();
    for left_bytes in [size_bytes / 2, used_bytes / 2, 40, 0] {
        file.set_len(left_bytes)?;
        let refusal = killed.solo.restart_refused()?;
        ensure!(damaged_at(&refusal, "00000001.wal")? == left_bytes, "{refusal:?}");
        ensure!(file.metadata()?.len() == left_bytes, "a refused file was changed");
        file.set_len(size_bytes)?;
        file.write_all_at(&used, 0)?;
    }
    killed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_segment() -> Result<()> {
    let mut killed = Killed::new().await?;
    let aside = killed.solo.data_dir().join("aside");
    fs::rename(killed.segment(1), &aside)?;
    let refusal = killed.solo.restart_refused()?;
    // The second stands prepared and empty.
    let told = "its first frame is invalid, and no segment stands before it";
    ensure!(damaged_at(&refusal, "00000002.wal")? == 64 && refusal.line.contains(told), "{refusal:?}");
    fs::rename(&aside, killed.segment(1))?;
    killed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_log() -> Result<()> {
    let mut killed = Killed::new().await?;
    let log = killed.solo.data_dir().join("log");
    let aside = killed.solo.data_dir().join("aside");
    fs::rename(&log, &aside)?;
    // Twice: an empty log made at the first start must not pass for the lost one at the second.
    for _ in 0..2 {
        let refusal = killed.solo.restart_refused()?;
        let told = "has a state but no log: the log was lost, and with it what this member promised; ";
        ensure!(refusal.code == 1 && refusal.line.contains(told), "{refusal:?}");
    }
    fs::remove_dir_all(&log)?;
    fs::rename(&aside, &log)?;
    killed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_files() -> Result<()> {
    let mut killed = Killed::new().await?;
    let third = killed.segment(3);
    let segment_bytes = fs::metadata(killed.segment(1))?.len();
    let told = |what: &str| Refusal { code: 1, line: what.to_owned() };

    let letter = third.with_file_name("letter.txt");
    fs::write(&letter, "Dear")?;
    let refusal = killed.solo.restart_refused()?;
    ensure!(
        refusal == told("letter.txt is not a segment of this log: no segment has such a name"),
        "{refusal:?}"
    );
    fs::remove_file(letter)?;

    fs::write(&third, b"Dear reader, this is not a segment but a letter of more than 64 bytes. Yours")?;
    let refusal = killed.solo.restart_refused()?;
    ensure!(
        refusal == told("00000003.wal is not a segment of this log: it does not begin as one"),
        "{refusal:?}"
    );

    fs::copy(killed.segment(2), &third)?;
    let refusal = killed.solo.restart_refused()?;
    ensure!(
        refusal == told("00000003.wal is not a segment of this log: by its header it is segment 00000002"),
        "{refusal:?}"
    );
    fs::remove_file(&third)?;

    // A segment of another node's log in the place of our own.
    let other = Killed::new().await?;
    let aside = killed.solo.data_dir().join("aside");
    fs::rename(killed.segment(2), &aside)?;
    fs::copy(other.segment(2), killed.segment(2))?;
    ensure!(fs::metadata(killed.segment(2))?.len() == segment_bytes, "segments differ in size");
    let refusal = killed.solo.restart_refused()?;
    ensure!(
        refusal.code == 1
            && refusal.line.starts_with("00000002.wal is not a segment of this log: it belongs to log "),
        "{refusal:?}"
    );
    fs::rename(&aside, killed.segment(2))?;
    killed.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_no_damage() -> Result<()> {
    let killed = Killed::new().await?;
    let file = killed.open(1)?;
    let used_bytes = killed.used_bytes(1)?.next_multiple_of(8);
    // As a power cut leaves it: pieces of a write that was never synced, the blocks between them missing.
    let mut torn = fs::read(killed.segment(1))?[64..1024].to_vec();
    torn.reverse();
    file.write_all_at(&torn, used_bytes)?;
    file.write_all_at(&torn, used_bytes + 8192)?;
    killed.check().await
}
