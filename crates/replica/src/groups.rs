//! Something for each group of a process, found in the same time whatever their number.
//!
//! A tree of a hundred groups is searched by comparisons that the processor cannot foretell where inputs of many groups take turns; that was
//! the greater part of what a group cost more for having neighbours. Nothing depends on the order of the table: it is only looked into.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use conclave_consensus::GroupId;

/// Values by group. None is ever taken out.
#[derive(Debug)]
pub(crate) struct Groups<T> {
    places: HashMap<GroupId, usize, BuildHasherDefault<Spread>>,
    /// As they were added.
    values: Vec<(GroupId, T)>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self { places: HashMap::default(), values: Vec::new() }
    }
}

impl<T> Groups<T> {
    /// Adds a group's value, or replaces it.
    pub(crate) fn insert(&mut self, group: GroupId, value: T) {
        if let Some(known) = self.get_mut(group) {
            *known = value;
            return;
        }
        self.places.insert(group, self.values.len());
        self.values.push((group, value));
    }

    pub(crate) fn get(&self, group: GroupId) -> Option<&T> {
        self.places.get(&group).map(|place| &self.values[*place].1)
    }

    pub(crate) fn get_mut(&mut self, group: GroupId) -> Option<&mut T> {
        self.places.get(&group).map(|place| &mut self.values[*place].1)
    }

    /// All of them, as they were added.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (GroupId, &T)> {
        self.values.iter().map(|(group, value)| (*group, value))
    }

    /// All of them, as they were added.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (GroupId, &mut T)> {
        self.values.iter_mut().map(|(group, value)| (*group, value))
    }
}

impl<T> FromIterator<(GroupId, T)> for Groups<T> {
    fn from_iter<I: IntoIterator<Item = (GroupId, T)>>(values: I) -> Self {
        let mut groups = Self::default();
        values.into_iter().for_each(|(group, value)| groups.insert(group, value));
        groups
    }
}

/// Spreads ids over a table. Peers choose which are looked up but not which are there, so nobody can crowd them.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing; the table looks at both ends of the result.
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_finds_its_own_and_they_stand_as_they_were_added() {
        // Neighbours, and such as differ in high bits alone.
        let ids = || (0..1_000).chain((1..1_000).map(|nth| nth << 48)).map(GroupId);
        let mut groups: Groups<u64> = ids().map(|group| (group, group.0)).collect();
        assert!(ids().all(|group| groups.get(group) == Some(&group.0)));
        assert_eq!(groups.get(GroupId(u64::MAX)), None);
        groups.insert(GroupId(0), 7);
        *groups.get_mut(GroupId(0)).unwrap() += 1;
        assert_eq!(groups.get(GroupId(0)), Some(&8));
        let firsts: Vec<GroupId> = groups.iter().map(|(group, _)| group).take(3).collect();
        assert_eq!(firsts, ids().take(3).collect::<Vec<_>>());
    }
}
