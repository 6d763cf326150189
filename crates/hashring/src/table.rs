//! The table: for each slot who has it. What the planner fills, what is stored and shipped, and what every lookup reads.
//!
//! A table has rows and, in each, one node or several distinct ones (*replicas*; the first is the slot's owner). With a row a slot it says which
//! group has the slot; with a row a group it says which nodes carry the group. A *version* counts the table's changes, so that two readers know whose is
//! newer; an *epoch* a slot counts that slot's changes, so that a request sent by an older table is refused by a newer owner for the slots that
//! moved, and for those only.
//!
//! It changes by [`Step`]s alone, each of which names the version that it changes.

use std::collections::BTreeSet;

use crate::{
    key::{SLOTS_MAX, Slot},
    node::{NODES_MAX, NodeId},
    planner::Step,
};

/// Most nodes of one row.
pub const REPLICAS_MAX: u8 = 8;

/// The cell of a replica that is not there.
pub(crate) const VACANT: u16 = u16::MAX;

/// Who has which slot. Memory: 2 bytes for each slot and replica, 4 a slot, 8 a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub(crate) version: u64,
    pub(crate) replicas: u8,
    /// Those that the cells name, in order.
    pub(crate) nodes: Vec<NodeId>,
    /// Row by row, indices into `nodes`.
    pub(crate) cells: Vec<u16>,
    pub(crate) epochs: Vec<u32>,
}

/// What no table can be, or cannot become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No rows or too many.
    #[error("{0} rows: there is one at least, and there are at most {SLOTS_MAX}")]
    Rows(usize),
    /// No replicas or too many.
    #[error("{0} replicas: there is one at least, and there are at most {REPLICAS_MAX}")]
    Replicas(usize),
    /// More nodes than a table can name.
    #[error("{0} nodes, and at most {NODES_MAX} are possible")]
    Nodes(usize),
    /// A row that has another number of nodes than the others.
    #[error("slot {0} has not as many replicas as the table")]
    Shape(Slot),
    /// One node twice in a row.
    #[error("slot {slot} is at node {node} twice")]
    Twice {
        /// The row.
        slot: Slot,
        /// The node.
        node: NodeId,
    },
    /// A step made for a table of another version.
    #[error("the step changes version {step}, and the table has version {table}")]
    Version {
        /// The table's.
        table: u64,
        /// The one that the step changes.
        step: u64,
    },
    /// A slot beyond the table's end.
    #[error("there is no slot {0}")]
    NoSuchSlot(Slot),
    /// A step takes a slot from who does not have it.
    #[error("slot {0} is not where the step takes it from")]
    NotThere(Slot),
    /// A step changes a slot's replicas more than one at a time.
    #[error("slot {0} is changed twice in one step")]
    ChangedTwice(Slot),
    /// A version or an epoch at the end of its range.
    #[error("the counters of changes are used up")]
    Exhausted,
}

impl Table {
    /// A table of version 0 in which nobody has anything.
    ///
    /// # Errors
    /// If there are no rows or replicas, or too many.
    pub fn vacant(rows: u32, replicas: u8) -> Result<Self, TableError> {
        Self::check_shape(rows as usize, usize::from(replicas))?;
        Ok(Self {
            version: 0,
            replicas,
            nodes: Vec::new(),
            cells: vec![VACANT; rows as usize * usize::from(replicas)],
            epochs: vec![0; rows as usize],
        })
    }

    /// A table of version 0 with these rows, all of one length.
    ///
    /// # Errors
    /// If there are no rows or replicas, or too many; if rows differ in length, or one has a node twice.
    pub fn from_rows(rows: &[Vec<NodeId>]) -> Result<Self, TableError> {
        let replicas = rows.first().map_or(0, Vec::len);
        Self::check_shape(rows.len(), replicas)?;
        let named: BTreeSet<NodeId> = rows.iter().flatten().copied().collect();
        let nodes: Vec<NodeId> = named.into_iter().collect();
        if nodes.len() > NODES_MAX {
            return Err(TableError::Nodes(nodes.len()));
        }
        let mut cells = Vec::with_capacity(rows.len() * replicas);
        for (slot, row) in (0..).map(Slot).zip(rows) {
            if row.len() != replicas {
                return Err(TableError::Shape(slot));
            }
            for (place, node) in row.iter().enumerate() {
                if row[..place].contains(node) {
                    return Err(TableError::Twice { slot, node: *node });
                }
                cells.push(nodes.binary_search(node).map_or(VACANT, |index| index as u16));
            }
        }
        Ok(Self { version: 0, replicas: replicas as u8, nodes, cells, epochs: vec![0; rows.len()] })
    }

    pub(crate) fn check_shape(rows: usize, replicas: usize) -> Result<(), TableError> {
        if rows == 0 || rows > SLOTS_MAX as usize {
            return Err(TableError::Rows(rows));
        }
        if replicas == 0 || replicas > usize::from(REPLICAS_MAX) {
            return Err(TableError::Replicas(replicas));
        }
        Ok(())
    }

