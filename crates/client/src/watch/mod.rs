//! Watches: events as they happen, or have happened since a revision.
//!
//! A watch outlives its connection. When the stream breaks, the server stops or loses its leader, the next endpoint is asked for what
//! comes after the last revision that was handed out: no event is missed and none comes twice. If that history is compacted meanwhile, the watch
//! ends with [`WatchError::Compacted`] and says so; then read anew and watch from there.
//!
//! No task and no queue stand behind a watcher: it reads its stream when it is asked for more, and what is not asked for waits at the
//! server, held back by HTTP/2's flow control.

mod resume;

use bytes::Bytes;
use conclave_api::{
    etcdserverpb::{
        WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient,
        watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb,
};
use futures::{Stream, StreamExt, stream};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::{
    call::{Attempt, demanding_leader},
    client::Client,
    error::Error,
    kv::{KeyValue, Keys, Revision},
    outcome::{Verdict, judge},
};

use resume::{Resume, Step};

/// What to watch.
///
/// ```
/// use conclave_client::{Keys, Revision, Watch};
///
/// let from_now_on = Watch::new("config");
/// let everything_since = Watch::new(Keys::prefix("jobs/")).after(Revision(1200));
/// # let _ = (from_now_on, everything_since);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    request: WatchCreateRequest,
    start: Option<Revision>,
}

impl Watch {
    /// A key or several, from now on.
    pub fn new(keys: impl Into<Keys>) -> Self {
        let Keys { from, to } = keys.into();
        // Large answers come in parts, so that none is larger than what is taken.
        let request =
            WatchCreateRequest { key: from, range_end: to, fragment: true, ..WatchCreateRequest::default() };
        Self { request, start: None }
    }

    /// From what came after this revision: that of a read, to miss nothing since.
    #[must_use]
    pub fn after(mut self, revision: Revision) -> Self {
        self.start = Some(revision.next());
        self
    }

    /// With what stood there before each event.
    #[must_use]
    pub fn previous(mut self) -> Self {
        self.request.prev_kv = true;
        self
    }

    /// Batches without events, too, that say up to which revision there is nothing to see.
    #[must_use]
    pub fn progress(mut self) -> Self {
        self.request.progress_notify = true;
        self
    }

    /// Only what is put.
    #[must_use]
    pub fn puts_only(mut self) -> Self {
        self.request.filters = vec![FilterType::Nodelete as i32];
        self
    }

    /// Only what is deleted.
    #[must_use]
    pub fn deletes_only(mut self) -> Self {
        self.request.filters = vec![FilterType::Noput as i32];
        self
    }
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was put.
    Put,
    /// It was deleted, or went with its lease.
    Delete,
}

/// Something that happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The key as it was put; of a deletion, the key and the revision of the deletion alone.
    pub kv: KeyValue,
    /// What stood there before, if that was asked for and is not compacted.
    pub previous: Option<KeyValue>,
}

impl Event {
    fn from_wire(event: mvccpb::Event) -> Option<Self> {
        let kind = match event.r#type() {
            mvccpb::event::EventType::Put => EventKind::Put,
            mvccpb::event::EventType::Delete => EventKind::Delete,
        };
        Some(Self { kind, kv: event.kv?.into(), previous: event.prev_kv.map(Into::into) })
    }

    /// The key that it happened to.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        &self.kv.key
    }
}

/// Events in the order of their revisions. All of one revision are in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Everything up to it has been handed out.
    pub revision: Revision,
    /// None in a batch that tells progress.
    pub events: Vec<Event>,
}

/// Why a watch has ended for good.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Events were missed, for the history that they are in is gone. Read what is there now, and watch from that revision.
    #[error("the history before revision {revision} was compacted")]
    Compacted {
        /// The earliest revision from which can be watched.
        revision: Revision,
    },
    /// The server will not have this watch.
    #[error("the server ended the watch: {reason}")]
    Canceled {
        /// The server's words.
        reason: String,
    },
    /// The server refused the stream.
    #[error("the watch was refused")]
    Refused(#[source] Error),
}

impl Client {
    /// A watch. It is established when it is first asked for something, or by [`Watcher::established`].
    ///
    /// ```no_run
    /// use conclave_client::{Client, EventKind, Keys, Watch};
    ///
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut jobs = client.watch(Watch::new(Keys::prefix("jobs/")));
    /// loop {
    ///     for event in jobs.next().await?.events {
    ///         if event.kind == EventKind::Put {
    ///             println!("{:?} is to be done", event.key());
    ///         }
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn watch(&self, watch: Watch) -> Watcher {
        let resume = Resume::new(watch.start);
        Watcher {
            client: self.clone(),
            request: watch.request,
            resume,
            open: None,
            established: None,
            ended: None,
        }
    }
}

