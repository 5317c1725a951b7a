//! The body of an HTTP answer: one or more byte ranges whose total length is known, or a stream of which it
//! is not.
//!
//! Large tensors leave as the ranges they are; small ones were copied behind the JSON, so that most answers
//! are one range and one write.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body::{Body, Frame, SizeHint};

/// Byte ranges that are sent one after the other.
#[derive(Default)]
pub(crate) struct Segments {
    first: Bytes,
    rest: VecDeque<Bytes>,
    /// What is yet to come.
    stream: Option<BoxStream<'static, Bytes>>,
}

impl Segments {
    /// One range, then the others. Only the first may be empty.
    pub(crate) fn new(first: impl Into<Bytes>, rest: VecDeque<Bytes>) -> Self {
        Self { first: first.into(), rest, stream: None }
    }

    /// Ranges as they come.
    pub(crate) fn streamed(stream: BoxStream<'static, Bytes>) -> Self {
        Self { stream: Some(stream), ..Self::default() }
    }

    /// The only range, if there is just one.
    pub(crate) fn single(&self) -> Option<&Bytes> {
        (self.rest.is_empty() && self.stream.is_none()).then_some(&self.first)
    }
}

impl<T: Into<Bytes>> From<T> for Segments {
    fn from(bytes: T) -> Self {
        Self::new(bytes, VecDeque::new())
    }
}

impl Body for Segments {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next =
            if self.first.is_empty() { self.rest.pop_front() } else { Some(std::mem::take(&mut self.first)) };
        let next = match (next, &mut self.stream) {
            (None, Some(stream)) => std::task::ready!(stream.poll_next_unpin(context)),
            (next, _) => next,
        };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty() && self.stream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_some() {
            return SizeHint::default();
        }
        let length: usize = self.first.len() + self.rest.iter().map(Bytes::len).sum::<usize>();
        SizeHint::with_exact(length as u64)
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments")
            .field("first", &self.first)
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}
