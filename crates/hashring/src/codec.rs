//! A table as bytes: compact, with one encoding for each table, and read with every bound checked.
//!
//! ```text
//! "CKST"  format  version  rows  replicas  nodes  epoch  width    ids            bits                checksum
//!   4       1        8      4       1        2      4      1    8 × nodes    cells, then epochs         8
//! ```
//!
//! Numbers are little-endian. `epoch` is the least of all slots', and each slot's follows as what it is above that, in `width` bits; a cell has as many bits as
//! the number of nodes takes, and that number stands for a vacant place. Bits fill bytes from the lowest; the rest of the last byte is zero. The
//! checksum is XXH3 of all before it.

use crate::{
    hash::KeyHash,
    key::Slot,
    node::{NODES_MAX, NodeId},
    table::{Table, TableError, VACANT},
};

const MAGIC: &[u8; 4] = b"CKST";
const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 25;
const CHECKSUM_BYTES: usize = 8;

/// Bytes that are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They do not begin like one.
    #[error("no table begins like this")]
    Magic,
    /// They are in a format that is not known here.
    #[error("format {0} is not known, only {FORMAT}")]
    Format(u8),
    /// There are fewer or more than the table needs.
    #[error("{found} bytes, and the table has {expected}")]
    Length {
        /// What the head asks for; 33 if there is not even a head.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// The checksum is another.
    #[error("the checksum does not fit: the bytes are damaged")]
    Checksum,
    /// The shape or a row is none that a table can have.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Ids out of order, a node that has nothing, a width or a bit that an encoder would have written otherwise.
    #[error("no encoder writes this")]
    NotCanonical,
}

impl Table {
    /// The table as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let least = self.epochs.iter().copied().min().unwrap_or(0);
        let most = self.epochs.iter().map(|epoch| epoch - least).max().unwrap_or(0);
        let width = u64::from(most).checked_ilog2().map_or(0, |bits| bits + 1);
        let mut out = Vec::with_capacity(size(self.nodes.len(), self.cells.len(), self.epochs.len(), width));
        out.extend_from_slice(MAGIC);
        out.push(FORMAT);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.rows().to_le_bytes());
        out.push(self.replicas);
        out.extend_from_slice(&(self.nodes.len() as u16).to_le_bytes());
        out.extend_from_slice(&least.to_le_bytes());
        out.push(width as u8);
        for node in &self.nodes {
            out.extend_from_slice(&node.0.to_le_bytes());
        }
        let mut bits = Writer { out, held: 0, count: 0 };
        let cell_bits = cell_bits(self.nodes.len());
        for cell in &self.cells {
            bits.put(u64::from((*cell).min(self.nodes.len() as u16)), cell_bits);
        }
        for epoch in &self.epochs {
            bits.put(u64::from(epoch - least), width);
        }
        let mut out = bits.end();
        let checksum = KeyHash::of(&out).0;
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The table that these bytes are. What is accepted is what [`Self::encode`] writes, to the bit.
    ///
    /// # Errors
    /// See [`DecodeError`]. Nothing is allocated before the length is known to fit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let short = DecodeError::Length { expected: HEAD_BYTES + CHECKSUM_BYTES, found: bytes.len() };
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or(short)?;
        let (magic, head) = head.split_at(4);
        if magic != MAGIC {
            return Err(DecodeError::Magic);
        }
        if head[0] != FORMAT {
            return Err(DecodeError::Format(head[0]));
        }
        let mut head = &head[1..];
        let version = number(&mut head, 8);
        let rows = number(&mut head, 4) as usize;
        let replicas = number(&mut head, 1) as usize;
        let nodes = number(&mut head, 2) as usize;
        let least = number(&mut head, 4) as u32;
        let width = number(&mut head, 1) as u32;
        Table::check_shape(rows, replicas)?;
        if nodes > NODES_MAX {
            return Err(TableError::Nodes(nodes).into());
        }
        if width > 32 {
            return Err(DecodeError::NotCanonical);
        }
        let expected = size(nodes, rows * replicas, rows, width);
        if bytes.len() != expected {
            return Err(DecodeError::Length { expected, found: bytes.len() });
        }
        let (body, mut checksum) = bytes.split_at(expected - CHECKSUM_BYTES);
        if KeyHash::of(body).0 != number(&mut checksum, 8) {
            return Err(DecodeError::Checksum);
        }
        let (mut ids, packed) = rest[..rest.len() - CHECKSUM_BYTES].split_at(nodes * 8);
        let nodes: Vec<NodeId> = (0..nodes).map(|_| NodeId(number(&mut ids, 8))).collect();
        if !nodes.is_sorted_by(|a, b| a < b) {
            return Err(DecodeError::NotCanonical);
        }
        let mut bits = Reader { bytes: packed, held: 0, count: 0 };
        let cells = cells(&mut bits, &nodes, rows, replicas)?;
        let epochs = epochs(&mut bits, rows, least, width)?;
        if bits.held != 0 {
            return Err(DecodeError::NotCanonical);
        }
        Ok(Table { version, replicas: replicas as u8, nodes, cells, epochs })
    }
}

