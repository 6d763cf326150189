//! The client side of a node: listeners, connections, and who answers what.
//!
//! One port speaks gRPC over HTTP/2 without TLS and HTTP/1.1; a connection's first bytes tell which. What is neither
//! is closed. A request goes from its connection straight to the generated server of its service: no router, no
//! middleware, no task of its own.
//!
//! Bounds: a connection has at most `max_concurrent_streams` requests under way and windows of a fixed size; a
//! request waits at most the configured timeout; a stop waits at most [`DRAIN_LIMIT`] for what is under way.

mod connection;
mod dispatch;
mod endpoints;
mod exposition;
mod streams;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::connection::Connections;
use self::dispatch::Dispatch;
use crate::backend::Backend;
use crate::config::Config;
use crate::config::url::{Url, UrlError};

/// How long a stop waits for requests under way.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// What is answered on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Everything,
    Grpc,
    Http,
    Metrics,
}

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address is in use, or not this machine's.
    #[error("cannot listen on {url} (--{flag}): {source}")]
    Bind {
        /// The flag that named the address.
        flag: &'static str,
        /// The address.
        url: Url,
        /// What the operating system said.
        source: io::Error,
    },
    /// The address is a name.
    #[error("cannot listen: {0}")]
    Address(#[from] UrlError),
}

/// Sockets that are bound and not served yet.
///
/// They are bound early, so that a port in use is found before anything else starts; clients that connect
/// meanwhile wait.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<(TcpListener, SocketAddr, Offer)>,
}

impl Listeners {
    /// Binds every client address of a configuration. Needs a tokio runtime.
    ///
    /// # Errors
    /// The first address that cannot be bound.
    pub fn bind(config: &Config) -> Result<Self, ListenError> {
        let clients = if config.listen_client_http_urls.is_empty() { Offer::Everything } else { Offer::Grpc };
        let lists = [
            ("listen-client-urls", &config.listen_client_urls, clients),
            ("listen-client-http-urls", &config.listen_client_http_urls, Offer::Http),
            ("listen-metrics-urls", &config.listen_metrics_urls, Offer::Metrics),
        ];
        let mut sockets = Vec::new();
        for (flag, urls, offer) in lists {
            for url in urls {
                let listener = listen(url.bind_address()?, config);
                let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
                let (address, listener) =
                    bound.map_err(|source| ListenError::Bind { flag, url: url.clone(), source })?;
                sockets.push((listener, address, offer));
            }
        }
        Ok(Self { sockets })
    }

    /// The address of the first listener for clients, with the port that was bound where 0 was asked for.
    ///
    /// # Panics
    /// Where the configuration had no client address, which validation refuses.
    #[must_use]
    pub fn client_addr(&self) -> SocketAddr {
        self.sockets.first().expect("a valid configuration has a client address").1
    }
}

fn listen(address: SocketAddr, config: &Config) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // On Unix a restarted node must not wait for the connections of the one before it, as in Go.
    socket.set_reuseaddr(cfg!(unix) || config.socket_reuse_address)?;
    #[cfg(unix)]
    socket.set_reuseport(config.socket_reuse_port)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The running front of a node. Dropped without [`shutdown`](Self::shutdown), it stops at once.
#[derive(Debug)]
pub struct Front {
    client_addr: SocketAddr,
    stopping: watch::Sender<bool>,
    listeners: JoinSet<()>,
}

impl Front {
    /// Begins to answer. Needs a tokio runtime.
    #[must_use]
    pub fn serve(listeners: Listeners, config: &Config, backend: Arc<dyn Backend>) -> Self {
        let client_addr = listeners.client_addr();
        let (stopping, stops) = watch::channel(false);
        let dispatch = Dispatch::new(config, backend, stops.clone());
        let connections = Connections::new(config, &dispatch);
        let mut tasks = JoinSet::new();
        for (listener, address, offer) in listeners.sockets {
            tracing::info!(address = %address, "serving client traffic insecurely; this is strongly discouraged!");
            tasks.spawn(connections.clone().accept(listener, dispatch.clone(), offer, stops.clone()));
        }
        Self { client_addr, stopping, listeners: tasks }
    }

    /// The address of the first listener for clients.
    #[must_use]
    pub fn client_addr(&self) -> SocketAddr {
        self.client_addr
    }

    /// Stops listening, lets requests under way end for at most [`DRAIN_LIMIT`], and closes what is left.
    pub async fn shutdown(mut self) {
        self.stopping.send_replace(true);
        while self.listeners.join_next().await.is_some() {}
    }
}
