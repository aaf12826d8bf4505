//! `POST /rollcall/v1/feedback`: what came of answers that this node gave.
//!
//! One item or an array of them:
//!
//! ```json
//! [{"id": "order-7", "label": 3, "kpis": {"spend": 12.5}}, {"id": "order-8", "row": 1, "label": "spam"}]
//! ```
//!
//! `id` is the request's, as its answer says it; `row` is needed where an answer has several.
//! The answer counts what became of the items: an id that nobody here knows is no error,
//! since another node may know it, or it came too late. See [`recorder::feedback`](crate::recorder::feedback).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use rollcall_shared::feedback::{FeedbackItem, check_items};

use super::App;
use super::answer::HttpError;
use super::predict::parsed;
use crate::recorder::feedback::Joined;

/// A list of as many items as may come at once, with long ids, takes less. Larger: 413.
const BODY_BYTES_MAX: usize = 4 << 20;

/// `POST /rollcall/v1/feedback`
///
/// # Errors
/// 400 when an item makes no sense; then none was counted.
pub async fn feedback(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Joined>, HttpError> {
    let (parts, body) = request.into_parts();
    let recorder = Arc::clone(app.inference.routes().recorder());
    let count = move |bytes: &[u8]| match parse(bytes) {
        Ok(items) => Ok(recorder.join(None, &items)),
        Err(why) => Err(HttpError::new(StatusCode::BAD_REQUEST, why)),
    };
    let (joined, _room) = parsed(&app, &parts.headers, body, BODY_BYTES_MAX, count).await?;
    Ok(Json(joined))
}

fn parse(body: &[u8]) -> Result<Vec<FeedbackItem>, String> {
    let is_list = body.trim_ascii_start().starts_with(b"[");
    let items = if is_list {
        serde_json::from_slice(body)
    } else {
        serde_json::from_slice(body).map(|item| vec![item])
    };
    let items: Vec<FeedbackItem> = items.map_err(|error| {
        format!(
            "the body is no feedback: {error}. Send {{\"id\": REQUEST_ID, \"label\": CLASS, \
             \"kpis\": {{NAME: NUMBER}}}}, or an array of such"
        )
    })?;
    check_items(&items)?;
    Ok(items)
}
