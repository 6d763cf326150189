//! Watches over gRPC: what a client is sent, in which order, and how its stream ends.

use std::time::Duration;

use conclave_api::etcdserverpb::watch_client::WatchClient;
use conclave_api::etcdserverpb::watch_request::RequestUnion;
use conclave_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, request_op,
};
use expect_test::expect;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use crate::backend::{Running, lines, start, told};

/// An open stream.
struct Stream {
    requests: mpsc::UnboundedSender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(running: &Running, demands_leader: bool) -> Result<Self, Status> {
        let (requests, mut asked) = mpsc::unbounded_channel();
        let mut request = Request::new(futures::stream::poll_fn(move |cx| asked.poll_recv(cx)));
        if demands_leader {
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        }
        let mut client = WatchClient::new(running.channel()).max_decoding_message_size(64 << 20);
        let responses = client.watch(request).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn of(running: &Running) -> Self {
        Self::open(running, false).await.unwrap()
    }

    fn ask(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).unwrap();
    }

    fn create(&self, request: WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request));
    }

    async fn next(&mut self) -> WatchResponse {
        self.responses.message().await.unwrap().unwrap()
    }

    /// The next response that says more than that a watch was created.
    async fn next_event(&mut self) -> WatchResponse {
        loop {
            let response = self.next().await;
            if !response.created {
                return response;
            }
        }
    }

    async fn end(&mut self) -> String {
        loop {
            match self.responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return "ended".to_owned(),
                Err(status) => return told::<()>(Err(status)),
            }
        }
    }
}

