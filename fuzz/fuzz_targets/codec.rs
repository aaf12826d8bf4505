//! Any bytes give a frame, "incomplete" or a typed error; what was read writes
//! back to bytes that read the same.
//!
//! Run: `cargo install cargo-fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run codec`

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rollcall_shared::codec;
use rollcall_shared::wire::{
    ArtifactAnswer, ArtifactRequest, EnrollAnswer, EnrollRequest, FromAgent, FromAgentReport,
    ToAgent,
};

fn check<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    bytes: &[u8],
) {
    if let Ok(Some(message)) = codec::take_frame::<T>(&mut BytesMut::from(bytes)) {
        let again = codec::encode(&message).expect("what was read can be written");
        let read = codec::decode::<T>(&again).expect("what was written can be read");
        assert_eq!(codec::encode(&read), Ok(again));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<FromAgent>(bytes);
    check::<ToAgent>(bytes);
    check::<FromAgentReport>(bytes);
    check::<ArtifactRequest>(bytes);
    check::<ArtifactAnswer>(bytes);
    check::<EnrollRequest>(bytes);
    check::<EnrollAnswer>(bytes);
});
