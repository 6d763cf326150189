//! Changes of keys that somebody waits for.

/// Is told of changes of keys that it has an interest in, on the apply thread.
pub trait KeyObserver: Send + Sync + std::fmt::Debug {
    /// Whether somebody waits for a change of this key. Asked under the store's lock for every change, so it must answer at once.
    fn awaits(&self, key: &[u8]) -> bool;

    /// These keys, in whose changes there was an interest, were written or deleted, and readers see it. Must not wait.
    fn changed(&self, keys: &[Box<[u8]>]);

    /// A snapshot replaced the store: any key may have changed. Must not wait.
    fn replaced(&self);
}
