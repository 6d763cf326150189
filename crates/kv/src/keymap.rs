//! An ordered map of byte strings that is quick to search when it is large.
//!
//! A search in a large ordered map spends its time waiting for memory: every key compared is somewhere else. Here a node keeps, in one array,
//! eight bytes of each of its keys, those behind the prefix that all of them share, and looks at whole keys only where these are
//! equal: a search of a million keys touches three or four of them.
//!
//! The tree has three levels, all alike: the root holds branches, a branch holds leaves, a leaf holds values. Fills and splits are
//! those of a B+-tree; ascending insertions leave full leaves.

use std::{
    ops::{Bound, ControlFlow},
    slice,
};

use crate::interval::Bounds;

/// The most values in a leaf.
const LEAF_MAX: usize = 64;
/// The most leaves in a branch.
const BRANCH_MAX: usize = 512;

/// Keys in order, and what belongs to each. Of inner nodes a key is a lower bound of those in its child.
#[derive(Clone, Debug)]
struct Node<T> {
    /// How many bytes all keys have in common, at least.
    shared_bytes: usize,
    /// The eight bytes of each key that follow, as a number; missing ones are zero.
    digests: Vec<u64>,
    keys: Vec<Box<[u8]>>,
    items: Vec<T>,
}

/// Eight bytes of a key from `shared_bytes` on, as a number that sorts as they do; missing ones are zero.
pub(crate) fn digest(key: &[u8], shared_bytes: usize) -> u64 {
    let mut bytes = [0; 8];
    let rest = key.get(shared_bytes..).unwrap_or_default();
    let len = rest.len().min(8);
    bytes[..len].copy_from_slice(&rest[..len]);
    u64::from_be_bytes(bytes)
}

/// How many bytes two keys begin with alike.
pub(crate) fn common_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<T> Node<T> {
    fn new() -> Self {
        Self { shared_bytes: 0, digests: Vec::new(), keys: Vec::new(), items: Vec::new() }
    }

    fn of(key: Box<[u8]>, item: T) -> Self {
        let mut node = Self::new();
        node.insert(0, key, item);
        node
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    /// Where a key is, or where it belongs.
    fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(first) = self.keys.first() else { return Err(0) };
        let shared = &first[..self.shared_bytes];
        match key[..key.len().min(self.shared_bytes)].cmp(shared) {
            std::cmp::Ordering::Less => return Err(0),
            std::cmp::Ordering::Greater => return Err(self.len()),
            std::cmp::Ordering::Equal => {}
        }
        let wanted = digest(key, self.shared_bytes);
        let from = self.digests.partition_point(|digest| *digest < wanted);
        if self.digests.get(from) != Some(&wanted) {
            return Err(from);
        }
        let same = self.digests[from..].partition_point(|digest| *digest == wanted);
        match self.keys[from..from + same].binary_search_by(|candidate| candidate.as_ref().cmp(key)) {
            Ok(at) => Ok(from + at),
            Err(at) => Err(from + at),
        }
    }

    /// The child that has the key if any has. The node is not empty.
    fn child(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(at) => at,
            Err(at) => at.saturating_sub(1),
        }
    }

    fn insert(&mut self, at: usize, key: Box<[u8]>, item: T) {
        self.share_with(&key);
        self.digests.insert(at, digest(&key, self.shared_bytes));
        self.keys.insert(at, key);
        self.items.insert(at, item);
    }

    /// Makes the shared prefix one of `key` too.
    fn share_with(&mut self, key: &[u8]) {
        match self.keys.first() {
            None => self.shared_bytes = key.len(),
            Some(first) => {
                let common = common_bytes(&first[..self.shared_bytes], key);
                if common < self.shared_bytes {
                    self.shared_bytes = common;
                    self.digest_all();
                }
            }
        }
    }

    fn digest_all(&mut self) {
        self.digests.clear();
        self.digests.extend(self.keys.iter().map(|key| digest(key, self.shared_bytes)));
    }

    /// Lowers the first key to one that is to go into the first child.
    fn lower(&mut self, key: &[u8]) {
        if self.keys.first().is_some_and(|first| **first > *key) {
            self.share_with(key);
            self.keys[0] = key.into();
            self.digests[0] = digest(key, self.shared_bytes);
        }
    }

    fn remove(&mut self, at: usize) -> T {
        self.digests.remove(at);
        self.keys.remove(at);
        self.items.remove(at)
    }

    /// Cuts off what begins at `at`, which becomes a node of its own, under its first key.
    fn split(&mut self, at: usize) -> (Box<[u8]>, Self) {
        let keys = self.keys.split_off(at);
        let items = self.items.split_off(at);
        let mut rest = Self { shared_bytes: 0, digests: Vec::with_capacity(keys.len()), keys, items };
        for node in [&mut *self, &mut rest] {
            if let (Some(first), Some(last)) = (node.keys.first(), node.keys.last()) {
                node.shared_bytes = common_bytes(first, last);
            }
            node.digest_all();
        }
        (rest.keys[0].clone(), rest)
    }

    fn append(&mut self, mut next: Self) {
        if let (Some(first), Some(last)) = (self.keys.first(), next.keys.last()) {
            self.shared_bytes = common_bytes(first, last);
        }
        self.keys.append(&mut next.keys);
        self.items.append(&mut next.items);
        self.digest_all();
    }
}

