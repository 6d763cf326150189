//! What watches must be sent, by a twin that keeps the whole history in a list, and a client that holds against it every response it receives.

use std::collections::BTreeMap;

use conclave_api::{
    etcdserverpb::{WatchCreateRequest, WatchResponse},
    mvccpb::{Event, KeyValue, event::EventType},
};
use conclave_kv::watch::{ALL_WATCHES, Body, Frame};
use prost::Message;

/// The store as a list of what happened.
#[derive(Default)]
pub(crate) struct Twin {
    keys: BTreeMap<Vec<u8>, KeyValue>,
    /// All events with what was before, in order.
    pub(crate) events: Vec<Event>,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Put(String, String),
    Delete(String, String),
}

impl Twin {
    pub(crate) fn new() -> Self {
        Self { revision: 1, compacted: -1, ..Self::default() }
    }

    pub(crate) fn write(&mut self, writes: &[Write]) {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let before = self.keys.get(key.as_bytes()).cloned();
                    let kv = KeyValue {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
                        version: before.as_ref().map_or(1, |kv| kv.version + 1),
                        mod_revision: revision,
                        lease: 0,
                    };
                    self.keys.insert(key.clone().into(), kv.clone());
                    events.push(Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: before });
                }
                Write::Delete(from, end) => {
                    let end = if end.is_empty() { format!("{from}\0") } else { end.clone() };
                    let gone = self.keys.extract_if(from.clone().into_bytes()..end.into_bytes(), |_, _| true);
                    events.extend(gone.map(|(key, before)| Event {
                        r#type: EventType::Delete.into(),
                        kv: Some(KeyValue { key: key.into(), mod_revision: revision, ..KeyValue::default() }),
                        prev_kv: Some(before),
                    }));
                }
            }
        }
        if !events.is_empty() {
            self.revision = revision;
            self.events.extend(events);
        }
    }
}

pub(crate) fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// One watch as its client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    request: WatchCreateRequest,
    /// The first revision that it is to see.
    start: i64,
    /// How many of the events that it is to see it has seen.
    count: usize,
    /// The revision of which a fragment is open.
    open: Option<i64>,
    pub(crate) ended: bool,
}

impl Seen {
    fn wants(&self, event: &Event) -> bool {
        let WatchCreateRequest { key, range_end, filters, .. } = &self.request;
        let of = event.kv.as_ref().map_or(&[][..], |kv| &kv.key);
        let inside = match range_end.as_ref() {
            [] => *of == **key,
            [0] => *of >= **key,
            end => *of >= **key && of < end,
        };
        inside && revision_of(event) >= self.start && !filters.contains(&event.r#type)
    }

    fn expected<'a>(&'a self, twin: &'a Twin) -> impl Iterator<Item = &'a Event> {
        twin.events.iter().filter(|event| self.wants(event)).skip(self.count)
    }
}

/// A client's stream: it checks whatever it is sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    pub(crate) watches: BTreeMap<i64, Seen>,
    /// Requests for watches that were not answered yet.
    pub(crate) asked: Vec<WatchCreateRequest>,
}

type Verdict = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

pub(crate) fn events(frame: &Frame) -> Vec<Event> {
    match &frame.body {
        Body::Events { events, .. } => WatchResponse::decode(events.concat().as_slice()).unwrap().events,
        _ => Vec::new(),
    }
}

