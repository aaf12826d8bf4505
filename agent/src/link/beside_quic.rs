//! Withdrawals that come beside QUIC, and the answers to them.
//!
//! A beacon goes from the socket to the driver in one step. Its receipt goes back the
//! same way, at this node's place among those of the whole fleet. If the coordinator
//! repeats itself the receipt was lost, or it is far away: from then on receipts go by
//! the control stream, which loses nothing.

use std::sync::{Arc, Mutex, PoisonError};

use quinn::Connection;
use rollcall_agent_core::input::Input;
use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::codec;
use rollcall_shared::report::Receipt;
use rollcall_shared::wire::{Beacon, FromAgent, ToAgent};
use rollcall_transport::beacon::{Beacons, End, Listening, NoKey, Sealer};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};

use super::{ConnectionNumber, LinkEvent};

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
    withdrawal: Withdrawal,
    answer_at: Instant,
    /// One beacon, one answer beside QUIC.
    is_answered: bool,
}

impl Asked {
    /// Notes a beacon that came at `now`.
    fn note(
        asked: &mut Option<Self>,
        withdrawal: Withdrawal,
        now: Instant,
        answer_after: Duration,
    ) {
        match asked {
            Some(before) if before.withdrawal == withdrawal => before.is_answered = true,
            Some(_) | None => {
                *asked = Some(Self {
                    withdrawal,
                    answer_at: now + answer_after,
                    is_answered: false,
                });
            }
        }
    }

    /// When to answer beside QUIC with this receipt; `None`: it goes by the stream.
    fn answer(asked: &mut Option<Self>, receipt: &Receipt) -> Option<Instant> {
        let asked = asked.as_mut().filter(|asked| {
            !asked.is_answered
                && asked.withdrawal.model == receipt.model
                && asked.withdrawal.generation <= receipt.generation
        })?;
        asked.is_answered = true;
        Some(asked.answer_at)
    }
}

impl BesideQuic {
    /// Listens as long as it lives.
    pub(super) fn listen(
        beacons: &Beacons,
        connection: &Connection,
        number: ConnectionNumber,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<Self, NoKey> {
        let asked = Arc::new(Mutex::new(None));
        let (events, note) = (events.clone(), Arc::clone(&asked));
        let deliver = move |body: &[u8], place: f64| {
            let Ok(Beacon {
                answer_within_ms,
                message: ToAgent::Withdraw(withdrawal),
            }) = codec::decode(body)
            else {
                tracing::debug!("a beacon that is no withdrawal");
                return;
            };
            let within = Duration::from_millis(u64::from(answer_within_ms)).min(ANSWER_AFTER_MAX);
            let mut asked = note.lock().unwrap_or_else(PoisonError::into_inner);
            Asked::note(
                &mut asked,
                withdrawal.clone(),
                Instant::now(),
                within.mul_f64(place),
            );
            // No room: the driver is behind, and the next beacon or the stream finds it.
            let _ = events.try_send(LinkEvent {
                connection: number,
                input: Input::Withdraw(withdrawal),
            });
        };
        Ok(Self {
            beacons: beacons.clone(),
            sealer: Sealer::new(connection, End::Agent)?,
            asked,
            packet: Vec::new(),
            _listening: beacons.listen(connection, End::Agent, deliver)?,
        })
    }

    /// Sends a receipt that answers a beacon, at its time. Whether it was one.
    pub(super) async fn answer(&mut self, connection: &Connection, message: &FromAgent) -> bool {
        let FromAgent::Receipt(receipt) = message else {
            return false;
        };
        let at = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            Asked::answer(&mut asked, receipt)
        };
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
