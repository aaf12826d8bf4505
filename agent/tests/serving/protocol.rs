//! The Open Inference Protocol as clients write it, and as nobody should: binary tensors,
//! compression, and a corpus of bodies that are wrong in one way each.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use reqwest::header::HeaderMap;
use rollcall_agent::config::Serving;
use rollcall_agent::serve::connections::Bounded;
use rollcall_agent::serve::{http, router};
use rollcall_shared::report::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, body, rows};

const INFER: &str = "/v2/models/digits/infer";
const JSON_LENGTH: &str = "inference-header-content-length";

/// An answer as it came.
struct Raw {
    status: u16,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Raw {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        let length = self.header(JSON_LENGTH).parse().unwrap_or(self.bytes.len());
        serde_json::from_slice(&self.bytes[..length]).unwrap()
    }

    fn buffers(&self) -> &[u8] {
        &self.bytes[self.header(JSON_LENGTH).parse().unwrap()..]
    }

    #[track_caller]
    fn refused(&self, status: u16, words: &str) {
        let text = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status, status, "{text}");
        let json: Value = serde_json::from_slice(&self.bytes).unwrap();
        let error = json["error"].as_str().unwrap();
        assert!(error.contains(words), "{words:?} is not in {error:?}");
    }
}

async fn started() -> Bench {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    bench
}

async fn post(bench: &Bench, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Raw {
    let mut request = bench.client.post(format!("{}{INFER}", bench.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.body(body.into()).send().await.unwrap();
    Raw {
        status: answer.status().as_u16(),
        headers: answer.headers().clone(),
        bytes: answer.bytes().await.unwrap().to_vec(),
    }
}

fn bytes_of(row: &[f64]) -> Vec<u8> {
    row.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect()
}

/// As tritonclient writes it: the head, and the elements after it.
fn binary(row: &[f64]) -> (Value, Vec<u8>) {
    let buffer = bytes_of(row);
    let head = json!({
        "id": "order-7",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 64],
                    "parameters": {"binary_data_size": buffer.len()}}],
        "parameters": {"binary_data_output": true},
    });
    (head, buffer)
}

async fn post_binary(bench: &Bench, head: &Value, buffer: &[u8]) -> Raw {
    let head = head.to_string();
    let length = head.len().to_string();
    post(
        bench,
        &[(JSON_LENGTH, &length)],
        [head.as_bytes(), buffer].concat(),
    )
    .await
}

#[tokio::test]
async fn buffers_are_taken_and_given_as_stock_clients_send_and_ask() {
    let bench = started().await;
    for row in rows().iter().take(20) {
        let in_json = bench.infer("", row).await;
        let (head, buffer) = binary(row);
        let answer = post_binary(&bench, &head, &buffer).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        assert_eq!(answer.header("x-request-id"), "order-7");
        let json = answer.json();
        let label = &json["outputs"][0];
        assert_eq!(label["parameters"]["binary_data_size"], 8, "{json}");
        assert_eq!((label.get("data"), &json["id"]), (None, &json!("order-7")));
        let (label, probabilities) = answer.buffers().split_at(8);
        assert_eq!(
            i64::from_le_bytes(label.try_into().unwrap()),
            in_json.label()
        );
        let expected = in_json.json["outputs"][1]["data"].as_array().unwrap();
        for (bytes, expected) in probabilities.chunks(4).zip(expected) {
            let got = f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
            assert!((got - expected.as_f64().unwrap()).abs() < 1e-7);
        }
        assert_eq!(probabilities.len(), 40);
    }
}

#[tokio::test]
async fn each_output_comes_as_it_was_asked_for_and_in_that_order() {
    let bench = started().await;
    let (mut head, buffer) = binary(&rows()[0]);
    head["outputs"] = json!([
        {"name": "probabilities", "parameters": {"binary_data": false}},
        {"name": "label"},
    ]);
    let answer = post_binary(&bench, &head, &buffer).await;
    let json = answer.json();
    assert_eq!(json["outputs"][0]["data"].as_array().unwrap().len(), 10);
    assert_eq!(json["outputs"][1]["name"], "label");
    assert_eq!(answer.buffers().len(), 8);
    // The same of a request in JSON, which may ask for buffers too.
    let mut request = body(&rows()[0]);
    request["outputs"] = json!([{"name": "label", "parameters": {"binary_data": true}}]);
    let answer = post(&bench, &[], request.to_string()).await;
    assert_eq!(answer.buffers().len(), 8);
    // Nobody asked for a buffer: plain JSON, and no header.
    head["outputs"] = json!([{"name": "label", "parameters": {"binary_data": false}}]);
    let answer = post_binary(&bench, &head, &buffer).await;
    assert_eq!(answer.header(JSON_LENGTH), "");
    assert_eq!(answer.header("content-type"), "application/json");
}

