//! Replicas that applied the same entries hold the same state, history of every key included (etcd's HashKV).

use super::Violation;

/// Compares the hashes that nodes give for one revision.
///
/// # Errors
/// If two differ.
pub fn agree(hashes: &[(u64, u64)]) -> Result<(), Violation> {
    let Some(((first, expected), others)) = hashes.split_first() else { return Ok(()) };
    match others.iter().find(|(_, hash)| hash != expected) {
        None => Ok(()),
        Some((node, hash)) => Err(Violation::new(
            "agreement",
            format!("node {first} hashes to {expected:016x}, node {node} to {hash:016x}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_different_hashes() {
        assert!(agree(&[(1, 7), (2, 7), (3, 7)]).is_ok());
        assert!(agree(&[(1, 7), (2, 7), (3, 8)]).is_err());
    }
}
