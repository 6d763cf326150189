//! A process around one node: logs, runtime, signals and the service manager.

use std::io;

use thiserror::Error;

use crate::config::{API_VERSION, CONCLAVE_VERSION, Config, url};
use crate::logging::{self, LoggingError};
use crate::node::{Node, NodeError};
use crate::notify::notify;

/// Why a process ended otherwise than by a signal.
#[derive(Debug, Error)]
pub enum RunError {
    /// Logs cannot be written as configured.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// No runtime or no signal handler.
    #[error("cannot start: {0}")]
    Process(#[from] io::Error),
    /// The node did not start, or had to halt.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Runs a node until SIGTERM or SIGINT, then stops it cleanly. Sets up the process's logs; `notices` are the first
/// of them.
///
/// # Errors
/// What kept the node from starting or made it halt; the last log line says the same.
pub fn run(config: Config, notices: &[String]) -> Result<(), RunError> {
    logging::init(&config.log)?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().thread_name("conclave-io").enable_all().build()?;
    let outcome = runtime.block_on(serve(config));
    // A thread that waits for a disk that hangs must not keep the process.
    runtime.shutdown_background();
    if let Err(error) = &outcome {
        tracing::error!(error = error as &dyn std::error::Error, "the node ended");
    }
    outcome
}

async fn serve(config: Config) -> Result<(), RunError> {
    tracing::info!(
        version = CONCLAVE_VERSION,
        api_version = API_VERSION,
        name = config.name,
        data_dir = %config.data_dir.display(),
        listen_client_urls = url::join(&config.listen_client_urls),
        listen_peer_urls = url::join(&config.listen_peer_urls),
        "starting conclave"
    );
    let mut signals = Signals::new()?;
    let mut node = tokio::select! {
        started = Node::start(config) => started?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before the node was ready");
            return Ok(());
        }
    };
    tracing::info!(address = %node.client_addr(), "ready to serve client requests");
    tell_manager("READY=1");
    let outcome = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "received signal; shutting down");
            Ok(())
        }
        error = node.halted() => Err(error),
    };
    tell_manager("STOPPING=1");
    node.shutdown().await;
    tracing::info!("stopped");
    outcome.map_err(RunError::from)
}

fn tell_manager(state: &str) {
    if let Err(error) = notify(state) {
        tracing::warn!(error = &error as &dyn std::error::Error, state, "the service manager was not told");
    }
}

/// The signals that end a node.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            // Without a handler the signal ends the process by itself.
            Err(_) => std::future::pending().await,
        }
    }
}
