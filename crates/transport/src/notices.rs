//! Keeps a misbehaving peer from filling the log: one line of a kind in a while, with the count of those left out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// A kind is told again only after this long.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Notices {
    told: Mutex<BTreeMap<&'static str, (Instant, u64)>>,
}

impl Notices {
    /// Whether to tell now; if so, how many of the kind were left out since the last time.
    pub(crate) fn admit(&self, kind: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut told = self.told.lock();
        match told.get_mut(kind) {
            Some((last, left_out)) if now.duration_since(*last) < QUIET => {
                *left_out += 1;
                None
            }
            Some((last, left_out)) => {
                *last = now;
                Some(std::mem::take(left_out))
            }
            None => {
                told.insert(kind, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_told_once_in_a_while() {
        let notices = Notices::default();
        assert_eq!(notices.admit("a"), Some(0));
        assert_eq!(notices.admit("a"), None);
        assert_eq!(notices.admit("b"), Some(0));
    }
}
