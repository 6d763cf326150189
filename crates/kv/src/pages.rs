//! Reads at one revision, a page at a time.
//!
//! A page takes the lock once, briefly, and copies what is in memory; what only the engine knows is fetched after the lock is released.
//! If the engine was asked, the page is checked once more: had the store been compacted beyond the page's revision meanwhile, a generation
//! that it needed might have been removed.

use std::ops::Bound;

use bytes::{BufMut, Bytes, BytesMut};
use conclave_api::{errors::EtcdError, mvccpb::KeyValue};
use conclave_storage::{Pair, Scan, StateError, StateStore};

use crate::{
    command::KvError,
    interval::{Interval, successor},
    layout::{self, GENERATIONS, INDEX, Numbers},
    state::{Seen, Shared, State},
};

/// The most keys of the map that are looked at under one hold of the lock.
const PAGE_KEYS_MAX: usize = 2048;
/// The most bytes that are copied under one hold of the lock, but for a single larger value.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// The most keys that are counted under one hold of the lock.
const COUNT_KEYS_MAX: usize = 16 << 10;
/// So many pairs of the engine are stepped over before it is worth to seek.
const STEPS_MAX: usize = 16;
/// From so many keys on, one scan is worth more than separate lookups.
const SCAN_KEYS_MIN: usize = 4;

/// What a read looks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) revision: i64,
    /// The state's incarnation in which the revision was chosen.
    pub(crate) incarnation: u64,
}

/// Which generations a read keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) modified_min: i64,
    pub(crate) modified_max: i64,
    pub(crate) created_min: i64,
    pub(crate) created_max: i64,
}

impl Filter {
    fn passes(&self, numbers: &Numbers) -> bool {
        // Zero is "no bound"; a lower bound of zero or less excludes nothing anyway.
        (self.modified_max == 0 || numbers.modified <= self.modified_max)
            && (self.modified_min == 0 || numbers.modified >= self.modified_min)
            && (self.created_max == 0 || numbers.created <= self.created_max)
            && (self.created_min == 0 || numbers.created >= self.created_min)
    }
}

/// Part of a range.
pub(crate) struct Page {
    pub(crate) kvs: Vec<KeyValue>,
    /// How many keys of the part exist, those that the filter left out included.
    pub(crate) seen: i64,
    /// The key from which to go on, if there may be more.
    pub(crate) resume: Option<Bytes>,
}

/// A key found in the map, in a page under construction. Offsets are into the page's arena.
struct Found {
    key_at: usize,
    value_at: usize,
    end: usize,
    state: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Here(Numbers),
    /// The newest generation is known, its value is in the engine.
    ValueInEngine(Numbers),
    InEngine,
    Absent,
}

impl Shared {
    /// The revision that can be read now.
    pub(crate) fn view(&self) -> View {
        let state = self.state.read();
        View { revision: state.readable, incarnation: state.incarnation }
    }

