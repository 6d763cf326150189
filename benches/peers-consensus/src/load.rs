//! What every system is given to do, and the proof that it did it.

/// Bytes of a command.
pub(crate) const PAYLOAD_BYTES: usize = 16;
/// So many commands are decided before the clock starts: enough for every log, and what the libraries keep beside it, to have its full
/// size.
pub(crate) const WARM_UP: u64 = 20_000;
/// Entries that may travel in one message. A window is never larger.
pub(crate) const BATCH_MAX: u64 = 64;
/// So many applied entries every log keeps, and cuts those before them this often: no figure is that of memory that was never touched.
pub(crate) const LOG_KEPT: u64 = 5_000;

/// How much, how, and whether messages travel as bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Commands after the warm-up.
    pub(crate) commands: u64,
    /// Commands under way at once.
    pub(crate) window: u64,
    /// Whether each message is encoded by its sender and decoded by its receiver, with the system's own codec.
    pub(crate) encoded: bool,
}

/// The command of a number.
pub(crate) fn command(number: u64) -> [u8; PAYLOAD_BYTES] {
    let mut payload = [0; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload[8..].copy_from_slice(&(!number).to_le_bytes());
    payload
}

/// A replica's state machine: it takes commands in order and refuses anything else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Applied {
    /// So many commands were applied.
    pub(crate) count: u64,
}

impl Applied {
    /// Applies the next command.
    ///
    /// # Panics
    /// If it is not the next one, whole: the figures would be worth nothing.
    pub(crate) fn apply(&mut self, payload: &[u8]) {
        assert_eq!(payload, command(self.count), "the command after {}", self.count);
        self.count += 1;
    }
}
