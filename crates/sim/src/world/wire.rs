//! Packets as bytes: what a node sends goes through the transport's own encoder, and what arrives through its decoder.

use bytes::{Buf as _, BytesMut};
use conclave_transport::{
    Packet,
    codec::{Decoder, Encoder},
};

use crate::check::Violation;

/// The longest frame: far above what a simulated node sends.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// One encoder and one decoder, for all links.
#[derive(Debug)]
pub(super) struct Wire {
    encoder: Encoder,
    decoder: Decoder,
}

impl Default for Wire {
    fn default() -> Self {
        Self { encoder: Encoder::new(), decoder: Decoder::new(FRAME_BYTES_MAX) }
    }
}

impl Wire {
    /// The packets as their receiver reads them.
    ///
    /// # Errors
    /// If that is not what was sent.
    pub(super) fn pass(&mut self, packets: Vec<Packet>) -> Result<Vec<Packet>, Violation> {
        let broken = |what: String| Violation::new("wire", what);
        self.encoder.clear();
        for packet in &packets {
            self.encoder.push(packet, FRAME_BYTES_MAX).map_err(|error| broken(error.to_string()))?;
        }
        let bytes = self.encoder.copy_to_bytes(self.encoder.remaining());
        let mut bytes = BytesMut::from(bytes);
        let mut received = Vec::with_capacity(packets.len());
        let decoded = self.decoder.decode(&mut bytes, &mut received);
        decoded.map_err(|error| broken(error.to_string()))?;
        if received == packets {
            return Ok(received);
        }
        Err(broken(format!("sent {packets:?}, received {received:?}")))
    }
}
