//! A client that watches everything and goes on where it was, whatever becomes of its streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use conclave_api::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
};
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// Between two attempts to open a stream.
const PAUSE: Duration = Duration::from_millis(50);

/// One change as the watcher was told of it: key, value if there is one, version, and the value before.
pub type Told = (Vec<u8>, Option<Vec<u8>>, i64, Option<Vec<u8>>);

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By revision, in the order in which it came.
    pub changes: Vec<(i64, Vec<Told>)>,
    /// How many streams were opened.
    pub streams: usize,
}

/// A watcher at work.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<Result<()>>,
}

impl Watcher {
    /// Begins to watch all keys from a revision on, at the first endpoint; each stream that ends is followed by one at the next.
    ///
    /// # Errors
    /// If an endpoint is no URL.
    pub fn start(endpoints: &[String], from: i64) -> Result<Self> {
        let channels: Vec<Channel> = endpoints
            .iter()
            .map(|endpoint| {
                let endpoint =
                    Endpoint::from_shared(endpoint.clone())?.connect_timeout(Duration::from_secs(1));
                Ok(endpoint.connect_lazy())
            })
            .collect::<Result<_>>()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(watch(channels, from, Arc::clone(&seen)));
        Ok(Self { seen, task })
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// Waits until a revision has been seen, and ends.
    ///
    /// # Errors
    /// If a response broke a rule, or the revision does not come in time.
    pub async fn finish(self, revision: i64, within: Duration) -> Result<Seen> {
        let began = Instant::now();
        loop {
            if self.task.is_finished() {
                self.task.await??;
                bail!("the watcher ended by itself");
            }
            let last = self.seen.lock().changes.last().map_or(0, |(revision, _)| *revision);
            if last >= revision {
                self.task.abort();
                return Ok(self.seen.lock().clone());
            }
            ensure!(began.elapsed() < within, "a watcher came to revision {last} of {revision}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn watch(channels: Vec<Channel>, from: i64, seen: Arc<Mutex<Seen>>) -> Result<()> {
    for channel in channels.iter().cycle() {
        let next = seen.lock().changes.last().map_or(from, |(revision, _)| revision + 1);
        if let Ok(mut stream) = open(channel.clone(), next).await {
            seen.lock().streams += 1;
            while let Ok(Some(response)) = stream.message().await {
                take(&response, &mut seen.lock())?;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn open(channel: Channel, start_revision: i64) -> Result<Streaming<WatchResponse>> {
    let create = WatchCreateRequest {
        key: b"\0".as_slice().into(),
        range_end: b"\0".as_slice().into(),
        start_revision,
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The request stream stays open: its end would be no reason to stop, but that is tested elsewhere.
    let requests = stream::once(async { request }).chain(stream::pending());
    let mut request = tonic::Request::new(requests);
    request.metadata_mut().insert("hasleader", "true".parse()?);
    let mut client = WatchClient::new(channel);
    Ok(tokio::time::timeout(Duration::from_secs(3), client.watch(request)).await??.into_inner())
}

/// Notes a response: each revision once, whole, and in order.
fn take(response: &WatchResponse, seen: &mut Seen) -> Result<()> {
    ensure!(!response.canceled, "canceled: {response:?}");
    let header = response.header.as_ref().context("a header")?.revision;
    let before = seen.changes.last().map_or(0, |(revision, _)| *revision);
    for event in &response.events {
        let kv = event.kv.as_ref().context("a key")?;
        let revision = kv.mod_revision;
        ensure!(revision > before, "revision {revision} after {before} was seen to its end");
        ensure!(revision <= header, "revision {revision} in a response of {header}");
        let value = (kv.version > 0).then(|| kv.value.to_vec());
        let told = (kv.key.to_vec(), value, kv.version, event.prev_kv.as_ref().map(|kv| kv.value.to_vec()));
        match seen.changes.last_mut() {
            Some((last, changes)) if *last == revision => changes.push(told),
            Some((last, _)) if *last > revision => bail!("revision {revision} after {last}"),
            _ => seen.changes.push((revision, vec![told])),
        }
    }
    Ok(())
}

/// Whether all watchers saw the same.
///
/// # Errors
/// Where they differ.
pub fn agree(all: &[Seen]) -> Result<()> {
    let Some((one, others)) = all.split_first() else { return Ok(()) };
    for (at, other) in others.iter().enumerate() {
        let apart = one.changes.iter().zip(&other.changes).find(|(a, b)| a != b);
        ensure!(apart.is_none(), "watcher {} differs from the first: {apart:?}", at + 1);
        ensure!(
            one.changes.len() == other.changes.len(),
            "watcher {} saw {} revisions, the first {}",
            at + 1,
            other.changes.len(),
            one.changes.len()
        );
    }
    Ok(())
}