type Pack = fn(&[u8]) -> Vec<u8>;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn packed_requests_are_read_and_long_answers_packed_where_the_client_likes() {
    let bench = started().await;
    let all = rows();
    let (one, many) = (&all[..1], &all[..100]);
    for (name, pack) in [("gzip", gzip as Pack), ("deflate", zlib), ("GZIP", gzip)] {
        for rows in [one, many] {
            let data: Vec<f64> = rows.concat();
            let buffer = bytes_of(&data);
            let head = json!({
                "inputs": [{"name": "input", "datatype": "FP32", "shape": [rows.len(), 64],
                            "parameters": {"binary_data_size": buffer.len()}}],
                "outputs": [{"name": "probabilities", "parameters": {"binary_data": true}}],
            });
            let head = head.to_string();
            // The header counts the JSON as it is before it is packed.
            let length = head.len().to_string();
            let packed = pack(&[head.as_bytes(), &buffer].concat());
            let headers = [
                ("content-encoding", name),
                ("accept-encoding", name),
                (JSON_LENGTH, &length),
            ];
            let mut answer = post(&bench, &headers, packed).await;
            assert_eq!(answer.status, 200);
            let is_long = rows.len() == 100;
            let named = name.to_lowercase();
            let coding = if is_long { named.as_str() } else { "" };
            assert_eq!(answer.header("content-encoding"), coding);
            let mut plain = Vec::new();
            let read = match coding {
                "gzip" => std::io::copy(&mut GzDecoder::new(&answer.bytes[..]), &mut plain),
                "deflate" => std::io::copy(&mut ZlibDecoder::new(&answer.bytes[..]), &mut plain),
                _ => std::io::copy(&mut &answer.bytes[..], &mut plain),
            };
            read.unwrap();
            answer.bytes = plain;
            assert_eq!(answer.buffers().len(), rows.len() * 40);
        }
    }
}

#[tokio::test]
async fn bombs_unknown_codings_and_broken_streams_are_refused() {
    let bench = started().await;
    let good = body(&rows()[0]).to_string().into_bytes();
    let bomb = vec![b' '; (64 << 20) + 1];
    for (name, pack) in [("gzip", gzip as Pack), ("deflate", zlib)] {
        let headers = [("content-encoding", name)];
        let packed = pack(&bomb);
        assert!(packed.len() < 128 << 10);
        post(&bench, &headers, packed)
            .await
            .refused(413, "split it");
        let mut packed = pack(&good);
        packed.truncate(packed.len() - 1);
        post(&bench, &headers, packed)
            .await
            .refused(400, "is not packed as it says");
        post(&bench, &headers, good.clone())
            .await
            .refused(400, "or send it uncompressed");
    }
    for name in ["br", "zstd", "gzip, gzip", "gzip,identity", "\u{fc}"] {
        let answer = post(&bench, &[("content-encoding", name)], good.clone()).await;
        answer.refused(415, "send gzip, deflate or none");
        assert_eq!(answer.header("accept-encoding"), "gzip, deflate");
    }
    let twice = [("content-encoding", "gzip"), ("content-encoding", "gzip")];
    post(&bench, &twice, gzip(&gzip(&good)))
        .await
        .refused(415, "send gzip");
    let all = Serving::default().bodies_mib_max << 10;
    assert_eq!(
        bench.app.bodies.available_permits(),
        all,
        "the room is given back"
    );
}

#[tokio::test]
async fn a_packed_body_takes_the_room_that_it_needs_inflated() {
    let bench = started().await;
    let all = bench.app.bodies.available_permits();
    let taken = u32::try_from(all - 64).unwrap();
    let _taken = bench.app.bodies.acquire_many(taken).await.unwrap();
    // 1 MiB does not fit into 64 KiB; what it is packed into does.
    let packed = gzip(&vec![b' '; 1 << 20]);
    let answer = post(&bench, &[("content-encoding", "gzip")], packed).await;
    answer.refused(503, "try again or ask another node");
    assert_eq!(answer.header("retry-after"), "1");
}

