//! Messages between the two ends.

use std::io::ErrorKind;

use bytes::Bytes;
use quinn::Connection;
use rollcall_shared::codec::{CodecError, HEADER_BYTES, encode_frame};
use rollcall_shared::limits::DATAGRAM_BYTES_MAX;
use rollcall_shared::wire::{FromAgent, Heartbeat, HeartbeatAnswer, ToAgent};
use rollcall_transport::channel::{
    ChannelError, FrameReader, FrameWriter, priority, read_datagram, send_datagram,
    send_encoded_datagram,
};
use rollcall_transport::close::{CloseCode, Closed, close};
use rollcall_transport::endpoint::ARTIFACT_STREAMS_MAX;

use crate::fleet::{Fleet, within};

fn heartbeat(seq: u64) -> FromAgent {
    FromAgent::Heartbeat(Heartbeat { seq, held: vec![] })
}

fn answer(seq: u64) -> ToAgent {
    ToAgent::HeartbeatAnswer(HeartbeatAnswer {
        seq,
        current: vec![],
    })
}

async fn opened(connection: &Connection) -> (FrameWriter, FrameReader) {
    let (send, receive) = within(connection.open_bi()).await.unwrap();
    (
        FrameWriter::new(send, priority::CONTROL),
        FrameReader::new(receive),
    )
}

async fn accepted(connection: &Connection) -> (FrameWriter, FrameReader) {
    let (send, receive) = within(connection.accept_bi()).await.unwrap();
    (
        FrameWriter::new(send, priority::CONTROL),
        FrameReader::new(receive),
    )
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order_both_ways_until_the_end() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut up, mut down) = opened(&agent).await;
    for seq in 0..100 {
        up.send(&heartbeat(seq)).await.unwrap();
    }
    up.finish();
    let (mut to_agent, mut from_agent) = accepted(&coordinator).await;
    for seq in 0..100 {
        let message = within(from_agent.next()).await.unwrap();
        assert_eq!(message, Some(heartbeat(seq)));
    }
    assert_eq!(within(from_agent.next::<FromAgent>()).await.unwrap(), None);
    // Encoded once: the frame for the stream, its body as the datagram.
    let frame = encode_frame(&answer(7)).unwrap();
    to_agent.write(frame.clone()).await.unwrap();
    send_encoded_datagram(&coordinator, frame.slice(HEADER_BYTES..)).unwrap();
    assert_eq!(within(down.next()).await.unwrap(), Some(answer(7)));
    assert_eq!(
        within(read_datagram::<ToAgent>(&agent)).await.unwrap(),
        answer(7)
    );
}

#[tokio::test]
async fn a_report_and_a_datagram_travel_up() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let stream = within(agent.open_uni()).await.unwrap();
    let mut writer = FrameWriter::new(stream, priority::REPORT);
    writer.send(&heartbeat(1)).await.unwrap();
    writer.finish();
    send_datagram(&agent, &heartbeat(2)).unwrap();
    let report = within(coordinator.accept_uni()).await.unwrap();
    let message = within(FrameReader::new(report).next()).await.unwrap();
    assert_eq!(message, Some(heartbeat(1)));
    let datagram = within(read_datagram::<FromAgent>(&coordinator)).await;
    assert_eq!(datagram.unwrap(), heartbeat(2));
}

#[tokio::test]
async fn a_reader_that_is_cancelled_loses_nothing() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut up, _down) = opened(&agent).await;
    let frame = encode_frame(&heartbeat(u64::MAX)).unwrap();
    up.write(frame.slice(..6)).await.unwrap();
    let (_to_agent, mut reader) = accepted(&coordinator).await;
    for _ in 0..100 {
        tokio::select! {
            biased;
            message = reader.next::<FromAgent>() => panic!("half a frame gave {message:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    up.write(frame.slice(6..)).await.unwrap();
    let message = within(reader.next()).await.unwrap();
    assert_eq!(message, Some(heartbeat(u64::MAX)));
}

#[tokio::test]
async fn a_frame_over_the_bound_is_refused_from_its_header_and_the_peer_learns_why() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut up, mut down) = opened(&agent).await;
    up.write(Bytes::copy_from_slice(&u32::MAX.to_be_bytes()))
        .await
        .unwrap();
    let (_to_agent, mut reader) = accepted(&coordinator).await;
    let error = within(reader.next::<FromAgent>()).await.unwrap_err();
    let too_large = CodecError::TooLarge {
        bytes: u32::MAX as usize,
    };
    assert!(matches!(&error, ChannelError::Codec(codec) if *codec == too_large));
    close(&coordinator, CloseCode::ProtocolError, &error.to_string());
    let refused = within(down.next::<ToAgent>()).await.unwrap_err();
    let expected = Closed::ByPeer {
        code: CloseCode::ProtocolError,
        reason: error.to_string(),
    };
    assert!(matches!(refused, ChannelError::Closed(closed) if closed == expected));
}

