//! `rollcall init`: a fleet in a fresh folder.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use rollcall_shared::ids::FleetName;
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use serde_json::json;

use super::CliError;
use super::output::Output;
use crate::config::{HTTPS_PORT, QUIC_PORT};
use crate::init::{InitOptions, init};

/// Make a fleet.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The data folder; must not exist, or be empty.
    #[arg(long, default_value = "rollcall-data")]
    dir: PathBuf,
    /// The fleet's name; part of every identity, never changed later.
    #[arg(long, default_value = "fleet")]
    fleet: FleetName,
    /// Where agents connect (UDP).
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([0u16; 8], QUIC_PORT)))]
    quic: SocketAddr,
    /// Where operators connect (TCP).
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from(([0u16; 8], HTTPS_PORT)))]
    https: SocketAddr,
    /// A name or address of this machine for the certificate; repeat for several.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
}

impl Init {
    pub(super) fn run(self, output: &Output) -> Result<(), CliError> {
        let options = InitOptions {
            folder: self.dir,
            fleet: self.fleet,
            quic: self.quic,
            https: self.https,
            hosts: self.hosts,
        };
        let made = init(&options, Clock::start(Timestamp::ZERO).now()).map_err(CliError::failed)?;
        let result = json!({
            "fleet": options.fleet,
            "config": made.config,
            "ca": made.ca,
            "url": made.url,
            "token": made.token.to_string(),
        });
        output.show(&result, |_| {
            format!(
                "Fleet {} is made in {}. The token below is shown this once.\n\n\
                 Run the coordinator:\n  rollcall serve --config {}\n\n\
                 Log in:\n  rollcall login {} --token {} --ca {}\n",
                options.fleet,
                options.folder.display(),
                made.config.display(),
                made.url,
                made.token,
                made.ca.display(),
            )
        })
    }
}
