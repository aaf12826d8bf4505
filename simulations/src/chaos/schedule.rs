//! What goes wrong when: drawn from the seed before anything runs.
//!
//! Rounds: in each every kind of fault comes once, in an order of its own, so that a short
//! run sees many kinds and a long one sees them in many neighbourhoods.

use std::fmt;
use std::time::Duration;

use crate::relay::Weather;
use crate::seed::Draws;

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts; a repair comes on top.
    pub lasts: Duration,
    /// What happens.
    pub fault: Fault,
}

/// What can go wrong. Nodes by index.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// `kill -9`, and a start.
    KillCoordinator,
    /// `SIGSTOP`, and `SIGCONT`.
    StopCoordinator,
    /// `kill -9`, and a start.
    KillAgent(usize),
    /// `SIGSTOP` for longer than a lease, and `SIGCONT`.
    StopAgent(usize),
    /// Nothing passes.
    CutLink(usize),
    /// Nothing from the node passes.
    CutToCoordinator(usize),
    /// Nothing to the node passes.
    CutToAgent(usize),
    /// Packets are lost, late, out of order and doubled.
    BadWeather(usize, Weather),
    /// The coordinator sees the node at another port from now on.
    Rebind(usize),
    /// The node's disk is full.
    FillAgentDisk(usize),
    /// The coordinator's disk is full.
    FillCoordinatorDisk,
    /// `kill -9`, bits flipped or bytes cut in the node's index, and a start.
    DamageIndex(usize, Damage),
    /// `kill -9`, bits flipped or bytes cut in the node's saved state, and a start.
    DamageState(usize, Damage),
    /// `kill -9`, bits flipped or bytes cut in the journal's file or its log, a start that
    /// may be refused, and the file put back.
    DamageJournal(JournalFile, Damage),
    /// `kill -9`, a damaged snapshot beside the journal, and a start.
    DamageSnapshot,
    /// `kill -9`, and a start with another clock since boot.
    StepBootClock(usize, u32),
    /// `kill -9`, and a start with a wall clock that is behind what the journal has seen.
    StepWallClock(u32),
    /// A certificate that ends while the node runs.
    ExpireCertificate(usize),
    /// The coordinator's folder is put back to what it was when this began.
    RestoreBackup,
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Bits are flipped; otherwise the end is cut off.
    pub flips: bool,
    /// Decides where.
    pub seed: u64,
}

/// A file of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalFile {
    /// The database.
    Database,
    /// Its write-ahead log.
    Log,
}

impl Fault {
    /// Its kind, as the table names it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::KillCoordinator => "kill -9 coordinator",
            Self::StopCoordinator => "stop coordinator",
            Self::KillAgent(_) => "kill -9 agent",
            Self::StopAgent(_) => "stop agent",
            Self::CutLink(_) => "cut link",
            Self::CutToCoordinator(_) => "cut link to coordinator",
            Self::CutToAgent(_) => "cut link to agent",
            Self::BadWeather(..) => "bad weather",
            Self::Rebind(_) => "NAT rebinding",
            Self::FillAgentDisk(_) => "agent's disk full",
            Self::FillCoordinatorDisk => "coordinator's disk full",
            Self::DamageIndex(..) => "agent's index damaged",
            Self::DamageState(..) => "agent's state damaged",
            Self::DamageJournal(JournalFile::Database, _) => "journal damaged",
            Self::DamageJournal(JournalFile::Log, _) => "journal's log damaged",
            Self::DamageSnapshot => "snapshot damaged",
            Self::StepBootClock(..) => "boot clock stepped",
            Self::StepWallClock(_) => "wall clock stepped back",
            Self::ExpireCertificate(_) => "certificate expired",
            Self::RestoreBackup => "old backup restored",
        }
    }

    const fn node(&self) -> Option<usize> {
        match self {
            Self::KillAgent(node)
            | Self::StopAgent(node)
            | Self::CutLink(node)
            | Self::CutToCoordinator(node)
            | Self::CutToAgent(node)
            | Self::BadWeather(node, _)
            | Self::Rebind(node)
            | Self::FillAgentDisk(node)
            | Self::DamageIndex(node, _)
            | Self::DamageState(node, _)
            | Self::StepBootClock(node, _)
            | Self::ExpireCertificate(node) => Some(*node),
            Self::KillCoordinator
            | Self::StopCoordinator
            | Self::FillCoordinatorDisk
            | Self::DamageJournal(..)
            | Self::DamageSnapshot
            | Self::StepWallClock(_)
            | Self::RestoreBackup => None,
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:>6.1} s  {}", self.fault.kind())?;
        if let Some(node) = self.fault.node() {
            write!(f, " of node-{}", node + 1)?;
        }
        if let Fault::BadWeather(_, weather) = &self.fault {
            write!(
                f,
                " ({} \u{2030} lost, {} + {} ms, {} \u{2030} overtaken, {} \u{2030} doubled)",
                weather.loss_permille,
                weather.delay.as_millis(),
                weather.jitter.as_millis(),
                weather.reorder_permille,
                weather.duplicate_permille
            )?;
        }
        if let Fault::StepBootClock(_, seconds) | Fault::StepWallClock(seconds) = &self.fault {
            write!(f, " by {seconds} s")?;
        }
        if let Fault::DamageIndex(_, damage)
        | Fault::DamageState(_, damage)
        | Fault::DamageJournal(_, damage) = &self.fault
        {
            let how = if damage.flips { "bits flipped" } else { "cut" };
            write!(f, " ({how})")?;
        }
        write!(f, ", {lasts:.1} s")
    }
}

