//! Watches: random stores, clients and delays against a twin, and etcd's facts one by one.

use bytes::Bytes;
use conclave_api::{
    conclave::kv::v1::CheckpointRecord,
    etcdserverpb::{DeleteRangeRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op::Request},
};
use conclave_kv::{
    HistoryError, Machine, Reader,
    watch::{Body, Frame, Hub, Options, StreamId, Work},
};
use conclave_storage::{Checkpoint, MemoryEngine, StateEngine};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use crate::{
    harness::{GROUP, Replica, bytes, put},
    watch_model::{Client, Twin, Write, events, revision_of},
};

/// Reads one page for the hub; whether there was one.
pub(crate) fn page(hub: &mut Hub, reader: &Reader, page_bytes: usize) -> bool {
    let Some(work) = hub.work(reader.revision()) else { return false };
    give(hub, work, read(hub, reader, work, page_bytes));
    true
}

fn read(
    hub: &Hub,
    reader: &Reader,
    work: Work,
    page_bytes: usize,
) -> Result<conclave_kv::Changes, HistoryError> {
    let mut page = reader.changes(work.from(), page_bytes)?;
    let needs = hub.needs(work, &page);
    reader.complete(&mut page, &needs)?;
    Ok(page)
}

fn give(hub: &mut Hub, work: Work, page: Result<conclave_kv::Changes, HistoryError>) {
    match page {
        Ok(page) => hub.advance(work, page),
        Err(HistoryError::Compacted(oldest)) => hub.lost(work, oldest),
        Err(HistoryError::Engine(error)) => panic!("{error}"),
    }
}

fn op(write: &Write) -> RequestOp {
    let request = match write {
        Write::Put(key, value) => Request::RequestPut(put(key, value)),
        Write::Delete(from, end) => Request::RequestDeleteRange(DeleteRangeRequest {
            key: bytes(from),
            range_end: bytes(end),
            prev_kv: false,
        }),
    };
    RequestOp { request: Some(request) }
}

/// A store, its twin, a hub, and clients.
struct World {
    replica: Replica,
    twin: Twin,
    hub: Hub,
    clients: Vec<(StreamId, Client)>,
    /// A page that was read and not given out yet.
    pending: Option<(Work, Result<conclave_kv::Changes, HistoryError>)>,
    page_bytes: usize,
}

/// What a client is told is wrong, once it is.
type Verdict = Result<(), String>;

impl World {
    fn new(options: Options) -> Self {
        let mut hub = Hub::new(options, 1);
        let clients = (0..3).map(|_| (hub.open(), Client::default())).collect();
        Self {
            replica: Replica::with_cache(200),
            twin: Twin::new(),
            hub,
            clients,
            pending: None,
            page_bytes: options.page_bytes,
        }
    }

    fn write(&mut self, writes: &[Write]) {
        let txn = TxnRequest { success: writes.iter().map(op).collect(), ..TxnRequest::default() };
        if self.replica.txn(&txn).is_ok() {
            self.twin.write(writes);
        }
        assert_eq!(self.replica.reader.revision(), self.twin.revision);
    }

    fn compact(&mut self, revision: i64) {
        if self.replica.compact(revision).is_ok() {
            self.twin.compacted = revision;
        }
    }

    fn create(&mut self, client: usize, request: WatchCreateRequest) {
        let (stream, client) = &mut self.clients[client];
        if self.hub.has_room(*stream) {
            client.asked.push(request.clone());
            self.hub.create(*stream, &request, self.replica.reader.now());
        }
    }

    /// Puts another hub in front of the store, as after a restart: all streams are new.
    fn restart(&mut self, options: Options) {
        self.pending = None;
        self.hub = Hub::new(options, self.replica.reader.revision());
        for (stream, client) in &mut self.clients {
            (*stream, *client) = (self.hub.open(), Client::default());
        }
    }

    /// Has a client take so many frames; whether there was one.
    fn take(&mut self, client: usize, frames: usize) -> Result<bool, String> {
        let (stream, client) = &mut self.clients[client];
        for taken in 0..frames {
            let Some(frame) = self.hub.take(*stream) else { return Ok(taken > 0) };
            client.receive(&frame, &self.twin)?;
        }
        Ok(true)
    }

