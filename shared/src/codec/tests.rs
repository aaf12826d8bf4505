use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::assignment::{VersionRef, Withdrawal};
use crate::digest::Digest;
use crate::ids::{Generation, ModelName, RolloutId};
use crate::limits::DATAGRAM_BYTES_MAX;
use crate::report::ReadyState;
use crate::version::Version;
use crate::wire::{
    FromAgent, FromAgentReport, Heartbeat, Hello, Missing, Rehearsal, Rehearsed, ToAgent,
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