    /// Reads the first part of a range: at most `keys_max` keys that pass the filter.
    pub(crate) fn page(
        &self,
        interval: &Interval,
        view: View,
        filter: &Filter,
        values: bool,
        keys_max: usize,
    ) -> Result<Page, KvError> {
        let mut arena = BytesMut::new();
        let mut found: Vec<Found> = Vec::new();
        let mut resume: Option<Bytes> = None;
        let mut seen = 0;
        let mut asks_engine = 0;
        let whole;
        {
            let state = self.state.read();
            check(&state, view)?;
            whole = view.revision >= state.forgotten;
            let mut passed = 0;
            for (looked_at, (key, newest)) in state.range(interval).enumerate() {
                if looked_at == PAGE_KEYS_MAX || passed == keys_max || arena.len() >= PAGE_BYTES_MAX {
                    resume = Some(Bytes::copy_from_slice(key));
                    break;
                }
                let place = match state.see(key, newest, view.revision) {
                    Seen::Absent if whole => continue,
                    Seen::Absent => Place::Absent,
                    Seen::InEngine => Place::InEngine,
                    // A merge judges again, and must not take the engine's copy for a key that the map has forgotten.
                    Seen::Generation(numbers, _) if whole && !filter.passes(numbers) => {
                        seen += 1;
                        continue;
                    }
                    Seen::Generation(numbers, _) if !values => Place::Here(*numbers),
                    Seen::Generation(numbers, None) => Place::ValueInEngine(*numbers),
                    Seen::Generation(numbers, Some(value)) => {
                        let key_at = arena.len();
                        arena.reserve(key.len() + value.len());
                        arena.put_slice(key);
                        let value_at = arena.len();
                        arena.put_slice(value);
                        passed += 1;
                        found.push(Found {
                            key_at,
                            value_at,
                            end: arena.len(),
                            state: Place::Here(*numbers),
                        });
                        continue;
                    }
                };
                let key_at = arena.len();
                arena.put_slice(key);
                let end = arena.len();
                // What the engine is to be asked for may turn out not to exist: then the page is shorter than it could be.
                passed += usize::from(!matches!(place, Place::Absent));
                asks_engine += usize::from(matches!(place, Place::ValueInEngine(_) | Place::InEngine));
                found.push(Found { key_at, value_at: end, end, state: place });
            }
        }
        let arena = arena.freeze();
        let mut page = Page { kvs: Vec::with_capacity(found.len()), seen, resume };
        if whole {
            self.complete(&arena, &found, view, filter, values, asks_engine, &mut page)?;
        } else {
            asks_engine = 1;
            self.merge(interval, &arena, &found, view, filter, values, keys_max, &mut page)?;
        }
        if asks_engine > 0 {
            check(&self.state.read(), view)?;
        }
        Ok(page)
    }

    /// Turns what was found into a page, asking the engine key by key for what is missing.
    #[allow(clippy::too_many_arguments)]
    fn complete(
        &self,
        arena: &Bytes,
        found: &[Found],
        view: View,
        filter: &Filter,
        values: bool,
        asks_engine: usize,
        page: &mut Page,
    ) -> Result<(), KvError> {
        self.count_engine_reads(asks_engine);
        let mut engine = Lookups::new(&*self.store, asks_engine >= SCAN_KEYS_MIN);
        for Found { key_at, value_at, end, state } in found {
            let key = arena.slice(*key_at..*value_at);
            match state {
                Place::Here(numbers) => {
                    page.seen += 1;
                    page.kvs.push(key_value(key, numbers, arena.slice(*value_at..*end)));
                }
                Place::ValueInEngine(numbers) => {
                    let value = engine.value(&key, numbers.modified)?;
                    check_found(value.is_some(), self, view)?;
                    page.seen += 1;
                    page.kvs.push(key_value(key, numbers, value.unwrap_or_default()));
                }
                Place::InEngine => {
                    if let Some((numbers, value)) = engine.newest_at(&key, view.revision)? {
                        page.seen += 1;
                        if filter.passes(&numbers) {
                            page.kvs.push(key_value(
                                key,
                                &numbers,
                                if values { value } else { Bytes::new() },
                            ));
                        }
                    }
                }
                Place::Absent => {}
            }
        }
        Ok(())
    }