/// A body with one thing wrong, and what of the refusal says so.
type Wrong = (String, &'static str);

/// A good request, to do one thing wrong in it.
struct Good {
    json: Value,
    /// In the order in which clients write it.
    text: String,
    /// Its elements.
    data: String,
}

impl Good {
    fn new() -> Self {
        let json = body(&rows()[0]);
        let data = json["inputs"][0]["data"].to_string();
        let text = format!(
            r#"{{"inputs":[{{"name":"input","shape":[1,64],"datatype":"FP32","data":{data}}}]}}"#
        );
        Self { json, text, data }
    }

    /// With another value of a field of its tensor.
    fn with(&self, field: &str, value: Value) -> String {
        let mut changed = self.json.clone();
        changed["inputs"][0][field] = value;
        changed.to_string()
    }

    fn with_element(&self, value: Value) -> String {
        let mut changed = self.json.clone();
        changed["inputs"][0]["data"][3] = value;
        changed.to_string()
    }

    /// With another shape, also such as no value of JSON is.
    fn with_shape(&self, shape: &str) -> String {
        self.text.replace("[1,64]", shape)
    }

    /// With another first element, likewise.
    fn with_first(&self, token: &str) -> String {
        let (_, rest) = self.data.split_once(',').unwrap();
        self.text.replace(&self.data, &format!("[{token},{rest}"))
    }

    /// With this before all that it has.
    fn beginning(&self, fields: &str) -> String {
        self.text.replacen('{', &format!("{{{fields},"), 1)
    }
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

fn no_requests(good: &Good) -> Vec<Wrong> {
    let text = &good.text;
    let long_id = format!("\"id\":\"{}\"", "a".repeat(2_000));
    vec![
        (String::new(), "there is no JSON"),
        (" ".to_owned(), "there is no JSON"),
        ("null".to_owned(), "not an inference request"),
        ("[]".to_owned(), "it is no JSON object"),
        (
            format!("[null,{}]", good.json["inputs"]),
            "it is no JSON object",
        ),
        ("{}".to_owned(), "missing field `inputs`"),
        ("<xml/>".to_owned(), "expected value at line 1"),
        ("inputs=1".to_owned(), "expected value at line 1"),
        (text[..text.len() - 1].to_owned(), "EOF"),
        (text[..text.len() / 2].to_owned(), "EOF"),
        (format!("{text}x"), "trailing characters"),
        (format!("{text}{text}"), "trailing characters"),
        (format!("\u{feff}{text}"), "expected value"),
        (good.beginning("\"inputs\":[]"), "duplicate field"),
        ("{\"inputs\":[]}".to_owned(), "\"input\" is missing"),
        ("{\"inputs\":{}}".to_owned(), "invalid type: map"),
        ("{\"inputs\":[1]}".to_owned(), "a tensor: {\"name\""),
        (good.beginning("\"id\":7"), "invalid type: integer"),
        (good.beginning(&long_id), "at most 1024"),
        (good.beginning("\"parameters\":1"), "invalid type: integer"),
        (
            good.beginning("\"parameters\":{\"segment\":\"a\\nb\"}"),
            "is no segment",
        ),
        (
            good.beginning("\"parameters\":{\"binary_data_output\":1}"),
            "a boolean",
        ),
        (good.beginning("\"outputs\":[{}]"), "missing field `name`"),
        (
            good.beginning("\"outputs\":[{\"name\":\"x\"}]"),
            "no output \"x\"",
        ),
    ]
}

fn tensors_that_do_not_fit(good: &Good) -> Vec<Wrong> {
    let twice = good
        .text
        .replacen("\"name\"", "\"name\":\"input\",\"name\"", 1);
    let many = format!("[{}1]", "1,".repeat(16));
    vec![
        (twice, "comes twice"),
        (good.with("name", json!("image")), "\"input\" is missing"),
        (good.with("name", json!(7)), "invalid type: integer"),
        (
            good.with("datatype", json!("FLOAT")),
            "unknown variant `FLOAT`",
        ),
        (good.with("datatype", json!("FP16")), "send FP32"),
        (good.with("datatype", json!("FP64")), "the model wants FP32"),
        (good.with("data", json!([1.0])), "has 1 elements"),
        (good.with("data", json!([])), "has 0 elements"),
        (good.with("data", json!(vec![0; 65])), "has 65 elements"),
        (
            good.with("data", json!("AAAA")),
            "text or array as element 0",
        ),
        (good.with_shape("[64]"), "the model wants [-1, 64]"),
        (good.with_shape("[1,1,64]"), "the model wants [-1, 64]"),
        (good.with_shape("[-1,64]"), "integer `-1`"),
        (good.with_shape("[1,-64]"), "integer `-64`"),
        (good.with_shape("[1.0,64]"), "floating point"),
        (good.with_shape("[\"1\",64]"), "invalid type: string"),
        (
            good.with_shape("[0,64]"),
            "its shape [0, 64] says otherwise",
        ),
        (good.with_shape("[4294967296,4294967296]"), "says otherwise"),
        (
            good.with_shape("[18446744073709551615,2]"),
            "says otherwise",
        ),
        (good.with_shape("[18446744073709551616]"), "invalid type"),
        (good.with_shape(&many), "more than 16"),
        (good.with_shape("64"), "invalid type: integer"),
    ]
}

fn elements_that_are_none(good: &Good) -> Vec<Wrong> {
    vec![
        (
            good.with_element(json!("four")),
            "element 3 of the data is \"four\"",
        ),
        (good.with_element(json!([4])), "nested otherwise"),
        (good.with_element(json!(null)), "element 3 of the data"),
        (
            good.with_element(json!(true)),
            "element 3 of the data is true",
        ),
        (good.with_first("NaN"), "expected value"),
        (good.with_first("nan"), "expected ident"),
        (good.with_first("Infinity"), "expected value"),
        (good.with_first("-Infinity"), "invalid number"),
        (good.with_first("1e400"), "number out of range"),
        (good.with_first("1e39"), "which is no FP32"),
        (good.with_first("-1e39"), "which is no FP32"),
        (good.with_first("0x10"), "expected `,` or `]`"),
        (good.with_first("01"), "invalid number"),
        (good.with_first(&"9".repeat(100_000)), "number out of range"),
        (good.with_first(&nested(1)), "nested otherwise"),
        (good.with_first(&nested(100_000)), "over 16 deep"),
    ]
}

#[tokio::test]
async fn bodies_that_are_wrong_in_one_way_are_refused_for_that() {
    let bench = started().await;
    let mut wrong = Vec::new();
    let good = Good::new();
    let corpus = [
        no_requests(&good),
        tensors_that_do_not_fit(&good),
        elements_that_are_none(&good),
    ];
    for (body, words) in corpus.concat() {
        let shown: String = body.chars().take(200).collect();
        let answer = post(&bench, &[], body).await;
        let json: Value = serde_json::from_slice(&answer.bytes).unwrap_or_default();
        let said = json["error"]
            .as_str()
            .is_some_and(|error| error.contains(words));
        if answer.status != 400 || !said {
            wrong.push(format!("{shown}: {} {json}, not {words:?}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut bad_text = good.text.clone().into_bytes();
    let at = bad_text.windows(5).position(|w| w == b"input").unwrap();
    bad_text[at] = 0xff;
    assert_eq!(post(&bench, &[], bad_text).await.status, 400);
    assert_eq!(
        bench.counts(Role::Stable).requests,
        0,
        "bad input is not the version's"
    );
    // What is passed over may be as deep as it likes.
    let passed = good.beginning(&format!("\"x\":{}", nested(100_000)));
    assert_eq!(post(&bench, &[], passed).await.status, 200);
}

#[tokio::test]
async fn buffers_that_do_not_add_up_are_refused() {
    let bench = started().await;
    let row = &rows()[0];
    let (head, buffer) = binary(row);
    let longer = [&buffer[..], b"x"].concat();
    let sized = |size: Value| {
        let mut head = head.clone();
        head["inputs"][0]["parameters"]["binary_data_size"] = size;
        head
    };
    for (head, buffer, words) in [
        (sized(json!(256)), &buffer[..255], "but 255 are left"),
        (sized(json!(255)), &buffer[..255], "[1, 64] needs 256"),
        (sized(json!(256)), &longer[..], "1 bytes are left"),
        (sized(json!(0)), &buffer[..0], "[1, 64] needs 256"),
        (sized(json!(u64::MAX)), &buffer[..], "but 256 are left"),
        (sized(json!(-1)), &buffer[..], "integer `-1`"),
        (sized(json!("256")), &buffer[..], "invalid type: string"),
        (sized(json!(null)), &buffer[..], "has no data"),
    ] {
        post_binary(&bench, &head, buffer).await.refused(400, words);
    }
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut buffer = buffer.clone();
        buffer[4..8].copy_from_slice(&value.to_le_bytes());
        let answer = post_binary(&bench, &head, &buffer).await;
        answer.refused(400, "element 1 of input \"input\"");
    }
    let whole = [head.to_string().as_bytes(), &buffer].concat();
    for (length, words) in [
        (whole.len() + 1, "but the body has"),
        (usize::MAX, "but the body has"),
        (head.to_string().len() - 1, "EOF"),
        (head.to_string().len() + 1, "not an inference request"),
        (whole.len(), "not an inference request"),
        (0, "there is no JSON"),
    ] {
        let length = length.to_string();
        let answer = post(&bench, &[(JSON_LENGTH, &length)], whole.clone()).await;
        answer.refused(400, words);
    }
    for length in [
        "",
        "-1",
        "1e3",
        "0x10",
        "99999999999999999999",
        "ten",
        "\u{fc}",
    ] {
        let answer = post(&bench, &[(JSON_LENGTH, length)], whole.clone()).await;
        answer.refused(400, "no number of bytes");
    }
    post(&bench, &[], head.to_string())
        .await
        .refused(400, "send the header Inference-Header-Content-Length");
}

#[tokio::test]
async fn the_bodys_id_and_segment_go_before_the_headers() {
    let bench = started().await;
    let mut request = body(&rows()[0]);
    let long = "a segment of more than 48 bytes is a text and no name";
    let headers = [("x-request-id", "header"), ("rollcall-segment", long)];
    post(&bench, &headers, request.to_string())
        .await
        .refused(400, "is no segment");
    request["parameters"] = json!({"segment": "de", "timeout": 5});
    let answer = post(&bench, &headers, request.to_string()).await;
    assert_eq!(
        (answer.status, answer.header("x-request-id")),
        (200, "header")
    );
    request["id"] = json!("body");
    let answer = post(&bench, &headers, request.to_string()).await;
    assert_eq!(answer.header("x-request-id"), "body");
    assert_eq!(answer.header("x-rollcall-version"), "1.0.0");
    assert_eq!(answer.header("x-rollcall-arm"), "stable");
}

#[tokio::test]
async fn the_repository_tells_what_is_ready_and_refuses_loads_in_json() {
    let bench = started().await;
    let server = bench.get("/v2").await.json;
    let extensions = server["extensions"].as_array().unwrap();
    assert!(extensions.contains(&json!("binary_tensor_data")));
    for body in ["", "{}", "{\"ready\":true}", "{\"ready\":false,\"more\":1}"] {
        let index = bench.post("/v2/repository/index", "", body).await;
        assert_eq!(index.json.as_array().unwrap().len(), 1, "{body}");
    }
    bench.route(2, None, None);
    let index = bench.post("/v2/repository/index", "", "").await.json;
    assert_eq!(index[0]["state"], "UNAVAILABLE");
    let ready = bench
        .post("/v2/repository/index", "", "{\"ready\":true}")
        .await;
    assert_eq!(ready.json, json!([]));
    for (path, body, status, words) in [
        ("/v2/repository/index", "{", 400, "neither empty nor"),
        (
            "/v2/repository/index",
            "[\"ready\"]",
            400,
            "neither empty nor",
        ),
        (
            "/v2/repository/models/digits/load",
            "{}",
            403,
            "by rollouts only",
        ),
        (
            "/v2/repository/models/digits/unload",
            "",
            403,
            "by rollouts only",
        ),
        ("/v2/models/%ff/infer", "{}", 400, "the path cannot be read"),
        (
            "/v2/models/digits/versions/%ff/infer",
            "{}",
            400,
            "the path cannot be read",
        ),
        (
            "/v2/systemsharedmemory/region/r/register",
            "{}",
            404,
            "no such path",
        ),
    ] {
        let answer = bench.post(path, "", body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.json);
        let error = answer.json["error"].as_str().unwrap();
        assert!(error.contains(words), "{path} {body}: {error}");
    }
}

/// A server whose patience a test can outlast.
async fn impatient(bench: &Bench) -> (TcpStream, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(http::serve_patiently(
        Bounded::new(listener, Arc::new(Semaphore::new(4))),
        router(bench.app.clone()),
        Duration::from_millis(300),
        stop.clone(),
    ));
    (TcpStream::connect(address).await.unwrap(), stop)
}

#[tokio::test]
async fn a_client_that_dribbles_its_head_is_cut_off() {
    let bench = started().await;
    let (stream, _stop) = impatient(&bench).await;
    let (mut read, mut write) = stream.into_split();
    let dribbling = tokio::spawn(async move {
        write.write_all(b"GET /v2 HTTP/1.1\r\nX: ").await?;
        loop {
            write.write_all(b"a").await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        #[allow(unreachable_code, reason = "says what the loop's errors are")]
        Ok::<(), std::io::Error>(())
    });
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), read.read_to_end(&mut answer));
    // Closed, or reset since the dribble went on: over in any case, and never served.
    let _ = ended.await.expect("it was never cut off");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    dribbling.abort();
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_stop_lets_a_request_end() {
    let bench = started().await;
    let (mut idle, stop) = impatient(&bench).await;
    let request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    idle.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), idle.read_to_end(&mut answer));
    ended.await.expect("it was never closed").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    stop.cancel();
}
