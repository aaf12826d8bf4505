//! etcd's v3 watch over gRPC: one HTTP/2 connection a watcher, all watching the key
//! that the publisher puts. A put is on etcd's disk before any watcher hears of it.
//!
//! Why not a gRPC library: with one (tonic), receiving a message took three to five
//! times the CPU that the other brokers' receivers need, and etcd, which shares the
//! cores, looked a fifth slower than it is. What is needed of HTTP/2 is little: the calls' headers are
//! constant, windows are opened once for good, and what etcd says in headers is not
//! read. <https://www.rfc-editor.org/rfc/rfc9113>
//!
//! Of the messages, only fields that are used here are named; protobuf skips the others.
//! <https://github.com/etcd-io/etcd/blob/release-3.4/etcdserver/etcdserverpb/rpc.proto>

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use super::sockets::{Heard, Protocol};
use super::{number_of, payload};

const KEY: &[u8] = b"fleet";

/// A cluster of one; `peers` is an address that it needs for others, who do not come.
pub(super) fn configure(command: &mut Command, clients: SocketAddr, peers: SocketAddr) {
    let (clients, peers) = (format!("http://{clients}"), format!("http://{peers}"));
    command
        .args(["--name", "one", "--data-dir", "data"])
        .args(["--listen-client-urls", &clients])
        .args(["--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("one={peers}")])
        .args(["--logger", "zap", "--log-level", "error"]);
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// The answer to a put is one of these too, with nothing in it.
#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    pair: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
/// A flag for "not compressed" and the length.
const GRPC_HEAD: usize = 5;

// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

// Their flags; the first is called END_STREAM or ACK.
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

const CONNECTION: u32 = 0;
/// A receiver's only call.
const WATCH: u32 = 1;

/// A window that no run fills.
const WINDOW: u32 = 1 << 30;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// One connection.
#[derive(Default)]
pub(super) struct Etcd {
    /// What has come of the message under way: etcd sends its head alone.
    message: Vec<u8>,
    /// Whether the put under way has its answer.
    answered: bool,
}

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

fn hello() -> Vec<u8> {
    let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend(WINDOW.to_be_bytes());
    [
        PREFACE,
        &frame(SETTINGS, 0, CONNECTION, &settings),
        &frame(WINDOW_UPDATE, 0, CONNECTION, &WINDOW.to_be_bytes()),
    ]
    .concat()
}

/// HPACK without its tables: every name and value in full, short enough for a length
/// of one byte.
fn headers(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap_or_default());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A call on `stream` with one message, which ends the caller's side of it or not.
fn call(stream: u32, path: &str, message: &impl Message, flags: u8) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let body = [&[0], &length.to_be_bytes()[..], &message].concat();
    [
        frame(HEADERS, END_HEADERS, stream, &headers(path)),
        frame(DATA, flags, stream, &body),
    ]
    .concat()
}

impl Protocol for Etcd {
    fn hello_publisher() -> Vec<u8> {
        [hello(), Self::publish(0)].concat()
    }

    fn hello_receiver(_: usize) -> Vec<u8> {
        let create = Some(WatchCreateRequest { key: KEY.to_vec() });
        let request = WatchRequest { create };
        // A caller's side that ended would end the watch.
        let watch = call(WATCH, "/etcdserverpb.Watch/Watch", &request, 0);
        [hello(), watch].concat()
    }

    fn publish(number: u64) -> Vec<u8> {
        let put = PutRequest {
            key: KEY.to_vec(),
            value: payload(number).to_vec(),
        };
        // Callers' streams have odd numbers.
        let stream = WATCH + 2 * (1 + u32::try_from(number).unwrap_or(u32::MAX / 4));
        call(stream, "/etcdserverpb.KV/Put", &put, END_STREAM)
    }

    fn read(&mut self, bytes: &[u8], answers: &mut Vec<u8>) -> Result<Option<(usize, Heard)>> {
        let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEAD>() else {
            return Ok(None);
        };
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let mut heard = Heard::Aside;
        match kind {
            DATA => {
                ensure!(flags & PADDED == 0, "etcd pads its answers");
                self.message.extend_from_slice(body);
                heard = self.take_message()?;
            }
            HEADERS if flags & END_STREAM != 0 => {
                ensure!(stream != WATCH, "etcd ended a watch");
                ensure!(std::mem::take(&mut self.answered), "etcd refused a put");
            }
            SETTINGS if flags & ACK == 0 => answers.extend(frame(SETTINGS, ACK, CONNECTION, &[])),
            PING if flags & ACK == 0 => answers.extend(frame(PING, ACK, CONNECTION, body)),
            RST_STREAM => bail!("etcd broke a call off: {body:?}"),
            GOAWAY => bail!(
                "etcd closes a connection: {}",
                String::from_utf8_lossy(body)
            ),
            _ => {}
        }
        Ok(Some((FRAME_HEAD + length, heard)))
    }
}

impl Etcd {
    /// What the message says, when all of it is there.
    fn take_message(&mut self) -> Result<Heard> {
        let Some(([compressed, length @ ..], message)) =
            self.message.split_first_chunk::<GRPC_HEAD>()
        else {
            return Ok(Heard::Aside);
        };
        ensure!(*compressed == 0, "etcd compresses its answers");
        if message.len() < u32::from_be_bytes(*length) as usize {
            return Ok(Heard::Aside);
        }
        let response = WatchResponse::decode(message).context("etcd's answer cannot be read")?;
        self.message.clear();
        self.answered = true;
        ensure!(!response.canceled, "etcd cancelled a watch");
        let Some(event) = response.events.last() else {
            return Ok(Heard::Ready);
        };
        let pair = event.pair.as_ref().context("an event of nothing")?;
        Ok(Heard::Message(number_of(&pair.value)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: u64) -> Vec<u8> {
        let pair = Some(KeyValue {
            value: payload(number).to_vec(),
        });
        let response = WatchResponse {
            canceled: false,
            events: vec![Event { pair }],
        };
        let message = response.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &message].concat()
    }

    #[test]
    fn a_message_in_two_frames_with_a_ping_between_is_read_and_the_ping_answered() {
        let (mut etcd, mut answers) = (Etcd::default(), Vec::new());
        let message = told(7);
        let frames = [
            frame(DATA, 0, WATCH, &message[..GRPC_HEAD]),
            frame(PING, 0, CONNECTION, &[1, 2, 3, 4, 5, 6, 7, 8]),
            frame(DATA, 0, WATCH, &message[GRPC_HEAD..]),
        ];
        let heard = frames.map(|frame| {
            let torn = etcd.read(&frame[..frame.len() - 1], &mut answers);
            assert_eq!(torn.unwrap(), None);
            let (used, heard) = etcd.read(&frame, &mut answers).unwrap().unwrap();
            assert_eq!(used, frame.len());
            heard
        });
        assert_eq!(heard, [Heard::Aside, Heard::Aside, Heard::Message(7)]);
        let pong = frame(PING, ACK, CONNECTION, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(answers, pong);
    }

    #[test]
    fn a_watch_that_ends_and_a_put_without_an_answer_are_told() {
        let ended = frame(HEADERS, END_STREAM | END_HEADERS, WATCH, &[]);
        let error = Etcd::default().read(&ended, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "etcd ended a watch");

        let mut publisher = Etcd::default();
        let ended = frame(HEADERS, END_STREAM | END_HEADERS, WATCH + 2, &[]);
        let empty = frame(DATA, 0, WATCH + 2, &[0; GRPC_HEAD]);
        let heard = publisher.read(&empty, &mut Vec::new()).unwrap();
        assert_eq!(heard, Some((empty.len(), Heard::Ready)));
        assert!(publisher.read(&ended, &mut Vec::new()).is_ok());
        let error = publisher.read(&ended, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "etcd refused a put");
    }
}