    /// Everybody reads until nothing is left.
    fn settle(&mut self) -> Verdict {
        if let Some((work, page)) = self.pending.take() {
            give(&mut self.hub, work, page);
        }
        loop {
            let mut quiet = true;
            while page(&mut self.hub, &self.replica.reader, self.page_bytes) {
                quiet = false;
            }
            for client in 0..self.clients.len() {
                quiet &= !self.take(client, usize::MAX)?;
            }
            if quiet {
                break;
            }
        }
        for (_, client) in &self.clients {
            client.missing(&self.twin)?;
        }
        let stats = self.hub.stats();
        let live: usize = self
            .clients
            .iter()
            .map(|(_, client)| client.watches.values().filter(|seen| !seen.ended).count())
            .sum();
        if (stats.behind, stats.pending_events, stats.watches) == (0, 0, live) {
            Ok(())
        } else {
            Err(format!("{stats:?} with {live} watches"))
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Write>),
    Compact(u8),
    Freeze,
    Thaw,
    Install,
    Crash,
    Create(usize, WatchCreateRequest),
    Cancel(usize, i64),
    AskProgress(usize),
    TellProgress,
    Close(usize),
    Take(usize, usize),
    Page,
    ReadPage,
    GivePage,
}

fn key() -> impl Strategy<Value = String> {
    "[abc]{1,2}"
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        6 => (key(), "[xyz]{0,40}").prop_map(|(key, value)| Write::Put(key, value)),
        1 => key().prop_map(|key| Write::Delete(key, String::new())),
        1 => (key(), key()).prop_map(|(from, end)| Write::Delete(from, end)),
    ]
}

