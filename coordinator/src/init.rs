//! Makes a fleet: its authority, the coordinator's identity, the key that signs
//! manifests, the journal with the first token, and a configuration with comments.
//!
//! The configuration is written last: a folder without one was not finished.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rollcall_coordinator_core::input::{Actor, Role, TokenKind};
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::FleetName;
use rollcall_shared::time::Timestamp;
use rollcall_transport::ca::FleetCa;
use rollcall_transport::identity::IdentityError;
use rollcall_transport::token::OperatorToken;

use crate::config::{Config, Layout};
use crate::credentials::{NoRandomness, hex, new_credential, random};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{Journal, JournalError};

/// What to make.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The data folder; must not exist, or be empty.
    pub folder: PathBuf,
    /// The fleet's name.
    pub fleet: FleetName,
    /// Where agents connect.
    pub quic: SocketAddr,
    /// Where operators connect.
    pub https: SocketAddr,
    /// DNS names and addresses for the certificate, besides localhost.
    pub hosts: Vec<String>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Initialized {
    /// The configuration file.
    pub config: PathBuf,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// Where operators log in.
    pub url: String,
    /// The first token, with every role but approvers'. Shown once, stored nowhere.
    pub token: OperatorToken,
}

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The folder is in use.
    #[error(
        "{} is not empty: a fleet is made once. Choose another --dir, or serve the one that is there",
        folder.display()
    )]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// The disk failed.
    #[error("{} cannot be written: {source}", path.display())]
    Io {
        /// What was written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No certificate could be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No secret could be made.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Makes a fleet in a fresh folder.
///
/// # Errors
/// When the folder is in use or cannot be written, or a host cannot stand in a certificate.
pub fn init(options: &InitOptions, now: Timestamp) -> Result<Initialized, InitError> {
    let folder = &options.folder;
    let layout = Layout::new(folder.clone());
    make_folder(folder)?;
    let ca = FleetCa::generate(&options.fleet, now)?;
    let identity = ca.issue_server(&host_names(options), now)?;
    write(&layout.ca_certificate(), 0o644, ca.certificate_pem())?;
    write(&layout.ca_key(), 0o600, &ca.key_pem())?;
    write(&layout.certificate(), 0o644, identity.chain_pem())?;
    write(&layout.key(), 0o600, identity.key_pem())?;
    write(
        &layout.registry_key(),
        0o600,
        &format!("{}\n", hex(&random::<32>()?)),
    )?;
    let token = first_token(folder, now)?;
    write(&layout.config(), 0o644, &config_text(options))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| InitError::Io {
            path: folder.clone(),
            source,
        })?;
    Ok(Initialized {
        config: layout.config(),
        ca: layout.ca_certificate(),
        url: format!("https://{}", reachable(options)),
        token,
    })
}

fn make_folder(folder: &Path) -> Result<(), InitError> {
    let io = |source| InitError::Io {
        path: folder.to_owned(),
        source,
    };
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(InitError::NotEmpty {
                folder: folder.to_owned(),
            }),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io),
        Err(error) => Err(io(error)),
    }
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), InitError> {
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| InitError::Io {
        path: path.to_owned(),
        source,
    })
}

fn first_token(folder: &Path, now: Timestamp) -> Result<OperatorToken, InitError> {
    let credential = new_credential()?;
    let record = Record {
        seq: 1,
        at: now,
        actor: Actor::System,
        event: Event::TokenCreated {
            id: credential.id().to_owned(),
            secret_hash: credential.secret_hash(),
            kind: TokenKind::Operator {
                roles: [Role::Viewer, Role::Operator, Role::Promoter, Role::Admin].into(),
            },
            name: "admin".to_owned(),
            expires_at: None,
        },
        previous: Digest::of(b""),
    };
    SqliteJournal::open(folder)?.append(&[record])?;
    Ok(OperatorToken { credential })
}

fn host_names(options: &InitOptions) -> Vec<String> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let listened = [options.quic.ip(), options.https.ip()];
    let listened = listened
        .iter()
        .filter(|ip| !ip.is_unspecified())
        .map(ToString::to_string);
    for host in listened.chain(options.hosts.iter().cloned()) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// Where an operator on this machine, or at the first `--host`, reaches the coordinator.
