//! Whom a key concerns: watches of single keys by key, watches of ranges in a tree.
//!
//! The tree of ranges is a treap ordered by beginning and end, each node with the greatest end below it (Cormen et al., *Introduction to
//! Algorithms*, interval trees): the ranges that hold a key are found in time proportional to their number and the depth. Nodes' priorities come from
//! counting, through a mixing function, so that two runs build the same tree.

use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc};

/// The number of no node.
const NONE: u32 = u32::MAX;

/// What a watch is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Key(Arc<[u8]>),
    /// From a key on, to before another or to the last.
    Range(Arc<[u8]>, Option<Arc<[u8]>>),
}

/// Some watches, by number: almost always one.
#[derive(Debug)]
enum Numbers {
    One(u32),
    Many(BTreeSet<u32>),
}

impl Numbers {
    fn insert(&mut self, number: u32) {
        match self {
            Self::One(one) => *self = Self::Many(BTreeSet::from([*one, number])),
            Self::Many(many) => {
                many.insert(number);
            }
        }
    }

    /// Removes one and says whether none is left.
    fn remove(&mut self, number: u32) -> bool {
        match self {
            Self::One(one) => *one == number,
            Self::Many(many) => {
                many.remove(&number);
                if let (1, Some(last)) = (many.len(), many.first().copied()) {
                    *self = Self::One(last);
                }
                false
            }
        }
    }

    /// Calls `each` until it says that this is enough; whether it did.
    fn any(&self, each: &mut dyn FnMut(u32) -> bool) -> bool {
        match self {
            Self::One(one) => each(*one),
            Self::Many(many) => many.iter().any(|number| each(*number)),
        }
    }
}

/// Watches by what they are of.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: BTreeMap<Arc<[u8]>, Numbers>,
    ranges: Ranges,
    len: usize,
}

impl Index {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn insert(&mut self, target: &Target, number: u32) {
        self.len += 1;
        match target {
            Target::Key(key) => match self.keys.get_mut(key) {
                Some(numbers) => numbers.insert(number),
                None => {
                    self.keys.insert(Arc::clone(key), Numbers::One(number));
                }
            },
            Target::Range(from, end) => self.ranges.insert(from, end.as_ref(), number),
        }
    }

    /// Removes what was inserted.
    pub(super) fn remove(&mut self, target: &Target, number: u32) {
        self.len -= 1;
        match target {
            Target::Key(key) => {
                if self.keys.get_mut(key).is_some_and(|numbers| numbers.remove(number)) {
                    self.keys.remove(key);
                }
            }
            Target::Range(from, end) => self.ranges.remove(from, end.as_ref(), number),
        }
    }

    /// Calls `each` for the watches that a key concerns until it says that this is enough; whether it did.
    pub(super) fn any(&self, key: &[u8], mut each: impl FnMut(u32) -> bool) -> bool {
        self.keys.get(key).is_some_and(|numbers| numbers.any(&mut each)) || self.ranges.any(key, &mut each)
    }
}

#[derive(Debug)]
struct Node {
    from: Arc<[u8]>,
    end: Option<Arc<[u8]>>,
    /// The greatest end in the subtree; `None` is beyond all keys.
    greatest: Option<Arc<[u8]>>,
    numbers: Numbers,
    priority: u64,
    left: u32,
    right: u32,
}

/// The tree of ranges.
#[derive(Debug)]
struct Ranges {
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
    root: u32,
    inserted: u64,
}

impl Default for Ranges {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, inserted: 0 }
    }
}

type End<'a> = Option<&'a Arc<[u8]>>;

/// Whether a range that ends there reaches beyond a key.
fn reaches(end: End<'_>, key: &[u8]) -> bool {
    end.is_none_or(|end| **end > *key)
}

/// The order of ranges: by beginning, then by end.
fn order(a: (&[u8], End<'_>), b: (&[u8], End<'_>)) -> std::cmp::Ordering {
    a.0.cmp(b.0).then_with(|| match (a.1, b.1) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    })
}

/// The finalizer of SplitMix64.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

