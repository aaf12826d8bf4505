//! The coordinator's shell and the operators' CLI.
//!
//! The core decides; here are its sockets, its disk, its clock, and the commands.
//!
//! | module | does |
//! | --- | --- |
//! | [`serve`] | opens a data folder and serves until told to stop |
//! | [`driver`] | the one task that owns the core: inputs in, effects out, in order |
//! | [`journal`] | the one durable log, which is also the audit log |
//! | [`artifacts`], [`onnx`] | blobs by digest; what a push must know of a model file |
//! | [`quic_server`] | the agents' door |
//! | [`http`] | the operators' door |
//! | [`metrics`] | what Prometheus reads |
//! | [`config`], [`init`], [`credentials`] | a data folder: what it holds and how it is made |
//! | [`cli`] | every `rollcall` command |

pub mod artifacts;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod driver;
pub mod http;
pub mod init;
pub mod journal;
pub mod metrics;
pub mod onnx;
pub mod quic_server;
pub mod serve;

pub use cli::main_with;
pub use serve::{ServeError, Sockets, run};
