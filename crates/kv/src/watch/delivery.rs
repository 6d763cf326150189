//! From a page of the history to the queues of those whom it concerns.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Body, Frame, Hub, Place, StreamId, Work, event, index::Index};
use crate::changes::{Before, Change, Changes, Need};

/// So many pairs of watch and change are gathered before they are delivered, but for those of one revision.
const MATCHES_MAX: usize = 64 << 10;

/// What a page has to be completed with before it is given out.
#[derive(Clone, Debug, Default)]
pub struct Needs(pub(crate) Vec<Need>);

impl Needs {
    /// Whether the page can be given out as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How far a watch came with what was to be delivered to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    End,
    /// Its stream was full before this revision.
    Full(i64),
    /// What it wants of this revision was not read.
    Unread(i64),
}

impl Hub {
    fn index(&self, work: Work) -> &Index {
        match work {
            Work::Newest(_) => &self.synced,
            Work::History(_) => &self.behind,
        }
    }

    /// What of a page has to be read before it is given to [`advance`](Self::advance), as far as anybody wants it. Who begins to want it afterwards reads it again
    /// as part of the history.
    #[must_use]
    pub fn needs(&self, work: Work, page: &Changes) -> Needs {
        let needs = (0..).zip(&page.changes).filter_map(|(at, change)| {
            let (lacks_value, lacks_before) = (!change.is_read(), change.before == Before::Unread);
            if !lacks_value && !lacks_before {
                return None;
            }
            let (mut value, mut before) = (false, false);
            self.index(work).any(change.key(), |number| {
                if let Some(watch) = self.watches.get(number)
                    && concerns(watch.next, work, change)
                    && watch.wishes.wants(change.is_deletion)
                {
                    value |= lacks_value;
                    before |= lacks_before && watch.wishes.before;
                }
                value == lacks_value && before == lacks_before
            });
            (value || before).then_some(Need { at, before })
        });
        Needs(needs.collect())
    }

    /// Gives out a page that [`work`](Self::work) asked for.
    pub fn advance(&mut self, work: Work, mut page: Changes) {
        let cohort = match work {
            Work::Newest(from) => {
                // Nobody was synced meanwhile, so that the newest changes were skipped.
                if from != self.cursor + 1 || page.from != from {
                    return;
                }
                self.cursor = page.through.max(self.cursor);
                Vec::new()
            }
            Work::History(from) => self.cohorts.take(from, page.through.max(from)),
        };
        let mut stalled = BTreeSet::new();
        let mut matches: Vec<(u32, u32)> = Vec::new();
        let mut revision = page.from;
        for at in 0..page.changes.len() {
            let change = &page.changes[at];
            if change.revision != revision && matches.len() >= MATCHES_MAX {
                self.deliver(&mut matches, &mut page.changes, &mut stalled);
            }
            let change = &page.changes[at];
            revision = change.revision;
            self.index(work).any(change.key(), |number| {
                if let Some(watch) = self.watches.get(number)
                    && concerns(watch.next, work, change)
                    && watch.wishes.wants(change.is_deletion)
                    && !stalled.contains(&number)
                {
                    matches.push((number, at as u32));
                }
                false
            });
        }
        self.deliver(&mut matches, &mut page.changes, &mut stalled);
        for (next, number) in cohort {
            let Some(watch) = self.watches.get(number).filter(|watch| watch.place == Place::Behind) else {
                continue;
            };
            let next = if stalled.contains(&number) { watch.next } else { next.max(page.through + 1) };
            self.settle(number, next, Some(Place::Behind));
        }
        self.answer_progress();
    }

    /// Ends the watches that would have to see what a page was asked for, as that is compacted and `oldest` is the oldest revision left.
    pub fn lost(&mut self, work: Work, oldest: i64) {
        let ended: Vec<u32> = match work {
            Work::Newest(_) => {
                self.cursor = self.cursor.max(oldest - 1);
                let lost = self
                    .watches
                    .iter()
                    .filter(|(_, watch)| watch.place == Place::Synced && watch.next < oldest);
                lost.map(|(number, _)| number).collect()
            }
            Work::History(from) => self
                .cohorts
                .take(from, (oldest - 1).max(from))
                .into_iter()
                .map(|(_, number)| number)
                .collect(),
        };
        for number in ended {
            self.end(number, self.cursor, Body::Compacted(oldest));
        }
        self.answer_progress();
    }

