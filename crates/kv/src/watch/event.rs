//! Events as they are sent: encoded once, whoever receives them.

use bytes::{BufMut, Bytes, BytesMut};
use conclave_api::mvccpb::{Event, event::EventType};
use prost::{Message, encoding::encode_varint};

use crate::changes::{Before, Change};

/// The tag of `events`, field 11 of a watch response, a message.
const EVENTS_TAG: u8 = 11 << 3 | 2;

/// A change as one of the `events` of a watch response, with its tag and length: what a response has of them can be written one behind the
/// other. `None` if the change is not known in full.
pub(super) fn encoded(change: &mut Change, with_before: bool) -> Option<Bytes> {
    if let Some(encoded) = &change.encoded[usize::from(with_before)] {
        return Some(encoded.clone());
    }
    if !change.is_read() {
        return None;
    }
    let prev_kv = match &change.before {
        _ if !with_before => None,
        Before::Unread => return None,
        Before::Nothing => None,
        Before::Generation(kv) => Some(kv.clone()),
    };
    let kind = if change.is_deletion { EventType::Delete } else { EventType::Put };
    let event = Event { r#type: kind.into(), kv: Some(change.kv()), prev_kv };
    let size_bytes = event.encoded_len();
    let mut out = BytesMut::with_capacity(size_bytes + 8);
    out.put_u8(EVENTS_TAG);
    encode_varint(size_bytes as u64, &mut out);
    event.encode_raw(&mut out);
    let encoded = out.freeze();
    change.encoded[usize::from(with_before)] = Some(encoded.clone());
    Some(encoded)
}
