//! Range requests with all their options, whole or in chunks.

use std::{cmp::Ordering, sync::Arc};

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        RangeRequest, RangeResponse, ResponseHeader,
        range_request::{SortOrder, SortTarget},
    },
    mvccpb::KeyValue,
};

use crate::{
    command::KvError,
    interval::Interval,
    pages::{Filter, View, after, read_all},
    state::Shared,
    validate::{has_revision_filters, is_default_order},
};

/// A response header that only says at which revision the store is; whoever serves it adds the rest.
pub(crate) fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

/// The revision that a request means, given the newest one. An explicit revision may be in the past, not in the future.
pub(crate) fn choose_revision(asked: i64, newest: View) -> Result<View, KvError> {
    if asked > newest.revision {
        return Err(EtcdError::FutureRev.into());
    }
    Ok(View { revision: if asked <= 0 { newest.revision } else { asked }, ..newest })
}

/// Answers a validated range request when the newest revision is `newest`.
pub(crate) fn execute(
    shared: &Shared,
    request: &RangeRequest,
    newest: View,
) -> Result<RangeResponse, KvError> {
    let view = choose_revision(request.revision, newest)?;
    let interval = Interval::new(&request.key, &request.range_end);
    let mut response = RangeResponse { header: header(newest.revision), ..RangeResponse::default() };
    if request.count_only {
        response.count = shared.count(&interval, view)?;
        return Ok(response);
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    // What is to be sorted must be read to its end. A target without an order is sorted after the limit has cut it: see `is_default_order`.
    let is_sorted = !is_default_order(request)
        || (request.sort_target() != SortTarget::Key && has_revision_filters(request));
    let keys_max = if limit == 0 || is_sorted { usize::MAX } else { limit.saturating_add(1) };
    let sorts_values = request.sort_target() == SortTarget::Value;
    let reads_all_values = sorts_values || (!request.keys_only && (limit == 0 || !is_sorted));
    let page = read_all(shared, &interval, view, &filter(request), reads_all_values, keys_max)?;
    response.count = page.seen;
    if let Some(key) = page.resume {
        response.count += shared.count(&interval.rest(key), view)?;
    }
    response.kvs = page.kvs;
    sort(&mut response.kvs, request);
    if limit > 0 && response.kvs.len() > limit {
        response.kvs.truncate(limit);
        response.more = true;
    }
    if request.keys_only {
        if sorts_values {
            response.kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
    } else if !reads_all_values {
        shared.fill(&mut response.kvs, view)?;
    }
    Ok(response)
}

fn filter(request: &RangeRequest) -> Filter {
    Filter {
        modified_min: request.min_mod_revision,
        modified_max: request.max_mod_revision,
        created_min: request.min_create_revision,
        created_max: request.max_create_revision,
    }
}

/// Sorts keys that are in key order; equal ones stay in it.
fn sort(kvs: &mut [KeyValue], request: &RangeRequest) {
    let order: fn(&KeyValue, &KeyValue) -> Ordering = match request.sort_target() {
        SortTarget::Key if request.sort_order() == SortOrder::Descend => return kvs.reverse(),
        SortTarget::Key => return,
        SortTarget::Version => |a, b| a.version.cmp(&b.version),
        SortTarget::Create => |a, b| a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => |a, b| a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => |a, b| a.value.cmp(&b.value),
    };
    match request.sort_order() {
        SortOrder::Descend => kvs.sort_by(|a, b| order(b, a)),
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(order),
    }
}

/// The most keys in a chunk of a [`RangeStream`].
const CHUNK_KEYS_MAX: usize = 1024;

/// The answer to a range request in chunks, all at one revision, each read when it is asked for. Header, `more` and `count` are in the last
/// chunk only.
///
/// Between two chunks the store goes on; if it is compacted beyond the revision of the stream, the stream ends with `Compacted`.
#[derive(Debug)]
pub struct RangeStream {
    shared: Arc<Shared>,
    interval: Interval,
    view: View,
    newest_revision: i64,
    keys_only: bool,
    count_only: bool,
    /// How many keys may still be given; `None` for all.
    left: Option<usize>,
    given: i64,
    done: bool,
}

impl RangeStream {
    pub(crate) fn new(shared: Arc<Shared>, request: &RangeRequest, newest: View) -> Result<Self, KvError> {
        let view = choose_revision(request.revision, newest)?;
        Ok(Self {
            interval: Interval::new(&request.key, &request.range_end),
            view,
            newest_revision: newest.revision,
            keys_only: request.keys_only,
            count_only: request.count_only,
            left: usize::try_from(request.limit).ok().filter(|limit| *limit > 0),
            given: 0,
            done: false,
            shared,
        })
    }

    /// The revision that all chunks are read at.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.view.revision
    }

    fn chunk(&mut self) -> Result<RangeResponse, KvError> {
        let mut response = RangeResponse::default();
        if !self.count_only {
            let keys_max = self.left.map_or(CHUNK_KEYS_MAX, |left| left.min(CHUNK_KEYS_MAX));
            // One page may be all keys that do not exist at the revision; a chunk has at least one that does.
            let mut rest = Some(self.interval.clone());
            while let Some(part) = rest.take() {
                let page =
                    self.shared.page(&part, self.view, &Filter::default(), !self.keys_only, keys_max)?;
                response.kvs = page.kvs;
                rest = page.resume.map(|key| self.interval.rest(key));
                if !response.kvs.is_empty() {
                    break;
                }
            }
            self.given += response.kvs.len() as i64;
            if let Some(left) = &mut self.left {
                *left -= response.kvs.len();
            }
            if let Some(last) = response.kvs.last() {
                self.interval = after(&self.interval, &last.key);
            }
            if rest.is_some() && self.left != Some(0) {
                return Ok(response);
            }
        }
        // Whatever is left of the range is only counted.
        self.done = true;
        let uncounted = self.shared.count(&self.interval, self.view)?;
        response.header = header(self.newest_revision);
        response.more = !self.count_only && uncounted > 0;
        response.count = self.given + uncounted;
        Ok(response)
    }
}

impl Iterator for RangeStream {
    type Item = Result<RangeResponse, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let chunk = self.chunk();
        self.done |= chunk.is_err();
        Some(chunk)
    }
}