fn cells(
    bits: &mut Reader<'_>,
    nodes: &[NodeId],
    rows: usize,
    replicas: usize,
) -> Result<Vec<u16>, DecodeError> {
    let cell_bits = cell_bits(nodes.len());
    let mut used = vec![false; nodes.len()];
    let mut cells = Vec::with_capacity(rows * replicas);
    for row in 0..rows {
        for _ in 0..replicas {
            let index = bits.take(cell_bits) as usize;
            if index > nodes.len() {
                return Err(DecodeError::NotCanonical);
            }
            if let Some(used) = used.get_mut(index) {
                *used = true;
                if cells[row * replicas..].contains(&(index as u16)) {
                    return Err(TableError::Twice { slot: Slot(row as u32), node: nodes[index] }.into());
                }
            }
            cells.push(if index == nodes.len() { VACANT } else { index as u16 });
        }
    }
    if used.iter().all(|used| *used) { Ok(cells) } else { Err(DecodeError::NotCanonical) }
}

fn epochs(bits: &mut Reader<'_>, rows: usize, least: u32, width: u32) -> Result<Vec<u32>, DecodeError> {
    let above: Vec<u32> = (0..rows).map(|_| bits.take(width) as u32).collect();
    let most = above.iter().copied().max().unwrap_or(0);
    let needed = u64::from(most).checked_ilog2().map_or(0, |bits| bits + 1);
    if !above.contains(&0) || needed != width {
        return Err(DecodeError::NotCanonical);
    }
    above.into_iter().map(|above| least.checked_add(above).ok_or(DecodeError::NotCanonical)).collect()
}

/// So many bits tell all nodes and the vacant place apart.
fn cell_bits(nodes: usize) -> u32 {
    nodes.checked_ilog2().map_or(0, |bits| bits + 1)
}

fn size(nodes: usize, cells: usize, rows: usize, width: u32) -> usize {
    let bits = cells * cell_bits(nodes) as usize + rows * width as usize;
    HEAD_BYTES + nodes * 8 + bits.div_ceil(8) + CHECKSUM_BYTES
}

/// The next number of so many bytes, at most eight. There are enough: the caller counted.
fn number(bytes: &mut &[u8], count: usize) -> u64 {
    let (these, rest) = bytes.split_at(count);
    *bytes = rest;
    these.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

struct Writer {
    out: Vec<u8>,
    held: u64,
    count: u32,
}

impl Writer {
    /// At most 32 bits.
    fn put(&mut self, value: u64, bits: u32) {
        self.held |= value << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    fn end(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.out.push(self.held as u8);
        }
        self.out
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    held: u64,
    count: u32,
}

impl Reader<'_> {
    /// At most 32 bits; zeros past the end.
    fn take(&mut self, bits: u32) -> u64 {
        while self.count < bits {
            let (byte, rest) = self.bytes.split_first().map_or((0, self.bytes), |(byte, rest)| (*byte, rest));
            self.bytes = rest;
            self.held |= u64::from(byte) << self.count;
            self.count += 8;
        }
        let value = self.held & ((1_u64 << bits) - 1);
        self.held >>= bits;
        self.count -= bits;
        value
    }
}
