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
    own: Bytes,
    heard: Mutex<BTreeMap<u64, Introduction>>,
}

impl Introductions {
    pub(super) fn new(this: u64, name: &str, client_urls: Vec<String>) -> Self {
        let own = Introduction { name: name.to_owned(), client_urls };
        Self { own: own.encode_to_vec().into(), heard: Mutex::new(BTreeMap::from([(this, own)])) }
    }

    /// What this member says.
    pub(super) fn own(&self) -> Bytes {
        self.own.clone()
    }

    /// What a member said; nothing yet if it never did.
    pub(super) fn of(&self, member: u64) -> Introduction {
        self.heard.lock().get(&member).cloned().unwrap_or_default()
    }

    /// Asks every one of the others once, and says when to ask again.
    pub(super) async fn ask_all(&self, handle: &Handle, others: &[u64]) -> Duration {
        for id in others {
            let asked = handle.ask(NodeId(*id), Bytes::new());
            let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, asked).await else { continue };
            if answer.len() <= INTRODUCTION_BYTES_MAX
                && let Ok(said) = Introduction::decode(answer)
            {
                self.heard.lock().insert(*id, said);
            }
        }
        let heard = self.heard.lock();
        if others.iter().all(|id| heard.contains_key(id)) { REFRESH } else { RETRY }
    }
}
