//! Accepts connections and speaks HTTP on them.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::dispatch::Dispatch;
use super::streams::Streams;
use super::{DRAIN_LIMIT, Offer};
use crate::config::Config;
use crate::service::Serving;

/// How long a connection may take to send its first request's head over HTTP/1.1: etcd's bound too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of one request a client may send ahead. Above the usual request, so that it needs no window update.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// How much of all its requests a client may send ahead. Window updates come once half of it is read, so a larger
/// window means fewer frames to write.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Pause after a failed accept, as when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections are served.
#[derive(Clone)]
pub(super) struct Connections {
    options: Options,
    serving: Arc<Serving>,
}

/// The part of the configuration that a connection needs.
#[derive(Clone, Copy)]
struct Options {
    max_concurrent_streams: u32,
    keepalive_interval: Option<Duration>,
    keepalive_timeout: Duration,
}

impl Options {
    /// HTTP of either version, with streams run by `streams`.
    fn http(self, streams: Streams) -> auto::Builder<Streams> {
        let mut http = auto::Builder::new(streams);
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        http.http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(self.max_concurrent_streams)
            .keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            // gRPC has no use for the date, and formatting it shows in profiles.
            .auto_date_header(false);
        http
    }
}

impl Connections {
    pub(super) fn new(config: &Config, dispatch: &Dispatch) -> Self {
        let options = Options {
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive_interval: config.grpc_keepalive_interval,
            keepalive_timeout: config.grpc_keepalive_timeout,
        };
        Self { options, serving: dispatch.serving() }
    }

    /// Serves a listener until the node stops, then waits for its connections.
    pub(super) async fn accept(
        self,
        listener: TcpListener,
        dispatch: Dispatch,
        offer: Offer,
        mut stopping: watch::Receiver<bool>,
    ) {
        let dispatch = dispatch.offering(offer);
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        open.spawn(self.clone().serve(stream, dispatch.clone(), stopping.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "failed to accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = open.join_next() => {}
                () = stopped(&mut stopping) => break,
            }
        }
        drop(listener);
        let drained = timeout(DRAIN_LIMIT, async { while open.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(connections = open.len(), "closing connections with requests under way");
            open.shutdown().await;
        }
    }

    async fn serve(self, stream: TcpStream, dispatch: Dispatch, mut stopping: watch::Receiver<bool>) {
        // Without it a short answer may wait for the client's acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = &error as &dyn std::error::Error, "a connection was lost at once");
            return;
        }
        let io = TokioIo::new(Metered { stream, serving: self.serving.clone() });
        let streams = Streams::default();
        let http = self.options.http(streams.clone());
        let mut connection = pin!(http.serve_connection(io, dispatch));
        let mut streams = streams.running();
        let ended = tokio::select! {
            ended = streams.drive(connection.as_mut()) => ended,
            () = stopped(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                streams.drive(connection.as_mut()).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %error, "a client connection ended with an error");
        }
    }
}

/// Returns once the node stops, or its front is gone.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone; the guard of the value must not be held by whoever waits.
    let _ = stopping.wait_for(|stopping| *stopping).await.map(|_| ());
}

/// A connection whose bytes are counted.
struct Metered {
    stream: TcpStream,
    serving: Arc<Serving>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.serving.metrics.client_received_bytes.add((buf.filled().len() - before) as u64);
        polled
    }
}

impl Metered {
    fn count_sent(&self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(sent)) = polled {
            self.serving.metrics.client_sent_bytes.add(*sent as u64);
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count_sent(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count_sent(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
