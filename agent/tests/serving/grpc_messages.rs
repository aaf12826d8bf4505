//! A gRPC message as it travels: its head, its packing, and what is refused by them. Calls are
//! made by hand, since no client would send most of this.

use std::convert::Infallible;
use std::io::Read;

use axum::http::{Request, Response, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder, ZlibDecoder, ZlibEncoder};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use prost::Message;
use rollcall_agent::config::Serving;
use rollcall_agent::serve::grpc::wire::ModelInferResponse;
use rollcall_shared::report::Role;
use tonic::Code;

use crate::grpc::{all_room, start};
use crate::port::{Port, SERVICE, connect, labels, request};
use crate::support::{eventually, rows};

/// What a call by hand sends.
type Sent = UnsyncBoxBody<Bytes, Infallible>;

/// A call by hand.
async fn send(port: &Port, encoding: &str, body: Sent) -> Response<Incoming> {
    let request = Request::post(format!("http://agent/{SERVICE}/ModelInfer"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header("grpc-encoding", encoding)
        .header("grpc-accept-encoding", "identity,deflate,gzip")
        .body(body)
        .unwrap();
    let mut sender = connect(port.address).await;
    sender.send_request(request).await.unwrap()
}

fn text<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

/// How a call by hand is refused.
async fn refusal(port: &Port, encoding: &str, body: Sent) -> (u16, i32, String) {
    let response = send(port, encoding, body).await;
    (
        response.status().as_u16(),
        text(&response, "grpc-status").parse().unwrap(),
        // As it travels: percent-encoded.
        text(&response, "grpc-message").replace("%20", " "),
    )
}

fn whole(content: &[u8]) -> Sent {
    Full::new(Bytes::copy_from_slice(content)).boxed_unsync()
}

/// More of it never comes.
fn begun(content: &[u8]) -> Sent {
    let first = futures_util::stream::iter([Ok(Frame::data(Bytes::copy_from_slice(content)))]);
    let rest = futures_util::StreamExt::chain(first, futures_util::stream::pending());
    StreamBody::new(rest).boxed_unsync()
}

#[tokio::test]
async fn a_message_is_refused_by_the_length_that_it_announces_before_it_comes() {
    let (bench, port, _client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let exhausted = Code::ResourceExhausted as i32;
    let (http, code, says) = refusal(&port, "identity", begun(&[0, 64, 0, 0, 0])).await;
    assert_eq!((http, code), (200, exhausted), "{says}");
    let most = u32::try_from(64_usize << 20).unwrap().to_be_bytes();
    let taken = bench.app.bodies.acquire_many(200 << 10).await.unwrap();
    let [a, b, c, d] = most;
    let (_, code, says) = refusal(&port, "identity", begun(&[0, a, b, c, d])).await;
    assert_eq!(code, Code::Unavailable as i32, "{says}");
    drop(taken);
    eventually("the room is given back", || {
        bench.app.bodies.available_permits() == all_room()
    })
    .await;
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let (bench, port, _client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let invalid = Code::InvalidArgument as i32;
    for (content, expected) in [
        (&b""[..], invalid),
        (b"\0\0", invalid),
        (b"\0\0\0\0\x05ab", invalid),
        (b"\0\0\0\0\x02\xff\xff", invalid),
        (b"\0\0\0\0\0\0\0\0\0\0", invalid),
        (b"\x01\0\0\0\x01a", Code::Internal as i32),
    ] {
        let (http, code, says) = refusal(&port, "identity", whole(content)).await;
        assert_eq!((http, code), (200, expected), "{content:?}: {says}");
    }
}

/// A message with its head.
fn framed(is_packed: bool, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    [&[u8::from(is_packed)][..], &length.to_be_bytes(), content].concat()
}

fn all_of(mut reader: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    all
}

fn packed(encoding: &str, content: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => all_of(GzEncoder::new(content, Compression::fast())),
        "deflate" => all_of(ZlibEncoder::new(content, Compression::fast())),
        _ => content.to_vec(),
    }
}

fn unpacked(encoding: &str, content: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => all_of(GzDecoder::new(content)),
        "deflate" => all_of(ZlibDecoder::new(content)),
        _ => content.to_vec(),
    }
}

#[tokio::test]
async fn who_packs_its_request_gets_the_answer_packed_in_the_same_way() {
    let (bench, port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    for count in [1, 200, 3_000] {
        let rows: Vec<_> = rows().into_iter().cycle().take(count).collect();
        let plain = client.infer(request(&rows)).await.unwrap();
        for encoding in ["gzip", "deflate", "identity"] {
            let message = packed(encoding, &request(&rows).encode_to_vec());
            let message = framed(encoding != "identity", &message);
            let response = send(&port, encoding, whole(&message)).await;
            // A small answer is not worth it.
            let answered_in = match (encoding, count) {
                ("identity", _) | (_, 1) => "",
                _ => encoding,
            };
            assert_eq!(text(&response, "grpc-encoding"), answered_in);
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            let body = body.to_bytes();
            let (head, content) = body.split_at(5);
            assert_eq!(head, &framed(!answered_in.is_empty(), content)[..5]);
            let answer = unpacked(answered_in, content);
            let answer = ModelInferResponse::decode(&answer[..]).unwrap();
            assert_eq!(labels(&answer), labels(plain.get_ref()));
        }
    }
    assert_eq!(bench.app.bodies.available_permits(), all_room());
}

#[tokio::test]
async fn packed_messages_that_cannot_be_taken_are_refused_with_a_way_out() {
    let (bench, port, _client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let bomb = packed("gzip", &vec![0; (64 << 20) + 1]);
    let small = packed("gzip", &[0xff; 9]);
    let cut = &small[..small.len() - 1];
    for (encoding, content, code, words) in [
        ("gzip", &bomb[..], Code::ResourceExhausted, "split it"),
        ("gzip", cut, Code::InvalidArgument, "send it whole"),
        ("deflate", &small, Code::InvalidArgument, "zlib's form"),
        ("gzip", &small, Code::InvalidArgument, "not an inference"),
        ("zstd", &small, Code::Unimplemented, "send gzip, deflate"),
        ("identity", &small, Code::Internal, "name gzip or deflate"),
    ] {
        let sent = whole(&framed(true, content));
        let (http, is, says) = refusal(&port, encoding, sent).await;
        assert_eq!((http, is), (200, code as i32), "{encoding}: {says}");
        assert!(says.contains(words), "{encoding}: {says}");
    }
    assert_eq!(bench.app.bodies.available_permits(), all_room());
    // A kilobyte that becomes a megabyte takes the room of a megabyte.
    let taken = all_room() - 512;
    let taken = bench.app.bodies.acquire_many(u32::try_from(taken).unwrap());
    let _taken = taken.await.unwrap();
    let large = framed(true, &packed("gzip", &vec![0; 1 << 20]));
    let (_, code, says) = refusal(&port, "gzip", whole(&large)).await;
    assert_eq!(code, Code::Unavailable as i32, "{says}");
    assert_eq!(bench.counts(Role::Stable).requests, 0);
}

#[tokio::test]
async fn who_speaks_something_else_is_told_so() {
    let (_bench, port, _client) = start(Serving::default()).await;
    let mut sender = connect::<Full<Bytes>>(port.address).await;
    for content_type in ["application/json", "application/grpc-web"] {
        let request = Request::post(format!("http://agent/{SERVICE}/ServerLive"));
        let request = request.header(header::CONTENT_TYPE, content_type);
        let response = sender.send_request(request.body(Full::default()).unwrap());
        assert_eq!(response.await.unwrap().status(), 415);
    }
}
