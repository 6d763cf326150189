//! How generations are written in the engine.
//!
//! | key | value |
//! |---|---|
//! | `g`, escaped key, revision (8 bytes, big-endian) | a generation: tag 0 (deletion) and operation index, or tag 1, operation index, creation revision, version, lease, and the value to the end |
//! | `h`, revision, operation index | the keys that changed from there on: see [`history`](crate::history) |
//! | `n`, escaped key | the newest generation of a key that exists: tag 1, modification revision, creation revision, version, lease; or tag 2, the same, and the value to the end |
//! | `o`, client (16 bytes), sequence (8 bytes, big-endian) | the outcome of a client's request: an encoded reply |
//! | `r`, client (16 bytes) | a client whose outcomes are kept: the slot of its last request, and the sequences kept, ascending, each but the first as what it exceeds the one before by |
//! | `t`, lease (8 bytes, big-endian, the sign inverted) | a lease: the slot of its grant, its seconds to live, and those left as of its last checkpoint, 0 for all |
//!
//! Numbers of a value are LEB128 varints. Escaping keeps the order: a zero byte becomes `00 ff`, the end is `00 00`. A key that was changed
//! more than once in one revision has one generation of it, the last.
//!
//! A value of at most [`INDEXED_BYTES_MAX`] bytes stands in the index too: so a range of keys that were written many times is read from
//! neighbouring pairs, and not from among all their generations.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_consensus::Slot;
use conclave_storage::StateError;
use prost::encoding::{decode_varint, encode_varint};

use crate::request_id::{ClientId, RequestId};

/// The version of this layout. In the first one the index had no values; in the first two there were no outcomes, and no nodes in the
/// record; in the first three there were no leases and no history by revision.
pub(crate) const FORMAT: u32 = 4;
/// The first layout with a history by revision.
pub(crate) const FORMAT_WITH_HISTORY: u32 = 4;

/// Whether this version reads a layout: what it writes, and those before.
pub(crate) fn is_known(format: u32) -> bool {
    (1..=FORMAT).contains(&format)
}

/// The first byte of every generation's key.
pub(crate) const GENERATIONS: u8 = b'g';
/// The first byte of every index key.
pub(crate) const INDEX: u8 = b'n';
/// The first byte of every outcome's key.
pub(crate) const OUTCOMES: u8 = b'o';
/// The first byte of every client's key.
pub(crate) const CLIENTS: u8 = b'r';
/// The first byte of every lease's key.
pub(crate) const LEASES: u8 = b't';
/// What follows the escaped key in a generation's key.
pub(crate) const REVISION_BYTES: usize = 8;

/// The largest value that is written to the index as well.
pub(crate) const INDEXED_BYTES_MAX: usize = 1024;

const DELETION: u8 = 0;
const VALUE: u8 = 1;
const INDEXED_VALUE: u8 = 2;

/// The numbers of a generation. A version of 0 is a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
}

impl Numbers {
    pub(crate) fn is_deletion(&self) -> bool {
        self.version == 0
    }
}

/// The prefix of all generations of a key.
pub(crate) fn put_generation_prefix(out: &mut impl BufMut, key: &[u8]) {
    out.put_u8(GENERATIONS);
    put_escaped(out, key);
}

/// A generation's key.
pub(crate) fn generation_key(key: &[u8], revision: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 3 + REVISION_BYTES);
    put_generation_key(&mut out, key, revision);
    out
}

/// A generation's key.
pub(crate) fn put_generation_key(out: &mut impl BufMut, key: &[u8], revision: i64) {
    put_generation_prefix(out, key);
    out.put_i64(revision);
}

/// A key of the index.
pub(crate) fn put_index_key(out: &mut impl BufMut, key: &[u8]) {
    out.put_u8(INDEX);
    put_escaped(out, key);
}

fn put_escaped(out: &mut impl BufMut, mut key: &[u8]) {
    while let Some(zero) = key.iter().position(|byte| *byte == 0) {
        out.put_slice(&key[..zero]);
        out.put_slice(&[0, 0xff]);
        key = &key[zero + 1..];
    }
    out.put_slice(key);
    out.put_slice(&[0, 0]);
}

