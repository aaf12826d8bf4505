//! Requests that are refused, before their body is read where that is possible.

use std::time::Duration;

use rollcall_agent::config::Serving;
use rollcall_shared::report::Role;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Bench, body, rows};

#[tokio::test]
async fn bad_requests_get_4xx_with_an_error_in_json() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let good = body(&rows()[0]);
    let change = |pointer: &str, value: serde_json::Value| {
        let mut request = good.clone();
        *request.pointer_mut(pointer).unwrap() = value;
        request.to_string()
    };
    let infer = "/v2/models/digits/infer";
    let mut unknown_output = good.clone();
    unknown_output["outputs"] = json!([{"name": "colour"}]);
    let cases = [
        (infer, String::new(), 400),
        (infer, "{".to_owned(), 400),
        (infer, "[1]".to_owned(), 400),
        (infer, json!({"inputs": []}).to_string(), 400),
        (infer, change("/inputs/0/name", json!("x")), 400),
        (infer, change("/inputs/0/datatype", json!("INT64")), 400),
        (infer, change("/inputs/0/datatype", json!("FP99")), 400),
        (infer, change("/inputs/0/shape", json!([1, 63])), 400),
        (infer, change("/inputs/0/shape", json!([-1, 64])), 400),
        (infer, change("/inputs/0/data/3", json!("four")), 400),
        (infer, unknown_output.to_string(), 400),
        ("/v2/models/nobody/infer", good.to_string(), 404),
        ("/v2/models/NO..%2f/infer", good.to_string(), 404),
        (
            "/v2/models/digits/versions/9.9.9/infer",
            good.to_string(),
            404,
        ),
        (
            "/v2/models/digits/versions/latest/infer",
            good.to_string(),
            404,
        ),
        ("/v2/repository/models/digits/load", "{}".to_owned(), 403),
        ("/v3", String::new(), 404),
        ("/v2", String::new(), 405),
    ];
    for (path, request, status) in cases {
        let answer = bench.post(path, "", request.clone()).await;
        assert_eq!(answer.status, status, "{path} {request}: {}", answer.json);
        assert!(
            answer.json["error"].as_str().is_some_and(|e| !e.is_empty()),
            "{path} {request}"
        );
    }
    assert_eq!(
        bench.counts(Role::Stable).requests,
        0,
        "bad input is not the version's"
    );
}

#[tokio::test]
async fn a_declared_gigabyte_is_refused_before_it_is_read() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let mut stream = bench.connect().await;
    let head =
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 512];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer));
    let length = read.await.expect("an answer without a body").unwrap();
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    assert!(text.contains("\"error\""), "{text}");
}

#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_reads_why_and_goes_on() {
    let bench = Bench::start(Serving::default()).await;
    let mut stream = bench.connect().await;
    let length = (4 << 20) + 1;
    let head = format!(
        "POST /rollcall/v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length]).await.unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 413"));
    let next = "GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(next.as_bytes()).await.unwrap();
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_not_to() {
    let bench = Bench::start(Serving::default()).await;
    let mut stream = bench.connect().await;
    let head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
                Content-Length: 1073741824\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // To its end: the connection is of no more use to it.
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413"));
}

#[tokio::test]
async fn a_body_that_grows_over_the_bound_is_refused_while_it_arrives() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let mut stream = bench.connect().await;
    let head =
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mib = vec![b' '; 1 << 20];
    for _ in 0..64 {
        stream.write_all(b"100000\r\n").await.unwrap();
        stream.write_all(&mib).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"1\r\n \r\n").await.unwrap();
    let mut answer = vec![0; 512];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer));
    let length = read
        .await
        .expect("an answer before the body's end")
        .unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 413"));
    let all = bench.app.bodies.available_permits();
    assert_eq!(
        all,
        Serving::default().bodies_mib_max << 10,
        "the room is given back"
    );
}

#[tokio::test]
async fn bodies_without_room_are_told_to_come_again() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let all = bench.app.bodies.available_permits();
    let taken = bench
        .app
        .bodies
        .acquire_many(u32::try_from(all).unwrap())
        .await
        .unwrap();
    let answer = bench.infer("k", &rows()[0]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    drop(taken);
    assert_eq!(bench.infer("k", &rows()[0]).await.status, 200);
}
