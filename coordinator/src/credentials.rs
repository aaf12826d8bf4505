//! Makes the secrets of tokens. Only their hashes go further than the answer that shows them.

use ring::rand::{SecureRandom, SystemRandom};
use rollcall_transport::token::Credential;

/// Bytes of a token's id: told apart by eye, not secret.
const ID_BYTES: usize = 5;
/// Bytes of a secret: 160 bits, nothing to guess.
const SECRET_BYTES: usize = 20;

/// The operating system gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no randomness; no secret can be made")]
pub struct NoRandomness;

/// Fills `N` bytes with randomness of the system's generator.
///
/// # Errors
/// When it gives none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// A fresh id and secret.
///
/// # Errors
/// When the system gives no randomness.
pub fn new_credential() -> Result<Credential, NoRandomness> {
    let (id, secret) = (hex(&random::<ID_BYTES>()?), hex(&random::<SECRET_BYTES>()?));
    Credential::new(id, secret).map_err(|_| NoRandomness)
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_differ() {
        let (a, b) = (new_credential().unwrap(), new_credential().unwrap());
        assert_ne!(a.id(), b.id());
        assert_ne!(a.secret_hash(), b.secret_hash());
    }
}
