//! Snapshots: fetched from the leader, and served to whoever may need one.

use std::time::Duration;

use conclave_consensus::{GroupId, Input, NodeId, ReplicaId, Slot, Time};
use conclave_transport::Packet;

use super::{
    Host,
    fetch::{Fetch, FetchStep},
};
use crate::HostEffect;

/// How long a guest's place is kept after it asked for a piece.
const GUEST_RESTS: Duration = Duration::from_secs(10);

/// A node that fetches and is no member that this one knows of.
#[derive(Debug)]
pub(super) struct Guest {
    node: NodeId,
    fetch: u64,
    began: Time,
    asked: Time,
}

impl Host {
    pub(super) fn fetch(&mut self, group: GroupId, at_least: Slot, from: &[ReplicaId]) {
        let (now, timeout) = (self.now, self.config.piece_timeout);
        let Some(g) = self.groups.get_mut(group) else { return };
        let sources: Vec<NodeId> = from.iter().filter_map(|replica| g.addresses.of(*replica)).collect();
        if sources.is_empty() || now < g.fetch_after {
            self.feed(group, Input::SnapshotFailed);
            return;
        }
        g.fetches += 1;
        // A new number for each attempt: what an abandoned one still writes lands in a generation that nobody names.
        g.generation += 1;
        let id = self.config.epoch.0 << 32 | g.fetches;
        g.fetch = Some(Fetch::new(id, g.generation, at_least, sources, now, timeout));
        self.fetch_step(group, |f, _| f.pull());
    }

    pub(super) fn fetch_step(&mut self, group: GroupId, step: impl FnOnce(&mut Fetch, Time) -> FetchStep) {
        let now = self.now;
        let Some(g) = self.groups.get_mut(group) else { return };
        if g.fetch.is_none() {
            return;
        }
        self.touched.add(group, g);
        let Some(fetch) = g.fetch.as_mut() else { return };
        match step(fetch, now) {
            FetchStep::Nothing => {}
            FetchStep::Pull { from, at_least, piece } => {
                let packet = Packet::SnapshotPull { group, fetch: fetch.id(), at_least: at_least.0, piece };
                self.effects.push(HostEffect::Send { to: from, packet });
            }
            FetchStep::Store { piece, body, last } => {
                let (fetch, generation) = (fetch.id(), fetch.generation());
                self.effects.push(HostEffect::StorePiece { group, fetch, piece, generation, body, last });
            }
            FetchStep::GiveUp => {
                g.fetch = None;
                g.fetch_after = now.after(self.config.piece_timeout);
                self.feed(group, Input::SnapshotFailed);
            }
        }
    }

    /// Members are served, and whoever was heard or was one. A node that this one does not know may be about to be a member, by an entry
    /// still on its way: one such guest at a time is served too, and may not begin anew more often than a lost piece is asked for.
    pub(super) fn serve(&mut self, to: NodeId, group: GroupId, fetch: u64, at_least: Slot, piece: u64) {
        let (now, pause) = (self.now, self.config.piece_timeout);
        let Some(g) = self.groups.get_mut(group) else { return };
        if !g.addresses.has_node(to) {
            let is_new = g.guest.as_ref().is_none_or(|guest| guest.node != to || guest.fetch != fetch);
            if let Some(guest) = &g.guest
                && is_new
            {
                let since = if guest.node == to { guest.began } else { guest.asked };
                let pause = if guest.node == to { pause } else { GUEST_RESTS };
                if now < since.after(pause) {
                    return;
                }
            }
            let began = if is_new { now } else { g.guest.as_ref().map_or(now, |guest| guest.began) };
            g.guest = Some(Guest { node: to, fetch, began, asked: now });
        }
        self.effects.push(HostEffect::ServePiece { to, group, fetch, at_least, piece });
    }
}
