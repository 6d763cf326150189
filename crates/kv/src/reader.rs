//! What those who read are given.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use conclave_api::{
    conclave::kv::v1::RegisteredNode,
    errors::EtcdError,
    etcdserverpb::{HashKvResponse, HashResponse, RangeRequest, RangeResponse},
};

use crate::{
    command::KvError,
    hash,
    leases::{Granted, LeaseInfo},
    range::{self, RangeStream, header},
    state::Shared,
    validate::{validate_range, validate_range_stream},
};

/// How often a read of the newest revision begins again because the store was compacted past it meanwhile.
const ATTEMPTS_MAX: usize = 8;
/// So many leases, or keys of a lease, are read under one hold of the lock.
const LEASES_PAGE: usize = 4096;

/// Reads a store while its machine goes on applying. Cheap to clone; shared by all threads. How fresh an answer must be is the caller's
/// affair: it waits until the machine has applied what it must see.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(crate) shared: Arc<Shared>,
}

/// What a store is made of at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The newest revision that can be read.
    pub revision: i64,
    /// The oldest that can be read.
    pub compact_revision: i64,
    /// Keys that exist.
    pub keys: u64,
    /// Leases that are granted.
    pub leases: usize,
    /// Bytes in memory that no checkpoint contains.
    pub pending_bytes: usize,
    /// Bytes of checkpointed values that are kept in memory.
    pub cached_value_bytes: usize,
    /// Bytes of the engine.
    pub engine_bytes: u64,
    /// Generations that reads had to fetch from the engine since the start.
    pub engine_reads: u64,
}

impl Reader {
    /// Reads keys. The header carries the store's revision only. May ask the engine, so it may wait for the disk.
    ///
    /// # Errors
    /// Those of [`validate_range`]; `Compacted`, `FutureRev`; the engine's.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        validate_range(request)?;
        for _ in 1..ATTEMPTS_MAX {
            let newest = self.shared.view();
            match range::execute(&self.shared, request, newest) {
                // The newest revision was compacted, or the state replaced, while this read went on: neither is the client's doing.
                Err(KvError::Etcd(EtcdError::Compacted))
                    if request.revision <= 0 || self.shared.view().incarnation != newest.incarnation => {}
                outcome => return outcome,
            }
        }
        range::execute(&self.shared, request, self.shared.view())
    }

    /// Reads keys in chunks at one revision, for ranges too large for one answer.
    ///
    /// # Errors
    /// Those of [`validate_range_stream`], and `FutureRev`; others come with the chunks.
    pub fn range_stream(&self, request: &RangeRequest) -> Result<RangeStream, KvError> {
        validate_range_stream(request)?;
        RangeStream::new(self.shared.clone(), request, self.shared.view())
    }

    /// The newest revision that can be read.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.shared.state.read().readable
    }

    /// The highest revision applied.
    #[must_use]
    pub fn top_revision(&self) -> i64 {
        self.shared.state.read().top
    }

    /// The oldest revision that can be read; −1 if the store was never compacted.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.shared.state.read().compacted
    }

    /// The registered nodes, by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<RegisteredNode> {
        self.shared.state.read().registry.nodes()
    }

    /// Counts the changes of [`nodes`](Self::nodes) since the store was opened, for who looks again and again.
    #[must_use]
    pub fn nodes_version(&self) -> u64 {
        self.shared.state.read().registry.version
    }

    /// A lease, if it is granted.
    #[must_use]
    pub fn lease(&self, id: i64) -> Option<LeaseInfo> {
        self.shared.state.read().leases.info(id)
    }

    /// All leases, by id. One that is granted or ends meanwhile may be among them or not.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseInfo> {
        let mut all: Vec<LeaseInfo> = Vec::new();
        let mut from = Some(i64::MIN);
        while let Some(id) = from {
            let page = self.shared.state.read().leases.infos_from(id, LEASES_PAGE);
            from = page
                .last()
                .filter(|_| page.len() == LEASES_PAGE)
                .and_then(|last| last.granted.id.checked_add(1));
            all.extend(page);
        }
        all
    }

    /// The keys attached to a lease, in order. One that is attached or detached meanwhile may be among them or not. `None` if the lease is over.
    #[must_use]
    pub fn lease_keys(&self, granted: Granted) -> Option<Vec<Bytes>> {
        let mut all: Vec<Bytes> = Vec::new();
        loop {
            let page =
                self.shared.state.read().leases.keys(granted, all.last().map(AsRef::as_ref), LEASES_PAGE)?;
            let is_last = page.len() < LEASES_PAGE;
            all.extend(page);
            if is_last {
                return Some(all);
            }
        }
    }

    /// How many of these leases, from the first on, have at most so many keys, and bytes of keys, together; at least one.
    #[must_use]
    pub fn leases_within(&self, leases: &[Granted], keys_max: usize, bytes_max: usize) -> usize {
        let state = self.shared.state.read();
        let (mut keys, mut bytes) = (0, 0);
        let fits = |lease: &&Granted| {
            let (more_keys, more_bytes) = state.leases.weight(lease.id);
            (keys, bytes) = (keys + more_keys, bytes + more_bytes);
            keys <= keys_max && bytes <= bytes_max
        };
        leases.iter().take_while(fits).count().max(1).min(leases.len())
    }

    /// A checksum of everything that can be read now. Reads the whole history.
    ///
    /// # Errors
    /// The engine's.
    pub fn hash(&self) -> Result<HashResponse, KvError> {
        let hashed = hash::history(&self.shared, 0)?;
        let mut hasher = crc32fast::Hasher::new_with_initial(hashed.hash);
        hasher.update(&hashed.compact_revision.to_le_bytes());
        hasher.update(&hashed.revision.to_le_bytes());
        Ok(HashResponse { header: header(hashed.newest_revision), hash: hasher.finalize() })
    }

    /// A checksum of the history up to a revision, 0 for the newest. Equal on all members that are compacted to the same revision, which
    /// the answer names. Reads the whole history.
    ///
    /// # Errors
    /// `Compacted`, `FutureRev`; the engine's.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, KvError> {
        let hashed = hash::history(&self.shared, revision)?;
        Ok(HashKvResponse {
            header: header(hashed.newest_revision),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.revision,
        })
    }

    /// What the store is made of now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let engine_bytes = self.shared.store.size_bytes();
        let state = self.shared.state.read();
        Stats {
            revision: state.readable,
            compact_revision: state.compacted,
            keys: state.live_keys,
            leases: state.leases.len(),
            pending_bytes: state.head.pending_bytes(),
            cached_value_bytes: state.cached_bytes(),
            engine_bytes,
            engine_reads: self.shared.engine_reads.load(Ordering::Relaxed),
        }
    }
}