impl Ranges {
    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize)?.as_ref()
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        self.nodes[at as usize].as_mut().expect("a child is a node")
    }

    fn find(&mut self, from: &[u8], end: End<'_>) -> Option<&mut Node> {
        let mut at = self.root;
        while let Some(node) = self.node(at) {
            at = match order((from, end), (&node.from, node.end.as_ref())) {
                std::cmp::Ordering::Less => node.left,
                std::cmp::Ordering::Greater => node.right,
                std::cmp::Ordering::Equal => return Some(self.node_mut(at)),
            };
        }
        None
    }

    fn insert(&mut self, from: &Arc<[u8]>, end: End<'_>, number: u32) {
        if let Some(node) = self.find(from, end) {
            node.numbers.insert(number);
            return;
        }
        self.inserted += 1;
        let node = Node {
            from: Arc::clone(from),
            end: end.cloned(),
            greatest: end.cloned(),
            numbers: Numbers::One(number),
            priority: mix(self.inserted),
            left: NONE,
            right: NONE,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = Some(node);
                at
            }
            None => {
                self.nodes.push(Some(node));
                u32::try_from(self.nodes.len() - 1).expect("no more ranges than watches")
            }
        };
        let (left, right) = self.split(self.root, from, end);
        let left = self.join(left, at);
        self.root = self.join(left, right);
    }

    fn remove(&mut self, from: &[u8], end: End<'_>, number: u32) {
        if self.find(from, end).is_some_and(|node| node.numbers.remove(number)) {
            self.root = self.without(self.root, from, end);
        }
    }

    /// Cuts a subtree in two: what comes before a range, and the rest.
    fn split(&mut self, at: u32, from: &[u8], end: End<'_>) -> (u32, u32) {
        let Some(node) = self.node(at) else { return (NONE, NONE) };
        if order((&node.from, node.end.as_ref()), (from, end)).is_lt() {
            let (left, right) = self.split(node.right, from, end);
            self.node_mut(at).right = left;
            self.update(at);
            (at, right)
        } else {
            let (left, right) = self.split(node.left, from, end);
            self.node_mut(at).left = right;
            self.update(at);
            (left, at)
        }
    }

    /// Joins two subtrees of which the second comes after the first.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        let (Some(a), Some(b)) = (self.node(left), self.node(right)) else {
            return if left == NONE { right } else { left };
        };
        if a.priority >= b.priority {
            let joined = self.join(a.right, right);
            self.node_mut(left).right = joined;
            self.update(left);
            left
        } else {
            let joined = self.join(left, b.left);
            self.node_mut(right).left = joined;
            self.update(right);
            right
        }
    }

    /// A subtree without a range that it has.
    fn without(&mut self, at: u32, from: &[u8], end: End<'_>) -> u32 {
        let Some(node) = self.node(at) else { return NONE };
        let (left, right) = (node.left, node.right);
        match order((from, end), (&node.from, node.end.as_ref())) {
            std::cmp::Ordering::Less => {
                let left = self.without(left, from, end);
                self.node_mut(at).left = left;
            }
            std::cmp::Ordering::Greater => {
                let right = self.without(right, from, end);
                self.node_mut(at).right = right;
            }
            std::cmp::Ordering::Equal => {
                self.nodes[at as usize] = None;
                self.free.push(at);
                return self.join(left, right);
            }
        }
        self.update(at);
        at
    }

    fn update(&mut self, at: u32) {
        let Some(node) = self.node(at) else { return };
        let mut greatest = node.end.as_ref();
        for child in [node.left, node.right] {
            if let (Some(end), Some(child)) = (greatest, self.node(child)) {
                greatest = match &child.greatest {
                    Some(other) if other <= end => Some(end),
                    other => other.as_ref(),
                };
            }
        }
        let greatest = greatest.cloned();
        self.node_mut(at).greatest = greatest;
    }

    fn any(&self, key: &[u8], each: &mut dyn FnMut(u32) -> bool) -> bool {
        self.any_below(self.root, key, each)
    }

    fn any_below(&self, at: u32, key: &[u8], each: &mut dyn FnMut(u32) -> bool) -> bool {
        let Some(node) = self.node(at) else { return false };
        if !reaches(node.greatest.as_ref(), key) {
            return false;
        }
        self.any_below(node.left, key, each)
            || *node.from <= *key
                && (reaches(node.end.as_ref(), key) && node.numbers.any(each)
                    || self.any_below(node.right, key, each))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn holds(target: &Target, key: &[u8]) -> bool {
        match target {
            Target::Key(of) => **of == *key,
            Target::Range(from, end) => **from <= *key && reaches(end.as_ref(), key),
        }
    }

    fn found(index: &Index, key: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        assert!(!index.any(key, |number| {
            found.push(number);
            false
        }));
        found.sort_unstable();
        found
    }

    fn key() -> impl Strategy<Value = Arc<[u8]>> {
        vec(prop::sample::select(b"\0ab\xff".to_vec()), 1..4).prop_map(Arc::from)
    }

    fn target() -> impl Strategy<Value = Target> {
        prop_oneof![
            key().prop_map(Target::Key),
            (key(), prop::option::of(key())).prop_map(|(from, end)| Target::Range(from, end)),
        ]
    }

    proptest! {
        #[test]
        fn a_key_finds_the_watches_that_a_scan_of_all_finds(
            steps in vec((target(), any::<bool>(), any::<prop::sample::Index>()), 1..80),
            keys in vec(key(), 1..20),
        ) {
            let mut index = Index::default();
            let mut all: Vec<(u32, Target)> = Vec::new();
            for (number, (target, removes, which)) in (0..).zip(steps) {
                if removes && !all.is_empty() {
                    let (number, target) = all.swap_remove(which.index(all.len()));
                    index.remove(&target, number);
                } else {
                    index.insert(&target, number);
                    all.push((number, target));
                }
                prop_assert_eq!(index.is_empty(), all.is_empty());
                for key in &keys {
                    let mut expected: Vec<u32> = all
                        .iter()
                        .filter_map(|(number, target)| holds(target, key).then_some(*number))
                        .collect();
                    expected.sort_unstable();
                    prop_assert_eq!(found(&index, key), expected);
                }
            }
        }
    }

    fn depth(ranges: &Ranges, at: u32) -> usize {
        ranges.node(at).map_or(0, |node| 1 + depth(ranges, node.left).max(depth(ranges, node.right)))
    }

    #[test]
    fn many_ranges_in_ascending_order_make_no_deep_tree() {
        let mut index = Index::default();
        let range = |at: u32| {
            let from = Arc::from(format!("{at:06}").as_bytes());
            Target::Range(from, Some(Arc::from(format!("{at:06}~").as_bytes())))
        };
        for at in 0..20_000 {
            index.insert(&range(at), at);
        }
        let depth_at_first = depth(&index.ranges, index.ranges.root);
        assert!(depth_at_first < 60, "{depth_at_first} deep");
        assert_eq!(found(&index, b"010203/x"), [10_203]);
        for at in 0..20_000 {
            index.remove(&range(at), at);
        }
        assert!(index.is_empty() && index.ranges.root == NONE);
    }
}
