//! What a plan works on: table and cluster in indices, and the questions and changes that every part of the planner needs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, Cluster, Move, PlanError, Reason, aim, chain, fill, improve, share, share::Share};
use crate::{
    key::Slot,
    node::{NODES_MAX, NodeId},
    table::{Table, VACANT},
};

/// Nodes are indices: members in the order of their ids, then those of the table that are gone. Cells are `row * replicas + place`.
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) replicas: usize,
    pub(super) slack_thousandths: u32,

    pub(super) ids: Vec<NodeId>,
    pub(super) weights: Vec<u64>,
    /// Whether it may hold anything: a member that is not draining.
    pub(super) taker: Vec<bool>,
    /// Whether it is no member.
    gone: Vec<bool>,
    pub(super) zone: Vec<usize>,
    pub(super) pinned: Vec<u32>,
    pub(super) shares: Vec<Share>,
    pub(super) bounds: Vec<Bounds>,
    /// How many replicas of one slot a zone may hold.
    pub(super) zone_limits: Vec<u32>,

    /// As the table has them.
    pub(super) before: Vec<u16>,
    /// As they are by what is planned so far.
    pub(super) cells: Vec<u16>,
    /// Cells that are pinned where they are.
    pub(super) fixed: Vec<bool>,
    /// Why a cell left who had it.
    pub(super) reasons: Vec<Reason>,
    pub(super) load: Vec<u32>,
    /// What each is to have in the end.
    pub(super) aim: Vec<u32>,
    /// How many places change at least, by pins and bounds alone; 0 if that is not known.
    pub(super) changes_least: usize,
    /// Rows had more in a zone than it may hold: who left was a choice, and another could have been better.
    zones_shared: bool,
}

/// A place that is to change.
#[derive(Clone, Copy)]
pub(super) struct Change {
    pub(super) row: u32,
    /// Who had it, if anybody.
    pub(super) from: Option<u16>,
    pub(super) to: u16,
    pub(super) reason: Reason,
}

