//! Limits, held to a window of the latest requests after every interval, as users of Argo
//! Rollouts (`AnalysisTemplate`: a query over the last minutes, a success condition such as
//! `result[0] >= 0.95`) and Flagger (`thresholdRange` of success rate and duration) write them:
//! more than 5 % errors and more than twice stable's, or a p95 of more than 1.5 times stable's.
//!
//! Their windows are minutes, chosen for the traffic at hand; here a window is the fewest latest
//! intervals that hold [`SAMPLES_MIN`] candidate requests, and without as many there is no look.
//! One failed look is enough (Argo's `failureLimit` is 0 unless set).

use std::collections::VecDeque;

use rollcall_shared::histogram::edge;
use rollcall_shared::report::Counts;

use super::super::draws::Interval;
use super::super::{Judge, Setting, Word};
use super::Sums;

/// Candidate requests in a window.
const SAMPLES_MIN: u64 = 200;
const ERRORS_MAX: f64 = 0.05;
const ERRORS_MULTIPLE: f64 = 2.0;
const P95_MULTIPLE: f64 = 1.5;

/// See the module.
#[derive(Debug)]
pub(in super::super) struct Thresholds {
    agreement_min: Option<f64>,
    window: VecDeque<(Counts, Counts)>,
    candidate: Sums,
    stable: Sums,
}

impl Thresholds {
    pub(in super::super) fn new(setting: &Setting) -> Self {
        Self {
            agreement_min: setting.agreement_min,
            window: VecDeque::new(),
            candidate: Sums::default(),
            stable: Sums::default(),
        }
    }
}

impl Judge for Thresholds {
    fn see(&mut self, interval: &Interval) {
        let fleet = &interval.fleet;
        let counts = (fleet.candidate.counts.clone(), fleet.stable.counts.clone());
        self.candidate.add(&counts.0);
        self.stable.add(&counts.1);
        self.window.push_back(counts);
        while let Some((candidate, stable)) = self.window.front()
            && self.candidate.requests - candidate.requests >= SAMPLES_MIN
        {
            self.candidate.take(candidate);
            self.stable.take(stable);
            self.window.pop_front();
        }
    }

    fn verdict(&mut self) -> Word {
        let Self {
            candidate, stable, ..
        } = self;
        if candidate.requests < SAMPLES_MIN {
            return Word::Hold;
        }
        let errors = candidate.error_rate() > ERRORS_MAX.max(ERRORS_MULTIPLE * stable.error_rate());
        let p95 = |sums: &Sums| edge(sums.p95().0).as_secs_f64();
        let slow = p95(candidate) > P95_MULTIPLE * p95(stable);
        let disagrees = self
            .agreement_min
            .is_some_and(|least| (candidate.agreed as f64) < least * candidate.compared as f64);
        if errors || slow || disagrees {
            Word::Fail
        } else {
            Word::Hold
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(requests: u64, errors: u64) -> Interval {
        let mut interval = Interval::default();
        for (arm, requests, errors) in [
            (&mut interval.fleet.candidate, requests, errors),
            (&mut interval.fleet.stable, 9 * requests, 0),
        ] {
            arm.counts.requests = requests;
            arm.counts.errors = errors;
            arm.counts.latency.add(100, requests - errors);
        }
        interval
    }

    #[test]
    fn the_window_forgets_and_the_limit_is_the_wider_one() {
        let setting = Setting {
            alpha: 0.001,
            agreement_min: None,
        };
        let mut judge = Thresholds::new(&setting);
        judge.see(&interval(100, 9));
        assert_eq!(judge.verdict(), Word::Hold, "too few");
        judge.see(&interval(100, 0));
        assert_eq!(judge.verdict(), Word::Hold, "4.5 %");
        judge.see(&interval(100, 0));
        judge.see(&interval(100, 9));
        assert_eq!(judge.window.len(), 2);
        assert_eq!(judge.verdict(), Word::Hold);
        judge.see(&interval(100, 9));
        assert_eq!(judge.verdict(), Word::Fail, "9 %");
    }
}
