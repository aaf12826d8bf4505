//! The agent on a serving node: keeps models ready, answers requests, does what the
//! coordinator assigns, and takes a candidate away the moment it hears so.
//!
//! | module | holds |
//! | --- | --- |
//! | [`driver`] | the one task that owns the core and executes its effects |
//! | [`link`], [`fetch`], [`reporter`] | the coordinator: conversation, files, reports |
//! | [`cache`], [`engine`], [`prepare`], [`preparer`], [`models`] | from files to a model in memory |
//! | [`progress`] | how far that is, for those who look on |
//! | [`routes`], [`serve`], [`execute`], [`batch`], [`shadow`] | from a request to its answer |
//! | [`recorder`], [`metrics`], [`resources`] | what is counted and measured |
//! | [`config`], [`mod@run`], `cli` | configuration, assembly, command line |
//!
//! Architecture invariants:
//!
//! 1. Requests read an atomic pointer and never wait for the driver, the link, the disk
//!    or the shadow.
//! 2. Stable, candidate and shadow share no queue and no thread.
//! 3. Only the driver changes routes, and only as the core says.

pub mod batch;
pub mod cache;
mod cli;
pub mod config;
pub mod driver;
pub mod engine;
pub mod execute;
pub mod fetch;
pub mod link;
pub mod metrics;
pub mod models;
pub mod prepare;
pub mod preparer;
pub mod progress;
pub mod recorder;
pub mod reporter;
pub mod resources;
pub mod routes;
pub mod run;
pub mod serve;
pub mod shadow;

use std::ffi::OsString;
use std::process::ExitCode;

pub use run::{RunError, run};
pub use serve::threads::Listeners;

/// Keeps the pages that a model frees, and gives each thread pages of its own. The system's
/// allocator hands a large tensor back with every run: the page faults and the map's lock that
/// this costs are all threads', stable's too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the command line `rollcall-agent`; the first argument is the program's own name.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    cli::main_with(args)
}