/// An open stream, and the attempt that it came of.
#[derive(Debug)]
struct Open {
    responses: Streaming<WatchResponse>,
    attempt: Attempt,
    is_created: bool,
}

/// A watch under way. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    request: WatchCreateRequest,
    resume: Resume,
    open: Option<Open>,
    established: Option<Revision>,
    ended: Option<WatchError>,
}

impl Watcher {
    /// Waits until the watch is established: what happens after the returned revision will be seen.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn established(&mut self) -> Result<Revision, WatchError> {
        loop {
            if let Some(revision) = self.established {
                return Ok(revision);
            }
            // The first response is the one that says so: no event is lost here.
            self.advance().await?;
        }
    }

    /// The next events. Broken streams are replaced, with pauses of at most [`Config::backoff_max`](crate::Config::backoff_max), for as long as
    /// this is waited for: put it under a `tokio::time::timeout` to give up. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`WatchError`]; the same again, however often it is called then.
    pub async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            if let Some(batch) = self.advance().await? {
                return Ok(batch);
            }
        }
    }

    /// The watch as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Batch, WatchError>> + Send {
        stream::unfold(Some(self), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(batch) => Some((Ok(batch), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Takes one response, or opens a stream. What is awaited is lost with the future that awaits it and with nothing else: a message
    /// not yet read, or a stream of which nothing was read.
    async fn advance(&mut self) -> Result<Option<Batch>, WatchError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let Some(open) = &mut self.open else {
            self.open_stream().await?;
            return Ok(None);
        };
        let patience = self.client.shared.config.attempt_timeout;
        let message = if open.is_created {
            open.responses.message().await
        } else {
            let created = timeout(patience, open.responses.message()).await;
            created.unwrap_or_else(|_| Err(Status::deadline_exceeded("the watch was not created in time")))
        };
        let response = match message {
            Ok(Some(response)) => response,
            Ok(None) => {
                self.reopen("the stream ended");
                return Ok(None);
            }
            Err(status) => return self.broken(&status).map(|()| None),
        };
        match self.resume.take(response) {
            Step::Created(revision) => {
                open.is_created = true;
                self.client.shared.answered(&open.attempt);
                self.established.get_or_insert(revision);
            }
            Step::Batch(batch) => return Ok(Some(batch)),
            Step::Nothing => {}
            Step::Reopen(why) => self.reopen(why),
            Step::End(error) => return Err(self.end(error)),
        }
        Ok(None)
    }

    async fn open_stream(&mut self) -> Result<(), WatchError> {
        let shared = &self.client.shared;
        let Some(attempt) = shared.attempt(None).await else { return Ok(()) };
        let request = WatchCreateRequest { start_revision: self.resume.open(), ..self.request.clone() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
        // The requests' side stays open for as long as the watch does.
        let requests = stream::iter([request]).chain(stream::pending());
        let mut service =
            WatchClient::new(attempt.way.clone()).max_decoding_message_size(shared.config.answer_bytes_max);
        let opened = timeout(shared.config.attempt_timeout, service.watch(demanding_leader(requests))).await;
        match opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("the stream was not opened in time"))) {
            Ok(response) => {
                self.open = Some(Open { responses: response.into_inner(), attempt, is_created: false });
                Ok(())
            }
            Err(status) => match judge(&status) {
                Verdict::Final(error) => Err(self.end(WatchError::Refused(error))),
                Verdict::NoEffect | Verdict::Unknown => {
                    shared.failed(&attempt, &status.message());
                    Ok(())
                }
            },
        }
    }

    fn broken(&mut self, status: &Status) -> Result<(), WatchError> {
        match judge(status) {
            Verdict::Final(error) => Err(self.end(WatchError::Refused(error))),
            Verdict::NoEffect | Verdict::Unknown => {
                self.reopen(status.message());
                Ok(())
            }
        }
    }

    fn reopen(&mut self, why: &str) {
        if let Some(open) = self.open.take() {
            // An endpoint is judged by when its stream broke: when it was opened may be long ago.
            let attempt = Attempt { asked: crate::Moment::now(), ..open.attempt };
            self.client.shared.failed(&attempt, &why);
        }
    }

    fn end(&mut self, error: WatchError) -> WatchError {
        self.open = None;
        self.ended = Some(error.clone());
        error
    }
}
