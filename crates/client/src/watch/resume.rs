//! Where a watch stands, so that a new stream goes on exactly where the last one ended.
//!
//! 1. Every event is handed out once, in the order of revisions, and those of one revision together.
//! 2. A new stream is asked for everything after the last revision that was handed out whole. Until the first stream has said at which
//!    revision "from now on" began, there is none, and nothing can have been missed.
//! 3. Of a response in fragments, the events of its last revision are kept back until the next fragment, since more of them may come. They
//!    are forgotten when the stream ends, for the next one sends them again.
//! 4. What is older than what was handed out is dropped.

use conclave_api::etcdserverpb::WatchResponse;

use crate::kv::Revision;

use super::{Batch, Event, WatchError};

/// What a response of the server comes to.
#[derive(Debug)]
pub(crate) enum Step {
    /// The watch is established; everything after this revision will be seen.
    Created(Revision),
    /// To be handed out.
    Batch(Batch),
    /// Nothing to hand out.
    Nothing,
    /// The stream is of no more use, and another goes on.
    Reopen(&'static str),
    /// The watch has ended.
    End(WatchError),
}

/// The state of one watch.
#[derive(Debug)]
pub(crate) struct Resume {
    /// The first revision not handed out; `None` until "from now on" is known.
    next: Option<Revision>,
    /// Events of a revision of which more may come.
    kept_back: Vec<Event>,
    created: bool,
}

impl Resume {
    /// From a revision on, or from now on.
    pub(crate) fn new(start: Option<Revision>) -> Self {
        Self { next: start, kept_back: Vec::new(), created: false }
    }

    /// A new stream begins, from this revision; 0 is from now on, as on the wire.
    pub(crate) fn open(&mut self) -> i64 {
        self.kept_back.clear();
        self.created = false;
        self.next.map_or(0, |next| next.0)
    }

    /// Judges a response.
    pub(crate) fn take(&mut self, response: WatchResponse) -> Step {
        let Some(header) = response.header else { return Step::Reopen("a response without a header") };
        let revision = Revision(header.revision);
        if response.canceled {
            return canceled(response.compact_revision, response.cancel_reason);
        }
        if response.created {
            self.created = true;
            // The first says where "from now on" begins. A later one was told where to begin.
            self.next.get_or_insert(revision.next());
            return Step::Created(revision);
        }
        if !self.created {
            return Step::Reopen("events before the watch was created");
        }
        if response.events.is_empty() && !response.fragment && self.kept_back.is_empty() {
            return self.progress(revision);
        }
        let Some(events) = response.events.into_iter().map(Event::from_wire).collect::<Option<Vec<_>>>()
        else {
            return Step::Reopen("an event without a key");
        };
        let next = self.next.unwrap_or_default();
        self.kept_back.extend(events.into_iter().filter(|event| event.kv.mod_revision >= next));
        let Some(last) = self.kept_back.last().map(|event| event.kv.mod_revision) else {
            return Step::Nothing;
        };
        let whole = if response.fragment {
            self.kept_back.partition_point(|event| event.kv.mod_revision < last)
        } else {
            self.kept_back.len()
        };
        let rest = self.kept_back.split_off(whole);
        let events = std::mem::replace(&mut self.kept_back, rest);
        let Some(revision) = events.last().map(|event| event.kv.mod_revision) else { return Step::Nothing };
        self.next = Some(revision.next());
        Step::Batch(Batch { revision, events })
    }

    /// The server says that there is nothing up to a revision that was not sent.
    fn progress(&mut self, revision: Revision) -> Step {
        if self.next.is_some_and(|next| next > revision) {
            return Step::Nothing;
        }
        self.next = Some(revision.next());
        Step::Batch(Batch { revision, events: Vec::new() })
    }
}

fn canceled(compacted: i64, reason: String) -> Step {
    if compacted != 0 {
        return Step::End(WatchError::Compacted { revision: Revision(compacted) });
    }
    if reason.is_empty() {
        return Step::Reopen("the server ended the watch");
    }
    Step::End(WatchError::Canceled { reason })
}

#[cfg(test)]
mod tests {
    use conclave_api::{
        etcdserverpb::ResponseHeader,
        mvccpb::{self, KeyValue},
    };
    use proptest::prelude::*;

    use super::*;

    fn header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    fn created(revision: i64) -> WatchResponse {
        WatchResponse { header: header(revision), created: true, ..WatchResponse::default() }
    }

    fn event((revision, number): (i64, usize)) -> mvccpb::Event {
        let kv = KeyValue { key: number.to_string().into(), mod_revision: revision, ..KeyValue::default() };
        mvccpb::Event { kv: Some(kv), ..mvccpb::Event::default() }
    }

    fn events(revision: i64, events: &[(i64, usize)], fragment: bool) -> WatchResponse {
        let events = events.iter().copied().map(event).collect();
        WatchResponse { header: header(revision), events, fragment, ..WatchResponse::default() }
    }

    fn shown(step: Step) -> String {
        match step {
            Step::Created(revision) => format!("created at {revision}"),
            Step::Batch(batch) => {
                let events: Vec<String> = batch
                    .events
                    .iter()
                    .map(|event| {
                        format!("{}:{}", event.kv.mod_revision, String::from_utf8_lossy(&event.kv.key))
                    })
                    .collect();
                format!("through {}: [{}]", batch.revision, events.join(" "))
            }
            Step::Nothing => "nothing".to_owned(),
            Step::Reopen(why) => format!("reopen: {why}"),
            Step::End(error) => format!("end: {error}"),
        }
    }

