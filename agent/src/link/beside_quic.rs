//! Withdrawals and rehearsals that come beside QUIC, and the answers to them.
//!
//! A withdrawal goes from the socket to the core and into the routes in one call. Its answer goes back the
//! same way, at this node's place among those of the whole fleet. If the coordinator
//! repeats itself the answer was lost, or it is far away: then the answer goes by the
//! control stream, which loses nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::Connection;
use rollcall_agent_core::input::Input;
use rollcall_shared::codec;
use rollcall_shared::wire::{Beacon, FromAgent, ToAgent};
use rollcall_transport::beacon::{Beacons, End, Listening, NoKey, Sealer};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::{ConnectionNumber, Fence, LinkEvent};

/// Answers begin after this part of their time, when all beacons are out.
const BEACONS_FIRST: f64 = 0.1;

/// The longest that an answer waits, whatever a beacon says.
const ANSWER_AFTER_MAX: Duration = Duration::from_secs(1);

/// The way beside QUIC of one connection.
pub(super) struct BesideQuic {
    beacons: Beacons,
    sealer: Sealer,
    asked: Arc<Mutex<Option<Asked>>>,
    packet: Vec<u8>,
    _listening: Listening,
}

/// What the newest beacon wants answered.
#[derive(Debug)]
struct Asked {
    message: ToAgent,
    answer_at: Instant,
    /// One beacon, one answer beside QUIC.
    is_answered: bool,
}

impl Asked {
    /// Notes a beacon that came at `now`.
    fn note(asked: &mut Option<Self>, message: &ToAgent, now: Instant, answer_after: Duration) {
        match asked {
            Some(before) if before.message == *message => before.is_answered = true,
            Some(_) | None => {
                *asked = Some(Self {
                    message: message.clone(),
                    answer_at: now + answer_after,
                    is_answered: false,
                });
            }
        }
    }

    /// When to send this answer beside QUIC; `None`: it goes by the stream.
    fn answer(asked: &mut Option<Self>, message: &FromAgent) -> Option<Instant> {
        let asked = asked.as_mut().filter(|asked| !asked.is_answered)?;
        let fits = match (&asked.message, message) {
            (ToAgent::Withdraw(asked), FromAgent::Receipt(receipt)) => {
                asked.model == receipt.model && asked.generation <= receipt.generation
            }
            (ToAgent::Rehearse(asked), FromAgent::Rehearsed(rehearsed)) => {
                asked.rehearsal == rehearsed.rehearsal
            }
            _ => false,
        };
        asked.is_answered = fits;
        fits.then_some(asked.answer_at)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds this lock can leave a half-made change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BesideQuic {
    /// Listens as long as it lives.
    pub(super) fn listen(
        beacons: &Beacons,
        connection: &Connection,
        number: ConnectionNumber,
        events: &mpsc::Sender<LinkEvent>,
        fence: Fence,
    ) -> Result<Self, NoKey> {
        let asked = Arc::new(Mutex::new(None));
        let (events, note) = (events.clone(), Arc::clone(&asked));
        let deliver = move |body: &[u8], place: f64| {
            let Ok(Beacon {
                answer_within_ms,
                message,
            }) = codec::decode(body)
            else {
                tracing::debug!("a beacon that cannot be read");
                return;
            };
            let within = Duration::from_millis(u64::from(answer_within_ms)).min(ANSWER_AFTER_MAX);
            let answer_after = within.mul_f64(BEACONS_FIRST + (1.0 - BEACONS_FIRST) * place);
            // Noted first: the answer may be there before the call is back.
            let note = || Asked::note(&mut lock(&note), &message, Instant::now(), answer_after);
            match &message {
                ToAgent::Withdraw(withdrawal) => {
                    note();
                    fence.take(withdrawal.clone());
                }
                ToAgent::Rehearse(rehearsal) => {
                    note();
                    let input = Input::Rehearse(rehearsal.clone());
                    // No room: the driver is behind, and the next beacon or the stream finds it.
                    let _ = events.try_send(LinkEvent {
                        connection: number,
                        input,
                    });
                }
                ToAgent::Welcome(_)
                | ToAgent::Refused { .. }
                | ToAgent::Assign(_)
                | ToAgent::Sync(_)
                | ToAgent::Feedback(_)
                | ToAgent::HeartbeatAnswer(_) => {
                    tracing::debug!("a message that needs the stream came as a beacon");
                }
            }
        };
        Ok(Self {
            beacons: beacons.clone(),
            sealer: Sealer::new(connection, End::Agent)?,
            asked,
            packet: Vec::new(),
            _listening: beacons.listen(connection, End::Agent, deliver)?,
        })
    }

    /// Sends a message that answers a beacon, at its time. Whether it was one.
    pub(super) async fn answer(&mut self, connection: &Connection, message: &FromAgent) -> bool {
        let at = { Asked::answer(&mut lock(&self.asked), message) };
        let (Some(at), Ok(body)) = (at, codec::encode(message)) else {
            return false;
        };
        tokio::time::sleep_until(at).await;
        let sent = self
            .beacons
            .send(connection, &self.sealer, &body, &mut self.packet);
        sent.await.is_ok()
    }
}
