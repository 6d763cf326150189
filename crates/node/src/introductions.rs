//! What members tell each other beside consensus: name and client URLs, for `MemberList`.
//!
//! A member asks each other one until it has an answer, and again every [`REFRESH`], so that a member restarted with other
//! `--advertise-client-urls` is known by them soon.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_api::etcdserverpb::Member;
use conclave_consensus::NodeId;
use conclave_replica::{Answerer, Handle, Responder};
use parking_lot::Mutex;
use prost::Message as _;

use crate::identity::{Bootstrap, Peer};

/// How often members that answered are asked again.
const REFRESH: Duration = Duration::from_secs(30);
/// How often those are asked that have not answered.
const RETRY: Duration = Duration::from_millis(500);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a member says of itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Introduction {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    client_urls: Vec<String>,
}

/// The members and what they said of themselves.
pub(crate) struct Introductions {
    own: Bytes,
    this: u64,
    peers: Vec<Peer>,
    heard: Mutex<BTreeMap<u64, Introduction>>,
}

impl fmt::Debug for Introductions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introductions").field("this", &self.this).finish_non_exhaustive()
    }
}

impl Introductions {
    pub(crate) fn new(bootstrap: &Bootstrap, name: &str, client_urls: Vec<String>) -> Arc<Self> {
        let this = bootstrap.identity.member_id;
        let own = Introduction { name: name.to_owned(), client_urls };
        Arc::new(Self {
            own: own.encode_to_vec().into(),
            this,
            peers: bootstrap.members.clone(),
            heard: Mutex::new(BTreeMap::from([(this, own)])),
        })
    }

    /// The members as etcd's API shows them, by id. One that was never heard of has no client URLs yet, as in etcd.
    pub(crate) fn members(&self) -> Vec<Member> {
        let heard = self.heard.lock();
        let member = |peer: &Peer| {
            let said = heard.get(&peer.id).cloned().unwrap_or_default();
            Member {
                id: peer.id,
                // Until a member has started, etcd lists it without a name.
                name: said.name,
                peer_ur_ls: peer.peer_urls.iter().map(ToString::to_string).collect(),
                client_ur_ls: said.client_urls,
                is_learner: false,
            }
        };
        self.peers.iter().map(member).collect()
    }

    /// Asks the others, until the task is aborted.
    pub(crate) async fn keep_asking(self: Arc<Self>, handle: Handle) {
        loop {
            for peer in self.peers.iter().filter(|peer| peer.id != self.this) {
                let asked = handle.ask(NodeId(peer.id), Bytes::new());
                let Ok(Some(answer)) = tokio::time::timeout(PATIENCE, asked).await else { continue };
                if let Ok(said) = Introduction::decode(answer) {
                    self.heard.lock().insert(peer.id, said);
                }
            }
            let complete = self.heard.lock().len() == self.peers.len();
            tokio::time::sleep(if complete { REFRESH } else { RETRY }).await;
        }
    }
}

impl Answerer for Introductions {
    fn answer(&self, _: NodeId, _: Bytes, respond: Responder) {
        respond.send(self.own.clone());
    }
}