    /// Merges what was found with the engine's keys of the same part of the range, among which may be deleted ones that the map has
    /// forgotten.
    #[allow(clippy::too_many_arguments)]
    fn merge(
        &self,
        interval: &Interval,
        arena: &Bytes,
        found: &[Found],
        view: View,
        filter: &Filter,
        values: bool,
        keys_max: usize,
        page: &mut Page,
    ) -> Result<(), KvError> {
        let part = page.resume.as_ref().map_or_else(|| interval.clone(), |resume| interval.until(resume));
        let mut groups = Groups::new(&*self.store, &part, view.revision);
        let mut from_engine = groups.next()?;
        let mut found = found.iter().peekable();
        // Counted anew, key by key, as the page may have to end before what was found does.
        page.seen = 0;
        let mut looked_at = 0;
        let mut size_bytes = 0;
        loop {
            let in_map = found.peek().map(|found| arena.slice(found.key_at..found.value_at));
            let key = match (&in_map, &from_engine) {
                (None, None) => break,
                (Some(key), None) => key.clone(),
                (None, Some(group)) => group.key.clone(),
                (Some(key), Some(group)) => key.min(&group.key).clone(),
            };
            if page.kvs.len() == keys_max || looked_at == PAGE_KEYS_MAX || size_bytes >= PAGE_BYTES_MAX {
                page.resume = Some(key);
                break;
            }
            looked_at += 1;
            let place = in_map.filter(|in_map| *in_map == key).and_then(|_| found.next());
            let group = match &from_engine {
                Some(group) if group.key == key => std::mem::replace(&mut from_engine, groups.next()?),
                _ => None,
            };
            let generation = match place.map(|found| (found, found.state)) {
                Some((_, Place::Absent)) => None,
                Some((found, Place::Here(numbers))) => {
                    Some((numbers, arena.slice(found.value_at..found.end)))
                }
                Some((_, Place::ValueInEngine(numbers))) => {
                    let value = group
                        .and_then(|group| group.generation)
                        .filter(|(at, _)| at.modified == numbers.modified);
                    check_found(value.is_some(), self, view)?;
                    value
                }
                Some((_, Place::InEngine)) | None => group.and_then(|group| group.generation),
            };
            if let Some((numbers, value)) = generation {
                page.seen += 1;
                if filter.passes(&numbers) {
                    size_bytes += key.len() + value.len();
                    page.kvs.push(key_value(key, &numbers, if values { value } else { Bytes::new() }));
                }
            }
        }
        self.count_engine_reads(looked_at);
        Ok(())
    }

    /// Counts the keys of a range.
    pub(crate) fn count(&self, interval: &Interval, view: View) -> Result<i64, KvError> {
        let mut count = 0;
        let mut rest = Some(interval.clone());
        while let Some(part) = rest.take() {
            if let Some((counted, resume)) = self.count_in_memory(&part, view)? {
                count += counted;
                rest = resume.map(|key| interval.rest(key));
            } else {
                let page = self.page(&part, view, &Filter::default(), false, PAGE_KEYS_MAX)?;
                count += page.seen;
                rest = page.resume.map(|key| interval.rest(key));
            }
        }
        Ok(count)
    }

    /// Counts the first part of a range; `None` if that takes the engine.
    fn count_in_memory(
        &self,
        interval: &Interval,
        view: View,
    ) -> Result<Option<(i64, Option<Bytes>)>, KvError> {
        let state = self.state.read();
        check(&state, view)?;
        if view.revision < state.forgotten {
            return Ok(None);
        }
        let mut count = 0;
        for (looked_at, (key, newest)) in state.range(interval).enumerate() {
            if looked_at == COUNT_KEYS_MAX {
                return Ok(Some((count, Some(Bytes::copy_from_slice(key)))));
            }
            let Numbers { created, version, .. } = newest.numbers;
            if version > 0 && created <= view.revision {
                // It has existed without a gap since then, whatever its value was.
                count += 1;
            } else if newest.numbers.modified > view.revision {
                match state.see(key, newest, view.revision) {
                    Seen::Generation(..) => count += 1,
                    Seen::Absent => {}
                    Seen::InEngine => return Ok(None),
                }
            }
        }
        Ok(Some((count, None)))
    }

    /// Reads one key.
    pub(crate) fn get(&self, key: &Bytes, view: View, values: bool) -> Result<Option<KeyValue>, KvError> {
        let interval = Interval::new(key, &Bytes::new());
        Ok(self.page(&interval, view, &Filter::default(), values, 1)?.kvs.pop())
    }

    /// Fetches the values of generations that were read without. They are in the order of their keys or in any other.
    pub(crate) fn fill(&self, kvs: &mut [KeyValue], view: View) -> Result<(), KvError> {
        for kvs in kvs.chunks_mut(PAGE_KEYS_MAX) {
            let mut missing = Vec::new();
            {
                let state = self.state.read();
                check(&state, view)?;
                for (at, kv) in kvs.iter_mut().enumerate() {
                    match state.newest(&kv.key).map(|newest| state.see(&kv.key, newest, view.revision)) {
                        Some(Seen::Generation(_, Some(value))) => kv.value = Bytes::copy_from_slice(value),
                        _ => missing.push(at),
                    }
                }
            }
            if missing.is_empty() {
                continue;
            }
            self.count_engine_reads(missing.len());
            let mut engine = Lookups::new(&*self.store, false);
            for at in missing {
                let value = engine.value(&kvs[at].key, kvs[at].mod_revision)?;
                check_found(value.is_some(), self, view)?;
                kvs[at].value = value.unwrap_or_default();
            }
            check(&self.state.read(), view)?;
        }
        Ok(())
    }
}

