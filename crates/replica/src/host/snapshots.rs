//! Snapshots: fetched from the leader, and served to whoever may need one.

use std::time::Duration;

use conclave_consensus::{GroupId, Input, NodeId, ReplicaId, Slot, Time};
use conclave_transport::Packet;

use super::{
    Host,
    fetch::{Fetch, FetchStep, KEPT_FOR},
};
use crate::{ArrivedPiece, HostEffect, PieceRequest};

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
    /// The core wants a snapshot; while one is fetched, it says who can serve too.
    pub(super) fn fetch(&mut self, group: GroupId, at_least: Slot, from: &[ReplicaId]) {
        let now = self.now;
        let Some(g) = self.groups.get_mut(group) else { return };
        self.touched.add(group, g);
        let sources: Vec<NodeId> = from.iter().filter_map(|replica| g.addresses.of(*replica)).collect();
        if let Some(fetch) = &mut g.fetch {
            fetch.offered(at_least, &sources);
            return;
        }
        if sources.is_empty() || now < g.fetch_after {
            self.feed(group, Input::SnapshotFailed);
            return;
        }
        match g.kept_fetch.take() {
            Some((mut fetch, _)) if fetch.have().slot >= at_least.0 => {
                let mut steps = Vec::new();
                fetch.resume(now, at_least, &sources, &mut steps);
                g.fetch = Some(fetch);
                self.fetch_steps(group, steps);
            }
            other => {
                if let Some((fetch, _)) = other {
                    self.effects.push(HostEffect::ForgetFetch { group, fetch: fetch.id() });
                }
                self.begin_fetch(group, at_least, &sources);
            }
        }
    }

    fn begin_fetch(&mut self, group: GroupId, at_least: Slot, sources: &[NodeId]) {
        let (now, timeout) = (self.now, self.config.piece_timeout);
        let Some(g) = self.groups.get_mut(group) else { return };
        g.fetches += 1;
        // A new number for each attempt: what an abandoned one still writes lands in a generation that nobody names.
        g.generation += 1;
        let id = self.config.epoch.0 << 32 | g.fetches;
        g.fetch = Some(Fetch::new(id, g.generation, at_least, sources, now, timeout));
        self.counters.fetches += 1;
        self.fetch_step(group, Fetch::ask);
    }

    pub(super) fn fetch_step(
        &mut self,
        group: GroupId,
        step: impl FnOnce(&mut Fetch, Time, &mut Vec<FetchStep>),
    ) {
        let now = self.now;
        let Some(g) = self.groups.get_mut(group) else { return };
        if g.fetch.is_none() {
            return;
        }
        self.touched.add(group, g);
        let Some(fetch) = g.fetch.as_mut() else { return };
        let mut steps = Vec::new();
        step(fetch, now, &mut steps);
        self.fetch_steps(group, steps);
    }

    fn fetch_steps(&mut self, group: GroupId, steps: Vec<FetchStep>) {
        for step in steps {
            let Some(g) = self.groups.get_mut(group) else { return };
            let Some(fetch) = g.fetch.as_ref() else { return };
            let (id, have, generation) = (fetch.id(), fetch.have(), fetch.generation());
            match step {
                FetchStep::Pull { from, piece } => {
                    let at_least = fetch.at_least().0;
                    let packet = Packet::SnapshotPull { group, fetch: id, at_least, piece, have };
                    self.effects.push(HostEffect::Send { to: from, packet });
                }
                FetchStep::Store { after, body, last } => {
                    self.counters.fetched_bytes += body.len() as u64;
                    let piece = ArrivedPiece { fetch: id, generation, after, body, last };
                    self.effects.push(HostEffect::StorePiece { group, piece });
                }
                FetchStep::Resumed => self.counters.fetches_resumed += 1,
                FetchStep::Anew { sources } => {
                    let at_least = fetch.at_least();
                    self.counters.fetches_anew += 1;
                    self.effects.push(HostEffect::ForgetFetch { group, fetch: id });
                    self.begin_fetch(group, at_least, &sources);
                    return;
                }
                FetchStep::GiveUp => {
                    if have.pieces > 0 {
                        let until = self.now.after(self.config.piece_timeout * KEPT_FOR);
                        g.kept_fetch = g.fetch.take().map(|fetch| (fetch, until));
                    }
                    self.fetch_failed(group);
                    return;
                }
            }
        }
    }

    /// Ends the fetch that there is. The core hears it, and is not heard again too soon.
    pub(super) fn fetch_failed(&mut self, group: GroupId) {
        let Some(g) = self.groups.get_mut(group) else { return };
        self.touched.add(group, g);
        g.fetch = None;
        g.fetch_after = self.now.after(self.config.piece_timeout);
        self.counters.fetches_failed += 1;
        self.feed(group, Input::SnapshotFailed);
    }

    /// A snapshot is installed: what is fetched or kept of another is of no use, and must not be built beside it.
    pub(super) fn end_fetch(&mut self, group: GroupId) {
        let Some(g) = self.groups.get_mut(group) else { return };
        self.touched.add(group, g);
        let kept = g.kept_fetch.take().map(|(fetch, _)| fetch);
        for fetch in g.fetch.take().into_iter().chain(kept) {
            self.effects.push(HostEffect::ForgetFetch { group, fetch: fetch.id() });
        }
    }

    /// Has what was received of a fetch that was given up thrown away, if nobody went on with it in time.
    pub(super) fn forget_kept_fetch(&mut self, group: GroupId) {
        let now = self.now;
        let Some(g) = self.groups.get_mut(group) else { return };
        self.touched.add(group, g);
        if let Some((fetch, _)) = g.kept_fetch.take_if(|(_, until)| *until <= now) {
            self.effects.push(HostEffect::ForgetFetch { group, fetch: fetch.id() });
        }
    }

    /// Members are served, and whoever was heard or was one. A node that this one does not know may be about to be a member, by an entry
    /// still on its way: one such guest at a time is served too, and may not begin anew more often than a lost piece is asked for.
    pub(super) fn serve(&mut self, to: NodeId, group: GroupId, request: PieceRequest) {
        let fetch = request.fetch;
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
        self.effects.push(HostEffect::ServePiece { to, group, request });
    }
}
