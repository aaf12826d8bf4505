//! The threads that clients' connections live on, and nothing of ours beside them.
//!
//! Each has a runtime of its own, and a connection stays on the thread that accepted it. So a
//! request costs two wake-ups here, one by its socket and one by the thread that ran its model:
//! a runtime with several threads wakes others to look for work, which for requests of some
//! microseconds is most of what they cost. And no work for the coordinator (a fetch, a digest,
//! a handshake) can come between a client and its answer.

use std::io;
use std::net::{SocketAddr, TcpListener as Socket};
use std::sync::Arc;
use std::thread;

use futures_util::future::try_join_all;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::connections::{Bounded, CONNECTIONS_MAX};
use super::{App, grpc, http};

/// Blocking threads of one of ours: large bodies are read, and large answers written, there.
const BLOCKING_THREADS_MAX: usize = 4;
/// One of our threads does for as many that run models.
const CORES_EACH: usize = 4;
/// More than this many are worth it only where the configuration says so.
const THREADS_MAX: usize = 8;

/// How many threads there are if the configuration asks for so many; 0: what suits the host.
#[must_use]
pub fn count(asked: usize) -> usize {
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    match asked {
        0 => suits(cores()),
        asked => asked,
    }
}

fn suits(cores: usize) -> usize {
    (cores / CORES_EACH).clamp(1, THREADS_MAX)
}

/// Where clients come in.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For gRPC, where it is wanted.
    pub grpc: Option<TcpListener>,
}

impl Listeners {
    /// Where HTTP and gRPC are, with the ports that were found.
    #[must_use]
    pub fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let address = |listener: &TcpListener| listener.local_addr().ok();
        (address(&self.http), self.grpc.as_ref().and_then(address))
    }

    /// Serves on so many threads until `shutdown`, and then what is under way for ten seconds
    /// at most.
    ///
    /// # Errors
    /// When the operating system gives no thread, or one of them died.
    pub async fn serve(
        self,
        app: Arc<App>,
        threads: usize,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        // Whoever leaves takes the others along.
        let _stop_all = shutdown.clone().drop_guard();
        let doors = Doors {
            http: Door::new(self.http.into_std()?),
            grpc: self
                .grpc
                .map(TcpListener::into_std)
                .transpose()?
                .map(Door::new),
        };
        let ends = (0..threads)
            .map(|number| {
                start(
                    number,
                    doors.try_clone()?,
                    Arc::clone(&app),
                    shutdown.clone(),
                )
            })
            .collect::<io::Result<Vec<_>>>()?;
        drop(doors);
        let ends = ends.into_iter().map(|end| async {
            end.await
                .unwrap_or_else(|_| Err(io::Error::other("a thread that serves clients died")))
        });
        tokio::select! {
            ended = try_join_all(ends) => ended.map(|_| ()),
            () = app.inference.abandon_overdue() => Ok(()),
        }
    }
}

/// A port, and room for the connections of all threads.
#[derive(Debug)]
struct Door {
    socket: Socket,
    room: Arc<Semaphore>,
}

impl Door {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            room: Arc::clone(&self.room),
        })
    }

    /// On the runtime of the thread that calls.
    fn open(self) -> io::Result<Bounded> {
        Ok(Bounded::new(TcpListener::from_std(self.socket)?, self.room))
    }
}

/// All ports, for one thread.
#[derive(Debug)]
struct Doors {
    http: Door,
    grpc: Option<Door>,
}

impl Doors {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            http: self.http.try_clone()?,
            grpc: self.grpc.as_ref().map(Door::try_clone).transpose()?,
        })
    }

    async fn serve(self, app: Arc<App>, shutdown: CancellationToken) -> io::Result<()> {
        let http = http::serve(Arc::clone(&app), self.http.open()?, shutdown.clone());
        let grpc = self.grpc.map(Door::open).transpose()?;
        let grpc = async {
            if let Some(listener) = grpc {
                grpc::serve(app, listener, shutdown).await;
            }
        };
        tokio::join!(http, grpc);
        Ok(())
    }
}

/// Starts one thread; gives its end.
fn start(
    number: usize,
    doors: Doors,
    app: Arc<App>,
    shutdown: CancellationToken,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (ended, end) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name(format!("serve-{number}b"))
        .enable_all()
        .build()?;
    thread::Builder::new()
        .name(format!("serve-{number}"))
        .spawn(move || {
            let served = runtime.block_on(doors.serve(app, shutdown));
            // Not waiting for what a client left behind on a blocking thread.
            runtime.shutdown_background();
            // Whoever waited may have left.
            let _ = ended.send(served);
        })?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_hosts_have_one_thread_and_large_ones_a_few() {
        assert_eq!([1, 2, 7, 8, 16, 64].map(suits), [1, 1, 1, 2, 4, 8]);
    }
}
