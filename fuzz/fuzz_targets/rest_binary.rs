//! Any body with buffers gives a request whose tensors hold what their shapes say, or a
//! message; written back, they are the same bytes. The first two bytes say how long the
//! JSON is, as the header would.
//!
//! Run: `cargo install cargo-fuzz && mkdir -p fuzz/corpus/rest_binary && RUSTC_BOOTSTRAP=1 cargo fuzz run
//! rest_binary fuzz/corpus/rest_binary fuzz/seeds/rest_binary` in the root.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rollcall_agent_core::oip::{raw, request};
use rollcall_agent_core::tensor::element_count;

fuzz_target!(|bytes: &[u8]| {
    let Some((length, body)) = bytes.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes(*length));
    match request::read(body, Some(length)) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(request) => {
            for tensor in request.inputs {
                assert_eq!(element_count(&tensor.shape), Some(tensor.data.len()));
                let mut buffer = Vec::new();
                raw::write(&tensor.data, &mut buffer).expect("elements of a body are short");
                // Numbers that are none are not equal to themselves: their bytes are.
                let again = raw::read("x", tensor.data.datatype(), &tensor.shape, &buffer);
                let mut twice = Vec::new();
                raw::write(&again.expect("it was written"), &mut twice).expect("as before");
                assert_eq!(twice, buffer);
            }
        }
    }
});
