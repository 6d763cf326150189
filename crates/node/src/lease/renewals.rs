//! Renewals on their way to the leader: gathered from all clients of this member, many to a question.

use std::sync::Arc;

use conclave_api::errors::EtcdError;
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Duration, Instant, sleep, timeout, timeout_at},
};

use super::{
    Leases, QUESTION_LEASES_MAX, Running,
    wire::{Envelope, GONE, LATER, LeaseAnswer, LeaseQuestion},
};

/// How many questions may be under way; renewals that come meanwhile gather for the next.
const QUESTIONS_MAX: usize = 4;
/// How long to wait before what cannot be said yet is asked again.
const PAUSE: Duration = Duration::from_millis(20);

/// A renewal that waits: the lease, and where to say what became of it; nothing if it is to be asked again.
pub(super) type Wanted = (i64, oneshot::Sender<Option<i64>>);

/// What is asked of the leader.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Renew(i64),
    Left(i64),
}

impl Leases {
    /// Renews a lease, at whichever member, and tells its time to live in seconds; nothing if there is no such lease.
    ///
    /// # Errors
    /// `TooManyRequests`; `Stopped`; the want of a leader, once the request's time is over.
    pub(crate) async fn renew(&self, id: i64) -> Result<Option<i64>, EtcdError> {
        self.until_known(Asked::Renew(id)).await
    }

    /// How many seconds a lease has left; nothing if there is no such lease.
    ///
    /// # Errors
    /// `Stopped`; the want of a leader, once the request's time is over.
    pub(crate) async fn left(&self, id: i64) -> Result<Option<i64>, EtcdError> {
        self.until_known(Asked::Left(id)).await
    }

    async fn until_known(&self, asked: Asked) -> Result<Option<i64>, EtcdError> {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            match timeout_at(deadline, self.once(asked)).await {
                Ok(Ok(Some(GONE))) => return Ok(None),
                Ok(Ok(Some(seconds))) if seconds >= 0 => return Ok(Some(seconds)),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(self.late()),
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(self.late());
            }
            sleep(PAUSE).await;
        }
    }

    /// What the leader says now, if it can say anything.
    async fn once(&self, asked: Asked) -> Result<Option<i64>, EtcdError> {
        match asked {
            Asked::Renew(id) => {
                let (answer, answered) = oneshot::channel();
                match self.renewals.try_send((id, answer)) {
                    Ok(()) => answered.await.map_err(|_| EtcdError::Stopped),
                    Err(mpsc::error::TrySendError::Full(_)) => Err(EtcdError::TooManyRequests),
                    Err(mpsc::error::TrySendError::Closed(_)) => Err(EtcdError::Stopped),
                }
            }
            Asked::Left(id) => {
                let running = self.running.get().ok_or(EtcdError::Stopped)?;
                let question = LeaseQuestion { renew: Vec::new(), left: vec![id] };
                Ok(self.ask(running, question).await.left.first().copied())
            }
        }
    }

    /// etcd tells a slow cluster from one that lost its quorum.
    fn late(&self) -> EtcdError {
        match self.running.get().and_then(|running| running.role.borrow().leader) {
            Some(_) => EtcdError::Timeout,
            None => EtcdError::TimeoutDueToConnectionLost,
        }
    }

    /// Asks the leader's node, which may be this one. Without an answer everything is unknown.
    async fn ask(&self, running: &Running, question: LeaseQuestion) -> LeaseAnswer {
        let leader = running.role.borrow().leader;
        match leader {
            None => LeaseAnswer::default(),
            Some(leader) if leader == self.member => self.answer_here(running, &question).await,
            Some(leader) => {
                let asked = (question.renew.len(), question.left.len());
                let question = Envelope { lease: Some(question) }.encode_to_vec();
                let answer = running.handle.ask(leader, question.into());
                // A leader that does not answer for so long may be none any more.
                let answer = timeout(self.election_timeout, answer).await.ok().flatten();
                let answer = answer.and_then(|answer| LeaseAnswer::decode(answer).ok());
                let is_whole = |answer: &LeaseAnswer| (answer.renewed.len(), answer.left.len()) == asked;
                answer.filter(is_whole).unwrap_or_default()
            }
        }
    }

    /// Takes renewals to the leader, as many as there are with each question, until the task is aborted.
    pub(super) async fn serve_renewals(self: Arc<Self>, mut wanted: mpsc::Receiver<Wanted>) {
        let under_way = Arc::new(Semaphore::new(QUESTIONS_MAX));
        let mut batch: Vec<Wanted> = Vec::new();
        loop {
            let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
            if wanted.recv_many(&mut batch, QUESTION_LEASES_MAX).await == 0 {
                return;
            }
            let (leases, batch) = (Arc::clone(&self), std::mem::take(&mut batch));
            tokio::spawn(async move {
                let _permit = permit;
                let Some(running) = leases.running.get() else { return };
                let renew = batch.iter().map(|(id, _)| *id).collect();
                let answer = leases.ask(running, LeaseQuestion { renew, left: Vec::new() }).await;
                let said = answer.renewed.into_iter().map(Some).chain(std::iter::repeat(None));
                for ((_, answer), seconds) in batch.into_iter().zip(said) {
                    // Whoever asked may have gone.
                    let _ = answer.send(seconds.filter(|seconds| *seconds != LATER));
                }
            });
        }
    }
}
