//! The client: a handle to a cluster, and its key-value requests.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_api::etcdserverpb::{CompactionRequest, kv_client::KvClient};
use tonic::transport::Channel;

use crate::{
    call::{Repeat, Shared},
    config::Config,
    error::{ConfigError, Error},
    kv::{
        Delete, Deleted, Found, Get, KeyValue, Put, Revision, Written, deleted, found, revision_of, written,
    },
    txn::{Txn, TxnAnswer},
};

/// A handle to a cluster; a clone is another handle to the same connections.
///
/// A request is sent to one endpoint, and to another when that does not answer, until the request's time is over. A modifying request whose
/// outcome is unknown is sent again only where it is applied once whatever happens: its metadata names it, and Conclave knows the name.
/// With other servers such a request ends with [`Error::OutcomeUnknown`].
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use conclave_client::Client;
///
/// let client = Client::connect(["127.0.0.1:2379", "127.0.0.1:22379", "127.0.0.1:32379"])?;
/// client.put("greeting", "hello").await?;
/// let greeting = client.get("greeting").await?;
/// assert_eq!(greeting.map(|kv| kv.value), Some("hello".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeout: Duration,
}

impl Client {
    /// A client of these endpoints, all of one cluster. Connections are made when they are first needed. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// What is wrong with the endpoints.
    pub fn connect<I: IntoIterator<Item: Into<String>>>(endpoints: I) -> Result<Self, ConfigError> {
        Self::new(Config::of(endpoints))
    }

    /// A client by its configuration. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let timeout = config.request_timeout;
        Ok(Self { shared: Shared::new(config)?, timeout })
    }

    /// A handle to the same connections whose requests may take so long, with all their attempts.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), timeout }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What stands under a key, as of all writes acknowledged before.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, Error> {
        Ok(self.read(Get::new(key.into())).await?.kvs.into_iter().next())
    }

    /// A read with all that can be asked for.
    ///
    /// # Errors
    /// See [`Error`]; [`EtcdError::Compacted`](conclave_api::errors::EtcdError::Compacted) if it asks for a revision that is gone.
    pub async fn read(&self, get: Get) -> Result<Found, Error> {
        let request = get.into_request();
        let call = |way, request| async move { self.kv(way).range(request).await };
        let mut answer = self.shared.unary(self.timeout, Repeat::Read, &request, call).await?;
        let revision = revision_of(answer.header.take())?;
        Ok(found(answer, revision))
    }

    /// Puts a value under a key; the revision that this made.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Revision, Error> {
        Ok(self.write(Put::new(key, value)).await?.revision)
    }

    /// A write with all that can be asked for.
    ///
    /// # Errors
    /// See [`Error`]; [`EtcdError::LeaseNotFound`](conclave_api::errors::EtcdError::LeaseNotFound) if it names a lease that is gone.
    pub async fn write(&self, put: Put) -> Result<Written, Error> {
        let request = put.into_request();
        let call = |way, request| async move { self.kv(way).put(request).await };
        let mut answer = self.shared.unary(self.timeout, Repeat::Named, &request, call).await?;
        let revision = revision_of(answer.header.take())?;
        Ok(written(answer, revision))
    }

    /// Deletes a key; whether it was there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, Error> {
        Ok(self.remove(Delete::new(key.into())).await?.count > 0)
    }

    /// A deletion with all that can be asked for.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self, delete: Delete) -> Result<Deleted, Error> {
        let request = delete.into_request();
        let call = |way, request| async move { self.kv(way).delete_range(request).await };
        let mut answer = self.shared.unary(self.timeout, Repeat::Named, &request, call).await?;
        let revision = revision_of(answer.header.take())?;
        Ok(deleted(answer, revision))
    }

    /// A transaction.
    ///
    /// # Errors
    /// See [`Error`]. Conditions that do not hold are no error but an answer.
    pub async fn txn(&self, txn: Txn) -> Result<TxnAnswer, Error> {
        self.txn_as(Repeat::Named, txn).await
    }

    /// A transaction of which the caller says what a repetition does.
    pub(crate) async fn txn_as(&self, repeat: Repeat, txn: Txn) -> Result<TxnAnswer, Error> {
        let request = txn.into_request();
        let call = |way, request| async move { self.kv(way).txn(request).await };
        TxnAnswer::from_response(self.shared.unary(self.timeout, repeat, &request, call).await?)
    }

    /// Gives up the history before a revision. Reads and watches below it are refused from then on.
    ///
    /// # Errors
    /// See [`Error`]; [`EtcdError::Compacted`](conclave_api::errors::EtcdError::Compacted) if it is gone already.
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let request = CompactionRequest { revision: revision.0, physical: false };
        let call = |way, request| async move { self.kv(way).compact(request).await };
        self.shared.unary(self.timeout, Repeat::Named, &request, call).await.map(drop)
    }

    fn kv(&self, way: Channel) -> KvClient<Channel> {
        KvClient::new(way).max_decoding_message_size(self.shared.config.answer_bytes_max)
    }
}
