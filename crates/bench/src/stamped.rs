//! A stream that knows when it was last written to: how long after the last byte of a request its answer
//! came is something else than how long after the first.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::clock::Clock;

/// A connection's stream; see the module's text.
pub(crate) struct Stamped {
    stream: TcpStream,
    clock: Clock,
    written: LastWrite,
}

/// When the operating system last took bytes.
#[derive(Clone, Default)]
pub(crate) struct LastWrite(Arc<AtomicU64>);

impl LastWrite {
    /// By the clock that the stream was given.
    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl Stamped {
    pub(crate) fn new(stream: TcpStream, clock: Clock) -> (Self, LastWrite) {
        let written = LastWrite::default();
        (Self { stream, clock, written: written.clone() }, written)
    }

    fn stamp(&self) {
        let nanos = u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX);
        self.written.0.store(nanos, Ordering::Relaxed);
    }
}

impl AsyncRead for Stamped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stamped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.stamp();
        Poll::Ready(taken)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        self.stamp();
        Poll::Ready(taken)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