/// Whether a revision can still be read.
fn check(state: &State, view: View) -> Result<(), KvError> {
    if state.compacted > view.revision || state.incarnation != view.incarnation {
        return Err(EtcdError::Compacted.into());
    }
    Ok(())
}

/// A generation that was promised is there, or it was compacted meanwhile, or the engine is damaged.
fn check_found(found: bool, shared: &Shared, view: View) -> Result<(), KvError> {
    if found {
        return Ok(());
    }
    check(&shared.state.read(), view)?;
    Err(layout::damaged("a generation that the index names is missing").into())
}

pub(crate) fn key_value(key: Bytes, numbers: &Numbers, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        create_revision: numbers.created,
        mod_revision: numbers.modified,
        version: numbers.version,
        value,
        lease: numbers.lease,
    }
}

pub(crate) type Generation = (Numbers, Bytes);

fn generation(stored: &Bytes, modified: i64) -> Result<Option<Generation>, StateError> {
    let (numbers, _, value_at) = layout::read_generation(stored, modified)?;
    Ok((!numbers.is_deletion()).then(|| (numbers, stored.slice(value_at..))))
}

/// Lookups of many keys in ascending order: near ones by stepping on in one scan of the index, far ones by seeking.
struct Lookups<'a> {
    store: &'a dyn StateStore,
    scans: bool,
    scan: Option<Scan<'static>>,
    next: Option<Pair>,
    /// Reused for the index key that is looked for.
    wanted: Vec<u8>,
}

impl<'a> Lookups<'a> {
    fn new(store: &'a dyn StateStore, scans: bool) -> Self {
        Self { store, scans, scan: None, next: None, wanted: Vec::new() }
    }

    /// The value of a generation that was its key's newest a moment ago.
    fn value(&mut self, key: &[u8], modified: i64) -> Result<Option<Bytes>, StateError> {
        self.wanted.clear();
        layout::put_index_key(&mut self.wanted, key);
        let indexed = if self.scans {
            self.seek()?;
            self.next.take_if(|(key, _)| *key == self.wanted).map(|(_, stored)| stored)
        } else {
            self.store.get(&self.wanted)?
        };
        if let Some(stored) = indexed
            && let (numbers, Some(value_at)) = layout::read_index(&stored)?
            && numbers.modified == modified
        {
            return Ok(Some(stored.slice(value_at..)));
        }
        // Too large for the index, or superseded there by a checkpoint meanwhile.
        match self.store.get(&layout::generation_key(key, modified))? {
            Some(stored) => Ok(generation(&stored, modified)?.map(|(_, value)| value)),
            None => Ok(None),
        }
    }

    /// The newest generation at a revision, unless it is a deletion.
    fn newest_at(&mut self, key: &[u8], revision: i64) -> Result<Option<Generation>, StateError> {
        newest_at(self.store, key, revision)
    }

    /// Moves to the first pair at or after the wanted one.
    fn seek(&mut self) -> Result<(), StateError> {
        if let Some(scan) = &mut self.scan {
            for _ in 0..STEPS_MAX {
                if self.next.as_ref().is_some_and(|(key, _)| *key >= self.wanted) {
                    return Ok(());
                }
                self.next = scan.next().transpose()?;
                if self.next.is_none() {
                    return Ok(());
                }
            }
        }
        let from = Bound::Included(self.wanted.as_slice());
        let mut scan = self.store.scan(from, Bound::Excluded(&[INDEX + 1]), false);
        self.next = scan.next().transpose()?;
        self.scan = Some(scan);
        Ok(())
    }
}

