//! How a node gets its identity: one request, one answer, on a connection of its own.
//!
//! The node makes its key, and recognises the coordinator by the fingerprint in
//! its token. The coordinator checks the token (the caller's business) and
//! answers with a certificate. A node that has a valid certificate may show it
//! to get the next one.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, Endpoint};
use rollcall_shared::digest::Digest;
use rollcall_shared::wire::{EnrollAnswer, EnrollRequest};

use crate::ca::CaCertificate;
use crate::channel::{ChannelError, FrameReader, FrameWriter, priority};
use crate::close::{CloseCode, Closed, close};
use crate::endpoint::{ConnectError, connect, enroll_config};
use crate::identity::{Identity, IdentityError};
use crate::tls::TlsError;
use crate::verifier::Trust;

/// Longest wait for the peer's part, on both sides. Answering takes a record in
/// the coordinator's journal.
pub const ENROLL_TIMEOUT: Duration = Duration::from_secs(15);

/// A request holds a token, a name, labels and a small CSR; who sends it is
/// nobody yet, so it gets no more room than [`rollcall_shared::limits`] lets it need.
const REQUEST_BYTES_MAX: usize = 96 << 10;

/// Why there was no enrolment.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The identity to renew is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no coordinator of the token's fleet at the address.
    #[error("cannot reach the fleet's coordinator")]
    Connect(#[from] ConnectError),
    /// The exchange broke off.
    #[error("the enrolment broke off: {0}")]
    Channel(#[from] ChannelError),
    /// The peer did not do its part in time.
    #[error("the peer took longer than {ENROLL_TIMEOUT:?}")]
    TimedOut,
    /// The peer left without a word.
    #[error("the peer finished without a message")]
    Silent,
    /// The answer holds another authority than the one that was pinned.
    #[error("the answer names another CA than the token")]
    OtherCa,
    /// The answer's CA certificate cannot be read.
    #[error("the answer's CA certificate is unusable")]
    Answer(#[from] IdentityError),
}

/// Asks the coordinator at `address` for an identity. `pin` is the fingerprint of
/// the fleet's CA, from the token; `renewing` a certificate that is still valid.
///
/// # Errors
/// When the coordinator is not of the pinned fleet, does not answer, or answers
/// with another CA. A refusal is an answer, not an error.
pub async fn enroll(
    endpoint: &Endpoint,
    address: SocketAddr,
    pin: Digest,
    request: &EnrollRequest,
    renewing: Option<&Identity>,
) -> Result<EnrollAnswer, EnrollError> {
    let config = enroll_config(Trust::Pin(pin), renewing)?;
    let connection = connect(endpoint, config, address).await?;
    let answer = tokio::time::timeout(ENROLL_TIMEOUT, ask(&connection, request))
        .await
        .map_err(|_| EnrollError::TimedOut)??;
    close(&connection, CloseCode::Normal, "");
    check_ca(&answer, pin)?;
    Ok(answer)
}

async fn ask(
    connection: &Connection,
    request: &EnrollRequest,
) -> Result<EnrollAnswer, EnrollError> {
    let (send, receive) = connection.open_bi().await.map_err(lost)?;
    let mut writer = FrameWriter::new(send, priority::CONTROL);
    writer.send(request).await?;
    writer.finish();
    let answer = FrameReader::new(receive).next().await?;
    answer.ok_or(EnrollError::Silent)
}

fn check_ca(answer: &EnrollAnswer, pin: Digest) -> Result<(), EnrollError> {
    match answer {
        EnrollAnswer::Enrolled { ca, .. } if CaCertificate::from_pem(ca)?.fingerprint() != pin => {
            Err(EnrollError::OtherCa)
        }
        EnrollAnswer::Enrolled { .. } | EnrollAnswer::Refused { .. } => Ok(()),
    }
}

/// Serves one enrolment on a connection that [`crate::admission`] let in: reads the
/// request, has `decide` answer it, and stays until the node has the answer.
///
/// # Errors
/// When the node sends nothing readable in time, or leaves early. If `decide` ran,
/// its decision may not have reached the node.
pub async fn serve_enrolment<F, Fut>(connection: &Connection, decide: F) -> Result<(), EnrollError>
where
    F: FnOnce(EnrollRequest) -> Fut,
    Fut: Future<Output = EnrollAnswer>,
{
    let (request, mut writer) = tokio::time::timeout(ENROLL_TIMEOUT, read_request(connection))
        .await
        .map_err(|_| EnrollError::TimedOut)
        .flatten()
        .inspect_err(|error| close(connection, CloseCode::ProtocolError, &error.to_string()))?;
    let answer = decide(request).await;
    writer.send(&answer).await?;
    writer.finish();
    // The node closes once it has read the answer; closing first could lose it.
    if tokio::time::timeout(ENROLL_TIMEOUT, connection.closed())
        .await
        .is_err()
    {
        close(connection, CloseCode::Slow, "the answer was not taken");
        return Err(EnrollError::TimedOut);
    }
    Ok(())
}

async fn read_request(
    connection: &Connection,
) -> Result<(EnrollRequest, FrameWriter), EnrollError> {
    let (send, receive) = connection.accept_bi().await.map_err(lost)?;
    let mut reader = FrameReader::bounded(receive, REQUEST_BYTES_MAX);
    let request = reader.next().await?.ok_or(EnrollError::Silent)?;
    Ok((request, FrameWriter::new(send, priority::CONTROL)))
}

fn lost(error: quinn::ConnectionError) -> EnrollError {
    EnrollError::Channel(Closed::from(error).into())
}
