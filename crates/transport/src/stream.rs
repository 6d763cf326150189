//! How two nodes come by a stream of bytes: the place where encryption goes.

use std::{fmt, future::Future, io, pin::Pin, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// An ordered, reliable stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream to be.
pub type StreamFuture<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'a>>;

/// Makes streams to other nodes.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Dials `host:port`, resolving the name anew, and secures the stream if that is its business. The caller bounds the time.
    fn dial<'a>(&'a self, address: &'a str) -> StreamFuture<'a>;
}

/// Makes streams of accepted connections.
pub trait Acceptor: Send + Sync + fmt::Debug {
    /// Secures the stream if that is its business. The caller bounds the time.
    fn accept(&self, connection: TcpStream) -> StreamFuture<'_>;
}

/// TCP as it is, with TCP_NODELAY, and keepalive that notices a vanished peer within about ten seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Connector for Plain {
    fn dial<'a>(&'a self, address: &'a str) -> StreamFuture<'a> {
        Box::pin(async move { plain(TcpStream::connect(address).await?) })
    }
}

impl Acceptor for Plain {
    fn accept(&self, connection: TcpStream) -> StreamFuture<'_> {
        Box::pin(async move { plain(connection) })
    }
}

fn plain(connection: TcpStream) -> io::Result<Box<dyn Stream>> {
    connection.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let socket = SockRef::from(&connection);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(10)))?;
    Ok(Box::new(connection))
}
