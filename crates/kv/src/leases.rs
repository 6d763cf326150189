//! The leases that a group has granted, and the keys attached to each.
//!
//! All replicas hold the same ones, and none of them knows a clock: a lease ends by a command. When its time is up is for the leader to find
//! ([`Lessor`](crate::Lessor)). What is replicated of time is how long a lease was granted for, and how much of that was left when the leader
//! last said so.
//!
//! # Rules
//! 1. A key that exists and names a lease is attached to it, and the lease exists: who ends a lease deletes its keys, at one revision.
//! 2. An id can be granted again once its lease is over. So commands that leaders decide on name a *grant*, the id and the slot of the grant: what
//!    was decided of one lease never hits the next of the same id.
//! 3. At most [`LEASES_MAX`] leases are granted at a time.
//!
//! # Where things are
//! In memory, about 120 bytes a lease, and for each attached key its bytes and about 50 around them. In the engine a record each, with the next
//! checkpoint; what is attached is read from the index of keys.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_consensus::Slot;
use conclave_storage::{StateError, StateView};

use crate::{
    command::KvError,
    layout::{self, LEASES, damaged},
};

/// The most leases that a group grants at a time.
pub const LEASES_MAX: usize = 1 << 20;
/// The longest time to live that is granted, in seconds: etcd's bound.
pub const LEASE_TTL_MAX_SECONDS: i64 = 9_000_000_000;

/// What a pending change of a lease takes in memory, about, with the pair that a checkpoint makes of it.
const CHANGE_COST_BYTES: usize = 96;

/// One grant of a lease's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granted {
    /// The lease; never 0.
    pub id: i64,
    /// The log position of the grant.
    pub slot: Slot,
}

/// What is replicated of a lease beside its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Which.
    pub granted: Granted,
    /// The time to live that was granted, in seconds, and that each renewal begins anew.
    pub ttl_seconds: i64,
    /// What was left of it at the last checkpoint of the lease, in seconds; 0 if all of it.
    pub remaining_seconds: i64,
}

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// It was granted.
    Granted(LeaseInfo),
    /// It was revoked, or expired.
    Ended(Granted),
}

/// Is told of leases granted and ended, on the apply thread, once readers see it. It must not wait.
pub trait LeaseObserver: Send + Sync + std::fmt::Debug {
    /// In the order in which they were applied, those replayed at the start included. What a snapshot changes is not told.
    fn leases_changed(&self, changes: &[LeaseChange]);
}

#[derive(Debug)]
struct Lease {
    granted: Slot,
    ttl_seconds: i64,
    remaining_seconds: i64,
    keys: BTreeSet<Box<[u8]>>,
    key_bytes: usize,
}

/// All leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    all: BTreeMap<i64, Lease>,
    /// Those that changed since the last checkpoint.
    changed: BTreeSet<i64>,
    /// What the observer is to be told.
    untold: Vec<LeaseChange>,
}

/// A lease that is over, and what is to be deleted with it.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) keys: BTreeSet<Box<[u8]>>,
}

impl Leases {
    /// The leases that a checkpoint holds, with nothing attached yet.
    pub(crate) fn load(view: &dyn StateView) -> Result<Self, StateError> {
        let applied = view.checkpoint().map_or(Slot(0), |checkpoint| checkpoint.meta.slot);
        let mut leases = Self::default();
        for pair in view.scan(std::ops::Bound::Included(&[LEASES])) {
            let (key, record) = pair?;
            if key.first() != Some(&LEASES) {
                break;
            }
            let id = layout::lease_of(&key)?;
            let (granted, ttl_seconds, remaining_seconds) = layout::read_lease(&record)?;
            let is_sound = id != 0
                && granted <= applied
                && (1..=LEASE_TTL_MAX_SECONDS).contains(&ttl_seconds)
                && (0..=ttl_seconds).contains(&remaining_seconds);
            if !is_sound || leases.all.len() == LEASES_MAX {
                return Err(damaged("a lease's record contradicts itself or the checkpoint"));
            }
            leases.all.insert(id, Lease::new(granted, ttl_seconds, remaining_seconds));
        }
        Ok(leases)
    }

    pub(crate) fn grant(&mut self, id: i64, ttl_seconds: i64, slot: Slot) -> Result<(), KvError> {
        if ttl_seconds > LEASE_TTL_MAX_SECONDS {
            return Err(EtcdError::LeaseTtlTooLarge.into());
        }
        if id == 0 || ttl_seconds < 1 {
            return Err(KvError::Malformed);
        }
        if self.all.contains_key(&id) {
            return Err(EtcdError::LeaseExist.into());
        }
        if self.all.len() >= LEASES_MAX {
            return Err(KvError::TooManyLeases);
        }
        let lease = Lease::new(slot, ttl_seconds, 0);
        self.untold.push(LeaseChange::Granted(lease.info(id)));
        self.all.insert(id, lease);
        self.changed.insert(id);
        Ok(())
    }

