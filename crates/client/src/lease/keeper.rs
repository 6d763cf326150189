//! The task that renews a lease, and what its holder sees of it.

use std::{sync::Arc, time::Duration};

use conclave_api::etcdserverpb::{LeaseKeepAliveRequest, lease_client::LeaseClient};
use futures::stream;
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};
use tonic::{Response, Status};

use crate::{
    backoff::{Backoff, random_bits},
    call::{Repeat, demanding_leader},
    client::Client,
    kv::LeaseId,
    moment::Moment,
};

use super::{
    seconds_of,
    tenure::{Loss, Tenure},
};

/// A timer stands still while the machine is suspended, and the lease does not: so the clock is looked at that often.
const LOOK: Duration = Duration::from_millis(500);

/// A tenure that its keeper, its holder and those who wait for its loss share.
#[derive(Debug)]
pub(crate) struct Standing {
    tenure: Mutex<Tenure>,
    lost: watch::Sender<Option<Loss>>,
}

impl Standing {
    pub(crate) fn new(tenure: Tenure) -> Self {
        Self { tenure: Mutex::new(tenure), lost: watch::Sender::new(None) }
    }

    pub(crate) fn deadline(&self) -> Moment {
        self.tenure.lock().deadline()
    }

    /// Judged by the clock at this moment; whoever waits is told.
    pub(crate) fn loss(&self) -> Option<Loss> {
        let loss = self.tenure.lock().loss(Moment::now());
        self.tell(loss);
        loss
    }

    pub(crate) fn lose(&self, loss: Loss) {
        self.tenure.lock().lose(loss);
        self.loss();
    }

    /// Waits for the loss. Looks at the clock itself, so that it needs no other task to run.
    pub(crate) async fn lost(&self) -> Loss {
        let mut told = self.lost.subscribe();
        loop {
            if let Some(loss) = self.loss() {
                return loss;
            }
            let left = self.deadline().since(Moment::now());
            tokio::select! {
                _ = told.changed() => {}
                () = sleep(left.min(LOOK)) => {}
            }
        }
    }

    fn renewed(&self, sent: Moment, ttl: Duration) {
        self.tenure.lock().renewed(sent, ttl, Moment::now());
        self.loss();
    }

    fn renew_at(&self) -> Moment {
        self.tenure.lock().renew_at()
    }

    fn tell(&self, loss: Option<Loss>) {
        self.lost.send_if_modified(|told| {
            let news = told.is_none() && loss.is_some();
            if news {
                *told = loss;
            }
            news
        });
    }
}

/// Renews a lease until it is lost.
pub(crate) async fn keep(client: Client, lease: LeaseId, standing: Arc<Standing>) {
    tokio::select! {
        loss = standing.lost() => tracing::debug!(%lease, %loss, "no longer renewed"),
        () = renew(&client, lease, &standing) => {}
    }
}

async fn renew(client: &Client, lease: LeaseId, standing: &Standing) {
    let config = &client.shared.config;
    let mut backoff = Backoff::new(config.backoff_min, config.backoff_max, random_bits());
    loop {
        let pause = standing.renew_at().since(Moment::now());
        if !pause.is_zero() {
            sleep(pause.min(LOOK)).await;
            continue;
        }
        match ask(client, lease).await {
            Ok((sent, ttl)) => {
                standing.renewed(sent, ttl);
                backoff.reset();
            }
            Err(error) => tracing::debug!(%lease, %error, "a renewal failed"),
        }
        // Renewed or not, the next attempt is not at once: a server might grant a time of nothing.
        sleep(backoff.pause()).await;
    }
}

/// One renewal: when the attempt that was answered was sent, and for how long the lease is renewed.
async fn ask(client: &Client, lease: LeaseId) -> Result<(Moment, Duration), crate::Error> {
    let request = LeaseKeepAliveRequest { id: lease.0 };
    let call = |way, request: tonic::Request<LeaseKeepAliveRequest>| async move {
        let sent = Moment::now();
        let requests = demanding_leader(stream::iter([request.into_inner()]));
        let mut answers = LeaseClient::new(way).lease_keep_alive(requests).await?.into_inner();
        let answer = answers.message().await?;
        let answer = answer.ok_or_else(|| Status::unavailable("a renewal was not answered"))?;
        Ok(Response::new((sent, seconds_of(answer.ttl))))
    };
    client.shared.unary(client.timeout, Repeat::Same, &request, call).await
}