    /// Delivers what was gathered, watch by watch.
    fn deliver(
        &mut self,
        matches: &mut Vec<(u32, u32)>,
        changes: &mut [Change],
        stalled: &mut BTreeSet<u32>,
    ) {
        // Stable, so that each watch's changes stay in order.
        matches.sort_by_key(|(number, _)| *number);
        for of_watch in matches.chunk_by(|a, b| a.0 == b.0) {
            let number = of_watch[0].0;
            match self.deliver_to(number, of_watch, changes) {
                Reached::End => {}
                Reached::Full(next) => self.park(number, next),
                Reached::Unread(next) => match self.watches.get_mut(number) {
                    Some(watch) if watch.place == Place::Synced => {
                        self.settle(number, next, Some(Place::Synced))
                    }
                    Some(watch) => {
                        watch.next = next;
                        stalled.insert(number);
                    }
                    None => {}
                },
            }
        }
        matches.clear();
    }

    fn deliver_to(&mut self, number: u32, of_watch: &[(u32, u32)], changes: &mut [Change]) -> Reached {
        let Some(watch) = self.watches.get(number) else { return Reached::End };
        let mut outgoing = Outgoing {
            number,
            id: watch.id,
            stream: watch.stream,
            events: Vec::new(),
            size_bytes: 0,
            first: 0,
            last: 0,
        };
        let (before, fragments) = (watch.wishes.before, watch.wishes.fragments);
        let revision_of = |at: &(u32, u32), changes: &[Change]| changes[at.1 as usize].revision;
        let mut rest = of_watch;
        while let Some(first) = rest.first() {
            let revision = revision_of(first, changes);
            let width = rest.iter().take_while(|at| revision_of(at, changes) == revision).count();
            let (group, behind) = rest.split_at(width);
            rest = behind;
            let events: Option<Vec<Bytes>> =
                group.iter().map(|(_, at)| event::encoded(&mut changes[*at as usize], before)).collect();
            let Some(events) = events else {
                return self.send(&mut outgoing).unwrap_or(Reached::Unread(revision));
            };
            let size_bytes: usize = events.iter().map(Bytes::len).sum();
            let in_fragments = fragments && size_bytes >= self.options.fragment_bytes_max;
            if (in_fragments || outgoing.size_bytes + size_bytes > self.options.response_bytes_max)
                && let Some(full) = self.send(&mut outgoing)
            {
                return full;
            }
            if in_fragments {
                if !self.has_room(StreamId(outgoing.stream)) {
                    return Reached::Full(revision);
                }
                self.send_in_fragments(&outgoing, revision, events);
                continue;
            }
            if outgoing.events.is_empty() {
                outgoing.first = revision;
            }
            outgoing.last = revision;
            outgoing.size_bytes += size_bytes;
            outgoing.events.extend(events);
        }
        self.send(&mut outgoing).unwrap_or(Reached::End)
    }

    /// Sends what is gathered, if anything is; or says that there is no room for it.
    fn send(&mut self, outgoing: &mut Outgoing) -> Option<Reached> {
        if outgoing.events.is_empty() {
            return None;
        }
        if !self.has_room(StreamId(outgoing.stream)) {
            return Some(Reached::Full(outgoing.first));
        }
        let events = std::mem::take(&mut outgoing.events);
        outgoing.size_bytes = 0;
        self.send_events(outgoing, outgoing.last, events, false);
        None
    }

    fn send_in_fragments(&mut self, outgoing: &Outgoing, revision: i64, events: Vec<Bytes>) {
        let (mut fragment, mut size_bytes) = (Vec::new(), 0);
        for event in events {
            if size_bytes + event.len() >= self.options.fragment_bytes_max && !fragment.is_empty() {
                self.send_events(outgoing, revision, std::mem::take(&mut fragment), true);
                size_bytes = 0;
            }
            size_bytes += event.len();
            fragment.push(event);
        }
        self.send_events(outgoing, revision, fragment, false);
    }

    fn send_events(&mut self, outgoing: &Outgoing, revision: i64, events: Vec<Bytes>, fragment: bool) {
        if let Some(watch) = self.watches.get_mut(outgoing.number) {
            watch.is_quiet = false;
        }
        self.events += events.len() as u64;
        let body = Body::Events { events, fragment };
        self.push(outgoing.stream, Frame { watch_id: outgoing.id, revision, body });
    }
}

/// Whether a watch whose next revision this is has not seen a change, and sees it with this page and not with another.
fn concerns(next: i64, work: Work, change: &Change) -> bool {
    next <= change.revision
        && match work {
            Work::Newest(_) => true,
            Work::History(from) => from <= next,
        }
}

/// What is gathered for a watch's next response.
struct Outgoing {
    number: u32,
    id: i64,
    stream: u32,
    events: Vec<Bytes>,
    size_bytes: usize,
    /// The revisions of the first and the last event.
    first: i64,
    last: i64,
}
