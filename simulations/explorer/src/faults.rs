//! What can go wrong, how often, and how often it really did.
//!
//! All options of a run are drawn from its seed and can be printed. Each is off in a
//! good part of the runs: a fault that always rages hides the bugs of calm weather.

mod hazards;

use std::time::Duration;

use serde::Serialize;

use crate::seed::Draws;

pub use hazards::{Hazard, Hazards, parse as parse_hazards};

/// What a run is given from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// How many agents.
    pub agents: usize,
    /// How long faults rage, in simulated time.
    pub faults_for: Duration,
    /// A guard that is taken away on purpose.
    pub sabotage: Option<Sabotage>,
    /// What is left out of what the seed drew.
    pub without: Hazards,
    /// Whether lines of the trace are kept.
    pub trace: bool,
}

/// Guards that can be taken away, to show that the checkers notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sabotage {
    /// An agent's disk gives its state back without the withdrawals.
    AgentForgetsWithdrawalsOnRestart,
    /// The agent's disk says "synced" at once, and loses the last write in a crash.
    AgentPersistNotSynced,
    /// The journal says "synced" at once, and loses the last append in a crash.
    AppendNotSynced,
    /// Routes never let a lease end.
    LeaseIgnored,
    /// An old assignment is not recognised as old.
    OldGenerationsAccepted,
    /// What is promised to be durable first is sent first.
    SendBeforeAppend,
}

/// Probabilities and ranges of one run, all drawn from its seed. Rates are per
/// simulated minute; per node where a node is concerned.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the knobs'")]
pub struct Options {
    pub models: usize,
    pub loss: f64,
    pub duplicates: f64,
    pub delay_min: Duration,
    pub delay_max: Duration,
    pub replays: f64,
    pub partitions_per_minute: f64,
    pub one_way_share: f64,
    pub partition_max: Duration,
    pub queue_max: usize,
    pub agent_crashes_per_minute: f64,
    pub coordinator_crashes_per_minute: f64,
    pub crash_at_effect: f64,
    pub down_max: Duration,
    pub agent_pauses_per_minute: f64,
    pub coordinator_pauses_per_minute: f64,
    pub pause_max: Duration,
    pub drift_permille_max: f64,
    pub wall_step_max: Duration,
    pub old_backups: f64,
    pub state_losses: f64,
    pub prepare_failures: f64,
    pub prepare_refusals: f64,
    pub prepare_max: Duration,
    pub evictions: f64,
    pub sync_max: Duration,
    pub operations_per_minute: f64,
    pub bad_versions: f64,
    pub requests_per_second: f64,
    pub engine_troubles: f64,
    pub blackouts: f64,
    pub longer_plans: f64,
    pub repushes: f64,
    pub stale_words: f64,
    pub rehearsals: f64,
}

impl Options {
    /// The options of this seed, less what is left out.
    #[must_use]
    pub fn draw(seed: u64, without: Hazards) -> Self {
        let mut options = Self::drawn(seed);
        without.leave_out(&mut options);
        options
    }

    fn drawn(seed: u64) -> Self {
        let mut draws = Draws::child(seed, "options");
        let d = &mut draws;
        // What came later draws for itself, so that older seeds keep their options.
        let later = &mut Draws::child(seed, "options/later");
        let ms = Duration::from_millis;
        Self {
            models: 1 + d.below(2),
            loss: often(d, 0.6, 0.3),
            duplicates: often(d, 0.5, 0.2),
            delay_min: d.between(ms(1), ms(20)),
            delay_max: if d.chance(0.3) {
                d.between(ms(500), ms(3_000))
            } else {
                d.between(ms(20), ms(200))
            },
            replays: often(d, 0.5, 0.1),
            partitions_per_minute: often(d, 0.7, 2.0),
            one_way_share: d.unit(),
            partition_max: d.between(ms(2_000), ms(40_000)),
            queue_max: if d.chance(0.3) { 1 + d.below(3) } else { 64 },
            agent_crashes_per_minute: often(d, 0.6, 1.0),
            coordinator_crashes_per_minute: often(d, 0.6, 1.5),
            crash_at_effect: often(d, 0.4, 0.02),
            down_max: d.between(ms(200), ms(20_000)),
            agent_pauses_per_minute: often(d, 0.6, 1.0),
            coordinator_pauses_per_minute: often(d, 0.4, 0.6),
            pause_max: d.between(ms(2_000), ms(30_000)),
            drift_permille_max: often(d, 0.7, 10.0),
            wall_step_max: if d.chance(0.5) {
                d.between(ms(0), ms(3_600_000))
            } else {
                ms(0)
            },
            old_backups: often(d, 0.3, 0.5),
            state_losses: often(d, 0.3, 0.3),
            prepare_failures: often(d, 0.5, 0.4),
            prepare_refusals: often(d, 0.3, 0.1),
            prepare_max: d.between(ms(50), ms(8_000)),
            evictions: often(d, 0.5, 0.3),
            sync_max: if d.chance(0.3) {
                d.between(ms(100), ms(1_500))
            } else {
                ms(10)
            },
            operations_per_minute: d.real(5.0, 30.0),
            bad_versions: d.real(0.0, 0.5),
            requests_per_second: d.real(20.0, 200.0),
            engine_troubles: often(later, 0.6, 0.5),
            blackouts: if later.chance(0.15) { 1.0 } else { 0.0 },
            longer_plans: often(later, 0.4, 1.0),
            repushes: often(later, 0.4, 0.5),
            stale_words: often(later, 0.3, 0.5),
            rehearsals: often(later, 0.6, 0.5),
        }
    }

