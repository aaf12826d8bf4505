//! What this process saw of a live rollout's current stage.
//!
//! Counts add up over the stage, and stand beside that in windows of one check each: what
//! goes wrong late in a long watch would drown in the good hours before it. The judge holds
//! the stage and the last [`RECENT_CHECKS`] windows together to the same limits.

use std::collections::VecDeque;
use std::time::Duration;

use rollcall_shared::report::Counts;
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::Verdict;

/// How many checks' worth of evidence is recent. Few, so that a breach is seen soon; several,
/// so that `min_requests` come together.
pub(crate) const RECENT_CHECKS: u32 = 5;

/// Requests of the candidate and of stable in the same time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) candidate: Counts,
    pub(crate) stable: Counts,
}

/// Evidence and clocks of one stage.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// Since the stage began, or this process.
    pub(crate) stage: Seen,
    /// When each window began; the oldest first. At most [`RECENT_CHECKS`] and the one under way.
    windows: VecDeque<(Timestamp, Seen)>,
    check_every: Duration,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) stepped_at: Timestamp,
    pub(crate) wake_at: Timestamp,
}

impl Seen {
    fn merge(&mut self, other: &Self) {
        self.candidate.merge(&other.candidate);
        self.stable.merge(&other.stable);
    }
}

impl Trial {
    /// To be looked at at once.
    pub(crate) fn new(check_every: Duration, now: Timestamp) -> Self {
        Self {
            stage: Seen::default(),
            windows: VecDeque::new(),
            check_every,
            verdict: None,
            stepped_at: now,
            wake_at: now,
        }
    }

    pub(crate) fn see(&mut self, seen: &Seen, now: Timestamp) {
        self.stage.merge(seen);
        let under_way = self
            .windows
            .back()
            .is_some_and(|(began, _)| now < *began + self.check_every);
        if !under_way {
            let horizon = self.check_every * RECENT_CHECKS;
            self.windows.retain(|(began, _)| now < *began + horizon);
            self.windows.push_back((now, Seen::default()));
        }
        if let Some((_, window)) = self.windows.back_mut() {
            window.merge(seen);
        }
    }

    /// The windows that began within the last checks, together.
    pub(crate) fn recent(&self, now: Timestamp) -> Seen {
        let horizon = self.check_every * RECENT_CHECKS;
        let mut recent = Seen::default();
        for (began, window) in &self.windows {
            if now < *began + horizon {
                recent.merge(window);
            }
        }
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::fixtures::{good, seconds};

    fn one() -> Seen {
        Seen {
            candidate: good(1),
            stable: good(2),
        }
    }

    #[test]
    fn a_stage_adds_up_and_its_windows_pass() {
        let mut trial = Trial::new(Duration::from_secs(1), seconds(0));
        for at in 0..100 {
            trial.see(&one(), seconds(at));
        }
        assert_eq!(trial.stage.candidate.requests, 100);
        let recent = |at| trial.recent(seconds(at)).candidate.requests;
        assert_eq!((recent(99), recent(100), recent(103)), (5, 4, 1));
        assert_eq!(recent(104), 0);
        assert!(trial.windows.len() <= 1 + RECENT_CHECKS as usize);
    }

    #[test]
    fn what_is_seen_within_one_check_is_one_window() {
        let mut trial = Trial::new(Duration::from_secs(60), seconds(0));
        for at in 0..60 {
            trial.see(&one(), seconds(at));
        }
        assert_eq!(trial.windows.len(), 1);
        assert_eq!(trial.recent(seconds(60)).stable.requests, 120);
    }
}