fn unescape(mut stored: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(stored.len());
    loop {
        let zero = stored.iter().position(|byte| *byte == 0)?;
        key.extend_from_slice(&stored[..zero]);
        match stored.get(zero + 1)? {
            0xff => key.push(0),
            0 => return (stored.len() == zero + 2).then_some(key),
            _ => return None,
        }
        stored = &stored[zero + 2..];
    }
}

/// Splits a generation's key into the prefix that all generations of the key share and the revision.
pub(crate) fn split_generation_key(stored: &[u8]) -> Result<(&[u8], i64), StateError> {
    let (prefix, mut revision) = stored
        .len()
        .checked_sub(REVISION_BYTES)
        .and_then(|at| stored.split_at_checked(at))
        .filter(|(prefix, _)| prefix.first() == Some(&GENERATIONS))
        .ok_or_else(|| damaged("a generation's key is too short"))?;
    Ok((prefix, revision.get_i64()))
}

/// The key that a prefix of [`put_generation_prefix`] or a key of [`put_index_key`] stands for.
pub(crate) fn user_key(prefix: &[u8]) -> Result<Vec<u8>, StateError> {
    prefix.get(1..).and_then(unescape).ok_or_else(|| damaged("a key is not escaped as it should be"))
}

/// A generation's value. `index` is the number of the operation within its transaction.
pub(crate) fn put_generation(out: &mut impl BufMut, numbers: &Numbers, index: u32, value: &[u8]) {
    out.put_u8(if numbers.is_deletion() { DELETION } else { VALUE });
    encode_varint(u64::from(index), out);
    if !numbers.is_deletion() {
        put_numbers(out, numbers);
        out.put_slice(value);
    }
}

/// The most bytes that [`put_generation`] adds to the value.
pub(crate) const GENERATION_OVERHEAD_BYTES: usize = 1 + 5 + 3 * 10;

/// Reads a generation: its numbers, and where its value begins in `stored`.
pub(crate) fn read_generation(stored: &[u8], modified: i64) -> Result<(Numbers, u32, usize), StateError> {
    let mut rest = stored;
    let tag = rest.try_get_u8().map_err(|_| damaged("an empty generation"))?;
    let index = u32::try_from(varint(&mut rest)?).map_err(|_| damaged("an operation index out of range"))?;
    match tag {
        DELETION if rest.is_empty() => Ok((Numbers { modified, ..Numbers::default() }, index, stored.len())),
        VALUE => {
            let numbers = read_numbers(&mut rest, modified)?;
            Ok((numbers, index, stored.len() - rest.len()))
        }
        _ => Err(damaged("a generation of an unknown kind")),
    }
}

/// A value of the index.
pub(crate) fn put_index(out: &mut impl BufMut, numbers: &Numbers, value: &[u8]) {
    let indexed = value.len() <= INDEXED_BYTES_MAX;
    out.put_u8(if indexed { INDEXED_VALUE } else { VALUE });
    encode_varint(numbers.modified.cast_unsigned(), out);
    put_numbers(out, numbers);
    if indexed {
        out.put_slice(value);
    }
}

/// The most bytes that [`put_index`] writes.
pub(crate) const INDEX_BYTES_MAX: usize = 1 + 4 * 10 + INDEXED_BYTES_MAX;

/// Reads a value of the index: the numbers, and where the generation's value begins in `stored` if it stands there.
pub(crate) fn read_index(stored: &[u8]) -> Result<(Numbers, Option<usize>), StateError> {
    let mut rest = stored;
    let tag = rest.try_get_u8().map_err(|_| damaged("an empty index entry"))?;
    if tag != VALUE && tag != INDEXED_VALUE {
        return Err(damaged("an index entry of an unknown kind"));
    }
    let modified = varint(&mut rest)?.cast_signed();
    let numbers = read_numbers(&mut rest, modified)?;
    match tag {
        INDEXED_VALUE => Ok((numbers, Some(stored.len() - rest.len()))),
        _ if rest.is_empty() => Ok((numbers, None)),
        _ => Err(damaged("an index entry is too long")),
    }
}

/// An outcome's key.
pub(crate) fn outcome_key(RequestId { client, sequence }: RequestId) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 16 + 8);
    out.put_u8(OUTCOMES);
    out.put_u128(client.0);
    out.put_u64(sequence);
    out.freeze()
}

/// A client's key.
pub(crate) fn client_key(client: ClientId) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 16);
    out.put_u8(CLIENTS);
    out.put_u128(client.0);
    out.freeze()
}