fn reachable(options: &InitOptions) -> String {
    let port = options.https.port();
    match options.hosts.first() {
        Some(host) if host.contains(':') => format!("[{host}]:{port}"),
        Some(host) => format!("{host}:{port}"),
        None if options.https.ip().is_unspecified() => format!("localhost:{port}"),
        None => options.https.to_string(),
    }
}

fn config_text(options: &InitOptions) -> String {
    let defaults = Config::of(options.fleet.clone(), PathBuf::from("."));
    format!(
        "# The coordinator of fleet {fleet}. Unset fields have the defaults that are shown.\n\
         fleet = \"{fleet}\"\n\n\
         # Journal, keys and blobs; relative to this file's folder.\n\
         # data_dir = \".\"\n\n\
         # Agents connect here (QUIC over UDP).\n\
         quic_listen = \"{quic}\"\n\
         # Operators connect here (HTTPS over TCP).\n\
         https_listen = \"{https}\"\n\n\
         # How often agents say that they live: at most 1s, for two must fit in the shortest lease.\n\
         # heartbeat_every = \"1s\"\n\
         # How long agents measure before they report.\n\
         # report_every = \"5s\"\n\n\
         # Largest file of a version, in bytes.\n\
         # blob_bytes_max = {blob_bytes_max}\n\
         # Files that agents may fetch at the same time; others wait.\n\
         # artifact_streams_max = {artifact_streams_max}\n\n\
         # \"text\" or \"json\", and which lines (a tracing filter).\n\
         # log_format = \"text\"\n\
         # log_filter = \"info\"\n",
        fleet = options.fleet,
        quic = options.quic,
        https = options.https,
        blob_bytes_max = defaults.blob_bytes_max,
        artifact_streams_max = defaults.artifact_streams_max,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn options(folder: &Path) -> InitOptions {
        InitOptions {
            folder: folder.join("fleet"),
            fleet: FleetName::new("payments").unwrap(),
            quic: "127.0.0.1:7700".parse().unwrap(),
            https: "0.0.0.0:7701".parse().unwrap(),
            hosts: vec!["rollcall.example".to_owned()],
        }
    }

    #[test]
    fn the_configuration_that_is_written_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let made = init(&options(folder.path()), Timestamp::from_nanos(1)).unwrap();
        let config = Config::read(&made.config).unwrap();
        assert_eq!(config.fleet.as_str(), "payments");
        assert_eq!(config.https_listen.port(), 7701);
        assert_eq!(made.url, "https://rollcall.example:7701");
        // The defaults in the comments are the defaults.
        let text = fs::read_to_string(&made.config).unwrap();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(field) if field.contains(" = ") => format!("{field}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        fs::write(&made.config, uncommented).unwrap();
        let explicit = Config::read(&made.config).unwrap();
        assert_eq!(
            Config {
                data_dir: config.data_dir.clone(),
                ..explicit
            },
            config
        );
    }

    #[test]
    fn secrets_are_readable_by_their_owner_only_and_the_token_is_stored_as_a_hash() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let made = init(&options, Timestamp::from_nanos(1)).unwrap();
        let layout = Layout::new(options.folder.clone());
        for path in [layout.ca_key(), layout.key(), layout.registry_key()] {
            assert_eq!(
                fs::metadata(path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let stored = SqliteJournal::open(&options.folder)
            .unwrap()
            .records(1, 10)
            .unwrap();
        let secret = made.token.to_string();
        let secret = secret.rsplit('.').next().unwrap();
        assert_eq!(stored.len(), 1);
        assert!(!stored[0].body.contains(secret));
    }

    #[test]
    fn a_folder_in_use_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        init(&options, Timestamp::from_nanos(1)).unwrap();
        let before = fs::read(options.folder.join("ca.pem")).unwrap();
        let again = init(&options, Timestamp::from_nanos(2)).unwrap_err();
        assert!(matches!(again, InitError::NotEmpty { .. }));
        assert_eq!(fs::read(options.folder.join("ca.pem")).unwrap(), before);
    }
}
