//! A listener with a bound on its connections.
//!
//! Each connection takes a file descriptor, and clients that open thousands must not
//! leave the cache without any. When full, new ones wait in the kernel's backlog. Where
//! clients speak first, who connects and says nothing can be told to go.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections at one time.
pub const CONNECTIONS_MAX: usize = 4_096;

/// A listener that accepts no more than so many.
#[derive(Debug)]
pub struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
    greeting: Option<(usize, Duration)>,
}

impl Bounded {
    /// As many at a time as there is `room` for, which listeners may share.
    #[must_use]
    pub const fn new(listener: TcpListener, room: Arc<Semaphore>) -> Self {
        Self {
            listener,
            room,
            greeting: None,
        }
    }

    /// Connections that have not sent so many bytes within so long are broken off.
    #[must_use]
    pub const fn expecting(mut self, bytes: usize, within: Duration) -> Self {
        self.greeting = Some((bytes, within));
        self
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed.
        let room = Arc::clone(&self.room).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are small and whole: waiting to fill a packet only adds delay.
        let _ = stream.set_nodelay(true);
        let greeting = self.greeting.map(|(bytes, within)| Greeting {
            missing: bytes,
            overdue: Box::pin(tokio::time::sleep(within)),
        });
        (
            Connection {
                stream,
                greeting,
                _room: room,
            },
            address,
        )
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its place back when it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    greeting: Option<Greeting>,
    _room: Option<OwnedSemaphorePermit>,
}

/// What a client has yet to send, and until when.
#[derive(Debug)]
struct Greeting {
    missing: usize,
    overdue: Pin<Box<Sleep>>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream, greeting, ..
        } = &mut *self;
        let Some(waited) = greeting else {
            return Pin::new(stream).poll_read(context, buffer);
        };
        if waited.overdue.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(context, buffer))?;
        waited.missing = waited
            .missing
            .saturating_sub(buffer.filled().len() - before);
        if waited.missing == 0 {
            *greeting = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_full_listener_accepts_again_when_a_connection_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = Bounded::new(listener, Arc::new(Semaphore::new(1)));
        let _clients = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let (first, _) = bounded.accept().await;
        let waiting = tokio::time::timeout(Duration::from_millis(50), bounded.accept());
        assert!(waiting.await.is_err());
        drop(first);
        bounded.accept().await;
    }

    #[tokio::test]
    async fn who_does_not_speak_in_time_is_broken_off_and_who_does_is_left_alone() {
        let mut bytes = Vec::new();
        let (mut connection, _client) = connected(b"hel", Duration::from_millis(50)).await;
        let error = connection.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (mut connection, client) = connected(b"hello", Duration::from_secs(600)).await;
        connection.read_exact(&mut [0; 5]).await.unwrap();
        assert!(connection.greeting.is_none(), "who spoke may be silent");
        drop(client);
        assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
    }

    /// A client that said `words`, and our end, where four bytes are expected.
    async fn connected(words: &[u8], within: Duration) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        client.write_all(words).await.unwrap();
        let mut bounded = Bounded::new(listener, Arc::new(Semaphore::new(1))).expecting(4, within);
        (bounded.accept().await.0, client)
    }
}
