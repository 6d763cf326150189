//! Who holds a lock, judged from its queue.
//!
//! A lock `name` is the keys `name/…`, one for each who holds it or waits for it, each going with its owner's lease. The queue is their
//! order of creation. What a key is called says what its owner wants:
//!
//! ```text
//! name/<lease>     alone                 (a mutex; as etcd's own lock service and its clients call theirs)
//! name/w-<lease>   alone                 (a writer)
//! name/r-<lease>   together with readers
//! name/s-<lease>   together with capacity − 1 others; the value is the capacity
//! ```
//!
//! 1. The queue is judged whole, at one revision. Everything that may change the judgement afterwards is a deletion of a key ahead.
//! 2. Who wants it alone holds it when nobody is ahead; a reader when nobody ahead wants it alone; a semaphore's entrant when fewer
//!    than the capacity are ahead.
//! 3. Whoever is not in the queue any more holds nothing: its lease has expired.
//! 4. Whatever else stands below `name/` does not count, such as the keys of a lock `name/part`. (That a key goes with a lease is not asked: a
//!    server may leave that out of an answer without values.)

use bytes::Bytes;

use crate::{
    kv::{Found, KeyValue, LeaseId, Revision},
    lock::LockError,
};

/// What an entrant wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// A mutex: alone.
    Alone,
    /// A writer: alone.
    Write,
    /// A reader: together with readers.
    Read,
    /// One of so many permits.
    Permit { capacity: u32 },
}

impl Want {
    /// The key of an owner with this lease.
    pub(crate) fn key(self, prefix: &Bytes, lease: LeaseId) -> Bytes {
        let kind = match self {
            Self::Alone => "",
            Self::Write => "w-",
            Self::Read => "r-",
            Self::Permit { .. } => "s-",
        };
        [prefix.as_ref(), kind.as_bytes(), lease.to_string().as_bytes()].concat().into()
    }

    /// What stands under it, unless the owner has something to say.
    pub(crate) fn value(self) -> Bytes {
        match self {
            Self::Permit { capacity } => capacity.to_string().into(),
            Self::Alone | Self::Write | Self::Read => Bytes::new(),
        }
    }

    /// Whether the queue has to be read with its values.
    pub(crate) fn needs_values(self) -> bool {
        matches!(self, Self::Permit { .. })
    }
}

/// One in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrant {
    pub(crate) key: Bytes,
    pub(crate) created: Revision,
    is_reader: bool,
    value: Bytes,
}

impl Entrant {
    fn of(kv: KeyValue, prefix: &[u8]) -> Option<Self> {
        let rest = kv.key.strip_prefix(prefix)?;
        let is_reader = rest.starts_with(b"r-");
        let kinds = [&b"r-"[..], b"w-", b"s-"];
        let lease = kinds.iter().find_map(|kind| rest.strip_prefix(*kind)).unwrap_or(rest);
        let is_lease = (1..=16).contains(&lease.len()) && lease.iter().all(u8::is_ascii_hexdigit);
        if !is_lease {
            return None;
        }
        Some(Self { key: kv.key, created: kv.create_revision, is_reader, value: kv.value })
    }
}

/// Those who hold a lock or wait for it, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) revision: Revision,
    entrants: Vec<Entrant>,
}

/// Whose going is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Await {
    /// This one's.
    Key(Bytes),
    /// That of any of these until no more than so many are left.
    AnyOf { ahead: Vec<Bytes>, left_max: usize },
}

/// How an entrant stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It holds the lock, under this token.
    Holds(Revision),
    /// It waits.
    Waits(Await),
    /// It is not in the queue.
    Gone,
}

impl Queue {
    /// As it was read: the keys below `prefix`, in any order.
    pub(crate) fn new(found: Found, prefix: &[u8]) -> Self {
        let mut entrants: Vec<Entrant> =
            found.kvs.into_iter().filter_map(|kv| Entrant::of(kv, prefix)).collect();
        // Two keys of one transaction have the same revision; then the key decides, alike for all.
        entrants.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
        Self { revision: found.revision, entrants }
    }

    /// The first in it.
    pub(crate) fn first(&self) -> Option<&Entrant> {
        self.entrants.first()
    }

    /// How the owner of `own` stands.
    ///
    /// # Errors
    /// [`LockError::Capacity`] if another reckons with another number of permits.
    pub(crate) fn place(&self, want: Want, own: &Bytes) -> Result<Place, LockError> {
        let Some(at) = self.entrants.iter().position(|entrant| entrant.key == *own) else {
            return Ok(Place::Gone);
        };
        let token = self.entrants[at].created;
        Ok(match self.obstacle(want, &self.entrants[..at])? {
            None => Place::Holds(token),
            Some(obstacle) => Place::Waits(obstacle),
        })
    }

