//! The coordinator's connections: what it sends and what reaches it.

use std::time::Duration;

use rollcall_coordinator_core::effect::{DisconnectCause, Urgent};
use rollcall_coordinator_core::input::Input;
use rollcall_shared::codec;
use rollcall_shared::ids::{ConnectionId, NodeId};
use rollcall_shared::wire::{FromAgent, FromAgentReport, ToAgent};

use crate::faults::Knob;
use crate::network::{Arrived, Direction, LinkId, Overflow, decode_frame};
use crate::schedule::Event;
use crate::world::World;

impl World {
    pub(super) fn broadcast(&mut self, urgent: &Urgent) {
        if let Urgent::Withdraw(withdrawal) = urgent {
            self.checkers.generations.broadcast(withdrawal);
        }
        let links = self.network.links.iter();
        let links: Vec<LinkId> = links
            .filter(|(_, link)| link.announced && link.is_open(Direction::Down))
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            let world = (&self.options, &mut self.schedule, &mut self.fired);
            self.network.send_urgent(link, urgent, world);
        }
    }

    pub(super) fn send_to_agent(
        &mut self,
        name: &NodeId,
        connection: ConnectionId,
        message: &ToAgent,
    ) {
        let link = LinkId(connection.0);
        let Some(node) = self.open_link(name, link) else {
            return;
        };
        self.checkers
            .generations
            .sent(node, message, &mut self.checkers.verdicts);
        let verdicts = &mut self.checkers.verdicts;
        let withdrawn = &self.checkers.withdrawn;
        match message {
            ToAgent::Welcome(welcome) => {
                withdrawn.sent_snapshot(node, &welcome.snapshot, verdicts);
            }
            ToAgent::Sync(snapshot) => withdrawn.sent_snapshot(node, snapshot, verdicts),
            ToAgent::Assign(assignment) => withdrawn.sent(node, assignment, verdicts),
            _ => {}
        }
        let world = (&self.options, &mut self.schedule, &mut self.fired);
        if matches!(message, ToAgent::HeartbeatAnswer(_)) {
            self.network
                .send_datagram(link, Direction::Down, message, world);
        } else if self
            .network
            .send_control(link, Direction::Down, message, world)
            == Err(Overflow)
        {
            self.fired.hit(Knob::QueueOverflowed);
            self.network
                .close(link, Direction::Down, &self.options, &mut self.schedule);
            self.coordinator_lost_link(node, link, true);
        }
    }

    fn open_link(&self, name: &NodeId, link: LinkId) -> Option<usize> {
        let open = self
            .network
            .links
            .get(&link)
            .filter(|link| link.is_open(Direction::Down))?;
        (self.agents[open.node].name == *name).then_some(open.node)
    }

    pub(super) fn disconnect(
        &mut self,
        name: &NodeId,
        connection: ConnectionId,
        cause: &DisconnectCause,
    ) {
        let link = LinkId(connection.0);
        let Some(node) = self.open_link(name, link) else {
            return;
        };
        if let DisconnectCause::Refused(why) = cause {
            self.trace
                .line(self.schedule.now(), name, format_args!("is refused: {why}"));
        }
        self.network
            .close(link, Direction::Down, &self.options, &mut self.schedule);
        self.coordinator_lost_link(node, link, true);
    }

    /// The coordinator's side of a connection is gone.
    pub(crate) fn coordinator_lost_link(&mut self, node: usize, link: LinkId, announced: bool) {
        if announced {
            let connection = ConnectionId(link.0);
            let node = self.agents[node].name.clone();
            self.coordinator
                .inbox
                .push_back(Input::AgentDisconnected { connection, node });
            // The loop that executes effects now comes back to it; else somebody has to begin.
            if self.coordinator.effects.is_empty() {
                self.schedule.after(
                    Duration::ZERO,
                    Event::CoordinatorWakes {
                        epoch: self.coordinator.epoch,
                    },
                );
            }
        }
    }

    pub(crate) fn arrive_at_coordinator(&mut self, node: usize, id: LinkId, arrived: &Arrived) {
        let name = self.agents[node].name.clone();
        let connection = ConnectionId(id.0);
        let Some(link) = self.network.links.get_mut(&id) else {
            return;
        };
        if let Arrived::Report(bytes) = arrived {
            let Some(report) = decode_frame(bytes).map(FromAgentReport::into_report) else {
                return;
            };
            if link.announced {
                self.tell_coordinator(Input::Reported {
                    connection,
                    node: name,
                    report,
                });
            }
            return;
        }
        let message = match arrived {
            Arrived::Control(bytes) | Arrived::Report(bytes) => decode_frame::<FromAgent>(bytes),
            Arrived::Datagram(bytes) => codec::decode(bytes).ok(),
        };
        match message {
            Some(FromAgent::Hello(hello)) if !link.announced => {
                link.announced = true;
                self.tell_coordinator(Input::AgentConnected {
                    connection,
                    node: name,
                    hello,
                });
            }
            Some(message) if link.announced => {
                self.tell_coordinator(Input::FromAgent {
                    connection,
                    node: name,
                    message,
                });
            }
            // A datagram that overtook its Hello.
            Some(_) => {}
            None => self.checkers.verdicts.broken(
                7,
                Some(node),
                "its message could not be read".to_owned(),
            ),
        }
    }
}