pub(crate) fn newest_at(
    store: &dyn StateStore,
    key: &[u8],
    revision: i64,
) -> Result<Option<Generation>, StateError> {
    let (first, last) = (layout::generation_key(key, 0), layout::generation_key(key, revision));
    let mut scan = store.scan(Bound::Included(&first), Bound::Included(&last), true);
    match scan.next().transpose()? {
        Some((stored_key, stored)) => generation(&stored, layout::split_generation_key(&stored_key)?.1),
        None => Ok(None),
    }
}

/// A key of the engine, with its newest generation at a revision unless it does not exist then.
struct Group {
    key: Bytes,
    generation: Option<Generation>,
}

/// Walks the engine's keys of a range.
struct Groups<'a> {
    store: &'a dyn StateStore,
    revision: i64,
    to: Bound<Vec<u8>>,
    scan: Option<Scan<'static>>,
    next: Option<Pair>,
}

impl<'a> Groups<'a> {
    fn new(store: &'a dyn StateStore, interval: &Interval, revision: i64) -> Self {
        let prefix = |key: &[u8]| {
            let mut out = Vec::with_capacity(key.len() + 3);
            layout::put_generation_prefix(&mut out, key);
            out
        };
        let (scan, to) = match interval.bounds() {
            None => (None, Bound::Excluded(Vec::new())),
            Some((_, to)) => {
                let to = match to {
                    Bound::Excluded(key) => Bound::Excluded(prefix(key)),
                    Bound::Included(key) => Bound::Included(layout::generation_key(key, i64::MAX)),
                    Bound::Unbounded => Bound::Excluded(vec![GENERATIONS + 1]),
                };
                let from = prefix(interval.from());
                (Some(store.scan(Bound::Included(&from), to.as_ref().map(Vec::as_slice), false)), to)
            }
        };
        Self { store, revision, to, scan, next: None }
    }

    fn step(&mut self) -> Result<Option<Pair>, StateError> {
        match self.next.take() {
            Some(pair) => Ok(Some(pair)),
            None => self.scan.as_mut().and_then(Iterator::next).transpose(),
        }
    }

    fn next(&mut self) -> Result<Option<Group>, StateError> {
        let Some((first_key, mut stored)) = self.step()? else { return Ok(None) };
        let (prefix, mut modified) = layout::split_generation_key(&first_key)?;
        let key = Bytes::from(layout::user_key(prefix)?);
        let mut best = (modified <= self.revision).then(|| (modified, stored.clone()));
        for steps in 0.. {
            let Some((next_key, next_stored)) = self.step()? else { break };
            let (next_prefix, next_modified) = layout::split_generation_key(&next_key)?;
            if next_prefix != prefix {
                self.next = Some((next_key, next_stored));
                break;
            }
            (modified, stored) = (next_modified, next_stored);
            if modified <= self.revision {
                best = Some((modified, stored));
            }
            if steps == STEPS_MAX {
                // A long history: look for the one generation, and go on behind the key.
                let generation = newest_at(self.store, &key, self.revision)?;
                let last = layout::generation_key(&key, i64::MAX);
                self.scan =
                    Some(self.store.scan(Bound::Excluded(&last), self.to.as_ref().map(Vec::as_slice), false));
                return Ok(Some(Group { key, generation }));
            }
        }
        let generation = match best {
            Some((modified, stored)) => generation(&stored, modified)?,
            None => None,
        };
        Ok(Some(Group { key, generation }))
    }
}

/// All pages of a range as one, until `keys_max` keys were found. The second number is how many keys exist in what was read, and the key is
/// where to go on.
pub(crate) fn read_all(
    shared: &Shared,
    interval: &Interval,
    view: View,
    filter: &Filter,
    values: bool,
    keys_max: usize,
) -> Result<Page, KvError> {
    let mut all = shared.page(interval, view, filter, values, keys_max)?;
    while let Some(key) = all.resume.take() {
        if all.kvs.len() >= keys_max {
            all.resume = Some(key);
            break;
        }
        let page = shared.page(&interval.rest(key), view, filter, values, keys_max - all.kvs.len())?;
        all.seen += page.seen;
        all.kvs.extend(page.kvs);
        all.resume = page.resume;
    }
    Ok(all)
}

/// Where a range goes on after a key.
pub(crate) fn after(interval: &Interval, key: &[u8]) -> Interval {
    interval.rest(successor(key))
}
