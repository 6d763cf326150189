//! A gRPC connection that costs the client little.
//!
//! The load generator shares its machine with the servers it measures, so every microsecond it spends is taken from
//! them. It therefore speaks gRPC's framing itself on the streams of one HTTP/2 connection: no channel and no task
//! between caller and connection, no interceptors, and no decoding of an answer of which only the size matters.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use http::{Method, Request, Uri};
use prost::Message;
use tokio::net::TcpStream;

/// Bytes before each message: a flag for compression and the length.
const PREFIX_LEN: usize = 5;
/// A range of a thousand keys fits without waiting for a window update.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The unary methods that are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `KV.Range`
    Range,
    /// `KV.Put`
    Put,
    /// `KV.Txn`
    Txn,
    /// `Maintenance.Status`
    Status,
}

impl Call {
    const ALL: [(Call, &str); 4] = [
        (Call::Range, "/etcdserverpb.KV/Range"),
        (Call::Put, "/etcdserverpb.KV/Put"),
        (Call::Txn, "/etcdserverpb.KV/Txn"),
        (Call::Status, "/etcdserverpb.Maintenance/Status"),
    ];
}

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    /// The server answered with an error: gRPC's code and the message.
    Status(i32, String),
    /// The connection broke; the call may have been carried out.
    Broken(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Status(code, message) => write!(f, "code {code}: {message}"),
            CallError::Broken(why) => write!(f, "connection: {why}"),
        }
    }
}

impl std::error::Error for CallError {}

/// A request, framed and ready to be sent any number of times.
#[derive(Clone, Debug)]
pub struct Framed(Bytes);

impl Framed {
    /// Encodes `message` behind its prefix.
    pub fn new(message: &impl Message) -> Framed {
        let len = message.encoded_len();
        let mut frame = BytesMut::with_capacity(PREFIX_LEN + len);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        message.encode_raw(&mut frame);
        Framed(frame.freeze())
    }
}

/// An answer as it came over the wire.
#[derive(Debug, Default)]
pub struct Answer {
    chunks: Vec<Bytes>,
}

impl Answer {
    /// The length of the message in bytes.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>().saturating_sub(PREFIX_LEN)
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// When it is not what the method answers.
    pub fn decode<M: Message + Default>(&self) -> Result<M> {
        let all = self.chunks.concat();
        Ok(M::decode(all.get(PREFIX_LEN..).context("no message in the answer")?)?)
    }
}

/// One HTTP/2 connection; clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    uris: Vec<Uri>,
}

impl Connection {
    /// Connects to `http://host:port`.
    ///
    /// # Errors
    /// When nobody answers there within five seconds.
    pub async fn open(endpoint: &str) -> Result<Connection> {
        let authority = endpoint.strip_prefix("http://").context("an endpoint starts with http://")?;
        let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(authority))
            .await
            .with_context(|| format!("no connection to {endpoint} in time"))??;
        stream.set_nodelay(true)?;
        let (sender, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(stream)
            .await?;
        // Its end shows in the calls that are under way.
        tokio::spawn(connection);
        let uris = Call::ALL
            .iter()
            .map(|(_, path)| Uri::builder().scheme("http").authority(authority).path_and_query(*path).build())
            .collect::<Result<_, _>>()?;
        Ok(Connection { sender, uris })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&mut self, call: Call, request: &Framed) -> Result<Answer, CallError> {
        let mut http = Request::new(());
        *http.method_mut() = Method::POST;
        *http.uri_mut() = self.uris[call as usize].clone();
        http.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        http.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        // Waits while the server allows no further stream.
        let mut ready = self.sender.clone().ready().await.map_err(broken)?;
        let (response, mut body) = ready.send_request(http, false).map_err(broken)?;
        body.send_data(request.0.clone(), true).map_err(broken)?;
        let (head, body) = response.await.map_err(broken)?.into_parts();
        match status_of(&head.headers) {
            Some(status) => status.map(|()| Answer::default()),
            None => receive(body).await,
        }
    }
}

async fn receive(mut body: RecvStream) -> Result<Answer, CallError> {
    let mut answer = Answer { chunks: Vec::with_capacity(1) };
    while let Some(data) = body.data().await {
        let data = data.map_err(broken)?;
        body.flow_control().release_capacity(data.len()).map_err(broken)?;
        answer.chunks.push(data);
    }
    let trailers = body.trailers().await.map_err(broken)?;
    match trailers.as_ref().and_then(status_of) {
        Some(status) => status.map(|()| answer),
        None => Err(broken(Reason::PROTOCOL_ERROR.into())),
    }
}

fn status_of(headers: &HeaderMap) -> Option<Result<(), CallError>> {
    let status = headers.get("grpc-status")?;
    if status == "0" {
        return Some(Ok(()));
    }
    let code = status.to_str().ok().and_then(|s| s.parse().ok()).unwrap_or(-1);
    let message = headers.get("grpc-message").and_then(|m| m.to_str().ok()).unwrap_or_default();
    Some(Err(CallError::Status(code, message.to_owned())))
}

fn broken(error: h2::Error) -> CallError {
    CallError::Broken(error.to_string())
}
