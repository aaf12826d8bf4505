//! Enrolled nodes that mean harm: each is cut off or slowed down, and the node beside it
//! still gets its heartbeats answered and hears of a withdrawal.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fixture::street::{Street, code, digits, ending, heartbeat, hello, within};
use fixture::upload;
use quinn::{TransportConfig, VarInt};
use rollcall_shared::ids::Generation;
use rollcall_shared::report::Receipt;
use rollcall_shared::wire::{ArtifactRequest, FromAgent};
use rollcall_transport::channel::{FrameWriter, priority, send_datagram};
use rollcall_transport::close::{CloseCode, Closed};
use rollcall_transport::endpoint::{ARTIFACT_STREAMS_MAX, REPORT_STREAMS_MAX};

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_off() {
    let street = Street::new().await;
    let mut config = street.bad.config();
    let mut narrow = TransportConfig::default();
    narrow.stream_receive_window(VarInt::from_u32(4_096));
    config.transport_config(Arc::new(narrow));
    let mut deaf = street.bad.welcomed(&street.running, config).await;
    // Each is answered with all that the node seems to have missed.
    let asking = async {
        for seq in 0.. {
            if deaf.writer.send(&heartbeat(seq, 0)).await.is_err() {
                return;
            }
        }
    };
    within(asking).await;
    assert_eq!(code(&ending(&deaf.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_control_messages_is_held_back() {
    let street = Street::new().await;
    let mut flood = street.enter().await;
    // One that misses nothing: it would be cut off for not reading the repair.
    let message = heartbeat(1, u64::MAX);
    // Until the stream takes no more: what is not read fills its window.
    let flooding = async {
        for _ in 0..1_000_000 {
            let sending = flood.writer.send(&message);
            match tokio::time::timeout(Duration::from_secs(2), sending).await {
                Ok(sent) => sent.unwrap(),
                Err(_) => return true,
            }
        }
        false
    };
    assert!(within(flooding).await, "nothing held it back");
    assert!(flood.connection.close_reason().is_none());
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_datagrams_ends_the_connection() {
    let street = Street::new().await;
    let flood = street.enter().await;
    let flooding = async {
        while send_datagram(&flood.connection, &heartbeat(1, 0)).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within(flooding).await;
    assert_eq!(code(&ending(&flood.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_generations_do_not_last() {
    let street = Street::new().await;
    let mut liar = street.enter().await;
    for step in 0..100 {
        let generation = Generation(u64::MAX - step);
        let receipt = Receipt {
            model: digits(),
            generation,
            serving: vec![],
        };
        liar.writer
            .send(&FromAgent::Receipt(receipt))
            .await
            .unwrap();
        liar.writer
            .send(&heartbeat(step, generation.0))
            .await
            .unwrap();
    }
    let mut lie = hello();
    lie.held = vec![(digits(), Generation(u64::MAX))];
    let config = street.bad.config();
    let liar = street.bad.said(&street.running, config, lie).await;
    assert_eq!(code(&ending(&liar.connection).await), CloseCode::Refused);
    let view = street.all_is_well().await;
    assert!(view.generation < Generation(100), "{}", view.generation);
    assert_eq!(view.receipts.received, 0, "nobody answered yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_left_half_written_are_given_up_and_then_their_owner() {
    let street = Street::new().await;
    let lazy = street.enter().await;
    let mut kept = Vec::new();
    for _ in 0..ARTIFACT_STREAMS_MAX {
        let (mut send, receive) = within(lazy.connection.open_bi()).await.unwrap();
        send.write_all(&[0, 0, 0, 40, 1]).await.unwrap();
        kept.push((send, Some(receive)));
    }
    for _ in 0..REPORT_STREAMS_MAX {
        let mut send = within(lazy.connection.open_uni()).await.unwrap();
        send.write_all(&[0, 0, 0, 40, 1]).await.unwrap();
        kept.push((send, None));
    }
    assert_eq!(code(&ending(&lazy.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_frames_are_refused_by_their_headers() {
    let street = Street::new().await;
    let header = Bytes::copy_from_slice(&(4u32 << 20).to_be_bytes());
    let mut control = street.enter().await;
    control.writer.write(header.clone()).await.unwrap();
    let closed = ending(&control.connection).await;
    assert_eq!(code(&closed), CloseCode::ProtocolError);

    let reports = street.enter().await;
    let mut stream = within(reports.connection.open_uni()).await.unwrap();
    stream.write_chunk(header).await.unwrap();
    let closed = ending(&reports.connection).await;
    assert_eq!(code(&closed), CloseCode::ProtocolError);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_a_tight_loop_is_sent_away() {
    let street = Street::new().await;
    let looping = async {
        loop {
            let config = street.bad.config();
            let connection = street.bad.dial(&street.running, config).await;
            let ours = tokio::time::timeout(Duration::from_millis(20), connection.closed());
            match ours.await.map(Closed::from) {
                Ok(closed) => return closed,
                Err(_) => connection.close(0u32.into(), b""),
            }
        }
    };
    assert_eq!(code(&within(looping).await), CloseCode::Slow);
    let metrics = format!("https://{}/metrics", street.running.https);
    let text = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .build()
        .unwrap()
        .get(metrics)
        .send();
    let text = text.await.unwrap().text().await.unwrap();
    let throttled = "rollcall_handshakes_total{outcome=\"throttled\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(throttled));
    assert!(line.unwrap().parse::<u64>().unwrap() >= 1);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_frames_cut_short_end_the_connection() {
    let street = Street::new().await;
    for bytes in [&[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 9, 1]] {
        let mut bad = street.enter().await;
        let bytes = Bytes::copy_from_slice(bytes);
        bad.writer.write(bytes).await.unwrap();
        bad.writer.finish();
        let closed = ending(&bad.connection).await;
        assert_eq!(code(&closed), CloseCode::ProtocolError);
    }
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datagram_of_garbage_ends_the_connection() {
    let street = Street::new().await;
    let bad = street.enter().await;
    let garbage = Bytes::from_static(&[0xff; 64]);
    bad.connection.send_datagram(garbage).unwrap();
    assert_eq!(
        code(&ending(&bad.connection).await),
        CloseCode::ProtocolError
    );
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_asked_for_and_not_taken_are_given_up() {
    let street = Street::new().await;
    let digest = upload(&street.client, vec![7; 16 << 20]).await;
    let greedy = street.enter().await;
    let mut kept = Vec::new();
    for _ in 0..ARTIFACT_STREAMS_MAX {
        let (send, receive) = within(greedy.connection.open_bi()).await.unwrap();
        let mut writer = FrameWriter::new(send, priority::ARTIFACT);
        let request = ArtifactRequest { digest, offset: 0 };
        writer.send(&request).await.unwrap();
        writer.finish();
        kept.push((writer, receive));
    }
    assert_eq!(code(&ending(&greedy.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}
