//! The body of an HTTP answer: one or more byte ranges whose total length is known.
//!
//! Large tensors leave as the ranges they are; small ones were copied behind the JSON, so that most answers
//! are one range and one write.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Byte ranges that are sent one after the other.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    first: Bytes,
    rest: VecDeque<Bytes>,
}

impl Segments {
    /// One range, then the others. Only the first may be empty.
    pub(crate) fn new(first: impl Into<Bytes>, rest: VecDeque<Bytes>) -> Self {
        Self { first: first.into(), rest }
    }

    /// The only range, if there is just one.
    pub(crate) fn single(&self) -> Option<&Bytes> {
        self.rest.is_empty().then_some(&self.first)
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
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next =
            if self.first.is_empty() { self.rest.pop_front() } else { Some(std::mem::take(&mut self.first)) };
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let length: usize = self.first.len() + self.rest.iter().map(Bytes::len).sum::<usize>();
        SizeHint::with_exact(length as u64)
    }
}
