//! A client of the etcd v3 API, as Conclave and etcd serve it.
//!
//! | | |
//! |---|---|
//! | [`Client`] | keys: [`get`](Client::get), [`put`](Client::put), [`delete`](Client::delete), [`read`](Client::read) and so on; endpoints with failover, pauses and deadlines |
//! | [`Txn`] | several steps at one revision, if conditions hold |
//! | [`Stm`] | read and write as if alone: run again when somebody came in between |
//! | [`Watcher`] | events, without a gap or a repetition however often the connection breaks; says when history was compacted |
//! | [`Lease`] | renews itself, and says when it is lost |
//! | [`Mutex`], [`RwLock`], [`Semaphore`] | locks; their [`Guard`] has a fencing token, a deadline, and transactions that depend on it |
//! | [`Election`] | one leader, what it proclaims, and those who observe it |
//!
//! ```no_run
//! use conclave_client::{Client, Mutex, Put, Txn};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(["127.0.0.1:2379", "127.0.0.1:22379"])?;
//! client.put("lamp", "on").await?;
//!
//! let guard = Mutex::new(&client, "lamp/lock").lock().await?;
//! guard.txn(Txn::new().then(Put::new("lamp", "off"))).await?; // only if it is still held
//! guard.unlock().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is decided and what is waited for
//! Which endpoint is asked, what an error means, where a watch goes on, until when a lease is held and who holds a lock are decided by plain
//! values without a clock, a socket or a task; they are tested by themselves. Around them is a thin shell of tokio and tonic. Of tasks there is
//! one for each lease and one more for each lock that is held; they end with it.
//!
//! # Bounds
//! A request ends with its time ([`Config::request_timeout`]). Pauses between attempts grow to [`Config::backoff_max`]. Modifying requests
//! under way are at most 4,096; more wait their turn. Watches hold back what is not asked for at the server. A software transaction is run
//! [`ATTEMPTS_MAX`] times, a lock entered again [`REENTRIES_MAX`] times.
//!
//! # Security
//! An endpoint is `http://`: neither TLS nor authentication is served, and [`ConfigError::Tls`] says so.

#![forbid(unsafe_code)]

mod backoff;
mod call;
mod client;
mod config;
mod election;
mod endpoint;
mod error;
mod kv;
mod lease;
mod lock;
mod moment;
mod outcome;
mod request_id;
mod stm;
mod txn;
mod watch;

pub use client::Client;
pub use conclave_api::errors::EtcdError;
pub use config::{Config, RequestIds};
pub use election::{Election, Leader, ObserveError, Observer, Office};
pub use error::{ConfigError, Error};
pub use kv::{By, Delete, Deleted, Found, Get, KeyValue, Keys, LeaseId, Put, Revision, Written};
pub use lease::{Lease, LeaseStatus, Loss, TTL_MAX};
pub use lock::{
    Guard, GuardError, LockError, Mutex, REENTRIES_MAX, RwLock, Semaphore, TTL_DEFAULT, Token,
    TooManyReentries,
};
pub use moment::Moment;
pub use stm::{ATTEMPTS_MAX, Isolation, KEYS_MAX, Stm, StmError};
pub use txn::{Compare, Is, Op, OpAnswer, Txn, TxnAnswer};
pub use watch::{Batch, Event, EventKind, Watch, WatchError, Watcher};
