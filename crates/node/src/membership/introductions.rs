//! What members tell each other beside consensus: name and client URLs, for `MemberList`.
//!
//! A member asks each other one until it has an answer, and again every [`REFRESH`], so that a member restarted with other
//! `--advertise-client-urls` is known by them soon.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use conclave_consensus::NodeId;
use conclave_replica::Handle;
use parking_lot::Mutex;
use prost::Message as _;

use super::wire::Introduction;

/// How often members that answered are asked again.
const REFRESH: Duration = Duration::from_secs(30);
/// How often those are asked that have not answered.
const RETRY: Duration = Duration::from_millis(500);
/// The longest answer that is kept.
const INTRODUCTION_BYTES_MAX: usize = 16 << 10;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the members said of themselves.
#[derive(Debug)]
pub(super) struct Introductions {
    this: u64,
    own: Bytes,
    heard: Mutex<BTreeMap<u64, Introduction>>,
}

impl Introductions {
    pub(super) fn new(this: u64, name: &str, client_urls: Vec<String>) -> Self {
        let own = Introduction { name: name.to_owned(), client_urls };
        Self { this, own: own.encode_to_vec().into(), heard: Mutex::new(BTreeMap::from([(this, own)])) }
    }

    /// What this member says.
    pub(super) fn own(&self) -> Bytes {
        self.own.clone()
    }

    /// What a member said; nothing yet if it never did.
    pub(super) fn of(&self, member: u64) -> Introduction {
        self.heard.lock().get(&member).cloned().unwrap_or_default()
    }

    fn hear(&self, member: u64, answer: Bytes) {
        if answer.len() <= INTRODUCTION_BYTES_MAX
            && let Ok(said) = Introduction::decode(answer)
        {
            self.heard.lock().insert(member, said);
        }
    }

    /// Whoever is no member any more takes no room.
    fn forget_all_but(&self, others: &[u64]) {
        self.heard.lock().retain(|id, _| *id == self.this || others.contains(id));
    }

    /// Asks every one of the others once, and says when to ask again.
    pub(super) async fn ask_all(&self, handle: &Handle, others: &[u64]) -> Duration {
        for id in others {
            let asked = handle.ask(NodeId(*id), Bytes::new());
            let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, asked).await else { continue };
            self.hear(*id, answer);
        }
        self.forget_all_but(others);
        let heard = self.heard.lock();
        if others.iter().all(|id| heard.contains_key(id)) { REFRESH } else { RETRY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_left_is_forgotten() {
        let said = |name: &str| {
            Bytes::from(Introduction { name: name.to_owned(), ..Introduction::default() }.encode_to_vec())
        };
        let introductions = Introductions::new(1, "a", Vec::new());
        introductions.hear(2, said("b"));
        introductions.hear(3, said("c"));
        introductions.hear(4, Bytes::from(vec![0; INTRODUCTION_BYTES_MAX + 1]));
        introductions.forget_all_but(&[3, 4]);
        let names = [1, 2, 3, 4].map(|id| introductions.of(id).name);
        assert_eq!(names, ["a", "", "c", ""]);
        assert_eq!(introductions.heard.lock().len(), 2);
    }
}
