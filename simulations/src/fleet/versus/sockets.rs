//! Receivers as cheap as can be: one thread waits for all sockets at once and parses
//! in place, with no task, timer or buffer a connection. What a receiver costs here
//! is taken from the broker's core time, so it had better be little.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::{Fanout, PATIENCE, now, pause};

/// Connections that are opened at the same time; less than the shortest queue of
/// connections to accept (mosquitto's 100), because one that overflows waits a second.
const OPENING: usize = 64;
/// Bytes read at once.
const SCRATCH: usize = 64 * 1_024;
/// Sockets that one wait tells of.
const EVENTS: usize = 1_024;
/// How long messages are let gather while a round runs. To be woken for each of them
/// costs broker and receivers some 8 % of the round, much more than the wait.
const GATHER: Duration = Duration::from_micros(200);

/// A broker's protocol, as far as this needs it. The broker is trusted: it was started
/// by this process a moment ago.
pub(super) trait Protocol: Default {
    /// What the publisher says first; it ends with a question whose answer is
    /// [`Heard::Ready`].
    fn hello_publisher() -> Vec<u8>;

    /// What receiver `number` says first, all at once: that it is there and that it
    /// subscribes. [`Heard::Ready`] is the answer to the last of it.
    fn hello_receiver(number: usize) -> Vec<u8>;

    /// Message `number` to all receivers.
    fn publish(number: u64) -> Vec<u8>;

    /// Reads one packet at the start of `bytes` and tells its length; `None` while it
    /// is not there to its end. What must be answered is added to `answers`.
    fn read(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> Result<Option<(usize, Heard)>>;
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The broker has taken all of the hello.
    Ready,
    /// The message of this number.
    Message(u64),
    /// Something that needs no more than its answer.
    Aside,
}

struct Connection<P> {
    protocol: P,
    stream: TcpStream,
    /// The beginning of a packet.
    rest: Vec<u8>,
    ready: bool,
    /// The last message that arrived.
    heard: u64,
}

/// The publisher, which is connection 0, and the receivers.
pub(super) struct Sockets<P> {
    address: SocketAddr,
    poll: Poll,
    events: Events,
    connections: Vec<Connection<P>>,
    ready: usize,
    message: u64,
    published_at: Instant,
    /// One for each receiver that has the message, in the order of arrival.
    waited: Vec<Duration>,
    scratch: Vec<u8>,
    answers: Vec<u8>,
}

impl<P: Protocol> Sockets<P> {
    /// Connects the publisher.
    pub(super) fn open(address: SocketAddr) -> Result<Self> {
        let mut sockets = Self {
            address,
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS),
            connections: Vec::new(),
            ready: 0,
            message: 0,
            published_at: now(),
            waited: Vec::new(),
            scratch: vec![0; SCRATCH],
            answers: Vec::new(),
        };
        sockets.connect(&P::hello_publisher())?;
        sockets.until("the publisher is connected", |sockets| sockets.ready == 1)?;
        Ok(sockets)
    }

    fn connect(&mut self, hello: &[u8]) -> Result<()> {
        let stream = std::net::TcpStream::connect(self.address)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.connections.len());
        self.poll
            .registry()
            .register(&mut stream, token, Interest::READABLE)?;
        write(&mut stream, hello)?;
        self.connections.push(Connection {
            stream,
            protocol: P::default(),
            rest: Vec::new(),
            ready: false,
            heard: 0,
        });
        Ok(())
    }

    fn receivers(&self) -> usize {
        self.connections.len() - 1
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = now() + PATIENCE;
        while !done(self) {
            let left = deadline.saturating_duration_since(now());
            ensure!(
                !left.is_zero(),
                "waited {PATIENCE:?} in vain until {what}: {} of {} connections are subscribed, {} have the message",
                self.ready,
                self.connections.len(),
                self.waited.len()
            );
            self.turn(left)?;
            if !self.waited.is_empty() && !done(self) {
                pause(GATHER);
            }
        }
        Ok(())
    }

    /// Waits for sockets that can be read, no longer than `time`, and reads them.
    fn turn(&mut self, time: Duration) -> Result<()> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let waited = self.poll.poll(&mut events, Some(time));
        let read = match waited {
            Ok(()) => events.iter().try_for_each(|event| self.hear(event.token())),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.events = events;
        read
    }

    /// Reads everything that one socket has.
    fn hear(&mut self, Token(index): Token) -> Result<()> {
        let connection = &mut self.connections[index];
        loop {
            let length = match connection.stream.read(&mut self.scratch) {
                Ok(0) => bail!("the broker closed connection {index}"),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("the broker closed a connection"),
            };
            let mut joined = std::mem::take(&mut connection.rest);
            let mut bytes = &self.scratch[..length];
            if !joined.is_empty() {
                joined.extend_from_slice(bytes);
                bytes = &joined;
            }
            while let Some((used, heard)) = connection.protocol.read(bytes, &mut self.answers)? {
                match heard {
                    Heard::Ready => {
                        self.ready += usize::from(!connection.ready);
                        connection.ready = true;
                    }
                    Heard::Message(number) => {
                        // At least once may be twice.
                        if number == self.message && connection.heard < number {
                            connection.heard = number;
                            self.waited.push(now() - self.published_at);
                        }
                    }
                    Heard::Aside => {}
                }
                bytes = &bytes[used..];
            }
            connection.rest = bytes.to_vec();
            if !self.answers.is_empty() {
                write(&mut connection.stream, &self.answers)?;
                self.answers.clear();
            }
            // The kernel tells again when there is more than what was there.
            if length < self.scratch.len() {
                return Ok(());
            }
        }
    }
}

impl<P: Protocol> Fanout for Sockets<P> {
    fn subscribe(&mut self, receivers: u32) -> Result<()> {
        let all = 1 + receivers as usize;
        while self.connections.len() < all {
            while self.connections.len() < all && self.connections.len() - self.ready < OPENING {
                self.connect(&P::hello_receiver(self.connections.len()))?;
            }
            let ready = self.ready;
            self.until("a receiver is subscribed", |sockets| sockets.ready > ready)?;
        }
        self.until("all receivers are subscribed", |sockets| {
            sockets.ready == all
        })
    }

    fn publish(&mut self, number: u64) -> Result<Vec<Duration>> {
        self.message = number;
        self.waited = Vec::with_capacity(self.receivers());
        let packet = P::publish(number);
        self.published_at = now();
        write(&mut self.connections[0].stream, &packet)?;
        self.until("all receivers have the message", |sockets| {
            sockets.waited.len() == sockets.receivers()
        })?;
        Ok(std::mem::take(&mut self.waited))
    }

    fn serve(&mut self, time: Duration) -> Result<()> {
        let deadline = now() + time;
        loop {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left)?;
        }
    }
}

/// A few bytes to a broker that reads: they fit the socket's buffer.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let written = stream.write(bytes).context("the broker does not read")?;
    ensure!(written == bytes.len(), "the broker does not read");
    Ok(())
}