    /// How often the table was changed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many slots it has.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.epochs.len() as u32
    }

    /// How many nodes each slot is to have.
    #[must_use]
    pub fn replicas(&self) -> u8 {
        self.replicas
    }

    /// The nodes that have something, in order.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The first node of a slot; none if its place is vacant, or there is no such slot.
    #[must_use]
    #[inline]
    pub fn owner(&self, slot: Slot) -> Option<NodeId> {
        let cell = self.cells.get(slot.0 as usize * usize::from(self.replicas))?;
        self.nodes.get(usize::from(*cell)).copied()
    }

    /// The nodes of a slot, without vacant places.
    pub fn row(&self, slot: Slot) -> impl Iterator<Item = NodeId> + '_ {
        self.places(slot).iter().filter_map(|cell| self.nodes.get(usize::from(*cell)).copied())
    }

    /// How often a slot changed hands; none if there is no such slot.
    #[must_use]
    pub fn epoch(&self, slot: Slot) -> Option<u32> {
        self.epochs.get(slot.0 as usize).copied()
    }

    /// How many slots a node has.
    #[must_use]
    pub fn load(&self, node: NodeId) -> u32 {
        match self.nodes.binary_search(&node) {
            Ok(index) => self.cells.iter().filter(|cell| usize::from(**cell) == index).count() as u32,
            Err(_) => 0,
        }
    }

    /// What it keeps in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.cells.len() * 2 + self.epochs.len() * 4 + self.nodes.len() * 8
    }

    fn places(&self, slot: Slot) -> &[u16] {
        let first = slot.0 as usize * usize::from(self.replicas);
        self.cells.get(first..first + usize::from(self.replicas)).unwrap_or_default()
    }

    /// Carries out a step: all of it, or nothing.
    ///
    /// # Errors
    /// If the step is for a table of another version, or is not one that a planner made from this table.
    pub fn apply(&mut self, step: &Step) -> Result<(), TableError> {
        if step.version != self.version {
            return Err(TableError::Version { table: self.version, step: step.version });
        }
        let version = self.version.checked_add(1).ok_or(TableError::Exhausted)?;
        let mut after = self.clone();
        after.version = version;
        let mut changed = vec![false; self.epochs.len()];
        let mut joined: BTreeSet<NodeId> = self.nodes.iter().copied().collect();
        joined.extend(step.moves.iter().map(|change| change.to));
        // Cells name nodes by their places, which are those of the union until all is done.
        let union: Vec<NodeId> = joined.into_iter().collect();
        if union.len() > NODES_MAX {
            return Err(TableError::Nodes(union.len()));
        }
        after.renumber(union);
        for change in &step.moves {
            let row = change.slot.0 as usize;
            let replicas = usize::from(self.replicas);
            let Some(epoch) = after.epochs.get_mut(row) else {
                return Err(TableError::NoSuchSlot(change.slot));
            };
            let new_row = self.places(change.slot).iter().all(|cell| *cell == VACANT);
            if changed[row] && !(new_row && change.from.is_none()) {
                return Err(TableError::ChangedTwice(change.slot));
            }
            if !changed[row] {
                *epoch = epoch.checked_add(1).ok_or(TableError::Exhausted)?;
            }
            changed[row] = true;
            let to = index_of(&after.nodes, change.to);
            let from = change.from.map_or(VACANT, |from| index_of(&after.nodes, from));
            if change.from.is_some() && from == VACANT {
                return Err(TableError::NotThere(change.slot));
            }
            let cells = &mut after.cells[row * replicas..(row + 1) * replicas];
            if cells.contains(&to) {
                return Err(TableError::Twice { slot: change.slot, node: change.to });
            }
            match cells.iter_mut().find(|cell| **cell == from) {
                Some(cell) => *cell = to,
                None => return Err(TableError::NotThere(change.slot)),
            }
        }
        let mut used = vec![false; after.nodes.len()];
        for cell in &after.cells {
            if let Some(used) = used.get_mut(usize::from(*cell)) {
                *used = true;
            }
        }
        let left = after.nodes.iter().zip(used).filter(|(_, used)| *used).map(|(node, _)| *node).collect();
        after.renumber(left);
        *self = after;
        Ok(())
    }

    /// Names the same nodes by their places in another list, which is in order and has them all.
    fn renumber(&mut self, nodes: Vec<NodeId>) {
        let places: Vec<u16> = self.nodes.iter().map(|node| index_of(&nodes, *node)).collect();
        for cell in &mut self.cells {
            *cell = places.get(usize::from(*cell)).copied().unwrap_or(VACANT);
        }
        self.nodes = nodes;
    }
}

fn index_of(nodes: &[NodeId], node: NodeId) -> u16 {
    nodes.binary_search(&node).ok().and_then(|index| u16::try_from(index).ok()).unwrap_or(VACANT)
}
