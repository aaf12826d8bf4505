//! The Open Inference Protocol v2 as bytes: requests to tensors, and outputs to answers.
//!
//! Pure functions of whole bodies: whoever has a socket reads the body, bounds it and
//! takes its compression off, and gets tensors or an error that says what to send
//! instead. Nothing here knows a model: whether one takes the tensors is asked
//! later.
//!
//! | module | holds |
//! | --- | --- |
//! | [`request`] | the body of an inference request, JSON alone or with buffers after it |
//! | [`answer`] | the body of an answer, likewise |
//! | [`json`] | one tensor as JSON |
//! | [`raw`] | the elements of one tensor as a buffer |

pub mod answer;
pub mod json;
pub mod raw;
pub mod request;
