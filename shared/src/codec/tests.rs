use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::assignment::{VersionRef, Withdrawal};
use crate::digest::Digest;
use crate::feedback::{Feedback, FeedbackItem};
use crate::histogram::Histogram;
use crate::ids::{Generation, ModelName, RolloutId};
use crate::limits::DATAGRAM_BYTES_MAX;
use crate::report::{
    CALIBRATION_BINS, CalibrationBin, ClassCounts, Counts, Gpu, Moments, Quality, ReadyState,
    Report, Resources, Role, SCORE_BINS, Segment, Series,
};
use crate::version::Version;
use crate::wire::{
    FromAgent, FromAgentReport, Heartbeat, Hello, Missing, PROTOCOL, PROTOCOL_QUALITY, Rehearsal,
    Rehearsed, ToAgent,
};

fn withdrawal() -> Withdrawal {
    Withdrawal {
        model: ModelName::new("digits").unwrap(),
        rollout: RolloutId(7),
        withdrawn: VersionRef {
            version: Version::new(2, 0, 0),
            digest: Digest::of(b"two"),
        },
        generation: Generation(12),
        serving: Some(VersionRef {
            version: Version::new(1, 0, 0),
            digest: Digest::of(b"one"),
        }),
    }
}

fn rehearsal() -> Rehearsal {
    Rehearsal {
        rehearsal: 57,
        as_if: withdrawal(),
    }
}

fn hello() -> FromAgent {
    FromAgent::Hello(Hello {
        protocol_min: 1,
        protocol: 1,
        software: "rollcall-agent 0.1.0".to_owned(),
        labels: BTreeMap::from([("zone".to_owned(), "eu-1".to_owned())]),
        models: vec![],
        held: vec![(ModelName::new("digits").unwrap(), Generation(12))],
        withdrawals: vec![withdrawal()],
        receipts: vec![],
        ready: vec![],
    })
}

fn latencies(micros: impl IntoIterator<Item = u64>) -> Histogram {
    let mut latency = Histogram::default();
    for micros in micros {
        latency.record(Duration::from_micros(micros));
    }
    latency
}

fn resources() -> Resources {
    Resources {
        cpu_percent: 12.5,
        memory_used: 1 << 30,
        memory_total: 8 << 30,
        process_memory: 100 << 20,
        process_cpu_percent: 3.25,
        disk_free: 5 << 30,
        disk_total: 50 << 30,
        cache_bytes: 4_096,
        gpus: vec![Gpu {
            name: "H200".to_owned(),
            utilization_percent: 40,
            memory_used: 1 << 33,
            memory_total: 1 << 37,
            temperature_celsius: Some(51),
            power_watts: Some(310.5),
        }],
    }
}

