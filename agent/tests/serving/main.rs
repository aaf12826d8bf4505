//! Promises of the serving path, over HTTP and gRPC, with routes set by hand.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

#[path = "../support/grpc.rs"]
mod port;
#[path = "../support/mod.rs"]
mod support;

mod arms;
mod counting;
mod engines;
mod grpc;
mod grpc_messages;
mod pages;
mod protocol;
mod refusals;
mod threads;
