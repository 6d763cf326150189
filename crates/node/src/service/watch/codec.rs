//! Watch responses on the wire: a response's own fields, then its events, which were encoded once for all who receive them.

use conclave_api::etcdserverpb::{ResponseHeader, WatchRequest, WatchResponse};
use conclave_kv::watch::{Body, Frame};
use prost::Message;
use prost::bytes::BufMut;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// What a stream's decoding buffer begins with: most of its life a stream only waits.
const REQUEST_BYTES: usize = 256;
/// What a stream's encoding buffer begins with: gRPC's prefix, which is reserved before the message is known.
const PREFIX_BYTES: usize = 8;
/// How much of a stream is encoded before it is handed on.
const YIELD_BYTES: usize = 32 * 1024;

/// A response with what the hub does not know.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) header: ResponseHeader,
    pub(super) frame: Frame,
}

impl Reply {
    /// The response without its events.
    fn head(&self) -> WatchResponse {
        let mut head = WatchResponse {
            header: Some(ResponseHeader { revision: self.frame.revision, ..self.header }),
            watch_id: self.frame.watch_id,
            ..WatchResponse::default()
        };
        match &self.frame.body {
            Body::Created => head.created = true,
            Body::Refused(refusal) => {
                (head.created, head.canceled) = (true, true);
                head.cancel_reason = refusal.to_string();
            }
            Body::Canceled => head.canceled = true,
            Body::Compacted(oldest) => (head.canceled, head.compact_revision) = (true, *oldest),
            Body::Progress => {}
            Body::Events { fragment, .. } => head.fragment = *fragment,
        }
        head
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct WatchCodec;

impl Codec for WatchCodec {
    type Encode = Reply;
    type Decode = WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for WatchCodec {
    type Item = Reply;
    type Error = Status;

    fn encode(&mut self, reply: Reply, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let head = reply.head();
        let events = match &reply.frame.body {
            Body::Events { events, .. } => &events[..],
            _ => &[],
        };
        into.reserve(head.encoded_len() + events.iter().map(|event| event.len()).sum::<usize>());
        head.encode(into).map_err(|error| Status::internal(error.to_string()))?;
        events.iter().for_each(|event| into.put_slice(event));
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(PREFIX_BYTES, YIELD_BYTES)
    }
}

impl Decoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        WatchRequest::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(REQUEST_BYTES, YIELD_BYTES)
    }
}