impl Client {
    /// Takes a response, and says what is wrong with it.
    pub(crate) fn receive(&mut self, frame: &Frame, twin: &Twin) -> Verdict {
        let Frame { watch_id, revision, .. } = frame;
        ensure(*revision > 0 && *revision <= twin.revision, || format!("a header of revision {revision}"))?;
        match &frame.body {
            Body::Created => {
                let request = if self.asked.is_empty() { None } else { Some(self.asked.remove(0)) };
                let request = request.ok_or("created without having been asked")?;
                ensure(request.watch_id == 0 || request.watch_id == *watch_id, || "another id".to_owned())?;
                let start = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
                let seen = Seen { request, start, count: 0, open: None, ended: false };
                let before = self.watches.insert(*watch_id, seen);
                ensure(before.is_none_or(|before| before.ended), || "an id given twice".to_owned())
            }
            Body::Refused(_) => {
                self.asked.remove(0);
                ensure(*watch_id == ALL_WATCHES, || "a refusal with an id".to_owned())
            }
            Body::Progress if *watch_id == ALL_WATCHES => {
                let mut watches = self.watches.values().filter(|seen| !seen.ended);
                watches.try_for_each(|seen| progress(seen, *revision, twin))
            }
            Body::Progress => progress(self.live(*watch_id)?, *revision, twin),
            Body::Canceled => {
                self.live(*watch_id)?.ended = true;
                Ok(())
            }
            Body::Compacted(oldest) => {
                let compacted = twin.compacted;
                let seen = self.live(*watch_id)?;
                ensure(*oldest <= compacted, || format!("compacted at {oldest}, not {compacted}"))?;
                ensure(seen.open.is_none() && seen.start < *oldest, || {
                    "nothing it wants is compacted".to_owned()
                })?;
                seen.ended = true;
                Ok(())
            }
            Body::Events { fragment, .. } => {
                let seen = self.live(*watch_id)?;
                take(seen, &events(frame), *fragment, *revision, twin)
            }
        }
    }

    fn live(&mut self, id: i64) -> Result<&mut Seen, String> {
        let seen = self.watches.get_mut(&id).ok_or_else(|| format!("watch {id} was not created"))?;
        ensure(!seen.ended, || format!("watch {id} has ended"))?;
        Ok(seen)
    }

    /// What is missing once everything has been read.
    pub(crate) fn missing(&self, twin: &Twin) -> Verdict {
        for (id, seen) in self.watches.iter().filter(|(_, seen)| !seen.ended) {
            ensure(seen.expected(twin).next().is_none() && seen.open.is_none(), || {
                format!("watch {id} lacks {:?}", seen.expected(twin).next())
            })?;
        }
        ensure(self.asked.is_empty(), || "a request without an answer".to_owned())
    }
}

fn progress(seen: &Seen, revision: i64, twin: &Twin) -> Verdict {
    let ahead = seen.expected(twin).next().is_some_and(|event| revision_of(event) <= revision);
    ensure(!ahead && seen.open.is_none(), || format!("progress to {revision} is ahead of events"))?;
    ensure(seen.start <= revision + 1, || "progress of a watch that has not begun".to_owned())
}

fn take(seen: &mut Seen, events: &[Event], fragment: bool, header: i64, twin: &Twin) -> Verdict {
    let expected: Vec<Event> = seen.expected(twin).take(events.len()).cloned().collect();
    ensure(!events.is_empty() && expected.len() == events.len(), || "events that nobody made".to_owned())?;
    for (event, mut expected) in events.iter().zip(expected) {
        let revision = revision_of(&expected);
        let may_be_gone = twin.compacted >= revision && event.prev_kv.is_none();
        if !seen.request.prev_kv || may_be_gone {
            expected.prev_kv = None;
        }
        ensure(*event == expected, || format!("{event:?} for {expected:?}"))?;
        ensure(seen.open.is_none_or(|open| open == revision), || {
            "another revision among fragments".to_owned()
        })?;
        ensure(revision <= header, || "events beyond the header".to_owned())?;
    }
    seen.count += events.len();
    let last = events.last().map_or(0, revision_of);
    let more = seen.expected(twin).next().is_some_and(|next| revision_of(next) == last);
    ensure(more == fragment, || format!("revision {last} split: {more}, said so: {fragment}"))?;
    ensure(!fragment || seen.request.fragment, || "fragments that were not asked for".to_owned())?;
    seen.open = fragment.then_some(last);
    Ok(())
}

mod must_fire {
    use super::*;
    use bytes::Bytes;

