//! When what strikes whom. Each node's weather has draws of its own.

use std::time::Duration;

use crate::faults::Knob;
use crate::network::Direction;
use crate::schedule::{Event, FaultKind};
use crate::seed::Draws;
use crate::world::World;

/// The longest.
const BLACKOUT: Duration = Duration::from_secs(160);

impl World {
    /// Whether phase 2 has begun.
    pub(crate) const fn is_healed(&self) -> bool {
        self.healed
    }

    /// Plans the first of each kind of fault.
    pub(crate) fn forecast(&mut self, calm: Duration) {
        for node in 0..self.agents.len() {
            for kind in [FaultKind::Crash, FaultKind::Pause, FaultKind::Partition] {
                self.plan_agent_fault(node, kind, calm);
            }
        }
        for kind in [FaultKind::Crash, FaultKind::Pause] {
            self.plan_coordinator_fault(kind, calm);
        }
        let mut draws = Draws::child(self.seed, "blackout");
        if draws.chance(self.options.blackouts) {
            let begins = calm + self.setup.faults_for.mul_f64(draws.real(0.0, 0.3));
            let lasts = draws.between(BLACKOUT / 2, BLACKOUT);
            self.schedule.after(begins, Event::Blackout { over: false });
            let ends = Event::Blackout { over: true };
            self.schedule.after(begins + lasts, ends);
        }
    }

    /// The coordinator's machine is gone until another one takes its place: long enough for
    /// every agent's reconnects to have slowed down.
    pub(crate) fn blackout(&mut self, over: bool) {
        if self.healed {
            return;
        }
        self.coordinator.dark = !over;
        if over {
            self.start_coordinator();
        } else {
            self.fired.hit(Knob::Blackout);
            self.crash_coordinator();
        }
    }

    fn plan_agent_fault(&mut self, node: usize, kind: FaultKind, calm: Duration) {
        let rate = match kind {
            FaultKind::Crash => self.options.agent_crashes_per_minute,
            FaultKind::Pause => self.options.agent_pauses_per_minute,
            FaultKind::Partition => self.options.partitions_per_minute,
        };
        if rate > 0.0 {
            let wait = calm + self.agents[node].draws.next_of(rate);
            self.schedule.after(wait, Event::AgentFault { node, kind });
        }
    }

    fn plan_coordinator_fault(&mut self, kind: FaultKind, calm: Duration) {
        let rate = match kind {
            FaultKind::Crash => self.options.coordinator_crashes_per_minute,
            FaultKind::Pause => self.options.coordinator_pauses_per_minute,
            FaultKind::Partition => 0.0,
        };
        if rate > 0.0 {
            let wait = calm + self.coordinator.draws.next_of(rate);
            self.schedule.after(wait, Event::CoordinatorFault { kind });
        }
    }

    pub(crate) fn agent_fault(&mut self, node: usize, kind: FaultKind) {
        if !self.healed {
            self.strike_agent(node, kind);
            self.plan_agent_fault(node, kind, Duration::ZERO);
        }
    }

    pub(crate) fn coordinator_fault(&mut self, kind: FaultKind) {
        if !self.healed {
            self.strike_coordinator(kind);
            self.plan_coordinator_fault(kind, Duration::ZERO);
        }
    }

    /// Cuts a node off in one direction or both. A partition's number says which.
    pub(crate) fn partition(&mut self, node: usize) {
        let draws = &mut self.agents[node].draws;
        let one_way = draws.chance(self.options.one_way_share);
        let up = draws.chance(0.5);
        let lasts = draws.between(Duration::from_millis(200), self.options.partition_max);
        let (directions, knob): (&[Direction], _) = match (one_way, up) {
            (false, _) => (&Direction::BOTH, Knob::PartitionedBothWays),
            (true, true) => (&[Direction::Up], Knob::PartitionedUp),
            (true, false) => (&[Direction::Down], Knob::PartitionedDown),
        };
        let mut partition = 0;
        for direction in directions {
            self.network.block(node, *direction);
            partition |= 1 << (*direction as u64);
        }
        self.fired.hit(knob);
        let name = &self.agents[node].name;
        self.trace.line(
            self.schedule.now(),
            name,
            format_args!("{knob:?} for {lasts:?}"),
        );
        self.schedule
            .after(lasts, Event::PartitionHeals { node, partition });
    }

    pub(crate) fn partition_heals(&mut self, node: usize, partition: u64) {
        for direction in Direction::BOTH {
            if partition & (1 << (direction as u64)) != 0 {
                self.network.unblock(node, direction);
            }
        }
        let name = &self.agents[node].name;
        self.trace.line(
            self.schedule.now(),
            name,
            format_args!("can be reached again"),
        );
    }

    /// Ends all faults at once; what is down or stopped comes back.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.options.heal();
        for node in 0..self.agents.len() {
            for direction in Direction::BOTH {
                while self.network.is_blocked(node, direction) {
                    self.network.unblock(node, direction);
                }
            }
            let epoch = self.agents[node].epoch;
            self.resume_agent(node, epoch);
            if self.agents[node].refused {
                // What an operator does with a node whose engine was repaired.
                self.crash_agent(node);
            }
            self.start_agent(node);
        }
        self.coordinator.dark = false;
        self.wake_coordinator();
        self.start_coordinator();
    }
}