/// The client that a key of [`client_key`] stands for.
pub(crate) fn client_of(stored: &[u8]) -> Result<ClientId, StateError> {
    let client: Option<[u8; 16]> = stored.get(1..).and_then(|client| client.try_into().ok());
    client
        .map(|client| ClientId(u128::from_be_bytes(client)))
        .ok_or_else(|| damaged("a client's key is not 16 bytes long"))
}

/// A client's record.
pub(crate) fn client_record(used: Slot, sequences: &[u64]) -> Bytes {
    let mut out = BytesMut::with_capacity(20 + 2 * sequences.len());
    encode_varint(used.0, &mut out);
    let mut before = 0;
    for sequence in sequences {
        encode_varint(sequence - before, &mut out);
        before = *sequence;
    }
    out.freeze()
}

/// Reads a client's record: the slot of its last request, and the sequences kept, of which there is at least one.
pub(crate) fn read_client(mut stored: &[u8]) -> Result<(Slot, Vec<u64>), StateError> {
    let used = Slot(varint(&mut stored)?);
    let mut sequences = vec![varint(&mut stored)?];
    while !stored.is_empty() {
        let last = sequences.last().copied().unwrap_or_default();
        let next = last.checked_add(varint(&mut stored)?).filter(|next| *next > last);
        sequences.push(next.ok_or_else(|| damaged("a client's sequences do not ascend"))?);
    }
    Ok((used, sequences))
}

/// A lease's key: ascending as the ids do.
pub(crate) fn lease_key(id: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 8);
    out.put_u8(LEASES);
    out.put_u64(id.cast_unsigned() ^ SIGN);
    out.freeze()
}

/// Makes negative numbers sort below the others.
const SIGN: u64 = 1 << 63;

/// The lease that a key of [`lease_key`] stands for.
pub(crate) fn lease_of(stored: &[u8]) -> Result<i64, StateError> {
    let id: Option<[u8; 8]> = stored.get(1..).and_then(|id| id.try_into().ok());
    id.map(|id| (u64::from_be_bytes(id) ^ SIGN).cast_signed())
        .ok_or_else(|| damaged("a lease's key is not 8 bytes long"))
}

/// A lease's record.
pub(crate) fn lease_record(granted: Slot, ttl_seconds: i64, remaining_seconds: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(3 * 10);
    for number in [granted.0, ttl_seconds.cast_unsigned(), remaining_seconds.cast_unsigned()] {
        encode_varint(number, &mut out);
    }
    out.freeze()
}

/// Reads a lease's record: the slot of its grant, its seconds to live, and those left.
pub(crate) fn read_lease(mut stored: &[u8]) -> Result<(Slot, i64, i64), StateError> {
    let granted = Slot(varint(&mut stored)?);
    let (ttl, remaining) = (varint(&mut stored)?.cast_signed(), varint(&mut stored)?.cast_signed());
    if stored.is_empty() {
        Ok((granted, ttl, remaining))
    } else {
        Err(damaged("a lease's record is too long"))
    }
}

fn put_numbers(out: &mut impl BufMut, numbers: &Numbers) {
    encode_varint(numbers.created.cast_unsigned(), out);
    encode_varint(numbers.version.cast_unsigned(), out);
    encode_varint(numbers.lease.cast_unsigned(), out);
}

fn read_numbers(stored: &mut &[u8], modified: i64) -> Result<Numbers, StateError> {
    let numbers = Numbers {
        created: varint(stored)?.cast_signed(),
        modified,
        version: varint(stored)?.cast_signed(),
        lease: varint(stored)?.cast_signed(),
    };
    if numbers.version > 0 { Ok(numbers) } else { Err(damaged("a version below 1")) }
}

fn varint(stored: &mut &[u8]) -> Result<u64, StateError> {
    decode_varint(stored).map_err(|_| damaged("a number is cut off"))
}