/// Everything that goes wrong within `during`. Short outages are shorter than `lease`, long
/// ones longer.
#[must_use]
pub fn draw(seed: u64, during: Duration, nodes: usize, lease: Duration) -> Vec<Planned> {
    let mut draws = Draws::child(seed, "chaos");
    let mut planned = Vec::new();
    let mut at = Duration::from_secs(1);
    loop {
        let mut round: Vec<usize> = (0..KINDS).collect();
        // Fisher and Yates.
        for last in (1..round.len()).rev() {
            round.swap(last, draws.below(last + 1));
        }
        for kind in round {
            let node = draws.below(nodes);
            let (fault, lasts) = one(kind, node, lease, &mut draws);
            if at + lasts > during {
                return planned;
            }
            planned.push(Planned { at, lasts, fault });
            at += draws.between(Duration::from_millis(1_200), Duration::from_millis(3_000));
        }
    }
}

const KINDS: usize = 20;

fn one(kind: usize, node: usize, lease: Duration, draws: &mut Draws) -> (Fault, Duration) {
    let short = draws.between(Duration::from_millis(100), lease);
    let long = draws.between(lease.mul_f64(1.2), lease.mul_f64(2.5));
    let either = if draws.chance(0.5) { short } else { long };
    let damage = Damage {
        flips: draws.chance(0.5),
        seed: draws.number(),
    };
    let step_s = 60 + u32::try_from(draws.below(3_600)).unwrap_or(0);
    match kind {
        0 => (Fault::KillCoordinator, either),
        1 => (Fault::StopCoordinator, either),
        2 => (Fault::KillAgent(node), short),
        3 => (Fault::StopAgent(node), long),
        4 => (Fault::CutLink(node), long),
        5 => (Fault::CutToCoordinator(node), either),
        6 => (Fault::CutToAgent(node), either),
        7 => (Fault::BadWeather(node, weather(draws)), long),
        8 => (Fault::Rebind(node), Duration::ZERO),
        9 => (Fault::FillAgentDisk(node), long),
        10 => (Fault::FillCoordinatorDisk, either),
        11 => (Fault::DamageIndex(node, damage), Duration::ZERO),
        12 => (Fault::DamageState(node, damage), Duration::ZERO),
        13 => (Fault::DamageJournal(JournalFile::Database, damage), short),
        14 => (Fault::DamageJournal(JournalFile::Log, damage), short),
        15 => (Fault::DamageSnapshot, Duration::ZERO),
        16 => (Fault::StepBootClock(node, step_s), Duration::ZERO),
        17 => (Fault::StepWallClock(step_s), Duration::ZERO),
        18 => (Fault::ExpireCertificate(node), long),
        _ => (Fault::RestoreBackup, long),
    }
}

fn weather(draws: &mut Draws) -> Weather {
    let mut permille = |max: usize| u32::try_from(draws.below(max)).unwrap_or(0);
    let (loss_permille, reorder_permille, duplicate_permille) =
        (permille(250), permille(300), permille(300));
    Weather {
        loss_permille,
        delay: draws.between(Duration::ZERO, Duration::from_millis(100)),
        jitter: draws.between(Duration::ZERO, Duration::from_millis(50)),
        reorder_permille,
        duplicate_permille,
        ..Weather::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn a_seed_decides_the_whole_schedule() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(draw(1, hour, 5, LEASE), draw(1, hour, 5, LEASE));
        assert_ne!(draw(1, hour, 5, LEASE), draw(2, hour, 5, LEASE));
    }

    #[test]
    fn every_kind_comes_once_a_round_and_nothing_lasts_beyond_the_end() {
        let minute = Duration::from_secs(100);
        let planned = draw(7, minute, 5, LEASE);
        let kinds: std::collections::BTreeSet<_> =
            planned.iter().map(|planned| planned.fault.kind()).collect();
        assert_eq!(kinds.len(), KINDS);
        assert!(planned.iter().all(|p| p.at + p.lasts <= minute));
    }
}