    /// Everything heals; what is left is an ordinary day.
    pub fn heal(&mut self) {
        let ms = Duration::from_millis;
        for knob in [
            &mut self.loss,
            &mut self.duplicates,
            &mut self.replays,
            &mut self.partitions_per_minute,
            &mut self.agent_crashes_per_minute,
            &mut self.coordinator_crashes_per_minute,
            &mut self.crash_at_effect,
            &mut self.agent_pauses_per_minute,
            &mut self.coordinator_pauses_per_minute,
            &mut self.old_backups,
            &mut self.state_losses,
            &mut self.prepare_failures,
            &mut self.prepare_refusals,
            &mut self.evictions,
            &mut self.operations_per_minute,
            &mut self.bad_versions,
            &mut self.engine_troubles,
            &mut self.repushes,
            &mut self.stale_words,
        ] {
            *knob = 0.0;
        }
        self.delay_max = self.delay_min + ms(20);
        self.prepare_max = ms(200);
        self.sync_max = ms(10);
        self.queue_max = 64;
    }
}

/// Zero in some runs, else up to `max`.
fn often(draws: &mut Draws, how_often: f64, max: f64) -> f64 {
    if draws.chance(how_often) {
        draws.real(0.0, max)
    } else {
        0.0
    }
}

macro_rules! knobs {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Something that can happen in a run and is counted when it really did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Knob { $($(#[$doc])* $name),+ }

        impl Knob {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

knobs! {
    /// A datagram was lost.
    DatagramLost,
    /// A datagram arrived twice.
    DatagramDuplicated,
    /// A datagram overtook another.
    DatagramReordered,
    /// A frame waited for a retransmission.
    FrameRetransmitted,
    /// A node was cut off in both directions.
    PartitionedBothWays,
    /// A node's packets did not reach the coordinator.
    PartitionedUp,
    /// The coordinator's packets did not reach a node.
    PartitionedDown,
    /// A stream's delivery stood still until a partition healed.
    FrameHeldByPartition,
    /// One side gave a connection up while the other still believed in it.
    HalfOpen,
    /// A new coordinator process did not know an agent's connection and said so.
    Reset,
    /// An agent connected again before the coordinator gave its last connection up.
    Superseded,
    /// A handshake failed.
    HandshakeFailed,
    /// An agent was too slow and was disconnected.
    QueueOverflowed,
    /// An old message was delivered again.
    OldMessageReplayed,
    /// A stranger spoke for a coordinator that had forgotten a withdrawal.
    StaleWord,
    /// An agent was killed.
    AgentKilled,
    /// An agent was killed between two effects.
    AgentKilledBetweenEffects,
    /// An agent was killed during a sync.
    AgentKilledDuringSync,
    /// The coordinator was killed.
    CoordinatorKilled,
    /// The coordinator was killed between two effects.
    CoordinatorKilledBetweenEffects,
    /// The coordinator was killed during a sync.
    CoordinatorKilledDuringSync,
    /// A write that was not yet synced was lost in a crash.
    UnsyncedWriteLost,
    /// An agent stood still.
    AgentPaused,
    /// An agent stood still for longer than its candidate's lease.
    AgentPausedBeyondLease,
    /// The coordinator stood still.
    CoordinatorPaused,
    /// The coordinator's machine was gone for a long time.
    Blackout,
    /// An agent's clock ran fast or slow.
    ClockDrifted,
    /// The wall clock jumped while the coordinator was down.
    WallClockStepped,
    /// The coordinator came back from an old backup and had lost records.
    OldBackupRestored,
    /// An agent lost its disk.
    AgentStateLost,
    /// A version could not be prepared this time.
    PrepareFailed,
    /// A version can never be prepared on a node.
    PrepareRefused,
    /// A candidate failed a request, and stable answered it.
    FellBack,
    /// A candidate failed so often that it got no more requests for a while.
    BreakerOpened,
    /// A candidate that had failed answered again.
    BreakerClosed,
    /// A version's number was pushed again with other content.
    Repushed,
    /// An unpinned version left a cache.
    Evicted,
    /// A rollout was started.
    RolloutStarted,
    /// A candidate answered a request.
    CandidateAnswered,
    /// A candidate got copies.
    CandidateShadowed,
    /// A version was promoted.
    Promoted,
    /// An operator withdrew a candidate.
    WithdrawnByOperator,
    /// The judge withdrew a candidate.
    WithdrawnByJudge,
    /// A gate was rejected.
    WithdrawnByRejection,
    /// A stable version was withdrawn.
    StableWithdrawn,
    /// A coordinator learned from an agent what it had lost.
    KnowledgeAdopted,
    /// A rollback was settled with a node fenced.
    SettledWithFencedNode,
    /// A node said what a withdrawal would come to.
    Rehearsed,
    /// A lease ended on a node that had not heard of the withdrawal.
    LeaseExpired,
    /// A withdrawal was carried out while the effects of something older waited.
    FencedAheadOfEffects,
    /// A node was quarantined.
    Quarantined,
    /// A rollout without a full stage ended.
    RolloutFinished,
    /// A command was refused.
    CommandRefused,
}

/// How often each knob fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired([u64; Knob::ALL.len()]);

impl Default for Fired {
    fn default() -> Self {
        Self([0; Knob::ALL.len()])
    }
}

impl Fired {
    /// Counts one.
    pub fn hit(&mut self, knob: Knob) {
        self.0[knob as usize] += 1;
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Self) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(mine, theirs)| *mine += theirs);
    }

    /// Every knob with its count.
    pub fn counts(&self) -> impl Iterator<Item = (Knob, u64)> + '_ {
        Knob::ALL.iter().map(|knob| (*knob, self.0[*knob as usize]))
    }
}