impl Problem {
    pub(super) fn new(table: &Table, cluster: &Cluster) -> Result<Self, PlanError> {
        let mut members: Vec<_> = cluster.members.iter().collect();
        members.sort_unstable_by_key(|member| member.id);
        if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(PlanError::IdTwice(pair[0].id));
        }
        let mut names = BTreeSet::new();
        if let Some(member) = members.iter().find(|member| !names.insert(member.name.as_str())) {
            return Err(PlanError::NameTwice(member.name.clone()));
        }
        let mut ids: Vec<NodeId> = members.iter().map(|member| member.id).collect();
        let gone: Vec<NodeId> =
            table.nodes.iter().filter(|node| ids.binary_search(node).is_err()).copied().collect();
        ids.extend(gone);
        if ids.len() > NODES_MAX {
            return Err(PlanError::TooManyNodes(ids.len()));
        }
        let index: BTreeMap<NodeId, u16> = ids.iter().copied().zip(0..).collect();
        let count = ids.len();
        let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
        let mut zone = Vec::with_capacity(count);
        let mut zone_count = 0;
        for node in 0..count {
            let named = members.get(node).and_then(|member| member.zone.as_deref());
            let known = named.and_then(|name| zones.get(name)).copied();
            zone.push(known.unwrap_or(zone_count));
            if known.is_none() {
                if let Some(name) = named {
                    zones.insert(name, zone_count);
                }
                zone_count += 1;
            }
        }
        let numbers: Vec<u16> = table.nodes.iter().map(|node| index[node]).collect();
        let before: Vec<u16> = table
            .cells
            .iter()
            .map(|cell| numbers.get(usize::from(*cell)).copied().unwrap_or(VACANT))
            .collect();
        let mut problem = Self {
            rows: table.epochs.len(),
            replicas: usize::from(table.replicas),
            slack_thousandths: cluster.slack.0,
            weights: (0..count)
                .map(|node| members.get(node).map_or(0, |member| u64::from(member.weight.thousandths())))
                .collect(),
            taker: (0..count).map(|node| members.get(node).is_some_and(|member| !member.draining)).collect(),
            gone: (0..count).map(|node| node >= members.len()).collect(),
            zone,
            pinned: vec![0; count],
            shares: Vec::new(),
            bounds: Vec::new(),
            zone_limits: Vec::new(),
            fixed: vec![false; before.len()],
            reasons: vec![Reason::Vacant; before.len()],
            load: vec![0; count],
            aim: vec![0; count],
            changes_least: 0,
            zones_shared: false,
            cells: before.clone(),
            before,
            ids,
        };
        problem.zone_limits = problem.limits(zone_count, cluster.may_share_zones)?;
        for cell in &problem.cells {
            if let Some(load) = problem.load.get_mut(usize::from(*cell)) {
                *load += 1;
            }
        }
        problem.pin(&cluster.pins, &index)?;
        Ok(problem)
    }

    /// So many replicas of a slot may be in one zone: the least number that leaves a place for each.
    fn limits(&self, zone_count: usize, may_share: bool) -> Result<Vec<u32>, PlanError> {
        let mut sizes = vec![0_u32; zone_count];
        for node in self.takers() {
            sizes[self.zone[node]] += 1;
        }
        let nodes: u32 = sizes.iter().sum();
        let zones = sizes.iter().filter(|size| **size > 0).count();
        if nodes == 0 {
            return Err(PlanError::NoNodes);
        }
        let replicas = self.replicas as u8;
        if nodes < u32::from(replicas) {
            return Err(PlanError::TooFewNodes { replicas, nodes: nodes as usize });
        }
        if zones < self.replicas && !may_share {
            return Err(PlanError::TooFewZones { replicas, zones });
        }
        // No zone needs to hold more than all replicas.
        let holds = |limit: u32| sizes.iter().map(|size| (*size).min(limit)).sum::<u32>();
        let limit = (1..u32::from(replicas)).find(|limit| holds(*limit) >= u32::from(replicas));
        let limit = limit.unwrap_or(u32::from(replicas));
        Ok(sizes.iter().map(|size| (*size).min(limit)).collect())
    }

    /// Puts what is pinned where it is pinned.
    fn pin(&mut self, pins: &[(Slot, NodeId)], index: &BTreeMap<NodeId, u16>) -> Result<(), PlanError> {
        let mut wanted: BTreeSet<(usize, u16)> = BTreeSet::new();
        for (slot, id) in pins {
            let node = index.get(id).copied().filter(|node| self.taker[usize::from(*node)]);
            match node {
                Some(node) if (slot.0 as usize) < self.rows => {
                    wanted.insert((slot.0 as usize, node));
                }
                _ => return Err(PlanError::Pin { slot: *slot, node: *id }),
            }
        }
        let mut missing = Vec::new();
        for (row, node) in wanted {
            self.pinned[usize::from(node)] += 1;
            match self.places(row).find(|cell| self.cells[*cell] == node) {
                Some(cell) => self.fixed[cell] = true,
                None => missing.push((row, node)),
            }
        }
        for (row, node) in missing {
            let zone = self.zone[usize::from(node)];
            let held = |cell: &usize| {
                self.cells.get(*cell).map(|node| usize::from(*node)).filter(|node| *node < self.ids.len())
            };
            let fixed_in_zone = self
                .places(row)
                .filter(|cell| self.fixed[*cell] && held(cell).is_some_and(|node| self.zone[node] == zone))
                .count();
            let in_zone = |cell: &usize| held(cell).is_some_and(|node| self.zone[node] == zone);
            let full = self.in_zone(row, zone) >= self.zone_limits[zone];
            // Who has to leave: one of its zone if that is full, else nobody, else one that may not stay, else the one with the most.
            let leaves = self.places(row).filter(|cell| !self.fixed[*cell]).max_by_key(|cell| {
                let load = held(cell).map_or(0, |node| self.load[node]);
                let stays = held(cell).is_some_and(|node| self.taker[node]);
                (full && in_zone(cell), self.cells[*cell] == VACANT, !stays, load)
            });
            match leaves {
                Some(cell) if fixed_in_zone < self.zone_limits[zone] as usize => {
                    self.vacate(cell, Reason::Pinned);
                    self.put(cell, usize::from(node));
                    self.fixed[cell] = true;
                }
                _ => return Err(PlanError::PinsCollide(Slot(row as u32))),
            }
        }
        // Pins that were there already may share a zone beyond its limit.
        for row in 0..self.rows {
            for cell in self.places(row).filter(|cell| self.fixed[*cell]) {
                let zone = self.zone[usize::from(self.cells[cell])];
                let same = self
                    .places(row)
                    .filter(|other| self.fixed[*other] && self.zone[usize::from(self.cells[*other])] == zone);
                if same.count() > self.zone_limits[zone] as usize {
                    return Err(PlanError::PinsCollide(Slot(row as u32)));
                }
            }
        }
        Ok(())
    }

    /// Decides who has what in the end.
    pub(super) fn solve(&mut self) -> Result<(), PlanError> {
        self.vacate_what_may_not_stay();
        let could_stay = self.cells == self.before && !self.cells.contains(&VACANT);
        let had = self.load.clone();
        let (shares, bounds) = share::compute(self);
        (self.shares, self.bounds) = (shares, bounds);
        self.aim = aim::compute(self);
        let taken = |node: usize| self.aim[node].saturating_sub(self.load[node]) as usize;
        if !self.zones_shared {
            self.changes_least = self.changes() + self.takers().map(taken).sum::<usize>();
        }
        fill::vacant(self);
        fill::take_from_those_above(self);
        chain::finish(self)?;
        improve::improve(self);
        // Where pins keep loads beside their bounds, aims are out of reach, and those of the next plan are others: it is not to move things around.
        if could_stay && self.beside_bounds(&self.load) >= self.beside_bounds(&had) {
            self.cells.clone_from(&self.before);
            self.load = had;
        }
        if self.fixed.contains(&true) {
            self.widen_bounds();
        }
        Ok(())
    }

    /// How many places all loads together are beside their bounds.
    fn beside_bounds(&self, loads: &[u32]) -> u64 {
        let beside = |node: usize| loads[node].abs_diff(self.bounds[node].clamp(loads[node]));
        self.takers().map(|node| u64::from(beside(node))).sum()
    }

    /// Pins come before bounds: what they put out of reach, the bounds give way to.
    fn widen_bounds(&mut self) {
        for node in (0..self.ids.len()).filter(|node| self.taker[*node]) {
            let (load, bounds) = (self.load[node], &mut self.bounds[node]);
            *bounds = Bounds { least: bounds.least.min(load), most: bounds.most.max(load) };
        }
    }

    /// How many places have a node that the table does not have in their row.
    pub(super) fn changes(&self) -> usize {
        let changed = |row: usize| {
            let (before, after) = (&self.before[self.places(row)], &self.cells[self.places(row)]);
            after.iter().filter(|node| **node != VACANT && !before.contains(node)).count()
        };
        (0..self.rows).map(changed).sum()
    }

    fn vacate_what_may_not_stay(&mut self) {
        for row in 0..self.rows {
            for cell in self.places(row) {
                let node = usize::from(self.cells[cell]);
                if node < self.ids.len() && !self.taker[node] {
                    let reason = if self.gone[node] { Reason::Gone } else { Reason::Drains };
                    self.vacate(cell, reason);
                }
            }
            if self.replicas == 1 {
                continue;
            }
            // Of those that share a zone the one with the most beside its weight leaves.
            while let Some(cell) = self
                .places(row)
                .filter(|cell| !self.fixed[*cell])
                .filter(|cell| {
                    self.zone_of(*cell).is_some_and(|zone| self.in_zone(row, zone) > self.zone_limits[zone])
                })
                .max_by_key(|cell| {
                    let node = usize::from(self.cells[*cell]);
                    (u64::from(self.load[node]) << 32) / self.weights[node].max(1)
                })
            {
                self.vacate(cell, Reason::ZoneShared);
                self.zones_shared = true;
            }
        }
    }

    /// Nodes that may hold something.
    pub(super) fn takers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.ids.len()).filter(|node| self.taker[*node])
    }

    /// For each zone those of its nodes that may hold something.
    pub(super) fn nodes_by_zone(&self) -> Vec<Vec<usize>> {
        let mut zones = vec![Vec::new(); self.zone_limits.len()];
        for node in self.takers() {
            zones[self.zone[node]].push(node);
        }
        zones
    }

    /// The cells of a row.
    #[inline]
    pub(super) fn places(&self, row: usize) -> std::ops::Range<usize> {
        row * self.replicas..(row + 1) * self.replicas
    }

    /// The zone of who has a cell.
    #[inline]
    pub(super) fn zone_of(&self, cell: usize) -> Option<usize> {
        self.zone.get(usize::from(self.cells[cell])).copied()
    }

    /// How many of a row's replicas are in a zone.
    #[inline]
    pub(super) fn in_zone(&self, row: usize, zone: usize) -> u32 {
        self.places(row).filter(|cell| self.zone_of(*cell) == Some(zone)).count() as u32
    }

    /// Whether a node may take the cell, which it does not have, as far as the rest of the row goes.
    #[inline]
    pub(super) fn fits(&self, cell: usize, node: usize) -> bool {
        let (row, zone) = (cell / self.replicas, self.zone[node]);
        let mut beside = 0;
        for other in self.places(row) {
            if usize::from(self.cells[other]) == node {
                return false;
            }
            if other != cell && self.zone_of(other) == Some(zone) {
                beside += 1;
            }
        }
        beside < self.zone_limits[zone]
    }

    /// Empties a cell.
    pub(super) fn vacate(&mut self, cell: usize, reason: Reason) {
        let node = usize::from(std::mem::replace(&mut self.cells[cell], VACANT));
        if node < self.ids.len() {
            self.load[node] -= 1;
        }
        if self.before[cell] != VACANT {
            self.reasons[cell] = reason;
        }
    }

    /// Fills an empty cell.
    pub(super) fn put(&mut self, cell: usize, node: usize) {
        self.cells[cell] = node as u16;
        self.load[node] += 1;
    }

    /// The places that differ from the table's; those of a row one after the other. Who stays in a row keeps the place that the table
    /// gave it, and who comes takes the place of one in its zone, if one left.
    pub(super) fn differences(&self) -> Vec<Change> {
        let mut changes = Vec::with_capacity(self.changes());
        let (mut leave, mut come) = (Vec::new(), Vec::new());
        for row in 0..self.rows {
            let (before, after) = (&self.before[self.places(row)], &self.cells[self.places(row)]);
            if before == after {
                continue;
            }
            leave.clear();
            leave.extend(self.places(row).filter(|cell| !after.contains(&self.before[*cell])));
            come.clear();
            come.extend(after.iter().copied().filter(|node| !before.contains(node)));
            let mut pair = |cell: usize, to: u16| {
                let from = Some(self.before[cell]).filter(|from| *from != VACANT);
                changes.push(Change { row: row as u32, from, to, reason: self.reason(cell, to) });
            };
            leave.retain(|cell| {
                let zone = self.zone.get(usize::from(self.before[*cell]));
                match come.iter().position(|to| zone == Some(&self.zone[usize::from(*to)])) {
                    Some(at) => {
                        pair(*cell, come.remove(at));
                        false
                    }
                    None => true,
                }
            });
            for (cell, to) in leave.iter().zip(&come) {
                pair(*cell, *to);
            }
        }
        changes
    }

    /// A change as it is told to the world.
    pub(super) fn as_move(&self, change: &Change, bytes: u64) -> Move {
        Move {
            slot: Slot(change.row),
            from: change.from.map(|from| self.ids[usize::from(from)]),
            to: self.ids[usize::from(change.to)],
            reason: change.reason,
            bytes,
        }
    }

    fn reason(&self, cell: usize, to: u16) -> Reason {
        let pinned =
            self.places(cell / self.replicas).any(|other| self.fixed[other] && self.cells[other] == to);
        if self.before[cell] == VACANT {
            Reason::Vacant
        } else if pinned {
            Reason::Pinned
        } else {
            self.reasons[cell]
        }
    }
}