#[tokio::test]
async fn a_stream_may_have_a_narrower_bound() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut up, _down) = opened(&agent).await;
    up.write(Bytes::from_static(&[0, 0, 0, 101])).await.unwrap();
    let (_send, receive) = within(coordinator.accept_bi()).await.unwrap();
    let mut reader = FrameReader::bounded(receive, 100);
    assert!(matches!(
        within(reader.next::<FromAgent>()).await,
        Err(ChannelError::OverBound {
            bytes: 101,
            bytes_max: 100
        })
    ));
}

#[tokio::test]
async fn a_stream_that_ends_within_a_frame_is_an_error() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut up, _down) = opened(&agent).await;
    up.write(encode_frame(&heartbeat(1)).unwrap().slice(..5))
        .await
        .unwrap();
    up.finish();
    let (_to_agent, mut reader) = accepted(&coordinator).await;
    assert!(matches!(
        within(reader.next::<FromAgent>()).await,
        Err(ChannelError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof
    ));
}

#[tokio::test]
async fn an_artifacts_bytes_follow_its_answer() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut ask, mut file) = opened(&agent).await;
    ask.send(&heartbeat(1)).await.unwrap();
    let (mut serve, _) = accepted(&coordinator).await;
    let body = Bytes::from(vec![7; 3 << 20]);
    let sent = body.clone();
    let serving = tokio::spawn(async move {
        serve.send(&answer(1)).await.unwrap();
        serve.write(sent).await.unwrap();
        serve.finish();
    });
    assert_eq!(within(file.next()).await.unwrap(), Some(answer(1)));
    let mut received = Vec::new();
    while let Some(bytes) = within(file.next_bytes(1 << 20)).await.unwrap() {
        received.extend_from_slice(&bytes);
    }
    assert_eq!(received, body);
    serving.await.unwrap();
}

#[tokio::test]
async fn control_gets_through_while_artifacts_that_nobody_reads_fill_their_windows() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let (mut control, mut from_coordinator) = opened(&agent).await;
    control.send(&heartbeat(0)).await.unwrap();
    let (mut to_agent, _) = accepted(&coordinator).await;

    let mut unread = Vec::new();
    let mut filled = Vec::new();
    for seq in 1..=u64::from(ARTIFACT_STREAMS_MAX) {
        let (mut ask, file) = opened(&agent).await;
        ask.send(&heartbeat(seq)).await.unwrap();
        unread.push((ask, file));
        let (mut serve, _) = accepted(&coordinator).await;
        // As much as a stream's window holds: more would wait for the reader.
        within(serve.write(Bytes::from(vec![0; 1 << 20])))
            .await
            .unwrap();
        filled.push(serve);
    }
    within(to_agent.send(&answer(9))).await.unwrap();
    assert_eq!(
        within(from_coordinator.next()).await.unwrap(),
        Some(answer(9))
    );
}

#[tokio::test]
async fn a_datagram_over_the_bound_is_refused_and_one_at_the_bound_travels() {
    let fleet = Fleet::start("payments");
    let (agent, coordinator) = fleet.connected("node-4").await;
    let over = Bytes::from(vec![0; DATAGRAM_BYTES_MAX + 1]);
    assert!(matches!(
        send_encoded_datagram(&agent, over),
        Err(ChannelError::OverBound { .. })
    ));
    let full = Bytes::from(vec![1; DATAGRAM_BYTES_MAX]);
    send_encoded_datagram(&agent, full.clone()).unwrap();
    assert_eq!(within(coordinator.read_datagram()).await.unwrap(), full);
}
