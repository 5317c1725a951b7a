//! Messages on a gRPC stream: five bytes of head (a flag and a length), then the message.
//!
//! A message is written once into a leased buffer whose *end* is aligned: tensors are the last field of a
//! request, so the elements of the last one, usually the only one, are aligned as well.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::Message;
use quadrant_types::{Error, ErrorCode};

use crate::Shared;
use crate::budgeted::{aligned_buffer, too_large};
use crate::grpc::status_headers;
use crate::inflate::{Coding, inflate};

/// The bytes of a message's head.
pub(crate) const HEAD_BYTES: usize = 5;

/// The messages of a request.
#[derive(Debug)]
pub(crate) struct Messages {
    body: Incoming,
    /// What of the last frame was not yet used.
    held: Bytes,
    coding: Option<Coding>,
}

impl Messages {
    /// # Errors
    /// A coding of messages that is not known.
    pub(crate) fn new(headers: &HeaderMap, body: Incoming) -> Result<Self, Error> {
        let coding = match headers.get("grpc-encoding") {
            None => None,
            Some(value) => Coding::of_request(value.as_bytes())?,
        };
        Ok(Self { body, held: Bytes::new(), coding })
    }

    /// The one message of a unary request.
    ///
    /// # Errors
    /// None or several messages, or one that is broken, too large, too slow, or without room in the budget.
    pub(crate) async fn only(&mut self, shared: &Arc<Shared>) -> Result<Bytes, Error> {
        let patience = shared.limits.body_read_timeout;
        let receive = async {
            let message =
                self.next(shared).await?.ok_or_else(|| Error::invalid("the request has no message"))?;
            let is_over = self.held.is_empty() && (self.body.is_end_stream() || !self.fill().await?);
            if is_over { Ok(message) } else { Err(Error::invalid("the request has more than one message")) }
        };
        tokio::time::timeout(patience, receive).await.unwrap_or_else(|_| Err(late(patience)))
    }

    /// The next message, or `None` at the end. Only its beginning is waited for without a limit.
    ///
    /// # Errors
    /// As [`Messages::only`]. The stream is of no more use then.
    pub(crate) async fn next(&mut self, shared: &Arc<Shared>) -> Result<Option<Bytes>, Error> {
        if self.held.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        let patience = shared.limits.body_read_timeout;
        let receive = tokio::time::timeout(patience, self.receive(shared));
        receive.await.unwrap_or_else(|_| Err(late(patience))).map(Some)
    }

    async fn receive(&mut self, shared: &Arc<Shared>) -> Result<Bytes, Error> {
        let mut head = [0_u8; HEAD_BYTES];
        let mut filled = 0;
        while filled < HEAD_BYTES {
            let part = self.some(HEAD_BYTES - filled).await?;
            head[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
        }
        let [flag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        let bytes_max = shared.limits.body_bytes_max;
        if length > bytes_max {
            return Err(too_large(length, bytes_max));
        }
        let coding = match (flag, self.coding) {
            (0, _) => None,
            (1, Some(coding)) => Some(coding),
            (1, None) => {
                return Err(Error::invalid(
                    "the message is compressed, but `grpc-encoding` does not say how",
                ));
            }
            (flag, _) => {
                return Err(Error::invalid(format!(
                    "the message begins with flag `{flag}`; 0 and 1 are known"
                )));
            }
        };
        let (mut buffer, lease) = aligned_buffer(&shared.budget, length, length)?;
        while buffer.len() < length {
            let part = self.some(length - buffer.len()).await?;
            let fits = buffer.extend(&part);
            assert!(fits, "no more is taken than is missing");
        }
        let message = buffer.freeze(Some(lease));
        let Some(coding) = coding else { return Ok(message) };
        let shared_there = Arc::clone(shared);
        let work = move || inflate(coding, &message, &shared_there.budget, bytes_max, 0);
        shared.heavy.run(true, work).await
    }

    /// At least one and at most `bytes_max` of the next bytes.
    async fn some(&mut self, bytes_max: usize) -> Result<Bytes, Error> {
        if self.held.is_empty() && !self.fill().await? {
            return Err(Error::invalid("the stream ended within a message"));
        }
        Ok(self.held.split_to(bytes_max.min(self.held.len())))
    }

    /// Waits for the next data; false at the end.
    async fn fill(&mut self) -> Result<bool, Error> {
        while self.held.is_empty() {
            let Some(frame) = self.body.frame().await else { return Ok(false) };
            let gone =
                |error: hyper::Error| Error::new(ErrorCode::Cancelled, format!("the stream broke: {error}"));
            if let Ok(data) = frame.map_err(gone)?.into_data() {
                self.held = data;
            }
        }
        Ok(true)
    }
}

fn late(patience: std::time::Duration) -> Error {
    Error::invalid(format!("the message did not arrive within `{patience:?}`"))
}

/// A message with its head.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(HEAD_BYTES + length);
    out.extend_from_slice(&head(length));
    message.encode(&mut out).expect("a vector takes any message");
    out.into()
}

/// The head of a message of this length, which the limits keep below 32 bits.
pub(crate) fn head(length: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, d] = u32::try_from(length).expect("answers are bounded").to_be_bytes();
    [0, a, b, c, d]
}

/// The ranges of framed messages, or the error that ends a stream.
pub(crate) type Ranges = VecDeque<Bytes>;
pub(crate) type RangesStream = Pin<Box<dyn Stream<Item = Result<Ranges, Error>> + Send>>;

/// The body of an answer: ranges of messages, then the status.
#[derive(Default)]
pub(crate) struct GrpcBody {
    ranges: Ranges,
    source: Source,
}

#[derive(Default)]
enum Source {
    /// Nothing follows, not even a status.
    #[default]
    None,
    /// The status follows.
    Success,
    /// More messages follow.
    Stream(RangesStream),
    /// tonic answers.
    Tonic(tonic::body::Body),
}

impl GrpcBody {
    /// One message, then success.
    pub(crate) fn message(message: Bytes) -> Self {
        Self::ranges([message].into())
    }

    /// One message in several ranges, then success.
    pub(crate) fn ranges(ranges: Ranges) -> Self {
        Self { ranges, source: Source::Success }
    }

    /// Messages as they come, then success or the error.
    pub(crate) fn stream(stream: RangesStream) -> Self {
        Self { ranges: Ranges::new(), source: Source::Stream(stream) }
    }

    pub(crate) fn tonic(body: tonic::body::Body) -> Self {
        Self { ranges: Ranges::new(), source: Source::Tonic(body) }
    }
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        loop {
            if let Some(range) = self.ranges.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(range))));
            }
            let trailers = match &mut self.source {
                Source::None => return Poll::Ready(None),
                Source::Tonic(body) => return Pin::new(body).poll_frame(context),
                Source::Success => success_trailers(),
                Source::Stream(stream) => match ready!(stream.as_mut().poll_next(context)) {
                    Some(Ok(ranges)) => {
                        self.ranges = ranges;
                        continue;
                    }
                    Some(Err(error)) => status_headers(&error),
                    None => success_trailers(),
                },
            };
            self.source = Source::None;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ranges.is_empty() && matches!(self.source, Source::None)
    }
}

fn success_trailers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert("grpc-status", HeaderValue::from_static("0"));
    headers
}