impl<T> Node<Node<T>> {
    /// Splits the child at `at` if it is full, given the place in it before which something is to be inserted. Returns that place as it is
    /// afterwards.
    fn make_room(&mut self, at: usize, inner: usize, len_max: usize) -> (usize, usize) {
        let child = &mut self.items[at];
        let len = child.len();
        if len < len_max {
            return (at, inner);
        }
        // Whoever inserts at the end will most likely go on there.
        let cut = if inner == len { len - 1 } else { len / 2 };
        let (key, rest) = child.split(cut);
        self.insert(at + 1, key, rest);
        // Not at the beginning of the second part, whose lower bound would be wrong.
        if inner > cut { (at + 1, inner - cut) } else { (at, inner) }
    }

    /// After a removal from the child at `at`: drops it if it is empty, joins it with a neighbour if both are small.
    fn tidy(&mut self, at: usize, len_max: usize) {
        let len = self.items[at].len();
        if len == 0 {
            self.remove(at);
        } else if len < len_max / 4 {
            for left in [at, at.wrapping_sub(1)] {
                if let (Some(one), Some(two)) = (self.items.get(left), self.items.get(left.wrapping_add(1)))
                    && one.len() + two.len() <= len_max / 2
                {
                    let right = self.remove(left + 1);
                    self.items[left].append(right);
                    return;
                }
            }
        }
    }
}

type Leaf<V> = Node<V>;
type Branch<V> = Node<Leaf<V>>;

/// The map.
#[derive(Debug)]
pub(crate) struct KeyMap<V> {
    root: Node<Branch<V>>,
    len: usize,
}

/// Where a value is: branch, leaf, and place in the leaf. Ordered as the keys are.
type Place = (usize, usize, usize);

