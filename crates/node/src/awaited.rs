//! Who waits for changes of keys: the members of queues for locks and elections, each for one key, and observers, for a prefix.
//!
//! The store asks of every changed key whether anybody waits for it, so that costs one atomic load while nobody waits for any. A wake tells that
//! something changed, not what: whoever is woken reads the store again. So changes that follow each other closely may wake once.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use conclave_kv::KeyObserver;
use parking_lot::RwLock;
use tokio::sync::watch;

/// How many may wait; more are refused.
const WAITING_MAX: usize = 65_536;

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// A change of this key.
    Key(Box<[u8]>),
    /// A change of any key that begins with these bytes, the last of which is a slash.
    Folder(Box<[u8]>),
}

/// Tells of changes of keys in this member's store.
pub trait KeyChanges: Send + Sync {
    /// Begins to wait: every change that readers see from here on wakes. `None` if too many wait already.
    fn begin(&self, awaited: Awaited) -> Option<Waiting>;
}

/// One who waits; drop it to wait no more.
pub struct Waiting {
    changed: watch::Receiver<()>,
    _place: Box<dyn Send + Sync>,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

impl Waiting {
    /// Returns when something changed since the wait began, or since this returned last.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            // Who tells lives as long as the node.
            std::future::pending::<()>().await;
        }
    }
}

/// Those who wait.
#[derive(Debug, Default)]
pub struct AwaitedKeys {
    of: Arc<Places>,
}

#[derive(Debug, Default)]
struct Places {
    waiting: AtomicUsize,
    all: RwLock<All>,
}

type Map = BTreeMap<Box<[u8]>, Place>;

#[derive(Debug, Default)]
struct All {
    keys: Map,
    folders: Map,
}

#[derive(Debug)]
struct Place {
    bell: watch::Sender<()>,
    waiting: usize,
}

impl All {
    fn of<'a>(&mut self, awaited: &'a Awaited) -> (&mut Map, &'a [u8]) {
        match awaited {
            Awaited::Key(key) => (&mut self.keys, key),
            Awaited::Folder(folder) => (&mut self.folders, folder),
        }
    }

    /// Those who wait for this key, or for a folder that it is in.
    fn concerned<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Place> {
        let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let folders = slashes.filter_map(|(at, _)| self.folders.get(&key[..=at]));
        self.keys.get(key).into_iter().chain(folders)
    }
}

/// Gives a place up when it is dropped.
struct Ticket {
    places: Arc<Places>,
    awaited: Awaited,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut all = self.places.all.write();
        let (map, bytes) = all.of(&self.awaited);
        if let Some(place) = map.get_mut(bytes) {
            place.waiting -= 1;
            if place.waiting == 0 {
                map.remove(bytes);
            }
        }
        self.places.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl KeyChanges for AwaitedKeys {
    fn begin(&self, awaited: Awaited) -> Option<Waiting> {
        let mut all = self.of.all.write();
        if self.of.waiting.load(Ordering::SeqCst) >= WAITING_MAX {
            return None;
        }
        self.of.waiting.fetch_add(1, Ordering::SeqCst);
        let (map, bytes) = all.of(&awaited);
        let place =
            map.entry(bytes.into()).or_insert_with(|| Place { bell: watch::Sender::new(()), waiting: 0 });
        place.waiting += 1;
        let changed = place.bell.subscribe();
        drop(all);
        let ticket = Ticket { places: Arc::clone(&self.of), awaited };
        Some(Waiting { changed, _place: Box::new(ticket) })
    }
}

impl KeyObserver for AwaitedKeys {
    fn awaits(&self, key: &[u8]) -> bool {
        self.of.waiting.load(Ordering::SeqCst) > 0 && self.of.all.read().concerned(key).next().is_some()
    }

    fn changed(&self, keys: &[Box<[u8]>]) {
        let all = self.of.all.read();
        keys.iter().flat_map(|key| all.concerned(key)).for_each(|place| place.bell.send_replace(()));
    }

    fn replaced(&self) {
        let all = self.of.all.read();
        all.keys.values().chain(all.folders.values()).for_each(|place| place.bell.send_replace(()));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn key(key: &str) -> Awaited {
        Awaited::Key(key.as_bytes().into())
    }

    fn folder(key: &str) -> Awaited {
        Awaited::Folder(key.as_bytes().into())
    }

    fn is_woken(waiting: &mut Waiting) -> bool {
        waiting.changed().now_or_never().is_some()
    }

    #[test]
    fn a_change_wakes_those_who_wait_for_the_key_or_its_folder_and_nobody_else() {
        let keys = AwaitedKeys::default();
        assert!(!keys.awaits(b"a/b/c"));
        let mut all: Vec<Waiting> =
            [key("a/b/c"), key("a/b/d"), folder("a/"), folder("a/b/"), folder("a/b/c/")]
                .map(|awaited| keys.begin(awaited).unwrap())
                .into();
        assert!(keys.awaits(b"a/b/c") && keys.awaits(b"a/x") && !keys.awaits(b"a") && !keys.awaits(b"b/"));
        keys.changed(&[b"a/b/c".as_slice().into(), b"nobody".as_slice().into()]);
        let woken: Vec<bool> = all.iter_mut().map(is_woken).collect();
        assert_eq!(woken, [true, false, true, true, false]);
        assert!(!all.iter_mut().any(is_woken), "once");
        keys.replaced();
        assert!(all.iter_mut().all(is_woken));
    }

    #[test]
    fn who_waits_no_more_leaves_nothing_behind() {
        let keys = AwaitedKeys::default();
        let (first, mut second) = (keys.begin(key("a")).unwrap(), keys.begin(key("a")).unwrap());
        drop(first);
        keys.changed(&[b"a".as_slice().into()]);
        assert!(is_woken(&mut second));
        drop(second);
        assert!(!keys.awaits(b"a") && keys.of.all.read().keys.is_empty());
    }

    #[test]
    fn those_who_wait_are_bounded() {
        let keys = AwaitedKeys::default();
        let mut all: Vec<Waiting> = (0..WAITING_MAX).map_while(|_| keys.begin(key("a"))).collect();
        assert!(all.len() == WAITING_MAX && keys.begin(key("b")).is_none());
        all.pop();
        assert!(keys.begin(key("b")).is_some());
    }
}