    fn twin() -> Twin {
        let mut twin = Twin::new();
        let put = |key: &str, value: &str| Write::Put(key.to_owned(), value.to_owned());
        twin.write(&[put("a", "1")]);
        twin.write(&[put("a", "2"), put("b", "2")]);
        twin.write(&[Write::Delete("a".to_owned(), String::new())]);
        twin.write(&[put("a", "5")]);
        twin
    }

    fn client(twin: &Twin, change: impl FnOnce(&mut WatchCreateRequest)) -> Client {
        let mut request = WatchCreateRequest {
            key: "a".into(),
            range_end: "z".into(),
            start_revision: 2,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        change(&mut request);
        let mut client = Client { asked: vec![request], ..Client::default() };
        client.receive(&Frame { watch_id: 0, revision: 5, body: Body::Created }, twin).unwrap();
        client
    }

    fn frame(events: &[Event], fragment: bool) -> Frame {
        let whole = WatchResponse { events: events.to_vec(), ..WatchResponse::default() };
        let events = vec![Bytes::from(whole.encode_to_vec())];
        Frame { watch_id: 0, revision: 5, body: Body::Events { events, fragment } }
    }

    fn progress(watch_id: i64, revision: i64) -> Frame {
        Frame { watch_id, revision, body: Body::Progress }
    }

    #[test]
    fn what_is_right_passes() {
        let twin = twin();
        let mut client = client(&twin, |_| {});
        for frame in [
            frame(&twin.events[..1], false),
            progress(0, 2),
            frame(&twin.events[1..4], false),
            progress(-1, 4),
            frame(&twin.events[4..], false),
            progress(-1, 5),
        ] {
            assert_eq!(client.receive(&frame, &twin), Ok(()));
        }
        assert_eq!(client.missing(&twin), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let twin = twin();
        let all = &twin.events;
        let mut without_before = all[..4].to_vec();
        without_before[3].prev_kv = None;
        let mut other_value = all[..1].to_vec();
        other_value[0].kv.as_mut().unwrap().value = "x".into();
        let swapped = [all[0].clone(), all[2].clone(), all[1].clone()];
        let wrong: [(&str, Vec<Frame>); 13] = [
            ("lost", vec![frame(&all[1..3], false)]),
            ("twice", vec![frame(&all[..1], false), frame(&all[..1], false)]),
            ("out of order", vec![frame(&swapped, false)]),
            ("a revision split", vec![frame(&all[..2], false)]),
            ("a split that is none", vec![frame(&all[..3], true)]),
            ("fragments unasked", vec![frame(&all[..2], true)]),
            ("without what was before", vec![frame(&without_before, false)]),
            ("another value", vec![frame(&other_value, false)]),
            ("progress ahead", vec![progress(0, 2)]),
            ("progress of all ahead", vec![frame(&all[..1], false), progress(-1, 3)]),
            ("revision zero", vec![progress(0, 0)]),
            ("a watch of no client", vec![Frame { watch_id: 7, ..frame(&all[..1], false) }]),
            ("compacted, but nothing is", vec![Frame { body: Body::Compacted(3), ..progress(0, 5) }]),
        ];
        for (what, frames) in wrong {
            let mut client = client(&twin, |_| {});
            let verdicts: Vec<Verdict> = frames.iter().map(|frame| client.receive(frame, &twin)).collect();
            assert!(verdicts.last().unwrap().is_err(), "{what}");
        }
        let filtered =
            client(&twin, |request| request.filters = vec![0]).receive(&frame(&all[..1], false), &twin);
        assert!(filtered.is_err(), "a filter");
        let future =
            client(&twin, |request| request.start_revision = 5).receive(&frame(&all[..1], false), &twin);
        assert!(future.is_err(), "old events");
        let mut ended = client(&twin, |_| {});
        ended.receive(&Frame { body: Body::Canceled, ..progress(0, 5) }, &twin).unwrap();
        assert!(ended.receive(&frame(&all[..1], false), &twin).is_err(), "events after the end");
        let mut short = client(&twin, |_| {});
        short.receive(&frame(&all[..1], false), &twin).unwrap();
        assert!(short.missing(&twin).is_err(), "something missing");
    }
}