impl<V> KeyMap<V> {
    pub(crate) fn new() -> Self {
        Self { root: Node::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn leaf(&self, key: &[u8]) -> Option<(usize, usize, &Leaf<V>)> {
        if self.len == 0 {
            return None;
        }
        let branch = self.root.child(key);
        let leaf = self.root.items[branch].child(key);
        Some((branch, leaf, &self.root.items[branch].items[leaf]))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&V> {
        let (_, _, leaf) = self.leaf(key)?;
        leaf.search(key).ok().map(|at| &leaf.items[at])
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let (branch, leaf, found) = self.leaf(key)?;
        let at = found.search(key).ok()?;
        Some(&mut self.root.items[branch].items[leaf].items[at])
    }

    /// Adds a key, or replaces its value.
    pub(crate) fn insert(&mut self, key: &[u8], value: V) {
        let Some((mut branch, mut leaf, found)) = self.leaf(key) else {
            self.root = Node::of(key.into(), Node::of(key.into(), Node::of(key.into(), value)));
            self.len = 1;
            return;
        };
        let mut at = match found.search(key) {
            Ok(at) => {
                self.root.items[branch].items[leaf].items[at] = value;
                return;
            }
            Err(at) => at,
        };
        self.root.lower(key);
        self.root.items[branch].lower(key);
        // Room above first: a split of the leaf puts another behind it.
        (branch, leaf) = self.root.make_room(branch, leaf + 1, BRANCH_MAX);
        leaf -= 1;
        (leaf, at) = self.root.items[branch].make_room(leaf, at, LEAF_MAX);
        self.root.items[branch].items[leaf].insert(at, key.into(), value);
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<V> {
        let (branch, leaf, found) = self.leaf(key)?;
        let at = found.search(key).ok()?;
        let within = &mut self.root.items[branch];
        let value = within.items[leaf].remove(at);
        within.tidy(leaf, LEAF_MAX);
        self.root.tidy(branch, BRANCH_MAX);
        self.len -= 1;
        Some(value)
    }

    /// The place of the first key at or after `key`, or after it if `is_after`.
    fn place(&self, key: &[u8], is_after: bool) -> Place {
        let Some((branch, leaf, found)) = self.leaf(key) else { return (0, 0, 0) };
        let at = match found.search(key) {
            Ok(at) => at + usize::from(is_after),
            Err(at) => at,
        };
        (branch, leaf, at)
    }

    fn places(&self, (from, to): Bounds<'_>) -> (Place, Place) {
        let from = match from {
            Bound::Included(key) => self.place(key, false),
            Bound::Excluded(key) => self.place(key, true),
            Bound::Unbounded => (0, 0, 0),
        };
        let to = match to {
            Bound::Included(key) => self.place(key, true),
            Bound::Excluded(key) => self.place(key, false),
            Bound::Unbounded => (usize::MAX, 0, 0),
        };
        (from, to)
    }

    /// The keys between two bounds, in order.
    pub(crate) fn range(&self, bounds: Bounds<'_>) -> Range<'_, V> {
        let (from, to) = self.places(bounds);
        let mut range = Range { map: self, at: from, to, leaf: [].iter().zip([].iter()) };
        if from < to {
            range.enter();
        }
        range
    }

    /// Calls `each` for the keys between two bounds, in order, until it breaks.
    pub(crate) fn visit_mut(
        &mut self,
        bounds: Bounds<'_>,
        mut each: impl FnMut(&[u8], &mut V) -> ControlFlow<()>,
    ) {
        let (mut at, to) = self.places(bounds);
        while at < to
            && let Some(branch) = self.root.items.get_mut(at.0)
        {
            let Some(leaf) = branch.items.get_mut(at.1) else {
                at = (at.0 + 1, 0, 0);
                continue;
            };
            let end = if (at.0, at.1) == (to.0, to.1) { to.2 } else { leaf.len() };
            let (keys, items) = (leaf.keys.get(at.2..end), leaf.items.get_mut(at.2..end));
            for (key, value) in keys.unwrap_or_default().iter().zip(items.unwrap_or_default()) {
                if each(key, value).is_break() {
                    return;
                }
            }
            at = (at.0, at.1 + 1, 0);
        }
    }
}

/// Keys in ascending order, each once.
impl<V> FromIterator<(Box<[u8]>, V)> for KeyMap<V> {
    fn from_iter<I: IntoIterator<Item = (Box<[u8]>, V)>>(pairs: I) -> Self {
        let mut map = Self::new();
        for (key, value) in pairs {
            map.insert(&key, value);
        }
        map
    }
}

/// An iterator over part of a map.
pub(crate) struct Range<'a, V> {
    map: &'a KeyMap<V>,
    at: Place,
    to: Place,
    leaf: std::iter::Zip<slice::Iter<'a, Box<[u8]>>, slice::Iter<'a, V>>,
}

impl<'a, V> Range<'a, V> {
    /// Goes into the leaf at `at`.
    fn enter(&mut self) {
        let leaf = self.map.root.items.get(self.at.0).and_then(|branch| branch.items.get(self.at.1));
        if let Some(leaf) = leaf {
            let end = if (self.at.0, self.at.1) == (self.to.0, self.to.1) { self.to.2 } else { leaf.len() };
            let keys: &'a [Box<[u8]>] = leaf.keys.get(self.at.2..end).unwrap_or_default();
            let items: &'a [V] = leaf.items.get(self.at.2..end).unwrap_or_default();
            self.leaf = keys.iter().zip(items);
        }
    }
}

impl<'a, V> Iterator for Range<'a, V> {
    type Item = (&'a [u8], &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let branch = self.map.root.items.get(self.at.0)?;
            self.at = if self.at.1 + 1 < branch.len() {
                (self.at.0, self.at.1 + 1, 0)
            } else {
                (self.at.0 + 1, 0, 0)
            };
            if self.at >= self.to {
                self.at = (usize::MAX, 0, 0);
                return None;
            }
            self.enter();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn check(map: &KeyMap<u32>, twin: &BTreeMap<Vec<u8>, u32>, bounds: Bounds<'_>) {
        let expected: Vec<_> =
            twin.range::<[u8], _>(bounds).map(|(key, value)| (key.as_slice(), value)).collect();
        assert_eq!(map.range(bounds).collect::<Vec<_>>(), expected);
        assert_eq!(map.len(), twin.len());
    }

    const ALL: Bounds<'static> = (Bound::Unbounded, Bound::Unbounded);

    #[test]
    fn large_maps_in_every_order_of_insertion_and_removal() {
        let key = |at: u64| format!("/registry/{}/{:07}", at % 3, at).into_bytes();
        let count = 60_000;
        let orders: [fn(u64) -> u64; 3] = [|at| at, |at| 59_999 - at, |at| at * 48_271 % 60_000];
        for (insertion, removal) in [(0, 2), (1, 0), (2, 1), (2, 2)] {
            let (mut map, mut twin) = (KeyMap::new(), BTreeMap::new());
            for at in (0..count).map(orders[insertion]) {
                map.insert(&key(at), at as u32);
                twin.insert(key(at), at as u32);
            }
            check(&map, &twin, ALL);
            assert!((0..count).all(|at| map.get(&key(at)) == Some(&(at as u32))));
            for at in (0..count).map(orders[removal]).filter(|at| at % 50 != 0) {
                assert_eq!(map.remove(&key(at)), twin.remove(&key(at)));
            }
            check(&map, &twin, ALL);
            // What is left does not lie about in nodes that are almost empty.
            let leaves: usize = map.root.items.iter().map(Node::len).sum();
            assert!(leaves <= map.len() / 8, "{leaves} leaves for {}", map.len());
            for at in 0..count {
                assert_eq!(map.remove(&key(at)), twin.remove(&key(at)));
            }
            assert!(map.len() == 0 && map.root.len() == 0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_an_ordered_map(
            steps in vec((0..4_u8, vec(prop::sample::select(vec![0, 1, b'a', 0xff]), 0..12), any::<u32>()), 1..600),
            bounds in vec((vec(prop::sample::select(vec![0, 1, b'a', 0xff]), 0..6), 0..3_u8), 2),
        ) {
            let (mut map, mut twin) = (KeyMap::new(), BTreeMap::new());
            for (step, key, value) in steps {
                match step {
                    0 => assert_eq!(map.remove(&key), twin.remove(&key)),
                    1 => assert_eq!(map.get_mut(&key), twin.get_mut(&key)),
                    _ => {
                        map.insert(&key, value);
                        twin.insert(key.clone(), value);
                    }
                }
                assert_eq!(map.get(&key), twin.get(&key));
            }
            check(&map, &twin, ALL);
            let bound = |(key, kind): &'_ (Vec<u8>, u8)| match kind {
                0 => Bound::Unbounded,
                1 => Bound::Included(key.clone()),
                _ => Bound::Excluded(key.clone()),
            };
            let (mut from, mut to) = (bounds[0].clone(), bounds[1].clone());
            if from.0 > to.0 {
                std::mem::swap(&mut from, &mut to);
            }
            if from.0 == to.0 && from.1 == 2 {
                from.1 = 1;
            }
            let (from, to) = (bound(&from), bound(&to));
            let bounds = (from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice));
            check(&map, &twin, bounds);
            let mut seen = Vec::new();
            map.visit_mut(bounds, |key, value| {
                seen.push((key.to_vec(), *value));
                *value = value.wrapping_add(1);
                if seen.len() == 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let expected: Vec<_> = twin.range_mut::<[u8], _>(bounds).take(100).map(|(key, value)| {
                *value = value.wrapping_add(1);
                (key.clone(), value.wrapping_sub(1))
            }).collect();
            assert_eq!(seen, expected);
            check(&map, &twin, ALL);
        }
    }
}