fn watch(key: &str, range_end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: range_end.to_owned().into(),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

/// A response in a line.
fn line(response: &WatchResponse) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let WatchResponse { watch_id, created, canceled, compact_revision, cancel_reason, .. } = response;
    let mut line = format!("{watch_id} at {}:", response.header.as_ref().unwrap().revision);
    let mut say = |what: String| line.push_str(&format!(" {what}"));
    if *created {
        say("created".to_owned());
    }
    if *canceled {
        say("canceled".to_owned());
    }
    if *compact_revision != 0 {
        say(format!("compacted {compact_revision}"));
    }
    if !cancel_reason.is_empty() {
        say(cancel_reason.clone());
    }
    for event in &response.events {
        let kv = event.kv.as_ref().unwrap();
        say(format!("{:?} {}={}@{}", event.r#type(), text(&kv.key), text(&kv.value), kv.mod_revision));
        if let Some(before) = &event.prev_kv {
            say(format!("was {}@{}", text(&before.value), before.mod_revision));
        }
    }
    line
}

#[tokio::test]
async fn history_then_what_comes_with_a_full_header() {
    let running = start(|_| {});
    let mut kv = running.kv();
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("b", "1")).await.unwrap();
    let mut stream = Stream::of(&running).await;
    stream.create(WatchCreateRequest { prev_kv: true, ..watch("a", "c", 3) });
    let header = stream.next().await.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (0xc, 0xa, 3, 3));
    let mut told_of = vec![line(&stream.next().await)];
    kv.put(put("a", "2")).await.unwrap();
    told_of.push(line(&stream.next().await));
    let deletion = DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: false };
    kv.delete_range(deletion).await.unwrap();
    told_of.push(line(&stream.next().await));
    expect![[r"
        0 at 3: Put b=1@3
        0 at 4: Put a=2@4 was 1@2
        0 at 5: Delete a=@5 was 2@4 Delete b=@5 was 1@3
    "]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test]
async fn requests_are_answered_in_etcds_words() {
    let running = start(|_| {});
    let mut kv = running.kv();
    for value in ["1", "2", "3"] {
        kv.put(put("a", value)).await.unwrap();
    }
    kv.compact(CompactionRequest { revision: 3, physical: true }).await.unwrap();
    let mut stream = Stream::of(&running).await;
    let requests = [
        RequestUnion::CreateRequest(watch("b", "a", 0)),
        RequestUnion::CreateRequest(WatchCreateRequest { watch_id: 5, ..watch("a", "", 0) }),
        RequestUnion::CreateRequest(WatchCreateRequest { watch_id: 5, ..watch("a", "", 0) }),
        RequestUnion::CreateRequest(watch("a", "", -3)),
        RequestUnion::CreateRequest(watch("a", "", 2)),
        RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 77 }),
        RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 5 }),
        RequestUnion::CreateRequest(watch("", "\0", 0)),
        RequestUnion::ProgressRequest(WatchProgressRequest {}),
    ];
    stream.requests.send(WatchRequest { request_union: None }).unwrap();
    requests.into_iter().for_each(|request| stream.ask(request));
    let mut told_of = Vec::new();
    for _ in 0..9 {
        told_of.push(line(&stream.next().await));
    }
    expect![[r"
        -1 at 4: created canceled mvcc: watcher range is empty
        5 at 4: created
        -1 at 4: created canceled mvcc: duplicate watch ID provided on the WatchStream
        -1 at 4: created canceled etcdserver: mvcc: required revision has been compacted
        0 at 4: created
        0 at 4: canceled compacted 3
        5 at 4: canceled
        1 at 4: created
        -1 at 4:
    "]]
    .assert_eq(&lines(told_of));
    // What is too large for any request ends the stream as gRPC does; the others do not notice.
    let mut other = Stream::of(&running).await;
    other.create(watch(&"k".repeat(3 << 20), "", 0));
    assert!(other.end().await.starts_with("OutOfRange"), "a request that is too large");
    kv.put(put("a", "4")).await.unwrap();
    assert_eq!(line(&stream.next().await), "1 at 5: Put a=4@5");
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_client_that_has_said_all_is_still_told_everything() {
    let running = start(|_| {});
    let mut stream = Stream::of(&running).await;
    stream.create(watch("a", "", 0));
    assert!(stream.next().await.created);
    let Stream { requests, mut responses } = stream;
    drop(requests);
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.kv().put(put("a", "1")).await.unwrap();
    assert_eq!(line(&responses.message().await.unwrap().unwrap()), "0 at 2: Put a=1@2");
    drop(responses);
    running.front.shutdown().await;
}

#[tokio::test]
async fn progress_comes_without_writes() {
    let running = start(|config| config.watch_progress_notify_interval = Duration::from_millis(100));
    running.kv().put(put("b", "1")).await.unwrap();
    let mut stream = Stream::of(&running).await;
    stream.create(WatchCreateRequest { progress_notify: true, ..watch("a", "", 0) });
    assert!(stream.next().await.created);
    for _ in 0..3 {
        assert_eq!(line(&stream.next().await), "0 at 2:");
    }
    drop(stream);
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_large_revision_comes_whole_or_in_fragments() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let ops = (0..12).map(|at| RequestOp {
        request: Some(request_op::Request::RequestPut(put(&format!("k{at:02}"), &"v".repeat(100_000)))),
    });
    let txn = TxnRequest { success: ops.collect(), ..TxnRequest::default() };
    kv.txn(txn.clone()).await.unwrap();
    kv.txn(txn).await.unwrap();
    let mut stream = Stream::of(&running).await;
    stream.create(WatchCreateRequest { prev_kv: true, fragment: true, ..watch("k", "l", 3) });
    let mut shape = Vec::new();
    for _ in 0..2 {
        let response = stream.next_event().await;
        shape.push((response.events.len(), response.fragment));
    }
    assert_eq!(shape, [(10, true), (2, false)]);
    stream.create(WatchCreateRequest { prev_kv: true, ..watch("k", "l", 3) });
    let whole = stream.next_event().await;
    assert_eq!((whole.events.len(), whole.fragment), (12, false));
    drop(stream);
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_demands_a_leader_ends_without_one() {
    let running = start(|_| {});
    let mut demanding = Stream::open(&running, true).await.unwrap();
    demanding.create(watch("a", "", 0));
    assert!(demanding.next().await.created);
    let mut content = Stream::of(&running).await;
    content.create(watch("a", "", 0));
    assert!(content.next().await.created);
    running.fake.raft.lock().unwrap().leader = None;
    assert_eq!(demanding.end().await, "Unavailable: etcdserver: no leader");
    let refused = Stream::open(&running, true).await.map(drop);
    assert_eq!(told(refused), "Unavailable: etcdserver: no leader");
    running.kv().put(put("a", "1")).await.unwrap();
    assert_eq!(line(&content.next().await), "0 at 2: Put a=1@2");
    running.fake.raft.lock().unwrap().is_learner = true;
    let refused = Stream::open(&running, false).await.map(drop);
    assert_eq!(told(refused), "FailedPrecondition: etcdserver: rpc not supported for learner");
    drop(content);
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_stop_ends_streams_at_once() {
    let running = start(|_| {});
    let mut stream = Stream::of(&running).await;
    stream.create(watch("a", "", 0));
    assert!(stream.next().await.created);
    let stop = tokio::spawn(running.front.shutdown());
    assert_eq!(stream.end().await, "Unavailable: etcdserver: server stopped");
    drop(stream);
    tokio::time::timeout(Duration::from_secs(2), stop).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_nobody_back_and_misses_nothing() {
    const WRITES: i64 = 3000;
    let running = start(|_| {});
    let mut slow = Stream::of(&running).await;
    slow.create(watch("a", "", 0));
    assert!(slow.next().await.created);
    let mut quick = Stream::of(&running).await;
    quick.create(watch("a", "", 0));
    let mut kv = running.kv();
    let writer = tokio::spawn(async move {
        for at in 0..WRITES {
            kv.put(put("a", &format!("{at}{}", "x".repeat(1000)))).await.unwrap();
        }
    });
    let mut seen = 1;
    while seen <= WRITES {
        for event in quick.next_event().await.events {
            seen += 1;
            assert_eq!(event.kv.unwrap().mod_revision, seen);
        }
    }
    writer.await.unwrap();
    let metrics = metrics(&running).await;
    let figure = |name: &str| -> i64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("etcd_debugging_mvcc_{name} ")));
        line.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap()
    };
    assert_eq!(
        (figure("watch_stream_total"), figure("watcher_total"), figure("slow_watcher_total")),
        (2, 2, 1)
    );
    // A queue holds 256 KiB and a page of as much at most, and there are two; an event has a kilobyte.
    assert!((1..=2 * 512).contains(&figure("pending_events_total")), "{metrics}");
    let mut seen = 1;
    while seen <= WRITES {
        for event in slow.next_event().await.events {
            seen += 1;
            assert_eq!(event.kv.unwrap().mod_revision, seen);
        }
    }
    drop((slow, quick));
    running.front.shutdown().await;
}

async fn metrics(running: &Running) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(running.front.client_addr()).await.unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn closed_streams_leave_no_watches() {
    let running = start(|_| {});
    for _ in 0..20 {
        let mut stream = Stream::of(&running).await;
        for at in 0..50 {
            stream.create(watch(&format!("k{at}"), "", 0));
        }
        for _ in 0..50 {
            stream.next().await;
        }
    }
    let gone = async {
        while !metrics(&running).await.contains("\netcd_debugging_mvcc_watcher_total 0\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    running.front.shutdown().await;
}
