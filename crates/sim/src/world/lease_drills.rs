//! Drills on leases: a leader that nobody hears answers reads while its lease lasts, and the others go on without it as soon as they may.
//!
//! The clocks use up all that they may be off by, the leader's slow and the others' fast: so its lease ends as late, and the next leader comes as early,
//! as can be (thesis, section 6.4.1). Nothing is judged here: whoever reads what is old is seen as in every other phase.

use super::World;
use crate::{check::Violation, clock::SECOND, history::Ending};

/// How often a leader is cut off, by turns from others that heard it to the last, and from others that boot.
const ROUNDS: u32 = 6;
/// How often the leader is asked in an election timeout.
const LOOKS: u64 = 50;

impl World {
    /// Holds the drills, where leaders keep leases and clocks drift by so much. Afterwards nothing is cut.
    pub(crate) fn drill_leases(&mut self, drift_ppm: u64) -> Result<(), Violation> {
        if self.context.options.lease_drift_ppm.is_none() {
            return Ok(());
        }
        for round in 0..ROUNDS {
            let Some(leader) = self.leader() else { return Ok(()) };
            self.slow_down(leader, drift_ppm);
            self.run_until(self.context.now + self.elections(1))?;
            let others: Vec<u64> = self.healthy().into_iter().filter(|node| *node != leader).collect();
            if round % 2 == 0 {
                self.cut_off(leader, &others);
            } else {
                self.cut_off_from_who_boots(leader, &others)?;
            }
            self.ask_while_others_write(leader)?;
            self.context.net.heal(crate::options::NetworkOptions::healthy());
            self.run_until(self.context.now + 2 * SECOND)?;
        }
        Ok(())
    }

    fn slow_down(&mut self, leader: u64, drift_ppm: u64) {
        let now = self.context.now;
        let drift = i64::try_from(drift_ppm).unwrap_or(i64::MAX);
        for node in &mut self.nodes {
            node.clock.drift(now, if node.id == leader { -drift } else { drift });
        }
    }

    fn cut_off(&mut self, leader: u64, from: &[u64]) {
        let links = from.iter().flat_map(|node| [(*node, leader), (leader, *node)]).collect();
        self.context.net.cut_links(links, u64::MAX);
    }

    /// One of the others has not heard the leader for long and would stand; those that have, boot.
    fn cut_off_from_who_boots(&mut self, leader: u64, others: &[u64]) -> Result<(), Violation> {
        let Some((apart, rest)) = others.split_first() else { return Ok(()) };
        self.cut_off(leader, &[*apart]);
        self.run_until(self.context.now + self.elections(3))?;
        self.cut_off(leader, rest);
        for node in rest {
            self.nodes[*node as usize - 1].halt(&mut self.context);
        }
        Ok(())
    }

    /// Asks the leader over and over, while the next one writes; until it leads no more, or no lease of its could last.
    fn ask_while_others_write(&mut self, leader: u64) -> Result<(), Violation> {
        let patience = self.elections(1);
        let until = self.context.now + self.elections(2);
        let mut written = None;
        while self.context.now < until && self.node(leader).leads().is_some() {
            let open = written.and_then(|op| self.context.history.get(op));
            if open.is_none_or(|operation| operation.ending != Ending::Unknown)
                && let Some(next) = self.leader().filter(|next| *next != leader)
            {
                written = self.probe(&[next], patience).pop();
            }
            self.clients.look(&mut self.context, leader, patience);
            self.run_until(self.context.now + patience / LOOKS)?;
        }
        Ok(())
    }
}
