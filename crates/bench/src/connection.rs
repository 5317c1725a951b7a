//! A connection: sends a prepared request, reads the whole answer, says how it went.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use quadrant_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::clock::Clock;
use crate::payload::Prepared;
use crate::stamped::{LastWrite, Stamped};
use crate::{BenchError, Plan, Protocol};

/// Where Quadrant says why it refused.
const REASON_HEADER: &str = "x-quadrant-reason";
/// Larger than any answer a server here would send.
const GRPC_MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// An open connection.
pub(crate) enum Connection {
    Http(SendRequest<Full<Bytes>>, LastWrite),
    Grpc(GrpcInferenceServiceClient<Channel>),
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer of so many bytes.
    Answered(u64),
    /// A status that is no success, with the server's reason if it gave one, so long after the last
    /// byte of the request was sent.
    Refused(String, Duration),
    /// What came instead: why the connection broke.
    Failed(String),
}

/// What is said of a server that cannot be reached.
pub(crate) fn unreachable(error: impl std::fmt::Display) -> String {
    format!("cannot be reached: {error}; is it running?")
}

/// Opens a connection for HTTP, and says when it was last written to by this clock.
///
/// # Errors
/// Why the server cannot be reached.
pub(crate) async fn open_http(
    address: &str,
    clock: Clock,
) -> Result<(SendRequest<Full<Bytes>>, LastWrite), String> {
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let (stream, written) = Stamped::new(stream, clock);
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    tokio::spawn(async move {
        // A broken connection shows as the failure of the request on it.
        connection.await.unwrap_or_default();
    });
    Ok((sender, written))
}

impl Connection {
    pub(crate) async fn open(plan: &Plan, clock: Clock) -> Result<Self, BenchError> {
        let fail = |said: String| BenchError::Server { address: plan.address.clone(), said };
        match plan.protocol {
            Protocol::Http => {
                let (sender, written) = open_http(&plan.address, clock).await.map_err(fail)?;
                Ok(Self::Http(sender, written))
            }
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(format!("http://{}", plan.address));
                let endpoint = endpoint.map_err(|error| fail(unreachable(error)))?.tcp_nodelay(true);
                let channel = endpoint.connect().await.map_err(|error| fail(unreachable(error)))?;
                let client = GrpcInferenceServiceClient::new(channel);
                Ok(Self::Grpc(client.max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)))
            }
        }
    }

    /// Whether another request can be sent.
    pub(crate) fn is_usable(&self) -> bool {
        match self {
            Self::Http(sender, _) => !sender.is_closed(),
            Self::Grpc(_) => true,
        }
    }

    pub(crate) async fn send(&mut self, request: &Prepared, clock: Clock) -> Outcome {
        match (self, request) {
            (Self::Http(sender, written), request) => send_http(sender, request, clock, written).await,
            (Self::Grpc(client), Prepared::Grpc(request)) => send_grpc(client, (**request).clone()).await,
            (Self::Grpc(_), Prepared::Http(_)) => Outcome::Failed("wrong protocol".to_owned()),
        }
    }
}

async fn send_http(
    sender: &mut SendRequest<Full<Bytes>>,
    request: &Prepared,
    clock: Clock,
    written: &LastWrite,
) -> Outcome {
    let broken = |error: hyper::Error| Outcome::Failed(format!("connection: {error}"));
    let Some(request) = request.http() else { return Outcome::Failed("wrong protocol".to_owned()) };
    if let Err(error) = sender.ready().await {
        return broken(error);
    }
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        Err(error) => return broken(error),
    };
    let head_after = clock.now().saturating_sub(written.get());
    let status = response.status();
    let reason = response.headers().get(REASON_HEADER).and_then(|reason| reason.to_str().ok());
    let said =
        reason.map_or_else(|| status.as_u16().to_string(), |reason| format!("{} {reason}", status.as_u16()));
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(error) => return broken(error),
        }
    }
    if status.is_success() { Outcome::Answered(bytes) } else { Outcome::Refused(said, head_after) }
}

async fn send_grpc(
    client: &mut GrpcInferenceServiceClient<Channel>,
    request: quadrant_proto::inference::ModelInferRequest,
) -> Outcome {
    match client.model_infer(request).await {
        Ok(response) => {
            let raw = response.into_inner().raw_output_contents;
            Outcome::Answered(raw.iter().map(|raw| raw.len() as u64).sum())
        }
        Err(status) => Outcome::Failed(format!("{:?}", status.code())),
    }
}
