//! What tests of `rollcall-sim`'s measurements share.

use std::process::Output;

use serde_json::Value;

/// What a measurement says with `-o json`, if it went well.
pub(crate) fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}