pub(crate) fn damaged(why: &str) -> StateError {
    StateError::Damaged(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_order_is_key_order_then_revision_order() {
        let keys: [&[u8]; 7] = [b"\0", b"\0\0", b"\0\x01", b"a", b"a\0", b"a\x01", b"\xff"];
        let mut stored = Vec::new();
        for key in keys {
            for revision in [1, 255, 256, i64::MAX] {
                stored.push(generation_key(key, revision));
                let (prefix, read) = split_generation_key(stored.last().unwrap()).unwrap();
                assert_eq!((user_key(prefix).unwrap().as_slice(), read), (key, revision));
            }
        }
        assert!(stored.is_sorted());
    }

    #[test]
    fn generations_read_back() {
        let numbers = Numbers { created: 3, modified: 900, version: i64::MAX, lease: 77 };
        let mut stored = Vec::new();
        put_generation(&mut stored, &numbers, 5, b"value");
        let (read, index, at) = read_generation(&stored, 900).unwrap();
        assert_eq!((read, index, &stored[at..]), (numbers, 5, &b"value"[..]));
        for value in [&b""[..], b"value", &[7; INDEXED_BYTES_MAX]] {
            let mut stored = Vec::new();
            put_index(&mut stored, &numbers, value);
            let (read, at) = read_index(&stored).unwrap();
            assert_eq!((read, &stored[at.unwrap()..]), (numbers, value));
            assert!(stored.len() <= INDEX_BYTES_MAX);
        }
        let mut stored = Vec::new();
        put_index(&mut stored, &numbers, &[7; INDEXED_BYTES_MAX + 1]);
        assert_eq!(read_index(&stored).unwrap(), (numbers, None), "too large a value stays out of the index");
        stored.push(0);
        assert!(read_index(&stored).is_err());
        let deletion = Numbers { modified: 4, ..Numbers::default() };
        let mut stored = Vec::new();
        put_generation(&mut stored, &deletion, 1, b"");
        assert_eq!(read_generation(&stored, 4).unwrap(), (deletion, 1, stored.len()));
    }

    #[test]
    fn clients_and_outcomes_read_back() {
        for sequences in [&[0][..], &[7, 8, 300], &[0, u64::MAX]] {
            let record = client_record(Slot(900), sequences);
            assert_eq!(read_client(&record).unwrap(), (Slot(900), sequences.to_vec()));
        }
        let client = ClientId(0xab << 64 | 7);
        assert_eq!(client_of(&client_key(client)).unwrap(), client);
        let ids = [(6, u64::MAX), (7, 255), (7, 256), (u128::MAX, 0)];
        let keys =
            ids.map(|(client, sequence)| outcome_key(RequestId { client: ClientId(client), sequence }));
        assert!(keys.is_sorted() && keys[3] < client_key(ClientId(0)));
    }

    #[test]
    fn leases_read_back_in_the_order_of_their_ids() {
        let ids = [i64::MIN, -1, 1, 255, 256, i64::MAX];
        let keys = ids.map(lease_key);
        assert!(keys.is_sorted() && keys[0] > client_key(ClientId(u128::MAX)));
        assert_eq!(keys.map(|key| lease_of(&key).unwrap()), ids);
        let record = lease_record(Slot(u64::MAX), 9_000_000_000, 0);
        assert_eq!(read_lease(&record).unwrap(), (Slot(u64::MAX), 9_000_000_000, 0));
        for stored in [&b""[..], b"\x01\x01", b"\x01\x01\x01\x01", b"\x01\x01\xff"] {
            assert!(read_lease(stored).is_err(), "{stored:?}");
        }
        assert!(lease_of(b"t").is_err() && lease_of(b"t123456789").is_err() && lease_of(b"").is_err());
    }

    #[test]
    fn garbage_is_damage_not_a_panic() {
        for stored in [
            &b""[..],
            b"\x07",
            b"\x01",
            b"\x01\x01",
            b"\x00\x01x",
            b"\x01\x01\x01\x00\x00",
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(read_generation(stored, 1).is_err(), "{stored:?}");
            assert!(read_index(stored).is_err(), "{stored:?}");
        }
        for stored in [
            &b""[..],
            b"\x01",
            b"\x01\x05\x00",
            b"\x01\x05\xff",
            b"\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert!(read_client(stored).is_err(), "{stored:?}");
        }
        assert!(
            client_of(b"r").is_err() && client_of(b"r123456789abcdef").is_err() && client_of(b"").is_err()
        );
        assert!(user_key(b"gabc").is_err() && user_key(b"ga\0\x01").is_err() && user_key(b"").is_err());
        assert!(split_generation_key(b"g1234").is_err());
    }
}
