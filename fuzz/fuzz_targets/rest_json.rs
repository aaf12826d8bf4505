//! Any body in JSON gives a request whose tensors hold what their shapes say, or a
//! message; what was read survives being written as a buffer.
//!
//! Run: `cargo install cargo-fuzz && mkdir -p fuzz/corpus/rest_json && RUSTC_BOOTSTRAP=1 cargo fuzz run
//! rest_json fuzz/corpus/rest_json fuzz/seeds/rest_json` in the root.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rollcall_agent_core::oip::{raw, request};
use rollcall_agent_core::tensor::element_count;

fuzz_target!(|body: &[u8]| {
    match request::read(body, None) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(request) => {
            for tensor in request.inputs {
                assert_eq!(element_count(&tensor.shape), Some(tensor.data.len()));
                let mut buffer = Vec::new();
                raw::write(&tensor.data, &mut buffer).expect("elements of a body are short");
                assert_eq!(buffer.len(), raw::byte_len(&tensor.data));
                let again = raw::read("x", tensor.data.datatype(), &tensor.shape, &buffer);
                assert_eq!(again, Ok(tensor.data));
            }
        }
    }
});
