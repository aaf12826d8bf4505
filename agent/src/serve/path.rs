//! What a path names, or a refusal in JSON where it cannot be read.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::answer::HttpError;

/// The names in a path.
#[derive(Clone, Debug)]
pub struct Named<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(why) => Err(HttpError::new(
                why.status(),
                format!("the path cannot be read: {}", why.body_text()),
            )),
        }
    }
}
