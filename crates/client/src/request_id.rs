//! Names for modifying requests, so that one whose outcome is unknown can be sent again and is applied once.
//!
//! A server keeps the outcomes of the 64 highest sequences of each client and refuses a lower one. So a sequence is given out
//! only while it is less than 64 above every sequence still under way: then no request can come too late, however it is delayed.
//! Where more are under way, a further *lane* is opened: another client id, the base plus the lane's number.

use std::{collections::BTreeSet, fmt};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backoff::random_bits;

/// How many outcomes of a client a server keeps.
const OUTCOMES_KEPT: u64 = 64;
/// The most lanes: more than this times [`OUTCOMES_KEPT`] modifying requests at a time wait their turn.
const LANES_MAX: usize = 64;

/// The name of one request, as it stands in the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId {
    client: u128,
    sequence: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{}", self.client, self.sequence)
    }
}

#[derive(Debug, Default)]
struct Lane {
    next: u64,
    open: BTreeSet<u64>,
}

impl Lane {
    fn has_room(&self) -> bool {
        self.open.first().is_none_or(|oldest| self.next - oldest < OUTCOMES_KEPT)
    }
}

/// Which sequences are under way in which lane.
#[derive(Debug)]
struct Lanes {
    base: u128,
    lanes: Vec<Lane>,
}

impl Lanes {
    fn new(base: u128) -> Self {
        Self { base, lanes: Vec::new() }
    }

    /// The next name, unless too many are under way.
    fn issue(&mut self) -> Option<RequestId> {
        let number = match self.lanes.iter().position(Lane::has_room) {
            Some(number) => number,
            None if self.lanes.len() < LANES_MAX => {
                self.lanes.push(Lane::default());
                self.lanes.len() - 1
            }
            None => return None,
        };
        let lane = &mut self.lanes[number];
        let sequence = lane.next;
        lane.next += 1;
        lane.open.insert(sequence);
        Some(RequestId { client: self.base.wrapping_add(number as u128), sequence })
    }

    /// The request has ended.
    fn close(&mut self, id: RequestId) {
        let number = usize::try_from(id.client.wrapping_sub(self.base)).unwrap_or(usize::MAX);
        if let Some(lane) = self.lanes.get_mut(number) {
            lane.open.remove(&id.sequence);
        }
    }
}

/// Gives out names.
#[derive(Debug)]
pub(crate) struct Numbering {
    lanes: Mutex<Lanes>,
    closed: Notify,
}

/// A name in use; dropping it says that the request has ended.
#[derive(Debug)]
pub(crate) struct Issued<'a> {
    numbering: &'a Numbering,
    id: RequestId,
}

impl Numbering {
    /// With a base that no other client is likely to have.
    pub(crate) fn new() -> Self {
        let base = u128::from(random_bits()) << 64 | u128::from(random_bits());
        Self { lanes: Mutex::new(Lanes::new(base)), closed: Notify::new() }
    }

    /// The next name; waits while too many are in use.
    pub(crate) async fn issue(&self) -> Issued<'_> {
        loop {
            let closed = self.closed.notified();
            let id = self.lanes.lock().issue();
            match id {
                Some(id) => return Issued { numbering: self, id },
                None => closed.await,
            }
        }
    }
}

impl Issued<'_> {
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }
}

impl Drop for Issued<'_> {
    fn drop(&mut self) {
        self.numbering.lanes.lock().close(self.id);
        self.numbering.closed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_32_hexadecimal_digits_a_hyphen_and_a_number() {
        let id = RequestId { client: 255, sequence: 18 };
        assert_eq!(id.to_string(), "000000000000000000000000000000ff-18");
    }

    #[test]
    fn one_at_a_time_takes_one_lane() {
        let mut lanes = Lanes::new(5);
        for sequence in 0..1_000 {
            let id = lanes.issue().unwrap();
            assert_eq!(id, RequestId { client: 5, sequence });
            lanes.close(id);
        }
    }

    #[test]
    fn there_is_an_end_to_lanes() {
        let mut lanes = Lanes::new(u128::MAX);
        let issued: Vec<_> = std::iter::from_fn(|| lanes.issue()).collect();
        assert_eq!(issued.len(), LANES_MAX * OUTCOMES_KEPT as usize);
        // The oldest of a lane holds it back, not the others.
        lanes.close(issued[1]);
        assert_eq!(lanes.issue(), None);
        lanes.close(issued[0]);
        assert!(lanes.issue().is_some());
    }

    proptest! {
        /// Against a server that applies in any order and keeps 64 outcomes a client: none is ever too old.
        #[test]
        fn no_request_under_way_is_ever_too_old(choices in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..600)) {
            let mut lanes = Lanes::new(u128::MAX - 1);
            let mut under_way: Vec<RequestId> = Vec::new();
            let mut kept: BTreeMap<u128, BTreeSet<u64>> = BTreeMap::new();
            for (send, which) in choices {
                if send || under_way.is_empty() {
                    under_way.extend(lanes.issue());
                    continue;
                }
                let id = under_way.swap_remove(which.index(under_way.len()));
                let kept = kept.entry(id.client).or_default();
                let too_old = kept.len() as u64 == OUTCOMES_KEPT && kept.first().is_some_and(|lowest| id.sequence < *lowest);
                prop_assert!(!too_old, "{id}");
                prop_assert!(kept.insert(id.sequence), "{} was given out twice", id);
                if kept.len() as u64 > OUTCOMES_KEPT {
                    kept.pop_first();
                }
                lanes.close(id);
            }
        }
    }
}