/// Something in every field, and not the same in two of them.
fn report() -> Report {
    let quality = Quality {
        scores: vec![0, 1, 2],
        named: BTreeMap::from([("cat".to_owned(), 3), ("other".to_owned(), 300)]),
        labelled: BTreeMap::from([(
            "cat".to_owned(),
            ClassCounts {
                predicted: 6,
                actual: 5,
                correct: 4,
            },
        )]),
        calibration: vec![CalibrationBin {
            count: 6,
            confidence: 5.5,
            correct: 4,
        }],
        kpis: BTreeMap::from([(
            "spend".to_owned(),
            Moments {
                count: 2,
                sum: 3.5,
                squares: 6.25,
            },
        )]),
        features: BTreeMap::from([("age".to_owned(), vec![8, 9])]),
    };
    let counts = Counts {
        requests: 7,
        errors: 2,
        timeouts: 1,
        fallbacks: 3,
        failed_keys: 2,
        latency: latencies([900, 1_000, 1_100, 25_000]),
        compared: 5,
        agreed: 4,
        shed: 6,
        quality,
    };
    Report {
        window: 300,
        duration_ms: 1_000,
        series: vec![Series {
            model: ModelName::new("digits").unwrap(),
            version: withdrawal().withdrawn,
            role: Role::Candidate,
            generation: Generation(12),
            counts: counts.clone(),
            segments: vec![Segment {
                name: "eu".to_owned(),
                counts,
            }],
        }],
        series_dropped: 9,
        resources: resources(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The same name and frame, a line each, as the golden files have them.
fn lines(frames: &[(&str, Bytes)]) -> String {
    frames
        .iter()
        .map(|(name, frame)| format!("{name} {}\n", hex(frame)))
        .collect()
}

#[test]
fn the_bytes_of_protocol_1_never_change() {
    let frames = [
        (
            "withdraw",
            encode_frame(&ToAgent::Withdraw(withdrawal())).unwrap(),
        ),
        ("hello", encode_frame(&hello()).unwrap()),
        (
            "heartbeat",
            encode_frame(&FromAgent::Heartbeat(Heartbeat {
                seq: 300,
                held: vec![(ModelName::new("digits").unwrap(), Generation(12))],
            }))
            .unwrap(),
        ),
        (
            "report",
            encode_frame(&FromAgentReport::new(report(), 1)).unwrap(),
        ),
    ];
    assert_eq!(
        lines(&frames),
        include_str!("golden-protocol-1.txt"),
        "a running fleet could not read this: append a variant instead"
    );
}

#[test]
fn the_bytes_that_protocol_2_added_never_change() {
    let rehearsed = |missing| {
        FromAgent::Rehearsed(Rehearsed {
            rehearsal: 57,
            model: ModelName::new("digits").unwrap(),
            held: Generation(11),
            serving: withdrawal().serving,
            missing,
        })
    };
    let missing = Missing {
        version: withdrawal().withdrawn,
        state: Some(ReadyState::Failed {
            reason: "no room".to_owned(),
            retrying: true,
        }),
    };
    let frames = [
        (
            "rehearse",
            encode_frame(&ToAgent::Rehearse(rehearsal())).unwrap(),
        ),
        ("rehearsed", encode_frame(&rehearsed(None)).unwrap()),
        (
            "rehearsed-missing",
            encode_frame(&rehearsed(Some(missing))).unwrap(),
        ),
    ];
    assert_eq!(
        lines(&frames),
        include_str!("golden-protocol-2.txt"),
        "a running fleet could not read this: append a variant instead"
    );
}

#[test]
fn the_bytes_that_protocol_3_added_never_change() {
    let feedback = Feedback {
        model: ModelName::new("digits").unwrap(),
        items: vec![
            FeedbackItem {
                id: "order-7".to_owned(),
                row: None,
                label: Some("cat".to_owned()),
                kpis: BTreeMap::new(),
            },
            FeedbackItem {
                id: "order-8".to_owned(),
                row: Some(300),
                label: None,
                kpis: BTreeMap::from([("spend".to_owned(), 12.5)]),
            },
        ],
    };
    let frames = [
        (
            "report",
            encode_frame(&FromAgentReport::new(report(), 3)).unwrap(),
        ),
        (
            "feedback",
            encode_frame(&ToAgent::Feedback(feedback.clone())).unwrap(),
        ),
    ];
    let read = take_frame(&mut BytesMut::from(&frames[1].1[..]));
    assert_eq!(read, Ok(Some(ToAgent::Feedback(feedback))));
    assert_eq!(
        lines(&frames),
        include_str!("golden-protocol-3.txt"),
        "a running fleet could not read this: append a variant instead"
    );
}

#[test]
fn a_report_is_what_it_was_whichever_protocol_it_comes_by_as_far_as_that_knows_it() {
    for protocol in 1..=PROTOCOL {
        let frame = encode_frame(&FromAgentReport::new(report(), protocol)).unwrap();
        let read: FromAgentReport = take_frame(&mut BytesMut::from(&frame[..]))
            .unwrap()
            .unwrap();
        let mut expected = report();
        if protocol < PROTOCOL_QUALITY {
            let series = &mut expected.series[0];
            series.segments.clear();
            series.counts.quality = Quality::default();
            // Nobody told failures apart by whom they hit.
            series.counts.failed_keys = 3;
        }
        assert_eq!(read.into_report(), expected);
    }
}

/// A candidate beside stable, each with ten classes and two segments, at 800 requests a second.
#[test]
fn a_typical_report_takes_less_than_a_kibibyte() {
    let counts = |requests: u64| Counts {
        requests,
        errors: requests / 200,
        failed_keys: requests / 250,
        // The middle four fifths of a lognormal are about this wide.
        latency: latencies((0..requests).map(|i| 900 + i * 2_000 / requests)),
        quality: Quality {
            scores: (0..SCORE_BINS as u64)
                .map(|bin| bin * requests / 200)
                .collect(),
            named: (0..10)
                .map(|class| (class.to_string(), requests / 10))
                .collect(),
            ..Quality::default()
        },
        ..Counts::default()
    };
    let series = |role, requests| Series {
        model: ModelName::new("fraud-detector").unwrap(),
        version: withdrawal().withdrawn,
        role,
        generation: Generation(1_234),
        counts: counts(requests),
        segments: [("eu", requests * 3 / 4), ("us", requests / 4)]
            .map(|(name, requests)| Segment {
                name: name.to_owned(),
                counts: counts(requests),
            })
            .into(),
    };
    let mut report = Report {
        window: 86_400,
        duration_ms: 1_003,
        series: vec![series(Role::Stable, 720), series(Role::Candidate, 80)],
        series_dropped: 0,
        resources: resources(),
    };
    let bytes = |report: &Report| {
        let sent = FromAgentReport::new(report.clone(), PROTOCOL);
        encode_frame(&sent).unwrap().len()
    };
    assert!(bytes(&report) < 1_024, "{} bytes", bytes(&report));
    // Labels of every class for all of it: still less than two packets.
    for series in &mut report.series {
        let counts = ClassCounts {
            predicted: 8,
            actual: 8,
            correct: 7,
        };
        let classes = (0..10).map(|class| (class.to_string(), counts));
        series.counts.quality.labelled = classes.collect();
        let bin = CalibrationBin {
            count: 5,
            confidence: 4.5,
            correct: 4,
        };
        series.counts.quality.calibration = vec![bin; CALIBRATION_BINS];
    }
    assert!(bytes(&report) < 2_048, "{} bytes", bytes(&report));
}

#[test]
fn a_withdrawal_or_rehearsal_of_the_longest_names_fits_a_datagram() {
    let mut withdrawal = withdrawal();
    withdrawal.model = ModelName::new("m".repeat(crate::limits::NAME_BYTES_MAX)).unwrap();
    withdrawal.rollout = RolloutId(u64::MAX);
    withdrawal.generation = Generation(u64::MAX);
    let rehearsal = Rehearsal {
        rehearsal: u64::MAX,
        as_if: withdrawal.clone(),
    };
    for message in [ToAgent::Withdraw(withdrawal), ToAgent::Rehearse(rehearsal)] {
        assert!(encode(&message).unwrap().len() <= DATAGRAM_BYTES_MAX);
    }
}

#[test]
fn a_frame_over_the_bound_is_refused_from_its_header_alone() {
    let mut buffer = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
    let refused = take_frame::<ToAgent>(&mut buffer);
    assert_eq!(
        refused,
        Err(CodecError::TooLarge {
            bytes: u32::MAX as usize
        })
    );
}

#[test]
fn a_list_that_announces_more_than_the_frame_holds_is_refused_cheaply() {
    // FromAgent::Heartbeat, seq 0, then a list of 2^40 entries.
    let body = [1, 0, 253, 0, 0, 0, 0, 0, 1, 0, 0];
    assert!(matches!(
        decode::<FromAgent>(&body),
        Err(CodecError::Malformed(_))
    ));
}

#[test]
fn bytes_after_the_message_are_refused() {
    let mut body = encode(&hello()).unwrap().to_vec();
    body.push(0);
    assert_eq!(
        decode::<FromAgent>(&body),
        Err(CodecError::TrailingBytes { bytes: 1 })
    );
}

/// Also those that read as floating-point numbers which are none, and signal it.
#[test]
fn a_digest_is_its_32_bytes_whatever_they_are() {
    for byte in 0..=u8::MAX {
        for exponent in [0x7f, 0xff] {
            let mut bytes = [byte; 32];
            bytes[6..8].copy_from_slice(&[0xf0, exponent]);
            bytes[14..16].copy_from_slice(&[0xf7, exponent]);
            let digest = Digest::from_bytes(bytes);
            let encoded = encode(&digest).unwrap();
            assert_eq!(encoded, bytes[..]);
            assert_eq!(decode::<Digest>(&encoded), Ok(digest));
        }
    }
}

proptest! {
    #[test]
    fn what_was_encoded_decodes_in_any_pieces(seq: u64, generation: u64, cut in 0usize..40) {
        let message = FromAgent::Heartbeat(Heartbeat {
            seq,
            held: vec![(ModelName::new("digits").unwrap(), Generation(generation))],
        });
        let frame = encode_frame(&message).unwrap();
        let cut = cut.min(frame.len() - 1);
        let mut buffer = BytesMut::from(&frame[..cut]);
        prop_assert_eq!(take_frame::<FromAgent>(&mut buffer), Ok(None));
        buffer.extend_from_slice(&frame[cut..]);
        prop_assert_eq!(take_frame::<FromAgent>(&mut buffer), Ok(Some(message)));
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn any_bytes_give_a_message_nothing_yet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = take_frame::<FromAgent>(&mut BytesMut::from(&bytes[..]));
        let _ = take_frame::<ToAgent>(&mut BytesMut::from(&bytes[..]));
        let _ = decode::<FromAgentReport>(&bytes);
        let _ = decode::<ToAgent>(&bytes);
        let _ = decode::<FromAgent>(&bytes);
    }
}
