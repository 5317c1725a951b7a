//! Accepts connections, bounds them, and ends them in a stated time.
//!
//! Beyond `connections_max` nothing is accepted, so the rest waits in the operating system's queue. A
//! connection must bring its first request within the header time; what hyper does not bound itself (the
//! preface of HTTP/2, telling the versions apart) is bounded by that.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Limits;
use crate::events::{self, Port};

/// How a port ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections with unanswered requests that were cut because the time was up.
    pub connections_cut: usize,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    /// HTTP/1.1, or HTTP/2 for clients that begin with it.
    Http(Port),
    /// HTTP/2 only.
    Grpc,
}

/// What a connection and its service tell each other.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    has_request: Arc<AtomicBool>,
    stopped: watch::Receiver<bool>,
}

impl Link {
    /// The service was called.
    pub(crate) fn request_arrived(&self) {
        if !self.has_request.load(Ordering::Relaxed) {
            self.has_request.store(true, Ordering::Relaxed);
        }
    }

    /// Resolves when the server ends, for answers that would otherwise never end.
    pub(crate) async fn stopped(&mut self) {
        // If nobody is left to tell, the server has ended.
        drop(self.stopped.wait_for(|stopped| *stopped).await);
    }
}

/// A pause after a failed accept; the usual cause is too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long connections are read as ever after the port is closed: a request that lies in a socket's buffer
/// is known to its connection only when the runtime has looked at the socket.
const READ_GRACE: Duration = Duration::from_millis(10);

/// Head lines of a request; more is an attack.
const HEADERS_MAX: usize = 64;

/// Bytes of a request's head, and of one read of a body.
const READ_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// Bytes in flight to us on one HTTP/2 stream and connection before we must have read them.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// How often an idle HTTP/2 peer is asked whether it is there, and how long it may think.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Accepts until `shutdown`, then waits for accepted requests, at the latest for `Limits::drain_timeout`.
/// `service` makes the service of one connection.
pub(crate) async fn listen<S, B>(
    listener: TcpListener,
    limits: &Limits,
    protocol: Protocol,
    shutdown: impl Future<Output = ()>,
    service: impl Fn(Link) -> S,
) -> Drained
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = std::convert::Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let port = match protocol {
        Protocol::Http(port) => port,
        Protocol::Grpc => Port::Grpc,
    };
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let accept = |connections: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr| {
        let link = Link { has_request: Arc::default(), stopped: stopped.clone() };
        let service = service(link.clone());
        let watched = Watched { port, peer, link };
        connections.spawn(serve(protocol, stream, service, watched, limits.header_read_timeout));
    };
    loop {
        let has_room = connections.len() < limits.connections_max;
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept(), if has_room => accepted,
        };
        match accepted {
            Ok((stream, peer)) => accept(&mut connections, stream, peer),
            Err(error) => {
                events::accept_failed(port, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let has_room = limits.connections_max.saturating_sub(connections.len());
    for (stream, peer) in backlog(listener).take(has_room) {
        accept(&mut connections, stream, peer);
    }
    events::draining(port, connections.len());
    tokio::time::sleep(READ_GRACE).await;
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let is_late = tokio::time::timeout(limits.drain_timeout, all).await.is_err();
    let connections_cut = if is_late { connections.len() } else { 0 };
    connections.shutdown().await;
    events::drained(port, connections_cut);
    Drained { connections_cut }
}

/// The connections that the operating system has completed and nobody has accepted yet. To their clients they
/// are open and may carry a request already; closing the listener would reset them. It is closed at the end.
fn backlog(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    // Asked directly, and not through the runtime, which may not have been told of the latest ones yet.
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        let (stream, peer) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    })
}

/// What a connection is watched for.
#[derive(Debug)]
struct Watched {
    port: Port,
    peer: SocketAddr,
    link: Link,
}

async fn serve<S, B>(protocol: Protocol, stream: TcpStream, service: S, watched: Watched, patience: Duration)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = std::convert::Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // An answer is one write; waiting for more would only delay it.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let io = TokioIo::new(stream);
    match protocol {
        Protocol::Http(_) => {
            let builder = http_builder(patience);
            let connection = pin!(builder.serve_connection(io, service));
            drive(connection, auto::Connection::graceful_shutdown, watched, patience).await;
        }
        Protocol::Grpc => {
            let connection = pin!(grpc_builder().serve_connection(io, service));
            drive(connection, http2::Connection::graceful_shutdown, watched, patience).await;
        }
    }
}

/// Drives a connection to its end; told to stop, it finishes what it has accepted.
async fn drive<C: Future<Output = Result<(), E>>, E: std::fmt::Display>(
    mut connection: Pin<&mut C>,
    finish: impl Fn(Pin<&mut C>),
    mut watched: Watched,
    patience: Duration,
) {
    let first_request = tokio::time::sleep(patience);
    let mut first_request = pin!(first_request);
    let mut is_waiting = true;
    let mut is_stopping = false;
    let result = loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => break result,
            () = first_request.as_mut(), if is_waiting => {
                if !watched.link.has_request.load(Ordering::Relaxed) {
                    return;
                }
                is_waiting = false;
            }
            () = watched.link.stopped(), if !is_stopping => {
                finish(connection.as_mut());
                is_stopping = true;
            }
        }
    };
    if let Err(error) = result {
        events::connection_ended(watched.port, watched.peer, &error);
    }
}

fn http_builder(patience: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(HEADERS_MAX)
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_header_list_size(16 << 10);
    builder
}

fn grpc_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_header_list_size(16 << 10);
    builder
}