    #[test]
    fn a_watch_from_now_on_that_is_cut_before_its_first_event_misses_nothing() {
        let mut resume = Resume::new(None);
        assert_eq!(resume.open(), 0);
        assert_eq!(shown(resume.take(created(7))), "created at 7");
        assert_eq!(resume.open(), 8, "from where it was created, not from now on again");
        // The new server may be ahead.
        assert_eq!(shown(resume.take(created(9))), "created at 9");
        assert_eq!(shown(resume.take(events(9, &[(8, 0), (9, 0)], false))), "through 9: [8:0 9:0]");
        assert_eq!(resume.open(), 10);
    }

    #[test]
    fn events_that_were_handed_out_are_not_handed_out_again() {
        let mut resume = Resume::new(Some(Revision(5)));
        assert_eq!(resume.open(), 5);
        resume.take(created(9));
        assert_eq!(shown(resume.take(events(9, &[(5, 0), (6, 0)], false))), "through 6: [5:0 6:0]");
        assert_eq!(shown(resume.take(events(9, &[(6, 0), (7, 0)], false))), "through 7: [7:0]");
        assert_eq!(shown(resume.take(events(9, &[(3, 0)], false))), "nothing");
    }

    #[test]
    fn a_revision_in_fragments_is_handed_out_whole() {
        let mut resume = Resume::new(Some(Revision(5)));
        resume.open();
        resume.take(created(9));
        assert_eq!(shown(resume.take(events(9, &[(5, 0), (6, 0)], true))), "through 5: [5:0]");
        assert_eq!(shown(resume.take(events(9, &[(6, 1)], true))), "nothing");
        assert_eq!(shown(resume.take(events(9, &[(6, 2), (8, 0)], false))), "through 8: [6:0 6:1 6:2 8:0]");
    }

    #[test]
    fn a_revision_cut_between_fragments_begins_anew() {
        let mut resume = Resume::new(Some(Revision(5)));
        resume.open();
        resume.take(created(9));
        assert_eq!(shown(resume.take(events(9, &[(6, 0)], true))), "nothing");
        assert_eq!(resume.open(), 5);
        resume.take(created(9));
        assert_eq!(shown(resume.take(events(9, &[(6, 0), (6, 1)], false))), "through 6: [6:0 6:1]");
    }

    #[test]
    fn progress_moves_the_start_of_the_next_stream_and_never_back() {
        let mut resume = Resume::new(None);
        resume.open();
        resume.take(created(7));
        assert_eq!(shown(resume.take(events(7, &[], false))), "nothing");
        assert_eq!(shown(resume.take(events(20, &[], false))), "through 20: []");
        assert_eq!(shown(resume.take(events(12, &[], false))), "nothing");
        assert_eq!(resume.open(), 21);
    }

    #[test]
    fn compaction_and_refusal_end_a_watch_and_a_server_that_stops_does_not() {
        let canceled = |compact_revision, reason: &str| {
            let mut resume = Resume::new(Some(Revision(2)));
            resume.open();
            let cancel_reason = reason.to_owned();
            shown(resume.take(WatchResponse {
                header: header(9),
                created: compact_revision == 0,
                canceled: true,
                compact_revision,
                cancel_reason,
                ..WatchResponse::default()
            }))
        };
        assert_eq!(canceled(6, ""), "end: the history before revision 6 was compacted");
        assert_eq!(canceled(0, "permission denied"), "end: the server ended the watch: permission denied");
        assert_eq!(canceled(0, ""), "reopen: the server ended the watch");
    }

    proptest! {
        /// A server that cuts its stream anywhere, fragments anywhere and repeats what it was asked for: all events, once, in order, and no
        /// revision in two batches.
        #[test]
        fn every_event_once_in_order_and_revisions_whole(
            sizes in prop::collection::vec(1_usize..4, 1..12),
            cuts in prop::collection::vec((any::<bool>(), any::<bool>(), 1_usize..4), 0..60),
        ) {
            let history: Vec<(i64, usize)> = sizes.iter().enumerate()
                .flat_map(|(at, size)| (0..*size).map(move |number| (at as i64 + 2, number))).collect();
            let top = sizes.len() as i64 + 1;
            let mut resume = Resume::new(Some(Revision(2)));
            let (mut seen, mut batches) = (Vec::new(), Vec::new());
            let mut cuts = cuts.into_iter();
            'streams: loop {
                let from = resume.open();
                resume.take(created(top));
                let mut rest: Vec<_> = history.iter().copied().filter(|(revision, _)| *revision >= from).collect();
                while !rest.is_empty() {
                    let (cut, fragment, count) = cuts.next().unwrap_or((false, false, usize::MAX));
                    if cut {
                        continue 'streams;
                    }
                    let mut count = count.min(rest.len());
                    // Without `fragment` a server never splits a revision.
                    while !fragment && count < rest.len() && rest[count].0 == rest[count - 1].0 {
                        count += 1;
                    }
                    let sent: Vec<_> = rest.drain(..count).collect();
                    let splits = rest.first().is_some_and(|(revision, _)| *revision == sent[sent.len() - 1].0);
                    if let Step::Batch(batch) = resume.take(events(top, &sent, splits)) {
                        let of = |event: &Event| (event.kv.mod_revision.0, event.kv.key.clone());
                        batches.push(batch.events.iter().map(|event| event.kv.mod_revision.0).collect::<Vec<_>>());
                        seen.extend(batch.events.iter().map(of));
                    }
                }
                break;
            }
            let all: Vec<_> = history.iter().map(|(revision, number)| (*revision, number.to_string().into())).collect();
            prop_assert_eq!(seen, all);
            for pair in batches.windows(2) {
                prop_assert!(pair[0].last() < pair[1].first());
            }
        }
    }
}