    /// Whether one who came now would hold it at once.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub(crate) fn admits(&self, want: Want) -> Result<bool, LockError> {
        Ok(self.obstacle(want, &self.entrants)?.is_none())
    }

    fn obstacle(&self, want: Want, ahead: &[Entrant]) -> Result<Option<Await>, LockError> {
        Ok(match want {
            Want::Alone | Want::Write => ahead.last().map(|entrant| Await::Key(entrant.key.clone())),
            Want::Read => {
                let writer = ahead.iter().rev().find(|entrant| !entrant.is_reader);
                writer.map(|entrant| Await::Key(entrant.key.clone()))
            }
            Want::Permit { capacity } => {
                // Of all, those behind included: two capacities at one lock are a mistake, whoever is first to see it.
                if let Some(other) = self.entrants.iter().find(|entrant| entrant.value != want.value()) {
                    let theirs = String::from_utf8_lossy(&other.value).into_owned();
                    return Err(LockError::Capacity { ours: capacity, theirs });
                }
                let capacity = capacity as usize;
                (ahead.len() >= capacity).then(|| Await::AnyOf {
                    ahead: ahead.iter().map(|entrant| entrant.key.clone()).collect(),
                    left_max: capacity.saturating_sub(1),
                })
            }
        })
    }
}

