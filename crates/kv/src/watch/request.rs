//! What a client may ask a watch to be.

use std::sync::Arc;

use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
};

use super::index::Target;
use crate::validate::KEY_BYTES_MAX;

/// Why a watch is not created: the text that its client is told, etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The range ends at or before its beginning.
    #[error("mvcc: watcher range is empty")]
    EmptyRange,
    /// The stream has a watch of that id.
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// One of etcd's general errors.
    #[error(transparent)]
    Etcd(EtcdError),
}

/// How a watch wants its events. Small, as there is one for each watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) no_puts: bool,
    pub(super) no_deletions: bool,
    pub(super) before: bool,
    pub(super) fragments: bool,
    pub(super) progress: bool,
}

impl Wishes {
    pub(super) fn wants(self, is_deletion: bool) -> bool {
        if is_deletion { !self.no_deletions } else { !self.no_puts }
    }
}

/// Reads a request but for its id and revision.
pub(super) fn read(request: &WatchCreateRequest) -> Result<(Target, Wishes), Refusal> {
    if request.start_revision < 0 {
        return Err(Refusal::Etcd(EtcdError::Compacted));
    }
    if request.key.len().max(request.range_end.len()) > KEY_BYTES_MAX {
        return Err(Refusal::Etcd(EtcdError::RequestTooLarge));
    }
    // The smallest key there is, for one that was not given.
    let key: &[u8] = if request.key.is_empty() { &[0] } else { &request.key };
    let target = match &request.range_end[..] {
        [] => Target::Key(copy(key)),
        [0] => Target::Range(copy(key), None),
        end if end <= key => return Err(Refusal::EmptyRange),
        end => Target::Range(copy(key), Some(copy(end))),
    };
    let filters = |filter: FilterType| request.filters.contains(&filter.into());
    let wishes = Wishes {
        no_puts: filters(FilterType::Noput),
        no_deletions: filters(FilterType::Nodelete),
        before: request.prev_kv,
        fragments: request.fragment,
        progress: request.progress_notify,
    };
    Ok((target, wishes))
}

/// A copy of its own, so that a watch does not keep its request in memory.
fn copy(key: &[u8]) -> Arc<[u8]> {
    Arc::from(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(key: &'static [u8], range_end: &'static [u8]) -> Result<Target, Refusal> {
        let request = WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            ..WatchCreateRequest::default()
        };
        read(&request).map(|(target, _)| target)
    }

    #[test]
    fn keys_and_ends_by_etcds_rules() {
        let key = |key: &[u8]| Arc::<[u8]>::from(key);
        assert_eq!(target(b"k", b""), Ok(Target::Key(key(b"k"))));
        assert_eq!(target(b"", b""), Ok(Target::Key(key(b"\0"))));
        assert_eq!(target(b"k", b"\0"), Ok(Target::Range(key(b"k"), None)));
        assert_eq!(target(b"", b"\0"), Ok(Target::Range(key(b"\0"), None)));
        assert_eq!(target(b"\0", b"\0"), Ok(Target::Range(key(b"\0"), None)));
        assert_eq!(target(b"k", b"l"), Ok(Target::Range(key(b"k"), Some(key(b"l")))));
        for (from, end) in [(&b"k"[..], &b"k"[..]), (b"l", b"k"), (b"k\0", b"k")] {
            assert_eq!(target(from, end), Err(Refusal::EmptyRange));
        }
    }

    #[test]
    fn what_no_watch_can_be() {
        let large: &'static [u8] = &[b'k'; KEY_BYTES_MAX + 1];
        assert_eq!(target(large, b""), Err(Refusal::Etcd(EtcdError::RequestTooLarge)));
        assert_eq!(target(b"k", large), Err(Refusal::Etcd(EtcdError::RequestTooLarge)));
        let past = WatchCreateRequest { start_revision: -1, ..WatchCreateRequest::default() };
        assert_eq!(read(&past), Err(Refusal::Etcd(EtcdError::Compacted)));
        // A filter of a later version filters nothing.
        let filters = WatchCreateRequest { filters: vec![7, 1], ..WatchCreateRequest::default() };
        let wishes = read(&filters).unwrap().1;
        assert!(wishes.wants(false) && !wishes.wants(true));
    }
}