    /// Ends a lease; nothing if there is none, or another grant than the one named. Its keys are to be deleted.
    pub(crate) fn end(&mut self, id: i64, slot: Option<Slot>) -> Option<Ended> {
        let granted = self.all.get(&id)?.granted;
        if slot.is_some_and(|slot| slot != granted) {
            return None;
        }
        let Lease { keys, .. } = self.all.remove(&id)?;
        self.changed.insert(id);
        self.untold.push(LeaseChange::Ended(Granted { id, slot: granted }));
        Some(Ended { keys })
    }

    /// Notes how long a lease has left, 0 for all of its time.
    pub(crate) fn checkpoint(&mut self, granted: Granted, remaining_seconds: i64) {
        let Some(lease) = self.all.get_mut(&granted.id).filter(|lease| lease.granted == granted.slot) else {
            return;
        };
        let remaining_seconds = remaining_seconds.clamp(0, lease.ttl_seconds);
        if lease.remaining_seconds != remaining_seconds {
            lease.remaining_seconds = remaining_seconds;
            self.changed.insert(granted.id);
        }
    }

    /// A key has a lease, or none, 0, where it had another before.
    pub(crate) fn attach(&mut self, key: &[u8], before: i64, now: i64) {
        if before == now {
            return;
        }
        self.detach(key, before);
        if now != 0
            && let Some(lease) = self.all.get_mut(&now)
            && lease.keys.insert(key.into())
        {
            lease.key_bytes += key.len();
        }
    }

    /// A key that had a lease, if it had one, is gone.
    pub(crate) fn detach(&mut self, key: &[u8], before: i64) {
        if before != 0
            && let Some(lease) = self.all.get_mut(&before)
            && lease.keys.remove(key)
        {
            lease.key_bytes -= key.len();
        }
    }

    pub(crate) fn contains(&self, id: i64) -> bool {
        self.all.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn info(&self, id: i64) -> Option<LeaseInfo> {
        self.all.get(&id).map(|lease| lease.info(id))
    }

    /// At most `leases_max` leases from an id on, by id.
    pub(crate) fn infos_from(&self, from: i64, leases_max: usize) -> Vec<LeaseInfo> {
        self.all.range(from..).take(leases_max).map(|(id, lease)| lease.info(*id)).collect()
    }

    /// At most `keys_max` keys of a lease, in order, those after `after` if there is one. `None` if there is no such lease.
    pub(crate) fn keys(&self, granted: Granted, after: Option<&[u8]>, keys_max: usize) -> Option<Vec<Bytes>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let lease = self.all.get(&granted.id).filter(|lease| lease.granted == granted.slot)?;
        let from = after.map_or(Unbounded, Excluded);
        let keys = lease.keys.range::<[u8], _>((from, Unbounded));
        Some(keys.take(keys_max).map(|key| Bytes::copy_from_slice(key)).collect())
    }

    /// How many keys a lease has, and their bytes.
    pub(crate) fn weight(&self, id: i64) -> (usize, usize) {
        self.all.get(&id).map_or((0, 0), |lease| (lease.keys.len(), lease.key_bytes))
    }

    /// Bytes that no checkpoint contains.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.changed.len() * CHANGE_COST_BYTES
    }

    /// The pairs of the engine to replace and remove, ascending; they are the checkpoint's from here on.
    pub(crate) fn freeze(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        let changed = std::mem::take(&mut self.changed);
        let pair = |id: i64| {
            let record = self
                .all
                .get(&id)
                .map(|lease| layout::lease_record(lease.granted, lease.ttl_seconds, lease.remaining_seconds));
            (layout::lease_key(id), record)
        };
        changed.into_iter().map(pair).collect()
    }

    /// What changed since this was last asked.
    pub(crate) fn take_untold(&mut self) -> Vec<LeaseChange> {
        std::mem::take(&mut self.untold)
    }
}

impl Lease {
    fn new(granted: Slot, ttl_seconds: i64, remaining_seconds: i64) -> Self {
        Self { granted, ttl_seconds, remaining_seconds, keys: BTreeSet::new(), key_bytes: 0 }
    }

    fn info(&self, id: i64) -> LeaseInfo {
        LeaseInfo {
            granted: Granted { id, slot: self.granted },
            ttl_seconds: self.ttl_seconds,
            remaining_seconds: self.remaining_seconds,
        }
    }
}