fn request() -> impl Strategy<Value = WatchCreateRequest> {
    let ranges = prop_oneof![
        key().prop_map(|key| (key, String::new())),
        (key(), key()).prop_map(|(key, end)| (key, end)),
        key().prop_map(|key| (key, "\0".to_owned())),
        Just(("a".to_owned(), "z".to_owned())),
    ];
    let filters = prop::sample::select(vec![vec![], vec![], vec![], vec![0], vec![1]]);
    let start = prop_oneof![Just(0), 0..60_i64, Just(2)];
    let id = prop::sample::select(vec![0, 0, 0, 1, 2, 9]);
    (ranges, filters, start, id, any::<(bool, bool, bool)>()).prop_map(
        |((key, range_end), filters, start_revision, watch_id, (prev_kv, fragment, progress_notify))| {
            WatchCreateRequest {
                key: key.into(),
                range_end: range_end.into(),
                start_revision,
                progress_notify,
                filters,
                prev_kv,
                watch_id,
                fragment,
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..3_usize;
    prop_oneof![
        12 => vec(write(), 1..5).prop_map(Step::Write),
        1 => any::<u8>().prop_map(Step::Compact),
        1 => Just(Step::Freeze),
        1 => Just(Step::Thaw),
        1 => prop::sample::select(vec![Step::Install, Step::Crash, Step::Thaw, Step::Thaw]),
        4 => (client(), request()).prop_map(|(client, request)| Step::Create(client, request)),
        1 => (client(), 0..4_i64).prop_map(|(client, id)| Step::Cancel(client, id)),
        1 => client().prop_map(Step::AskProgress),
        1 => Just(Step::TellProgress),
        1 => client().prop_map(Step::Close),
        4 => (client(), 1..6_usize).prop_map(|(client, frames)| Step::Take(client, frames)),
        6 => Just(Step::Page),
        3 => Just(Step::ReadPage),
        4 => Just(Step::GivePage),
    ]
}

fn run(world: &mut World, options: Options, step: Step) -> Verdict {
    match step {
        Step::Write(writes) => world.write(&writes),
        Step::Compact(part) => {
            let revision = world.twin.revision * i64::from(part) / 255;
            world.compact(revision);
        }
        Step::Freeze => world.replica.freeze(),
        Step::Thaw => world.replica.thaw(),
        Step::Install => {
            // Its own state as another replica's checkpoint has it; reading goes on with the same reader.
            let mut other = Replica::with_cache(0);
            other.follow(&world.replica.log);
            other.checkpoint();
            if world.replica.log.len() > 1 {
                world.replica.thaw();
                world.replica.install_from(&other, 300);
            }
        }
        Step::Crash => {
            world.replica.crash();
            world.restart(options);
        }
        Step::Create(client, request) => world.create(client, request),
        Step::Cancel(client, id) => {
            let stream = world.clients[client].0;
            world.hub.cancel(stream, id, world.replica.reader.now());
        }
        Step::AskProgress(client) => {
            let stream = world.clients[client].0;
            world.hub.ask_progress(stream, world.replica.reader.now());
        }
        Step::TellProgress => world.hub.tell_progress(0, 1),
        Step::Close(client) => {
            world.hub.close(world.clients[client].0);
            world.clients[client] = (world.hub.open(), Client::default());
        }
        Step::Take(client, frames) => return world.take(client, frames).map(drop),
        Step::Page => {
            if world.pending.is_none() {
                page(&mut world.hub, &world.replica.reader, world.page_bytes);
            }
        }
        Step::ReadPage => {
            if world.pending.is_none()
                && let Some(work) = world.hub.work(world.replica.reader.revision())
            {
                let page = read(&world.hub, &world.replica.reader, work, world.page_bytes);
                world.pending = Some((work, page));
            }
        }
        Step::GivePage => {
            if let Some((work, page)) = world.pending.take() {
                give(&mut world.hub, work, page);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_watch_sees_every_change_once_in_order_whatever_happens(
        steps in vec(step(), 1..150),
        small in (1..600_usize, 1..600_usize, 1..300_usize, 1..900_usize),
    ) {
        let (queue_bytes_max, response_bytes_max, fragment_bytes_max, page_bytes) = small;
        let options = Options { queue_bytes_max, response_bytes_max, fragment_bytes_max, page_bytes };
        let mut world = World::new(options);
        for step in steps {
            let told = format!("{step:?}");
            if let Err(wrong) = run(&mut world, options, step) {
                return Err(TestCaseError::fail(format!("{wrong}, after {told}")));
            }
        }
        if let Err(wrong) = world.settle() {
            return Err(TestCaseError::fail(format!("{wrong}, in the end")));
        }
    }
}

fn watch(key: &str, range_end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

/// A store with a hub and one stream.
struct Plain {
    replica: Replica,
    hub: Hub,
    stream: StreamId,
}

impl Plain {
    fn new(options: Options) -> Self {
        let mut hub = Hub::new(options, 1);
        let stream = hub.open();
        Self { replica: Replica::new(), hub, stream }
    }

    fn create(&mut self, request: &WatchCreateRequest) {
        self.hub.create(self.stream, request, self.replica.reader.now());
    }

    fn pump(&mut self) {
        while page(&mut self.hub, &self.replica.reader, 1 << 20) {}
    }

    fn take(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.hub.take(self.stream)).collect()
    }

    /// What the stream was told, in short.
    fn told(&mut self) -> Vec<String> {
        self.take().iter().map(short).collect()
    }
}

fn short(frame: &Frame) -> String {
    let what = match &frame.body {
        Body::Events { fragment, .. } => {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            let events = events(frame).into_iter().map(|event| {
                let kv = event.kv.clone().unwrap();
                let before =
                    event.prev_kv.as_ref().map_or(String::new(), |kv| format!(" was {}", text(&kv.value)));
                let value = if event.r#type == 1 { "gone".to_owned() } else { text(&kv.value) };
                format!("{}={value}@{}{before}", text(&kv.key), revision_of(&event))
            });
            format!("{}{}", events.collect::<Vec<_>>().join(", "), if *fragment { " …" } else { "" })
        }
        Body::Refused(why) => format!("refused: {why}"),
        body => format!("{body:?}"),
    };
    format!("{} at {}: {what}", frame.watch_id, frame.revision)
}

#[test]
fn a_watch_sees_history_and_then_what_comes() {
    let mut plain = Plain::new(Options::default());
    plain.replica.set("a", "1");
    plain.replica.set("b", "1");
    plain.create(&watch("a", "", 1));
    plain.create(&WatchCreateRequest { prev_kv: true, ..watch("a", "c", 0) });
    plain.pump();
    plain.replica.set("a", "2");
    plain.replica.delete("a", "c");
    plain.pump();
    let expected = [
        "0 at 3: Created",
        "1 at 3: Created",
        "0 at 2: a=1@2",
        "0 at 5: a=2@4, a=gone@5",
        "1 at 5: a=2@4 was 1, a=gone@5 was 2, b=gone@5 was 1",
    ];
    assert_eq!(plain.told(), expected);
}

#[test]
fn a_future_revision_waits_and_shows_nothing_older() {
    let mut plain = Plain::new(Options::default());
    plain.create(&watch("a", "", 4));
    plain.hub.ask_progress(plain.stream, plain.replica.reader.now());
    for value in ["2", "3", "4", "5"] {
        plain.replica.set("a", value);
        plain.pump();
    }
    // Progress is told once it has begun, with what was asked for long reached.
    assert_eq!(plain.told(), ["0 at 1: Created", "-1 at 3: Progress", "0 at 4: a=4@4", "0 at 5: a=5@5"]);
}

#[test]
fn what_is_compacted_is_told_with_the_oldest_revision_left() {
    let mut plain = Plain::new(Options::default());
    for value in ["2", "3", "4"] {
        plain.replica.set("a", value);
    }
    plain.replica.delete("a", "");
    plain.replica.compact(5).unwrap();
    for _ in 0..3 {
        plain.replica.checkpoint();
    }
    plain.create(&watch("a", "", 4));
    plain.create(&WatchCreateRequest { prev_kv: true, ..watch("a", "", 5) });
    plain.pump();
    // A deletion of the very revision that was compacted is seen: etcd lost it once.
    let expected = ["0 at 5: Created", "0 at 5: Compacted(5)", "1 at 5: Created", "1 at 5: a=gone@5"];
    assert_eq!(plain.told(), expected);
}

#[test]
fn refusals_have_etcds_words() {
    let mut plain = Plain::new(Options::default());
    for request in [
        watch("b", "a", 0),
        watch("a", "a", 0),
        watch("a", "", -1),
        WatchCreateRequest { watch_id: 7, ..watch("a", "", 0) },
        WatchCreateRequest { watch_id: 7, ..watch("a", "", 0) },
        watch("", "\0", 0),
        watch(&"k".repeat(40_000), "", 0),
    ] {
        plain.create(&request);
    }
    let now = plain.replica.reader.now();
    plain.hub.cancel(plain.stream, 99, now);
    plain.hub.cancel(plain.stream, 7, now);
    plain.hub.cancel(plain.stream, 7, now);
    let expected = [
        "-1 at 1: refused: mvcc: watcher range is empty",
        "-1 at 1: refused: mvcc: watcher range is empty",
        "-1 at 1: refused: etcdserver: mvcc: required revision has been compacted",
        "7 at 1: Created",
        "-1 at 1: refused: mvcc: duplicate watch ID provided on the WatchStream",
        "0 at 1: Created",
        "-1 at 1: refused: etcdserver: request is too large",
        "7 at 1: Canceled",
    ];
    assert_eq!(plain.told(), expected);
}

#[test]
fn a_client_that_does_not_read_is_parked_and_reads_history_later() {
    let options = Options { queue_bytes_max: 2000, ..Options::default() };
    let mut plain = Plain::new(options);
    let quick = plain.hub.open();
    plain.create(&watch("a", "", 0));
    plain.hub.create(quick, &watch("a", "", 0), plain.replica.reader.now());
    let mut seen = 0;
    for at in 0..1000 {
        plain.replica.set("a", &format!("value {at}"));
        plain.pump();
        while plain.hub.take(quick).is_some() {
            seen += 1;
        }
        if at % 100 == 0 {
            plain.replica.checkpoint();
        }
    }
    assert_eq!(seen, 1001, "the other client's watch keeps up");
    let stats = plain.hub.stats();
    assert!(stats.behind == 1 && stats.pending_events < 20, "{stats:?}");
    let mut values = 0;
    loop {
        let frames = plain.take();
        if frames.is_empty() {
            break;
        }
        values += frames.iter().flat_map(events).count();
        plain.pump();
    }
    assert_eq!((values, plain.hub.stats().behind), (1000, 0));
}

#[test]
fn a_parked_watch_whose_next_change_is_compacted_is_told_so() {
    let options = Options { queue_bytes_max: 300, ..Options::default() };
    let mut plain = Plain::new(options);
    plain.create(&watch("a", "", 0));
    for at in 0..50 {
        plain.replica.set("a", &format!("value {at}"));
        plain.pump();
    }
    plain.replica.compact(50).unwrap();
    for _ in 0..3 {
        plain.replica.checkpoint();
    }
    plain.take();
    plain.pump();
    assert_eq!(plain.told(), ["0 at 51: Compacted(50)"]);
    assert_eq!(plain.hub.stats().watches, 0);
}

#[test]
fn who_keeps_up_loses_nothing_to_a_compaction() {
    let mut plain = Plain::new(Options::default());
    plain.create(&watch("a", "", 0));
    for at in 0..50 {
        plain.replica.set("a", &format!("{at}"));
    }
    // Applied together with the puts, before anybody was told of them.
    plain.replica.compact(51).unwrap();
    plain.pump();
    assert_eq!(plain.take().iter().flat_map(events).count(), 50);
}

#[test]
fn progress_is_told_regularly_to_the_quiet_and_on_request_to_all() {
    let mut plain = Plain::new(Options::default());
    plain.create(&WatchCreateRequest { progress_notify: true, ..watch("a", "", 0) });
    plain.create(&watch("b", "", 0));
    plain.hub.tell_progress(0, 1);
    plain.replica.set("a", "2");
    plain.replica.set("c", "3");
    plain.pump();
    plain.hub.tell_progress(0, 1);
    plain.hub.tell_progress(0, 1);
    plain.hub.ask_progress(plain.stream, plain.replica.reader.now());
    let expected = [
        "0 at 1: Created",
        "1 at 1: Created",
        "0 at 1: Progress",
        "0 at 2: a=2@2",
        "0 at 3: Progress",
        "-1 at 3: Progress",
    ];
    assert_eq!(plain.told(), expected);
    plain.replica.set("c", "4");
    // Not before everything up to where the store is was given out.
    plain.hub.ask_progress(plain.stream, plain.replica.reader.now());
    assert_eq!(plain.told(), [""; 0]);
    plain.pump();
    assert_eq!(plain.told(), ["-1 at 4: Progress"]);
}

#[test]
fn a_large_revision_comes_whole_or_in_fragments_where_those_are_allowed() {
    let options = Options { fragment_bytes_max: 100, ..Options::default() };
    let mut plain = Plain::new(options);
    plain.create(&WatchCreateRequest { fragment: true, ..watch("k", "l", 0) });
    plain.create(&watch("k", "l", 0));
    let writes: Vec<Write> = (0..4).map(|at| Write::Put(format!("k{at}"), "x".repeat(30))).collect();
    let txn = TxnRequest { success: writes.iter().map(op).collect(), ..TxnRequest::default() };
    plain.replica.txn(&txn).unwrap();
    plain.pump();
    let frames = plain.take();
    let shape: Vec<_> = frames[2..]
        .iter()
        .map(|frame| {
            (frame.watch_id, events(frame).len(), matches!(frame.body, Body::Events { fragment: true, .. }))
        })
        .collect();
    assert_eq!(shape, [(0, 2, true), (0, 2, false), (1, 4, false)]);
}

/// Makes a store one of the third layout: the same without the history.
fn make_older(replica: &mut Replica) {
    let store = MemoryEngine::new().store(GROUP, 0).unwrap();
    let view = replica.store.view();
    let Checkpoint { meta, record } = view.checkpoint().unwrap();
    let mut record = CheckpointRecord::decode(record).unwrap();
    (record.format, record.history_revision) = (3, 0);
    let pairs = view.scan(std::ops::Bound::Unbounded).map(Result::unwrap);
    let mut pairs = pairs.filter(|(key, _)| key[0] != b'h').map(|(key, value)| (key, Some(value)));
    store.ingest(Checkpoint { meta, record: record.encode_to_vec().into() }, &mut pairs).unwrap();
    (replica.machine, replica.reader) = Machine::open(store.clone(), replica.options.clone()).unwrap();
    replica.store = store;
}

#[test]
fn a_store_of_an_older_layout_can_be_watched_from_where_it_was_opened() {
    let mut replica = Replica::new();
    replica.set("a", "2");
    replica.set("a", "3");
    replica.checkpoint();
    make_older(&mut replica);
    assert_eq!(replica.reader.now().oldest, 4);
    let mut hub = Hub::new(Options::default(), replica.reader.revision());
    let stream = hub.open();
    hub.create(stream, &watch("a", "", 3), replica.reader.now());
    hub.create(stream, &watch("a", "", 4), replica.reader.now());
    replica.set("a", "4");
    replica.checkpoint();
    while page(&mut hub, &replica.reader, 1 << 20) {}
    let told: Vec<_> = std::iter::from_fn(|| hub.take(stream)).map(|frame| short(&frame)).collect();
    assert_eq!(told, ["0 at 3: Created", "0 at 3: Compacted(4)", "1 at 3: Created", "1 at 4: a=4@4"]);
}

#[test]
fn without_a_compaction_the_whole_history_stays_over_checkpoints_and_boots() {
    let mut plain = Plain::new(Options::default());
    for at in 0..2000 {
        plain.replica.set(&format!("key/{:04}", at % 700), &format!("{at}"));
        if at % 100 == 99 {
            plain.replica.checkpoint();
        }
        if at % 700 == 699 {
            plain.replica.crash();
        }
    }
    plain.create(&watch("", "\0", 1));
    let mut next = 2;
    loop {
        while page(&mut plain.hub, &plain.replica.reader, 10_000) {}
        let frames = plain.take();
        if frames.is_empty() {
            break;
        }
        for event in frames.iter().flat_map(events) {
            assert_eq!(revision_of(&event), next);
            next += 1;
        }
    }
    assert_eq!(next, 2002);
}

#[test]
fn pages_read_while_the_store_goes_on_have_no_seam() {
    let mut replica = Replica::with_cache(0);
    let reader = replica.reader.clone();
    let last = 20_001;
    let reading = std::thread::spawn(move || {
        let mut next = 2;
        let (mut pages, mut largest) = (0, 0);
        while next <= last {
            let changes = reader.changes(next, 20_000).unwrap();
            assert!(changes.from() == next && changes.through() >= next - 1);
            // Every revision has one change.
            assert_eq!(changes.len() as i64, changes.through() + 1 - next);
            next = changes.through() + 1;
            (pages, largest) = (pages + 1, largest.max(changes.len()));
            if changes.is_empty() {
                std::thread::yield_now();
            }
        }
        (pages, largest)
    });
    for at in 2..=last {
        replica.set(&format!("key{:03}", at % 300), "value");
        match at % 500 {
            100 => replica.freeze(),
            300 => replica.write(),
            301 => replica.machine_checkpointed(),
            _ => {}
        }
    }
    let (pages, largest) = reading.join().unwrap();
    assert!(pages > 10 && largest > 1, "{pages} pages, of at most {largest} changes");
}

/// As in etcd, the second of two nested transactions may delete what the first has put. Who keeps up sees both; the history knows the last.
#[test]
fn a_key_that_changes_twice_in_a_revision_was_what_it_was_before_both() {
    let mut plain = Plain::new(Options::default());
    plain.replica.set("a", "1");
    plain.create(&WatchCreateRequest { prev_kv: true, ..watch("a", "", 0) });
    let nested = |write: Write| RequestOp {
        request: Some(Request::RequestTxn(TxnRequest { success: vec![op(&write)], ..TxnRequest::default() })),
    };
    let ops = vec![
        nested(Write::Put("a".to_owned(), "2".to_owned())),
        nested(Write::Delete("a".to_owned(), String::new())),
    ];
    plain.replica.txn(&TxnRequest { success: ops, ..TxnRequest::default() }).unwrap();
    plain.pump();
    plain.replica.checkpoint();
    plain.create(&WatchCreateRequest { prev_kv: true, ..watch("a", "", 3) });
    plain.pump();
    let expected = [
        "0 at 2: Created",
        "0 at 3: a=2@3 was 1, a=gone@3 was 1",
        "1 at 3: Created",
        "1 at 3: a=gone@3 was 1",
    ];
    assert_eq!(plain.told(), expected);
}
