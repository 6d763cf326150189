pub use conclave_raft::{Raft as Paxos, RaftConfig as PaxosConfig};
#[derive(Debug)]
pub struct BootError(String);
impl std::fmt::Display for BootError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for BootError {}
impl From<conclave_raft::BootError> for BootError {
    fn from(e: conclave_raft::BootError) -> Self {
        Self(e.to_string())
    }
}