impl Await {
    /// A key was deleted: whether the queue is to be judged again.
    pub(crate) fn is_over(&mut self, deleted: &Bytes) -> bool {
        match self {
            Self::Key(key) => key == deleted,
            Self::AnyOf { ahead, left_max } => {
                ahead.retain(|key| key != deleted);
                ahead.len() <= *left_max
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &[u8] = b"l/";

    fn kv(key: &str, created: i64, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision: Revision(created),
            mod_revision: Revision(created),
            version: 1,
            lease: None,
        }
    }

    fn queue(keys: &[&str]) -> Queue {
        let kvs = keys.iter().zip(2..).map(|(key, created)| kv(key, created, "2")).collect();
        Queue::new(Found { revision: Revision(99), kvs, more: false, count: 0 }, PREFIX)
    }

    fn place(queue: &Queue, want: Want, own: &'static str) -> Place {
        queue.place(want, &Bytes::from_static(own.as_bytes())).unwrap()
    }

    fn waits_for(key: &'static str) -> Place {
        Place::Waits(Await::Key(key.into()))
    }

    #[test]
    fn keys_are_named_by_what_is_wanted() {
        let prefix = Bytes::from_static(PREFIX);
        let key = |want: Want| want.key(&prefix, LeaseId(0x1f));
        assert_eq!(key(Want::Alone), "l/1f");
        assert_eq!(key(Want::Write), "l/w-1f");
        assert_eq!(key(Want::Read), "l/r-1f");
        assert_eq!(key(Want::Permit { capacity: 3 }), "l/s-1f");
    }

    #[test]
    fn a_mutex_waits_for_the_one_before_it() {
        let queue = queue(&["l/a", "l/b", "l/c"]);
        assert_eq!(place(&queue, Want::Alone, "l/a"), Place::Holds(Revision(2)));
        assert_eq!(place(&queue, Want::Alone, "l/b"), waits_for("l/a"));
        assert_eq!(place(&queue, Want::Alone, "l/c"), waits_for("l/b"));
        assert_eq!(place(&queue, Want::Alone, "l/d"), Place::Gone);
    }

    #[test]
    fn a_reader_waits_for_the_last_writer_before_it_and_a_writer_for_anybody() {
        let queue = queue(&["l/r-1", "l/r-2", "l/w-3", "l/r-4", "l/r-5", "l/w-6", "l/r-7"]);
        assert_eq!(place(&queue, Want::Read, "l/r-1"), Place::Holds(Revision(2)));
        assert_eq!(place(&queue, Want::Read, "l/r-2"), Place::Holds(Revision(3)));
        assert_eq!(place(&queue, Want::Write, "l/w-3"), waits_for("l/r-2"));
        assert_eq!(place(&queue, Want::Read, "l/r-5"), waits_for("l/w-3"));
        assert_eq!(place(&queue, Want::Write, "l/w-6"), waits_for("l/r-5"));
        assert_eq!(place(&queue, Want::Read, "l/r-7"), waits_for("l/w-6"));
    }

    #[test]
    fn a_semaphore_waits_until_enough_have_gone_whoever_they_are() {
        let queue = queue(&["l/s-1", "l/s-2", "l/s-3", "l/s-4"]);
        let want = Want::Permit { capacity: 2 };
        assert_eq!(place(&queue, want, "l/s-2"), Place::Holds(Revision(3)));
        let Place::Waits(mut third) = place(&queue, want, "l/s-3") else { panic!("the third waits") };
        assert!(third.is_over(&"l/s-2".into()));
        let Place::Waits(mut fourth) = place(&queue, want, "l/s-4") else { panic!("the fourth waits") };
        assert!(!fourth.is_over(&"l/s-9".into()), "nobody ahead");
        assert!(!fourth.is_over(&"l/s-3".into()), "two are still ahead");
        assert!(!fourth.is_over(&"l/s-3".into()), "nobody goes twice");
        assert!(fourth.is_over(&"l/s-1".into()));
    }

    #[test]
    fn two_capacities_are_a_mistake() {
        let queue = queue(&["l/s-1"]);
        let error = queue.admits(Want::Permit { capacity: 3 }).unwrap_err();
        assert_eq!(error.to_string(), "the semaphore has 2 permits elsewhere and 3 here");
    }

    #[test]
    fn what_else_stands_below_the_same_prefix_does_not_count() {
        let queue = queue(&["l/part/a", "l/part/r-b", "l/", "l/page", "l/x-1", "l/r-", "l/c"]);
        assert_eq!(place(&queue, Want::Alone, "l/c"), Place::Holds(Revision(8)));
    }

    #[test]
    fn a_reader_holds_back_a_mutex_of_the_same_name_and_the_other_way_round() {
        let queue = queue(&["l/r-1", "l/2", "l/r-3"]);
        assert_eq!(place(&queue, Want::Alone, "l/2"), waits_for("l/r-1"));
        assert_eq!(place(&queue, Want::Read, "l/r-3"), waits_for("l/2"));
    }

    /// A lock that a few clients of all sorts come to and go from, in any order, judged after each step.
    #[derive(Clone, Debug)]
    enum Act {
        Come(u8),
        Go(prop::sample::Index),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![(0_u8..3).prop_map(Act::Come), any::<prop::sample::Index>().prop_map(Act::Go),];
        prop::collection::vec(act, 1..60)
    }

    fn wants(kind: u8, permits: bool) -> Want {
        match (permits, kind) {
            (true, _) => Want::Permit { capacity: 2 },
            (_, 0) => Want::Alone,
            (_, 1) => Want::Write,
            _ => Want::Read,
        }
    }

    proptest! {
        /// Never two that exclude each other; who holds it goes on to hold it until it goes; somebody always holds it; and each who waits is
        /// woken by a deletion before it could hold.
        #[test]
        fn exclusion_order_and_wakes(acts in acts(), permits in any::<bool>()) {
            let prefix = Bytes::from_static(PREFIX);
            let mut present: Vec<(Want, KeyValue)> = Vec::new();
            let mut waiting: Vec<(Bytes, Await)> = Vec::new();
            let mut held: Vec<Bytes> = Vec::new();
            for (at, act) in acts.into_iter().enumerate() {
                let now = at as i64 + 2;
                let mut woken = Vec::new();
                match act {
                    Act::Come(kind) => {
                        let want = wants(kind, permits);
                        let key = want.key(&prefix, LeaseId(now));
                        let value = String::from_utf8(want.value().to_vec()).unwrap();
                        let kv = kv(std::str::from_utf8(&key).unwrap(), now, &value);
                        present.push((want, kv));
                        woken.push(key);
                    }
                    Act::Go(index) if !present.is_empty() => {
                        let (_, gone) = present.remove(index.index(present.len()));
                        held.retain(|key| *key != gone.key);
                        waiting.retain(|(key, _)| *key != gone.key);
                        waiting.retain_mut(|(key, obstacle)| {
                            let over = obstacle.is_over(&gone.key);
                            if over {
                                woken.push(key.clone());
                            }
                            !over
                        });
                    }
                    Act::Go(_) => {}
                }
                let kvs = present.iter().map(|(_, kv)| kv.clone()).collect();
                let queue = Queue::new(Found { revision: Revision(now), kvs, more: false, count: 0 }, PREFIX);
                for (want, kv) in &present {
                    let place = queue.place(*want, &kv.key).unwrap();
                    let holds = matches!(place, Place::Holds(_));
                    prop_assert!(holds || !held.contains(&kv.key), "a holder was put back");
                    prop_assert!(!holds || held.contains(&kv.key) || woken.contains(&kv.key), "could hold and was not woken");
                    if woken.contains(&kv.key) {
                        match place {
                            Place::Holds(token) => {
                                prop_assert_eq!(token, kv.create_revision);
                                held.push(kv.key.clone());
                            }
                            Place::Waits(obstacle) => waiting.push((kv.key.clone(), obstacle)),
                            Place::Gone => prop_assert!(false, "it is there"),
                        }
                    }
                }
                let holders: Vec<Want> = present.iter().filter(|(_, kv)| held.contains(&kv.key)).map(|(want, _)| *want).collect();
                prop_assert!(!holders.is_empty() || present.is_empty(), "nobody holds it");
                match holders[..] {
                    [] | [_] => {}
                    _ if permits => prop_assert!(holders.len() <= 2),
                    _ => prop_assert!(holders.iter().all(|want| *want == Want::Read)),
                }
            }
        }
    }
}
