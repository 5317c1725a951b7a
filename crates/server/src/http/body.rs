//! Reads the body of a request: once, frame by frame, into an aligned buffer that its length was leased for.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, EXPECT};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use quadrant_types::Error;

use crate::Shared;
use crate::budgeted::{GrowingBuffer, aligned_buffer, too_large};
use crate::inflate::{Coding, inflate};

/// A request's body, and whether all of it was read.
#[derive(Debug)]
pub(crate) struct RequestReader {
    body: Incoming,
    is_over: bool,
}

impl RequestReader {
    pub(crate) fn new(body: Incoming) -> Self {
        let is_over = body.is_end_stream();
        Self { body, is_over }
    }

    /// Whether nothing of the request is left on the connection, so that it can carry another one.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The next piece of data; trailers are passed over.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            let broken = |error| Error::invalid(format!("the body cannot be read: {error}"));
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                return Ok(Some(data));
            }
        }
        self.is_over = true;
        Ok(None)
    }
}

/// Bytes of a refused body that are read and thrown away, so that the client comes to read the refusal.
const DISCARD_BYTES_MAX: usize = 128 << 20;

/// The same of a stranger's.
const STRANGER_BYTES_MAX: usize = 1 << 20;

/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// The plain body, its byte `aligned_at` aligned.
///
/// # Errors
/// Too long, too slow, broken, or without room in the budget. The client can still be answered.
pub(crate) async fn read(
    shared: &std::sync::Arc<Shared>,
    headers: &HeaderMap,
    body: &mut RequestReader,
    aligned_at: usize,
) -> Result<Bytes, Error> {
    let coding = match headers.get(CONTENT_ENCODING) {
        None => Ok(None),
        Some(value) => Coding::of_request(value.as_bytes()),
    };
    let received = match coding {
        Ok(coding) => {
            let aligned_at = if coding.is_none() { aligned_at } else { 0 };
            let patience = shared.limits.body_read_timeout;
            let late = |_| Err(Error::invalid(format!("the body did not arrive within `{patience:?}`")));
            let receive = receive(shared, body, aligned_at);
            tokio::time::timeout(patience, receive).await.unwrap_or_else(late).map(|bytes| (bytes, coding))
        }
        Err(error) => Err(error),
    };
    let (bytes, coding) = match received {
        Ok(received) => received,
        Err(error) => {
            discard(headers, body).await;
            return Err(error);
        }
    };
    let Some(coding) = coding else { return Ok(bytes) };
    let shared_there = std::sync::Arc::clone(shared);
    let work = move || {
        let bytes_max = shared_there.limits.body_bytes_max;
        inflate(coding, &bytes, &shared_there.budget, bytes_max, aligned_at)
    };
    // However short it is, it may inflate to the limit.
    shared.heavy.run(true, work).await
}

async fn receive(shared: &Shared, body: &mut RequestReader, aligned_at: usize) -> Result<Bytes, Error> {
    let bytes_max = shared.limits.body_bytes_max;
    let Some(length) = body.body.size_hint().exact() else {
        let mut buffer = GrowingBuffer::new(&shared.budget, bytes_max)?;
        while let Some(data) = body.next().await? {
            buffer.extend(&data)?;
        }
        return buffer.into_aligned(aligned_at);
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > bytes_max {
        return Err(too_large(length, bytes_max));
    }
    if body.is_over {
        return Ok(Bytes::new());
    }
    let (mut buffer, lease) = aligned_buffer(&shared.budget, length, aligned_at)?;
    while let Some(data) = body.next().await? {
        if !buffer.extend(&data) {
            return Err(Error::invalid(format!("the body is longer than the announced `{length}` bytes")));
        }
    }
    if buffer.len() < length {
        let got = buffer.len();
        return Err(Error::invalid(format!(
            "the body ended after `{got}` of the announced `{length}` bytes"
        )));
    }
    Ok(buffer.freeze(Some(lease)))
}

/// Reads what is left of a refused body, within bounds. A client that sends without reading would otherwise
/// see its connection reset instead of the refusal. One that asked first was told not to send.
pub(crate) async fn discard(headers: &HeaderMap, body: &mut RequestReader) {
    discard_up_to(headers, body, DISCARD_BYTES_MAX).await;
}

/// The same for somebody who is not known: as much as a well-meaning client is likely to have sent by then.
pub(crate) async fn discard_some(headers: &HeaderMap, body: &mut RequestReader) {
    discard_up_to(headers, body, STRANGER_BYTES_MAX).await;
}

async fn discard_up_to(headers: &HeaderMap, body: &mut RequestReader, bytes_max: usize) {
    if headers.contains_key(EXPECT) || body.is_over {
        return;
    }
    let drain = async {
        let mut discarded = 0_usize;
        while let Ok(Some(data)) = body.next().await {
            discarded += data.len();
            if discarded > bytes_max {
                return;
            }
        }
    };
    // Whether the client was done or was cut off does not matter: it is answered now.
    drop(tokio::time::timeout(DISCARD_TIME_MAX, drain).await);
}
