//! What a leader does about leases whose time is up, and about the checkpoints of long ones.

use std::{sync::Arc, time::Duration};

use conclave_consensus::Ballot;
use conclave_kv::{
    Lessor,
    command::{self, Revision},
};
use conclave_replica::{ProposeError, boot_time};
use tokio::time::{sleep, timeout};

use super::{Leases, Led, Running};
use crate::replicated::DATA;

/// The most leases that end by one command, and the most keys, and bytes of keys, that are deleted with them; a single lease may have more.
const EXPIRED_LEASES_MAX: usize = 512;
const EXPIRED_KEYS_MAX: usize = 1_024;
const EXPIRED_BYTES_MAX: usize = 256 << 10;
/// The most leases whose checkpoints are one command.
const CHECKPOINTED_MAX: usize = 1_000;
/// How long to wait after something failed.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest sleep: the timer stands still while the machine is suspended, the deadlines do not.
const NAP_MAX: Duration = Duration::from_millis(500);

impl Leases {
    /// Keeps the deadlines whenever this member leads, until the task is aborted.
    pub(super) async fn keep(self: Arc<Self>) {
        let Some(running) = self.running.get() else { return };
        let mut role = running.role.clone();
        loop {
            let now = *role.borrow_and_update();
            if now.serving {
                let over = role.wait_for(|role| !role.serving || role.ballot != now.ballot);
                let gone = tokio::select! {
                    over = over => over.is_err(),
                    () = self.lead(running, now.ballot) => false,
                };
                *self.led.lock() = None;
                if gone {
                    return;
                }
            } else if role.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes over the leases, and ends those that run out. Returns only if the deadlines are gone.
    async fn lead(&self, running: &Running, ballot: Ballot) {
        // What leaders before this one proposed is applied then, or will never be chosen.
        while !running.confirm(self.request_timeout).await {
            sleep(PAUSE).await;
        }
        *self.led.lock() = Some(Led { ballot, lessor: None, untold: Vec::new() });
        let leases = running.reader.leases();
        let now = boot_time();
        let mut lessor = Lessor::new(now, self.election_timeout, &leases);
        {
            let mut led = self.led.lock();
            let Some(led) = &mut *led else { return };
            led.untold.drain(..).for_each(|change| lessor.changed(now, &change));
            led.lessor = Some(lessor);
        }
        tracing::debug!(leases = leases.len(), term = ballot.round, "keeping the deadlines of leases");
        drop(leases);
        loop {
            let Some(next) = self.with_lessor(ballot, |lessor| lessor.next_deadline()) else { return };
            let now = boot_time();
            match next {
                None => self.bell.notified().await,
                Some(at) if at > now => {
                    let nap = at.since(now).min(NAP_MAX);
                    // An earlier deadline, or the time.
                    let _ = timeout(nap, self.bell.notified()).await;
                }
                Some(_) => {
                    if !self.work(running, ballot).await {
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Does something with the deadlines kept in a ballot; `None` if that is over.
    fn with_lessor<T>(&self, ballot: Ballot, of: impl FnOnce(&mut Lessor) -> T) -> Option<T> {
        let mut led = self.led.lock();
        let led = led.as_mut().filter(|led| led.ballot == ballot)?;
        led.lessor.as_mut().map(of)
    }

    /// Does what is due, a batch of it. Says whether that went well.
    async fn work(&self, running: &Running, ballot: Ballot) -> bool {
        self.checkpoint(running, ballot).await.unwrap_or(false)
            && self.expire(running, ballot).await.unwrap_or(false)
    }

    async fn checkpoint(&self, running: &Running, ballot: Ballot) -> Option<bool> {
        let now = boot_time();
        let told = self.with_lessor(ballot, |lessor| lessor.checkpoints_due(now, CHECKPOINTED_MAX))?;
        if told.is_empty() {
            return Some(true);
        }
        let proposed = running.handle.propose_in(DATA, ballot, command::checkpoint_leases(&told));
        let applied = matches!(timeout(self.request_timeout, proposed).await, Ok(Ok(_)));
        if applied {
            self.with_lessor(ballot, |lessor| lessor.checkpointed(&told))?;
        }
        Some(applied)
    }

    async fn expire(&self, running: &Running, ballot: Ballot) -> Option<bool> {
        let is_due = |lessor: &mut Lessor| !lessor.due(boot_time(), 1).is_empty();
        if !self.with_lessor(ballot, is_due)? {
            return Some(true);
        }
        if !running.confirm(self.request_timeout).await || !running.leads_in(ballot) {
            return Some(false);
        }
        // Renewals that were under way came first.
        let now = boot_time();
        let due = self.with_lessor(ballot, |lessor| {
            let mut due = lessor.due(now, EXPIRED_LEASES_MAX);
            due.truncate(running.reader.leases_within(&due, EXPIRED_KEYS_MAX, EXPIRED_BYTES_MAX));
            lessor.expiring(&due, now.after(2 * self.request_timeout));
            due
        })?;
        if due.is_empty() {
            return Some(true);
        }
        let proposed = running.handle.propose_in(DATA, ballot, command::expire_leases(Revision::Next, &due));
        let failed = match timeout(self.request_timeout, proposed).await {
            Ok(Ok(_)) => return Some(true),
            Ok(Err(failed)) => failed,
            Err(_) => ProposeError::Unknown,
        };
        tracing::debug!(leases = due.len(), error = %failed, "leases that ran out could not be ended");
        self.with_lessor(ballot, |lessor| match failed {
            ProposeError::Unknown | ProposeError::Stopped => lessor.in_doubt(&due),
            ProposeError::Busy
            | ProposeError::LeaderChanged
            | ProposeError::NoLeader
            | ProposeError::TooLarge
            | ProposeError::NoGroup => lessor.not_expired(&due),
        })?;
        Some(false)
    }
}
