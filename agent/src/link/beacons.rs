//! Withdrawals and rehearsals that come beside QUIC: from the socket to the driver in one step.

use quinn::Connection;
use rollcall_agent_core::input::Input;
use rollcall_shared::codec;
use rollcall_shared::wire::{Beacon, ToAgent};
use rollcall_transport::beacon::{Beacons, Listening};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant};

use super::{ConnectionNumber, LinkEvent};

/// Until when the answer to the last beacon waits for its place among those of the fleet.
pub(super) type AnswerAfter = watch::Receiver<Instant>;

/// The longest that an answer waits, whatever a beacon says.
const ANSWER_AFTER_MAX: Duration = Duration::from_secs(1);

/// Listens as long as the returned guard lives. `None`: the connection has no key for
/// beacons, and the stream carries everything.
pub(super) fn listen(
    beacons: &Beacons,
    connection: &Connection,
    number: ConnectionNumber,
    events: &mpsc::Sender<LinkEvent>,
) -> Option<(Listening, AnswerAfter)> {
    let (answer_after, when) = watch::channel(Instant::now());
    let events = events.clone();
    let deliver = move |body: &[u8], place: f64| {
        let beacon = match codec::decode::<Beacon>(body) {
            Ok(beacon) => beacon,
            Err(error) => {
                tracing::debug!(%error, "a beacon cannot be read");
                return;
            }
        };
        let input = match beacon.message {
            ToAgent::Withdraw(withdrawal) => Input::Withdraw(withdrawal),
            ToAgent::Rehearse(rehearsal) => Input::Rehearse(rehearsal),
            ToAgent::Welcome(_)
            | ToAgent::Refused { .. }
            | ToAgent::Assign(_)
            | ToAgent::Sync(_)
            | ToAgent::HeartbeatAnswer(_) => {
                tracing::debug!("a message that needs the stream came as a beacon");
                return;
            }
        };
        let within = Duration::from_millis(u64::from(beacon.answer_within_ms));
        answer_after.send_replace(Instant::now() + within.min(ANSWER_AFTER_MAX).mul_f64(place));
        // No room: the driver is behind, and the next beacon or the stream finds it.
        let _ = events.try_send(LinkEvent {
            connection: number,
            input,
        });
    };
    match beacons.listen(connection, deliver) {
        Ok(listening) => Some((listening, when)),
        Err(error) => {
            tracing::warn!(%error, "withdrawals come by the stream only");
            None
        }
    }
}
